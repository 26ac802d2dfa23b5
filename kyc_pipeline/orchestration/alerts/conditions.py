"""What people must act on, from Dagster's runs, the ledger and the landing zone.

`look` compares the present state with what a channel has already reported (:class:`Reported`). It reports
failed runs of a backfill together: when the backfill has ended, or a quarter of an hour after the first
failure.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import dagster as dg

from kyc_pipeline.days import day_range, is_day, start_of_day
from kyc_pipeline.errors import UNFINISHED, KycError
from kyc_pipeline.ingest.manifests import ignored_files, manifest_dates, stray_line, strays
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.landing.zone import Landing
from kyc_pipeline.ledger.leases import leased_partitions
from kyc_pipeline.ledger.queries import read_held, read_spend_since
from kyc_pipeline.orchestration.alerts.model import Alert, Kind, days_text, shortened
from kyc_pipeline.orchestration.checks.analyze import DEADLINE_HOUR
from kyc_pipeline.orchestration.jobs import BACKFILL, QUEUED, STARTED, days_of
from kyc_pipeline.orchestration.paid_calls import STOPPED
from kyc_pipeline.orchestration.publication import WAREHOUSE
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.unfinished import EXIT_CODE
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.summary import Stopped, estimated_cost
from kyc_pipeline.wording import plural

FIRST_LOOK_BACK_SECONDS: Final = 3600.0
OVERLAP_SECONDS: Final = 600.0
"""A run may be recorded later than it ended, and by another host's clock."""
WAIT_FOR_BACKFILL_SECONDS: Final = 900.0
_PAGE: Final = 500
_ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_EVENTS: Final = {
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION,
}
_RESPONSES: Final = dg.AssetKey(VERIFICATION_RESPONSES.name)
_STRAY: Final = "manifests/"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reported:
    """What a channel has reported. Times are seconds since the epoch."""

    until: float
    """Runs that ended before this have been reported or are `waiting`."""
    recent: dict[str, float] = field(default_factory=dict)
    """Runs that ended shortly before `until`, and when."""
    waiting: dict[str, list[str]] = field(default_factory=dict)
    """Backfill → its runs that have not been reported."""
    waiting_since: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    late: str = ""
    """The last deadline that was reported as missed."""
    spend: str = ""
    """The last day whose spend was reported."""
    attempts: int = 0
    """Failed deliveries in a row."""
    retry_at: float = 0.0

    @classmethod
    def at_first(cls, now: float) -> "Reported":
        """For a new channel."""
        return cls(until=now - FIRST_LOOK_BACK_SECONDS)

    def failed(self, retry_at: float) -> "Reported":
        """After a delivery that failed."""
        return replace(self, attempts=self.attempts + 1, retry_at=retry_at)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Reported":
        """From the cursor. Values that another version wrote, and this one does not know, are left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def as_json(self) -> dict[str, Any]:
        """For the cursor, without empty values, because Dagster stores it with every tick."""
        return {name: value for name, value in asdict(self).items() if value or name == "until"}


def look(
    pipeline: Pipeline, instance: dg.DagsterInstance, landing: Landing, seen: Reported, now: float
) -> tuple[list[Alert], Reported]:
    """The new alerts, the most urgent first, and the `Reported` to keep once they are delivered.

    `landing` is a snapshot, so that several channels together list it once.
    """
    news = replace(seen, attempts=0, retry_at=0.0)
    found: list[Alert] = []
    unread = functools.partial(_unread, landing)
    for condition in (_runs, _late, unread, _ledger):
        alerts, news = condition(pipeline, instance, news, now)
        found += alerts
    order = list(Kind)
    return sorted(found, key=lambda alert: order.index(alert.kind)), news


# --- runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ended:
    """What the events of an ended run say."""

    run: dg.DagsterRun
    failed_steps: tuple[str, ...]
    failed_checks: tuple[str, ...]
    """Those of severity error, each with its day."""
    outage: tuple[str, ...]
    """The days whose calls ended with an outage."""
    is_held_only: bool
    """Whether the run failed only because submissions are held, which has an alert of its own."""

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of alert that it causes."""
        special = {
            kind
            for kind, cause in {Kind.OUTAGE: self.outage, Kind.CHECK_FAILED: self.failed_checks}.items()
            if cause
        }
        if not special and self.run.status is dg.DagsterRunStatus.FAILURE and not self.is_held_only:
            return {Kind.RUN_FAILED}
        return special

    def line(self, kind: Kind) -> str:
        days = days_text(_run_days(self.run))
        what = {
            Kind.OUTAGE: f"stopped at {days_text(self.outage)}",
            Kind.CHECK_FAILED: f"failed {', '.join(shortened(self.failed_checks, 3))}",
            Kind.RUN_FAILED: f"failed at {', '.join(self.failed_steps) or 'no step (its process ended)'}",
        }[kind]
        return f"run {self.run.run_id[:8]} of {self.run.job_name}{f' for {days}' if days else ''}: {what}"


