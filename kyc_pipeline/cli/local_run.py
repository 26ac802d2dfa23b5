"""Runs partitions through Dagster in this process. The instance records the runs, so the UI shows them."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import cached_property
from typing import Any, cast

import dagster as dg

from kyc_pipeline.analyze.publish import Place, open_warehouse
from kyc_pipeline.analyze.quality import recorded_checks
from kyc_pipeline.checks import Severity
from kyc_pipeline.cli.dagster_home import HomeUnusable, usable_home
from kyc_pipeline.days import day_range
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import FAILED, UNFINISHED, KycError, in_one_line
from kyc_pipeline.ingest.labels import are_ingested, stored_summary
from kyc_pipeline.ingest.state import Records
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.orchestration.catch_up import contiguous_ranges, days_left_behind, ingested_by
from kyc_pipeline.orchestration.checks.analyze import YESTERDAY
from kyc_pipeline.orchestration.checks.ingest import check_labels
from kyc_pipeline.orchestration.jobs import VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.killed_commands import command_tags, end_killed_commands
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.partitions import FAILURES, batches
from kyc_pipeline.orchestration.publication import REPORT, UP_TO_DATE, WAREHOUSE, Publication
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.run_origin import belonging_to
from kyc_pipeline.orchestration.sensors import INGEST_STEP
from kyc_pipeline.orchestration.unfinished import EXIT_CODE
from kyc_pipeline.verify.budget import CallBudget


def run_partitions(
    pipeline: Pipeline,
    days: Sequence[str],
    instance: dg.DagsterInstance,
    controls: CallControls | None = None,
    *,
    publish: bool = True,
    force: bool = False,
    verbose: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Ingests, verifies and flattens `days` in runs of a few days each, then publishes once.

    Returns one line per failed step; `announce` gets what somebody must decide about, `warn` the warnings of
    the warehouse's checks, also if it is up to date. A failed day does not stop the others. After a fault
    that would fail every call, and when the budget is used up, the remaining days record their outcomes
    without a call. A stop request skips the remaining runs. At the end the warehouse is published from the
    lake, unless `publish` is false, Dagster can no longer record its runs, or the warehouse is up to date
    (then `announce` gets a line). `force` flattens and publishes in any case.
    """
    controls = controls or CallControls()
    controls.budget = CallBudget(pipeline.settings.deepxl_max_calls_per_run)
    runs = _Runs(pipeline, instance, controls, force=force, verbose=verbose, announce=announce, warn=warn)
    try:
        with usable_home():
            for line in end_killed_commands(instance):
                announce(line)
        runs.run_days(days)
        if publish and not runs.publish():
            announce(f"warehouse and report are {UP_TO_DATE}")
    except HomeUnusable as error:
        runs.failures.append(str(error))
    return runs.failures


