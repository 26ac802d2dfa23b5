"""The step that fails a run if somebody must act on one of its days.

It is a separate step, so that the run flattens and publishes its results before it fails, and so that
"Execute all" in the UI checks again without making a call.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import dagster as dg

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.errors import FAILED, UNFINISHED, in_one_line
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.orchestration.checks import check_events, check_specs, latest_materialization
from kyc_pipeline.orchestration.partitions import FAILURES, StepEvent, days_to_check
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, SETTLED, Outcome
from kyc_pipeline.wording import run_day_again

NEEDS_NOBODY = CheckDefinition(
    VERIFICATION_RESPONSES.name,
    "needs_nobody",
    Severity.WARNING,
    "No submission is held, and no fault ended the day's last run. Otherwise the run fails, after "
    "publishing.",
)
FAULT = "fault"
"""Metadata of a day's materialization: the fault that ended its last run."""
EXIT_CODE = "exit_code"
"""Metadata of this step's failure: the exit code of the command line."""


def unfinished_days(partitions: dg.PartitionsDefinition[str]) -> dg.AssetChecksDefinition:
    """The check `needs_nobody`, in the step `unfinished_days`."""

    @dg.multi_asset_check(
        name="unfinished_days",
        specs=check_specs([NEEDS_NOBODY], partitions),
        description="Fails the run if somebody must act: submissions are held, or a fault ended the calls.",
    )
    @safe_errors
    def check(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[StepEvent]:
        with pipeline.open_ledger() as ledger:
            days = days_to_check(context, pipeline.lake)
            results = [(day, check_day(pipeline, ledger, context.instance, day)) for day in days]
        yield from check_events(context.instance, context.check_specs, results)
        failed = [result for _, result in results if not result.passed]
        if failed:
            lines = [result.description for result in failed]
            has_fault = any(FAULT in result.metadata for result in failed)
            raise dg.Failure(
                in_one_line(lines),
                metadata={
                    FAILURES: dg.MetadataValue.json(lines),
                    EXIT_CODE: FAILED if has_fault else UNFINISHED,
                },
                allow_retries=False,
            )

    return check


def day_outcomes(lake: Lake, day: str) -> Counter[Outcome]:
    """The day's submissions by outcome, from the lake; empty if it has no responses yet."""
    if not lake.exists(VERIFICATION_RESPONSES, day):
        return Counter()
    outcomes = lake.read(VERIFICATION_RESPONSES, day, ["outcome"])
    counts = outcomes.group_by("outcome").aggregate([([], "count_all")]).to_pylist()
    return Counter({Outcome(str(row["outcome"])): int(row["count_all"]) for row in counts})


def day_counts(lake: Lake, ledger: Ledger, day: str) -> dict[str, int]:
    """How many submissions of the day are settled, held, and left for a later run."""
    outcomes = day_outcomes(lake, day)
    return {
        "settled": sum(outcomes[outcome] for outcome in SETTLED),
        "held": len(list_held(ledger, day)),
        "left": sum(outcomes[outcome] for outcome in LEFT_FOR_LATER),
    }


def in_words(counts: Mapping[str, int]) -> str:
    """Such as `31 settled, 0 held, 29 left`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def check_day(pipeline: Pipeline, ledger: Ledger, instance: dg.DagsterInstance, day: str) -> CheckResult:
    """Whether somebody must act on the day."""
    counts = day_counts(pipeline.lake, ledger, day)
    last = latest_materialization(instance, VERIFICATION_RESPONSES.name, day)
    fault = last.asset_materialization.metadata.get(FAULT) if last and last.asset_materialization else None
    todo = []
    if fault is not None:
        todo.append(f"{fault.value}: once that is mended, {run_day_again(day)}")
    if counts["held"]:
        todo.append("decide about the held ones: `kyc-pipeline held list`")
    found = f"{day}: {in_words(counts)}"
    return NEEDS_NOBODY.result(
        not todo,
        found,
        f"{found}; {'; '.join(todo)}",
        **counts,
        **({FAULT: fault.value} if fault is not None else {}),
    )
