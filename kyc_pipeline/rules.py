"""Thresholds and lists of codes that Python, SQL and the documentation share.

SQL files refer to them as `{low_n}`, in queries and in headers; the loader fills in :data:`SQL_PARAMETERS`.
"""

from collections.abc import Iterable
from typing import Final

from kyc_pipeline.vocabulary import (
    COMPANY_NAME_TAG,
    COMPANY_TAG,
    SUBJECT_TAGS,
    UNDECIDED,
    WITHOUT_RESPONSE,
    Anomaly,
    Outcome,
)

LOW_N: Final = 30
"""Sample size below which a rate is marked `low_n`."""
Z_95: Final = 1.959964
"""Normal quantile of two-sided 95% intervals."""
Z_99: Final = 2.326348
"""Normal quantile that one of a hundred values exceeds."""

RECENT_DAYS: Final = 28
"""Days that the warehouse's warnings cover, so that old anomalies do not warn forever."""
BASELINE_DAYS: Final = 28
"""Days before a day that form the baseline of its confidences."""
DRIFT_MIN_CHECKS: Final = 200
"""Checks needed to measure drift: on a day (or the days that stand in for it), and in its baseline."""
PSI_MODERATE: Final = 0.1
PSI_LARGE: Final = 0.25
"""Population stability index (PSI) at which drift becomes moderate or large."""
PSI_SPARSE: Final = 30
"""Expected checks of a bin, on the smaller side, below which its part in the noise of the PSI is exact."""

ALARM_RATE: Final = 0.01
"""Chance of any false alarm in a week, over all series of a board."""
ALARM_WINDOWS: Final = (1, 2, 4, 8)
"""Lengths, in weeks, of what is compared with the weeks before it."""
ALARM_WINDOWS_TEXT: Final = f"{', '.join(map(str, ALARM_WINDOWS[:-1]))} and {ALARM_WINDOWS[-1]}"
ALARM_NEW_NORMAL: Final = max(ALARM_WINDOWS)
"""Weeks after which a changed rate is the new baseline."""
ALARM_BASELINE_WEEKS: Final = 26
ALARM_MIN_WEEKS: Final = 8
"""Weeks of the baseline: at most, and at least."""
ALARM_MIN_EFFECT: Final = 0.005
"""A smaller change of a rate raises no alarm."""
ALARM_MIN_DAYS: Final = 4
"""Complete days that a week needs to count."""
OUTAGE_SHARE: Final = 0.1
"""Share of a day's submissions without a sound response that makes it an outage."""

SUPPRESSED: Final = "SUPPRESSED"
"""Stands for the companies and values of small cells: see :mod:`kyc_pipeline.analyze.small_cells`."""

REJECTED_ROWS: Final = 5
REJECTED_SHARE: Final = 0.1
"""A day has many rejections if at least this many of its rows, and at least this share, were rejected."""
ISO_OFFSET_SECONDS: Final = 1
"""ISO text and epoch disagree if they differ by at least this; a smaller difference is one of precision."""

UNEXPECTED_FIELDS: Final = (Anomaly.UNKNOWN_FIELD, Anomaly.DUPLICATE_FIELD, Anomaly.TYPE_MISMATCH)
UNEXPECTED_TYPES: Final = (Anomaly.UNKNOWN_TYPE,)
"""Kinds of contract drift that are a warning, because they mean that the API has changed."""
UNUSABLE_CONFIDENCES: Final = (Anomaly.CONFIDENCE_OUT_OF_RANGE, Anomaly.CONFIDENCE_NOT_A_NUMBER)
UNKNOWN_STATUSES: Final = (Anomaly.UNKNOWN_STATUS,)


def has_many_rejections(rejected: int, received: int) -> bool:
    """Whether so many of a day's rows were rejected that its check warns."""
    return rejected >= REJECTED_ROWS and rejected / received >= REJECTED_SHARE


def _literals(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


SQL_PARAMETERS: Final[dict[str, str]] = {
    "low_n": str(LOW_N),
    "z_95": str(Z_95),
    "z_99": str(Z_99),
    "recent_days": str(RECENT_DAYS),
    "baseline_days": str(BASELINE_DAYS),
    "drift_min_checks": str(DRIFT_MIN_CHECKS),
    "psi_moderate": str(PSI_MODERATE),
    "psi_large": str(PSI_LARGE),
    "psi_sparse": str(PSI_SPARSE),
    "alarm_windows": ALARM_WINDOWS_TEXT,
    "alarm_new_normal": str(ALARM_NEW_NORMAL),
    "alarm_baseline_weeks": str(ALARM_BASELINE_WEEKS),
    "alarm_min_days": str(ALARM_MIN_DAYS),
    "outage_share": str(OUTAGE_SHARE),
    "outage_percent": f"{OUTAGE_SHARE:.0%}",
    "suppressed": SUPPRESSED,
    "company_tag": COMPANY_TAG,
    "company_name_tag": COMPANY_NAME_TAG,
    "default_subject_tags": ",".join(SUBJECT_TAGS),
    "rejected_rows": str(REJECTED_ROWS),
    "rejected_share": str(REJECTED_SHARE),
    "rejected_percent": f"{REJECTED_SHARE:.0%}",
    "iso_offset_seconds": str(ISO_OFFSET_SECONDS),
    "outcomes": _literals(Outcome),
    "undecided_outcomes": _literals(UNDECIDED),
    "outcomes_without_response": _literals(WITHOUT_RESPONSE),
    "unexpected_kinds": _literals((*UNEXPECTED_FIELDS, *UNEXPECTED_TYPES)),
    "anomalies_with_a_check": _literals(
        (*UNEXPECTED_FIELDS, *UNEXPECTED_TYPES, *UNUSABLE_CONFIDENCES, *UNKNOWN_STATUSES)
    ),
}
"""Parameter → its text in SQL files."""
