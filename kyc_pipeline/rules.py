"""Thresholds and lists of codes that Python, SQL and the documentation share.

SQL files refer to them as `{low_n}`, in queries and in headers; the loader fills in :data:`SQL_PARAMETERS`.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from kyc_pipeline.vocabulary import Anomaly, Outcome

LOW_N: Final = 30
"""Sample size below which a rate is marked `low_n`."""
Z_95: Final = 1.959964
"""Normal quantile of two-sided 95% intervals."""

RECENT_DAYS: Final = 28
"""Days that the warehouse's warnings cover, so that old anomalies do not warn forever."""
BASELINE_DAYS: Final = 28
"""Days before a day that form the baseline of its confidences."""
DRIFT_MIN_CHECKS: Final = 200
"""Checks needed on the day and in its baseline; with fewer, the drift level is `insufficient`."""
PSI_MODERATE: Final = 0.1
PSI_LARGE: Final = 0.25
"""Population stability index (PSI) at which drift becomes moderate or large."""

REJECTED_ROWS: Final = 5
REJECTED_SHARE: Final = 0.1
"""A day has many rejections from this number of rejected rows, if they are also this share of its rows."""
ISO_OFFSET_SECONDS: Final = 1
"""Difference from which ISO text and epoch disagree. A smaller one is only a difference in precision."""

UNEXPECTED_FIELDS: Final = (Anomaly.UNKNOWN_FIELD, Anomaly.DUPLICATE_FIELD, Anomaly.TYPE_MISMATCH)
UNEXPECTED_TYPES: Final = (Anomaly.UNKNOWN_TYPE,)
"""Kinds of contract drift that are a warning, because they mean that the API has changed."""


def has_many_rejections(rejected: int, received: int) -> bool:
    """Whether a day has so many rejected rows that it is a warning."""
    return rejected >= REJECTED_ROWS and rejected / received >= REJECTED_SHARE


def _literals(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


SQL_PARAMETERS: Final[Mapping[str, str]] = {
    "low_n": str(LOW_N),
    "z_95": str(Z_95),
    "recent_days": str(RECENT_DAYS),
    "baseline_days": str(BASELINE_DAYS),
    "drift_min_checks": str(DRIFT_MIN_CHECKS),
    "psi_moderate": str(PSI_MODERATE),
    "psi_large": str(PSI_LARGE),
    "rejected_rows": str(REJECTED_ROWS),
    "rejected_share": str(REJECTED_SHARE),
    "rejected_percent": f"{REJECTED_SHARE:.0%}",
    "iso_offset_seconds": str(ISO_OFFSET_SECONDS),
    "outcomes": _literals(Outcome),
    "unexpected_kinds": _literals((*UNEXPECTED_FIELDS, *UNEXPECTED_TYPES)),
}
"""Parameter → its text in SQL files."""
