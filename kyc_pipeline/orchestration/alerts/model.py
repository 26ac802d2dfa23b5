"""Alerts: when each kind is sent, and the message that carries them.

Alerts contain counts, days, names of steps and checks, and ids of runs. They contain no error messages, file
names or submissions, because we do not know who reads the channel.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from kyc_pipeline.orchestration.checks.analyze import DEADLINE_HOUR

SHOWN: Final = 5
"""Lines of an alert; further ones are only counted."""
SHOWN_DAYS: Final = 3


class Kind(StrEnum):
    """What happened, the most urgent first, as in a message."""

    OUTAGE = "outage"
    CHECK_FAILED = "check_failed"
    RUN_FAILED = "run_failed"
    SPEND = "spend"
    HELD = "held"
    UNREAD = "unread"
    LATE = "late"


class Rule(NamedTuple):
    """When an alert of a kind is sent, and what to do then."""

    when: str
    advice: str


RULES: Final = {
    Kind.OUTAGE: Rule(
        "a run stopped because too many calls to DeepXL failed in a row",
        "run the days again when DeepXL responds; catch_up does it too",
    ),
    Kind.CHECK_FAILED: Rule(
        "a check of severity error failed in a run",
        "nothing is published until it passes: see the check in docs/operations.md",
    ),
    Kind.RUN_FAILED: Rule(
        "a run failed for another reason",
        "the run's page has the reason; docs/operations.md says what to check first",
    ),
    Kind.SPEND: Rule(
        "the day's billable calls exceed KYC_ALERT_CALLS_PER_DAY (once a day)",
        "terminate runs that should not pay; DEEPXL_MAX_CALLS_PER_DAY limits the calls of a day",
    ),
    Kind.HELD: Rule(
        "more submissions of a day are held, and no run works on the day",
        "`kyc-pipeline held list` shows them, `held resolve` decides",
    ),
    Kind.UNREAD: Rule(
        "more files or folders of the landing zone are not read, because of their names",
        "move them away, or name them as docs/operations.md says (`every_file_taken`)",
    ),
    Kind.LATE: Rule(
        f"at {DEADLINE_HOUR:02}:00 UTC, the warehouse has not been published since 00:00 UTC (once a day)",
        "look at the runs of daily_verification, and whether the daemon runs",
    ),
}


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that people must act on. All days with the same problem share one alert."""

    kind: Kind
    title: str
    lines: tuple[str, ...] = ()
    link: str | None = None
    """The page of the run, backfill or asset in the UI; None without `KYC_UI_URL`."""
    days: tuple[str, ...] = ()
    """The partitions that it concerns, in order."""
    runs: tuple[str, ...] = ()
    """The runs that it concerns."""

    @property
    def advice(self) -> str:
        """What to do."""
        return RULES[self.kind].advice


def shortened(lines: Sequence[str], limit: int = SHOWN) -> tuple[str, ...]:
    """The first lines, and how many more there are."""
    more = len(lines) - limit
    return (*lines[:limit], f"and {more} more") if more > 0 else tuple(lines)


def days_text(days: Sequence[str]) -> str:
    """Such as `60 days: 2024-09-01, 2024-09-02, 2024-09-03 and 57 more`; a single day is only named."""
    if len(days) <= 1:
        return "".join(days)
    more = len(days) - SHOWN_DAYS
    return f"{len(days)} days: {', '.join(days[:SHOWN_DAYS])}" + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Message:
    """The alerts of one tick, in the forms of the channels."""

    alerts: Sequence[Alert]

    @property
    def id(self) -> str:
        """Identifies the content, so that a receiver can recognise a repeated delivery."""
        return hashlib.sha256(json.dumps(self._bodies()).encode()).hexdigest()[:32]

    @property
    def subject(self) -> str:
        """One line."""
        return "kyc-pipeline: " + "; ".join(alert.title for alert in self.alerts)

    @property
    def text(self) -> str:
        """Plain text."""
        return "\n\n".join("\n".join(_paragraph(alert)) for alert in self.alerts)

    def as_json(self) -> dict[str, Any]:
        """For programs: `id`, `text`, and `alerts` with kind, title, lines, link, days, runs and advice."""
        return {"id": self.id, "text": f"{self.subject}\n\n{self.text}", "alerts": self._bodies()}

    def as_slack(self) -> dict[str, Any]:
        """For an incoming webhook of Slack, or of a chat that accepts Slack's format."""
        return {
            "text": _escaped(self.subject),
            "blocks": [
                {"type": "section", "text": {"type": "mrkdwn", "text": _mrkdwn(alert)}}
                for alert in self.alerts
            ],
        }

    def _bodies(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": alert.kind,
                "title": alert.title,
                "lines": alert.lines,
                "link": alert.link,
                "days": alert.days,
                "runs": alert.runs,
                "advice": alert.advice,
            }
            for alert in self.alerts
        ]


def _paragraph(alert: Alert) -> Iterable[str]:
    yield alert.title
    yield from (f"- {line}" for line in alert.lines)
    yield f"What to do: {alert.advice}"
    if alert.link:
        yield alert.link


def _mrkdwn(alert: Alert) -> str:
    lines = [f"*{_escaped(alert.title)}*", *(f"• {_escaped(line)}" for line in alert.lines)]
    lines.append(f"_What to do:_ {_escaped(alert.advice)}")
    if alert.link:
        lines.append(f"<{alert.link}|Open in Dagster>")
    return "\n".join(lines)[:3000]  # Slack's limit


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