class _Runs:
    """The runs of one command."""

    def __init__(
        self,
        pipeline: Pipeline,
        instance: dg.DagsterInstance,
        controls: CallControls,
        *,
        force: bool,
        verbose: bool,
        announce: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._announce = announce
        self._warn = warn
        self._pipeline = pipeline
        self._instance = instance
        self._controls = controls
        self._force = force
        self._log_level = "INFO" if verbose else "CRITICAL"
        self._ingested: set[str] = set()
        self.failures: list[str] = []

    @cached_property
    def _daily(self) -> dg.JobDefinition:
        """The part of the job that works on days."""
        definitions = build_defs(self._pipeline, self._controls, publication=False)
        return definitions.resolve_job_def(VERIFY_AND_PUBLISH)

    def run_days(self, days: Sequence[str]) -> None:
        """Runs the daily assets of `days`, then runs again the days that another day has outdated."""
        for batch in batches(days):
            if self._controls.stop.draining:
                self._controls.skipped.update(batch)
            elif failed_run := self._run_range(batch[0], batch[-1]):
                self._run_ranges(days_left_behind(self._pipeline, self._instance, failed_run))
        # A day of a later run may have given up an id that a day of an earlier run wants.
        records = Records(self._pipeline.lake)
        outdated = [day for day in sorted(self._ingested) if not records.holds(day)]
        self._run_ranges(contiguous_ranges(outdated))

    def publish(self) -> bool:
        """Runs the assets that are not partitioned; returns False if they are up to date instead."""
        with usable_home():
            publication = Publication(self._pipeline, self._instance)
        new_labels = self._has_new_labels()
        if self._force or publication.reasons() or new_labels or not publication.was_recorded_today():
            result = self._run(publication_job(self._pipeline), {}, "build_warehouse", "report")
            # The runs of days print none: the warehouse's checks summarize theirs.
            for line in warnings_of(result):
                self._warn(line)
            if new_labels and self._has_new_labels() is False:
                self._announce_rejected_labels()
            return True
        # Without a run: planning and recording one would take longer than this comparison.
        with usable_home():
            for observation in publication.observations(WAREHOUSE, REPORT):
                self._instance.report_runless_asset_event(observation)
        for line in standing_warnings(self._pipeline.settings.kyc_warehouse):
            self._warn(line)
        for line in standing_label_warnings(self._pipeline.lake):
            self._warn(line)
        return False

    def _has_new_labels(self) -> bool | None:
        """Whether there are labels to read. None if they cannot be: the run says why."""
        settings = self._pipeline.settings
        try:
            if open_landing(settings.kyc_landing).problem() is not None:
                return None
            return not are_ingested(settings.kyc_landing, self._pipeline.lake, settings.kyc_csv_encoding)
        except KycError:
            return None

    def _announce_rejected_labels(self) -> None:
        labels = stored_summary(self._pipeline.lake)
        if labels.rejected_rows:
            counts = f"{labels.accepted} accepted, {labels.rejected_rows} rejected"
            self._announce(f"labels     {counts}: `kyc-pipeline rejected` shows them")

    def _run_ranges(self, ranges: Iterable[tuple[str, str]]) -> None:
        for first, last in ranges:
            if self._controls.stop.draining:
                self._controls.skipped.update(day_range(date.fromisoformat(first), date.fromisoformat(last)))
            else:
                self._run_range(first, last)

    def _run_range(self, first: str, last: str) -> str | None:
        """Runs the days. Returns the run's id if ingest failed."""
        result = self._run(self._daily, range_tags(first, last), "flatten")
        failed = result.filter_events(lambda event: event.is_step_failure)
        return result.run_id if INGEST_STEP in {event.step_key for event in failed} else None

    def _run(self, job: dg.JobDefinition, tags: dict[str, str], *steps: str) -> dg.ExecuteInProcessResult:
        """Runs `job`; `force` applies to `steps`."""
        run_id = str(uuid.uuid4())
        self._controls.run_ids.append(run_id)
        with usable_home(), belonging_to(self._instance, VERIFY_AND_PUBLISH):
            result = job.execute_in_process(
                run_id=run_id,
                instance=self._instance,
                tags={**tags, **command_tags(run_id)},
                run_config={
                    "loggers": {"console": {"config": {"log_level": self._log_level}}},
                    "ops": {step: {"config": {"force": self._force}} for step in steps},
                },
                raise_on_error=False,
            )
            self._ingested.update(ingested_by(self._instance, run_id))
        for event in result.filter_events(lambda event: event.is_step_failure):
            lines = failed_checks(result, event) or failure_lines(event)
            if exit_code_of(event) == UNFINISHED:
                self._announce(in_one_line(lines))
            else:
                self.failures.extend(lines)
        return result


def exit_code_of(failure: dg.DagsterEvent) -> int:
    """The exit code for a failed step."""
    data = failure.step_failure_data.user_failure_data
    code = data.metadata.get(EXIT_CODE) if data else None
    return FAILED if code is None else int(str(code.value))


def failed_checks(result: dg.ExecuteInProcessResult, failure: dg.DagsterEvent) -> list[str]:
    """The checks that failed the step, one line each; none if it failed for another reason.

    Dagster's own error names neither the day nor what is wrong.
    """
    error = failure.step_failure_data.error
    if error is None or error.cls_name != "DagsterAssetCheckFailedError":
        return []
    return [
        f"check {check.check_name}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR
    ]


def warnings_of(result: dg.ExecuteInProcessResult) -> list[str]:
    """The checks of severity WARN that failed in a publication, one line each.

    Without the one for yesterday: somebody who publishes old days by hand knows that yesterday is missing.
    """
    return [
        _warning(check.check_name, check.description)
        for check in result.get_asset_check_evaluations()
        if not check.passed
        and check.severity is dg.AssetCheckSeverity.WARN
        and check.check_name != YESTERDAY.name
    ]


def standing_warnings(warehouse: Place) -> list[str]:
    """The warnings that the published warehouse has recorded, one line each; none if it cannot be opened."""
    try:
        with open_warehouse(warehouse) as connection:
            return [
                _warning(check.name, check.description)
                for check in recorded_checks(connection)
                if not check.passed and check.severity is Severity.WARNING
            ]
    except KycError:
        return []


def standing_label_warnings(lake: Lake) -> list[str]:
    """The checks that failed when the labels were last read, one line each."""
    if not lake.exists(LABELS, WHOLE):
        return []
    results = check_labels(stored_summary(lake))
    return [_warning(result.name, result.description) for result in results if not result.passed]


def _warning(check: str, description: str | None) -> str:
    return f"warning: {check}: {description}"


def publication_job(pipeline: Pipeline) -> dg.JobDefinition:
    """The part of the job that publishes."""
    definitions = build_defs(pipeline)
    published = [spec.key for spec in definitions.resolve_all_asset_specs() if spec.partitions_def is None]
    return definitions.resolve_job_def(VERIFY_AND_PUBLISH).get_subset(asset_selection=set(published))


def failure_lines(event: dg.DagsterEvent) -> list[str]:
    """The failure in one line per day, or in one line."""
    data = event.step_failure_data.user_failure_data
    days = data.metadata.get(FAILURES) if data else None
    return [failure_line(event)] if days is None else [str(line) for line in cast("list[str]", days.value)]


def failure_line(event: dg.DagsterEvent) -> str:
    """The failure in one line: the description of our own `dg.Failure`, or the class of any other error.

    The message of another error may contain personal data.
    """
    data: Any = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error and error.cause:
        error = error.cause
    return f"{event.step_key}: {error.cls_name if error else 'failed'} (--verbose shows more)"