_TITLES: Final = {
    Kind.OUTAGE: "calls to DeepXL kept failing: {runs} stopped",
    Kind.CHECK_FAILED: "a check of severity error failed in {runs}",
    Kind.RUN_FAILED: "{runs} failed",
}


def _runs(
    pipeline: Pipeline, instance: dg.DagsterInstance, seen: Reported, now: float
) -> tuple[list[Alert], Reported]:
    since = seen.until - OVERLAP_SECONDS
    records = instance.get_run_records(
        dg.RunsFilter(statuses=_ENDED, updated_after=datetime.fromtimestamp(since, UTC)),
        limit=_PAGE,
        order_by="update_timestamp",
        ascending=True,
    )
    until = records[-1].update_timestamp.timestamp() if len(records) == _PAGE else now
    recent, waiting, waiting_since = dict(seen.recent), dict(seen.waiting), dict(seen.waiting_since)
    ended: list[_Ended] = []
    for record in records:
        run, end = record.dagster_run, record.end_time
        # A run that ended earlier was only changed since: somebody added a tag.
        if end is None or end <= since or run.run_id in recent:
            continue
        recent[run.run_id] = end
        said = _read(instance, run)
        if not said.kinds:
            continue
        if backfill := run.tags.get(BACKFILL):
            waiting[backfill] = [*waiting.get(backfill, []), run.run_id]
            waiting_since.setdefault(backfill, now)
        else:
            ended.append(said)
    for backfill in list(waiting):
        waited = now - waiting_since[backfill]
        if waited >= WAIT_FOR_BACKFILL_SECONDS or not _is_under_way(instance, backfill):
            filters = dg.RunsFilter(run_ids=waiting.pop(backfill))
            waiting_since.pop(backfill)
            ended += [_read(instance, run) for run in instance.get_runs(filters)]
    news = replace(
        seen,
        until=until,
        recent={run_id: end for run_id, end in recent.items() if end > until - OVERLAP_SECONDS},
        waiting=waiting,
        waiting_since=waiting_since,
    )
    ended.sort(key=lambda one: _run_days(one.run))
    grouped = {kind: [one for one in ended if kind in one.kinds] for kind in _TITLES}
    alerts = [_run_alert(kind, runs, pipeline.settings) for kind, runs in grouped.items() if runs]
    return alerts, news


def _run_alert(kind: Kind, ended: Sequence[_Ended], settings: Settings) -> Alert:
    days = sorted({day for one in ended for day in (one.outage or _run_days(one.run))})
    title = _TITLES[kind].format(runs=plural(len(ended), "run"))
    backfills = {one.run.tags.get(BACKFILL) for one in ended}
    if len(ended) == 1:
        page = f"runs/{ended[0].run.run_id}"
    elif len(backfills) == 1 and None not in backfills:
        page = f"runs/b/{backfills.pop()}"
    else:
        page = "runs"
    return Alert(
        kind,
        f"{title} ({days_text(days)})" if days else title,
        shortened([one.line(kind) for one in ended]),
        _link(settings, page),
        tuple(days),
        tuple(one.run.run_id for one in ended),
    )


def _read(instance: dg.DagsterInstance, run: dg.DagsterRun) -> _Ended:
    steps: set[str] = set()
    checks: dict[str, bool] = {}
    outage: set[str] = set()
    exit_codes: list[object] = []
    for entry in instance.all_logs(run.run_id, of_type=_EVENTS):
        event = entry.dagster_event
        if event is None:
            continue
        if event.event_type is dg.DagsterEventType.STEP_FAILURE:
            steps.add(event.step_key or "")
            data = event.step_failure_data.user_failure_data
            exit_codes.append(getattr(data.metadata.get(EXIT_CODE), "value", None) if data else None)
        elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if check.severity is dg.AssetCheckSeverity.ERROR:
                day = f" of {check.partition}" if check.partition else ""
                checks[f"{check.check_name}{day}"] = check.passed
        elif (made := event.step_materialization_data.materialization).asset_key == _RESPONSES:
            stopped = getattr(made.metadata.get(STOPPED), "value", None)
            if stopped == Stopped.CIRCUIT_OPEN and made.partition:
                outage.add(made.partition)
    failed = [name for name, passed in checks.items() if not passed]
    return _Ended(
        run,
        tuple(sorted(steps - {""})),
        tuple(sorted(failed)),
        tuple(sorted(outage)),
        is_held_only=exit_codes == [UNFINISHED],
    )


def _run_days(run: dg.DagsterRun) -> list[str]:
    """The days of a run, in order; none if it has no days, as a run of another code location."""
    days = days_of(run.tags)
    if days is None or not all(map(is_day, days)):
        return []
    first, last = (date.fromisoformat(day) for day in days)
    return day_range(first, last)


