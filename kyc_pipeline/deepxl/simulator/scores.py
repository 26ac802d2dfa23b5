"""Generates realistic results, derived only from a seed and the request.

The same seed, submission and company always give the same scores. A submission id that starts with a date
(`2024-09-03-0012`) gets the scores of that day, any other today's; the timestamp is always now. As in real
data, checks fail at different rates, companies send photos of different quality, scores drift slowly from day
to day, one bad photo spoils several checks, a few verdicts contradict their checks, and a few checks lack a
confidence or need a review.
"""

import math
import random
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from msgspec import UNSET

from kyc_pipeline.deepxl.contract import Check

THRESHOLD: Final = 0.8
"""The confidence from which a check passes."""
_OVERRIDES: Final = 0.04
_UNEXPLAINED_DECLINES: Final = 0.005
_LEADING_DATE: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?![0-9])")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of check: failure rate, spread between companies, drift and texts."""

    type: str
    fails: float
    company_spread: float
    drift: float
    drift_phase: int
    details: dict[str, str]


_KINDS: Final = (
    _Kind(
        "FACE_MATCH",
        fails=0.034,
        company_spread=0.5,
        drift=0.3,
        drift_phase=0,
        details=dict.fromkeys(("PASS", "FAIL", "REVIEW"), "Face match confidence: {percent}%"),
    ),
    _Kind(
        "LIVENESS",
        fails=0.024,
        company_spread=0.3,
        drift=0.2,
        drift_phase=9,
        details={
            "PASS": "Liveness check passed",
            "FAIL": "Liveness check failed",
            "REVIEW": "Liveness check needs a review",
        },
    ),
    _Kind(
        "ID_QUALITY",
        fails=0.05,
        company_spread=0.8,
        drift=0.7,
        drift_phase=4,
        details={
            "PASS": "ID document quality is acceptable",
            "FAIL": "ID document quality is too low",
            "REVIEW": "ID document quality needs a review",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result: the checks, `verified` and the time (UTC)."""

    checks: list[Check]
    verified: bool
    at: datetime
    iso_text: str


def invent_verdict(seed: int, submission_id: str, company: str, odd_share: float) -> Verdict:
    """The result for a submission. `odd_share` of its checks lack a confidence or end in REVIEW."""
    chance = random.Random(f"{seed}/{company}/{submission_id}")
    company_quality = random.Random(f"{seed}/{company}").gauss(0, 1)
    person = chance.gauss(0, 0.6)
    at = datetime.now(UTC).replace(microsecond=0)
    day = _day(submission_id, at)
    checks = [_check(kind, chance, company_quality, person, day, odd_share) for kind in _KINDS]
    if all(check.status == "PASS" for check in checks):
        verified = chance.random() >= _UNEXPLAINED_DECLINES
    else:
        verified = chance.random() < _OVERRIDES
    # The vendor's samples disagree on the time zone of the ISO text, so a few of ours are an hour ahead.
    ahead = timedelta(hours=1 if chance.random() < odd_share else 0)
    iso_text = (at + ahead).replace(tzinfo=None).isoformat(timespec="microseconds")
    return Verdict(checks, verified, at, iso_text)


def latency_seconds(seed: int, submission_id: str, median_ms: float) -> float:
    """The latency of a response: lognormal around `median_ms`."""
    if median_ms <= 0:
        return 0.0
    return median_ms / 1000 * random.Random(f"{seed}/latency/{submission_id}").lognormvariate(0, 0.35)


def _check(
    kind: _Kind, chance: random.Random, company_quality: float, person: float, day: int, odd_share: float
) -> Check:
    drift = kind.drift * math.sin(2 * math.pi * (day + kind.drift_phase) / 28)
    badness = drift + person + kind.company_spread * company_quality
    failed = chance.random() < _sigmoid(math.log(kind.fails / (1 - kind.fails)) + badness)
    if failed:
        confidence = min(THRESHOLD * chance.betavariate(5, 2), THRESHOLD - 0.01)
    else:
        confidence = THRESHOLD + (1 - THRESHOLD) * chance.betavariate(6 * math.exp(-0.4 * badness), 2)
    confidence = round(confidence, 2)
    status = "FAIL" if failed else "PASS"
    odd = chance.random()
    if odd < odd_share / 2:
        status = "REVIEW"
    return Check(
        type=kind.type,
        status=status,
        confidence=UNSET if odd_share / 2 <= odd < odd_share else confidence,
        details=kind.details[status].format(percent=round(confidence * 100)),
    )


def _day(submission_id: str, at: datetime) -> int:
    """The day that the id names, else that of the call."""
    named = _LEADING_DATE.match(submission_id)
    try:
        return date.fromisoformat(named[1]).toordinal() if named else at.toordinal()
    except ValueError:
        return at.toordinal()


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
