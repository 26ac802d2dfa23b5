"""`kyc-pipeline plan`: what a backfill would do and cost. Makes no call and changes nothing."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date

import click

from kyc_pipeline.cli.options import check_landing, date_range, format_table, partitions_between
from kyc_pipeline.errors import KycError, in_one_line
from kyc_pipeline.ingest.formats.columns import TAG_PREFIX
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import IngestSummary, awaits_files, ingest_partition, is_ingested
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.ingest.state import ingest_order
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.orchestration.partitions import batches
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.scratch import scratch_folder
from kyc_pipeline.settings import load_settings
from kyc_pipeline.verify.planning import (
    PartitionPlan,
    duplicate_documents_line,
    open_calls_line,
    plan_partitions,
    total,
)
from kyc_pipeline.vocabulary import MANIFEST_FIELDS, Reason
from kyc_pipeline.wording import plural

MAY_NO_LONGER_APPLY = (
    Reason.FILE_NOT_FOUND,
    Reason.FILE_EMPTY,
    Reason.FILE_TOO_LARGE,
    Reason.UNSUPPORTED_FILE_TYPE,
    Reason.UNREADABLE_IMAGE,
    Reason.PATH_OUTSIDE_DOCUMENTS,
    Reason.DUPLICATE_DOCUMENTS,
    Reason.MISSING_CONSENT,
)
"""Reasons of rows that another file of the same name, or another setting, would make acceptable."""
HEADINGS = ("date", "submissions", "rejected", "already paid", "held", "calls to make")


@click.command()
@date_range
def plan(first: date, last: date) -> None:
    """Show what a backfill would do: submissions, calls already paid, calls to make, estimated cost."""
    settings = load_settings()
    days = partitions_between(first, last, settings)
    check_landing(settings, days)
    pipeline = Pipeline(settings)
    pipeline.check_lake()
    plans, unreadable = plan_days(pipeline, days)
    rows: dict[str, list[object]] = {
        entry.date: _row(entry) for entry in plans if entry.submissions or entry.rejected
    }
    rows |= {day: [day, "unreadable"] for day in unreadable}
    if not rows:
        click.echo(f"no manifests from {first} to {last}: nothing to do")
        return
    overall = total(plans, settings)
    headings = (*HEADINGS, f"estimated cost ({settings.deepxl_currency})")
    click.echo(format_table(headings, [*(rows[day] for day in sorted(rows)), _row(overall)]))
    for line in _notes(overall, settings.deepxl_max_calls_per_run):
        click.echo(line)
    for warning in overall.warnings:
        click.echo(f"warning: {warning}", err=True)
    day_budget = read_day_budget(pipeline)
    if day_budget.left is not None:
        click.echo(str(day_budget))
    if settings.deepxl_price_per_call is None:
        click.echo("set DEEPXL_PRICE_PER_CALL to see the cost")
    if unreadable:
        raise KycError(in_one_line(f"{day}: {error}" for day, error in unreadable.items()))


def _notes(overall: PartitionPlan, max_calls: int | None) -> Iterator[str]:
    """What the table does not show; `max_calls` is the budget of a run."""
    if overall.open_calls:
        yield open_calls_line(overall.open_calls)
    if overall.rejected:
        yield _rejected_line(overall.rejected)
    if overall.ignored_columns:
        yield _ignored_line(len(overall.ignored_columns))
    if overall.duplicate_documents:
        yield duplicate_documents_line(overall.duplicate_documents)
    if max_calls is not None and max_calls < overall.calls_to_make:
        yield f"a run stops after {plural(max_calls, 'call')} (DEEPXL_MAX_CALLS_PER_RUN)"


def _rejected_line(rejected: Counter[str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
    return (
        f"rejected: {reasons}; `kyc-pipeline backfill --max-calls 0` ingests without a call, then "
        "`kyc-pipeline rejected` shows file and row"
    )


def _ignored_line(columns: int) -> str:
    known = f"{', '.join(MANIFEST_FIELDS)} and {TAG_PREFIX}<name>"
    return f"ignored: {plural(columns, 'column')} of the manifests; those that are read are {known}"


def _row(entry: PartitionPlan) -> list[object]:
    return [
        entry.date,
        entry.submissions,
        entry.rejected.total(),
        entry.already_paid,
        entry.held,
        entry.calls_to_make,
        "–" if entry.estimated_cost is None else entry.estimated_cost.text,
    ]


def read_day_budget(pipeline: Pipeline) -> DayBudget:
    """What is left of `DEEPXL_MAX_CALLS_PER_DAY`."""
    with pipeline.open_ledger() as ledger:
        return DayBudget(pipeline.settings.deepxl_max_calls_per_day).read(ledger)


def plan_days(pipeline: Pipeline, days: Sequence[str]) -> tuple[list[PartitionPlan], dict[str, KycError]]:
    """The plans of the days, and the error of each day whose manifests or partitions cannot be read.

    Days that the run's ingest may change are ingested into a temporary lake, in the order of the run, because
    a day may get an id that another one gives up. So the plan matches the run.
    """
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    options = LandingOptions.of(pipeline.settings)
    unreadable: dict[str, KycError] = {}
    found: dict[str, IngestSummary] = {}
    with scratch_folder() as folder, pipeline.open_ledger() as ledger:
        scratch = Lake(folder)
        erased = pipeline.erased_subjects(ledger)

        def plan_of(day: str) -> PartitionPlan:
            source = scratch if scratch.exists(SUBMISSIONS, day) else lake
            plan = plan_partitions(source, ledger, [day], pipeline.settings)[0]
            if (summary := found.get(day)) is None:
                return plan
            warnings = (str(summary.personal_ids),) if summary.personal_ids else ()
            return replace(
                plan,
                # Ingest counts rows whose calls are made: of a rebuilt lake, all of them.
                duplicate_documents=min(summary.duplicate_documents, plan.calls_to_make),
                ignored_columns=frozenset(summary.ignored_columns),
                warnings=warnings,
            )

        def is_outdated(day: str) -> bool:
            return day not in unreadable and not is_ingested(landing, lake, day, scratch, options)

        def ingest(day: str) -> None:
            with _noted(unreadable, day):
                found[day] = ingest_partition(
                    landing=landing,
                    lake=lake,
                    date=day,
                    erased=erased,
                    destination=scratch,
                    owners=Owners(lake, ledger),
                    options=options,
                )

        for batch in batches(days):
            for day in ingest_order(batch, is_outdated):
                with _noted(unreadable, day):
                    # What was sent stays. Other rows may change with their documents alone.
                    may_change = awaits_files(lake, day, MAY_NO_LONGER_APPLY)
                    if is_outdated(day) or may_change or plan_of(day).calls_to_make:
                        ingest(day)
        for day in filter(is_outdated, days):
            ingest(day)
        return [plan_of(day) for day in days if day not in unreadable], unreadable


@contextlib.contextmanager
def _noted(errors: dict[str, KycError], day: str) -> Iterator[None]:
    """Keeps what is wrong with a day, so that the others are planned."""
    try:
        yield
    except KycError as error:
        errors[day] = error