def _is_under_way(instance: dg.DagsterInstance, backfill: str) -> bool:
    filters = dg.RunsFilter(statuses=[*QUEUED, *STARTED], tags={BACKFILL: backfill})
    return bool(instance.get_runs(filters, limit=1))


# --- the published tables, the landing zone, the ledger -----------------------------------------------


def _late(
    pipeline: Pipeline, instance: dg.DagsterInstance, seen: Reported, now: float
) -> tuple[list[Alert], Reported]:
    moment = datetime.fromtimestamp(now, UTC)
    midnight = start_of_day(moment)
    if moment.hour < DEADLINE_HOUR:
        midnight -= timedelta(days=1)
    deadline = midnight.date().isoformat()
    published = instance.get_latest_materialization_event(WAREHOUSE)
    if published is None or published.timestamp >= midnight.timestamp() or seen.late >= deadline:
        return [], seen
    last = datetime.fromtimestamp(published.timestamp, UTC)
    title = f"the warehouse is late: last published at {last:%Y-%m-%d %H:%M} UTC"
    alert = Alert(Kind.LATE, title, link=_link(pipeline.settings, f"assets/{WAREHOUSE.to_user_string()}"))
    return [alert], replace(seen, late=deadline)


def _unread(
    landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance, seen: Reported, now: float
) -> tuple[list[Alert], Reported]:
    settings = pipeline.settings
    if landing.problem():  # not mounted: runs fail, and have an alert
        return [], seen
    today = datetime.fromtimestamp(now, UTC).date()
    first = (today - timedelta(days=settings.kyc_catch_up_days)).isoformat()
    try:
        # Reported days stay, however old they become, so that they are not reported again.
        days = [day for day in manifest_dates(landing) if day >= first or day in seen.unread]
        counts = {day: len(ignored_files(landing, day)) for day in days}
        counts[_STRAY] = len(strays(landing, settings.kyc_start_date, today))
    except KycError as error:  # runs fail for the same reason, and have an alert
        _logger.warning("files that are not read are unknown: %s", error)
        return [], seen
    counts = {day: count for day, count in counts.items() if count}
    more = _increased(counts, seen.unread)
    if not more:
        return [], replace(seen, unread=counts)
    found = plural(sum(more.values()), "file or folder", "files or folders")
    alert = Alert(
        Kind.UNREAD,
        f"{found} of the landing zone {'is' if sum(more.values()) == 1 else 'are'} not read",
        shortened([stray_line(n) if day == _STRAY else f"{day}: {n}" for day, n in more.items()]),
        _link(settings, f"assets/{SUBMISSIONS.name}"),
        tuple(day for day in more if day != _STRAY),
    )
    return [alert], replace(seen, unread=counts)


def _ledger(
    pipeline: Pipeline, instance: dg.DagsterInstance, seen: Reported, now: float
) -> tuple[list[Alert], Reported]:
    alerts: list[Alert] = []
    try:
        for alert, news in _spend_and_held(pipeline, seen, now):
            seen = news
            alerts += alert
    except KycError as error:  # runs fail for the same reason, and have an alert
        _logger.warning("held submissions and spend are unknown: %s", error)
    return alerts, seen


def _spend_and_held(pipeline: Pipeline, seen: Reported, now: float) -> Iterator[tuple[list[Alert], Reported]]:
    settings = pipeline.settings
    link = _link(settings, f"assets/{VERIFICATION_RESPONSES.name}")
    midnight = start_of_day(datetime.fromtimestamp(now, UTC))
    today = midnight.date().isoformat()
    with pipeline.open_ledger() as ledger:
        limit = settings.kyc_alert_calls_per_day
        if limit is not None and seen.spend != today:
            calls = read_spend_since(ledger, midnight).billable_calls
            if calls > limit:
                cost = estimated_cost(settings, calls)
                price = "" if cost is None else f", about {cost}"
                title = f"{plural(calls, 'billable call')} today{price}: more than {limit}"
                seen = replace(seen, spend=today)
                yield [Alert(Kind.SPEND, title, link=link)], seen
        # Leases before counts, so that a day whose run ends in between waits until the next tick.
        under_way = leased_partitions(ledger)
        held = {held.partition_date: held.submissions for held in read_held(ledger)}
    settled = {day: count for day, count in held.items() if day not in under_way}
    more = _increased(settled, seen.held)
    kept = {day: count for day, count in seen.held.items() if day in under_way}
    seen = replace(seen, held=kept | settled)
    days = sorted(more)
    title = f"{plural(sum(more.values()), 'submission')} held: somebody must decide ({days_text(days)})"
    lines = shortened([f"{day}: {more[day]}" for day in days])
    yield [Alert(Kind.HELD, title, lines, link, tuple(days))] if more else [], seen


def _increased(counts: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """The counts that are higher than before."""
    return {day: count for day, count in counts.items() if count > before.get(day, 0)}


def _link(settings: Settings, page: str) -> str | None:
    return f"{settings.kyc_ui_url}/{page}" if settings.kyc_ui_url else None
