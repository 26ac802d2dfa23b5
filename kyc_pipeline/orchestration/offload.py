"""The step that moves the responses of finished days out of the ledger; see `ledger/offload.py`."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from kyc_pipeline.flatten.partition import is_flattened
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import STATE_KEY, VERIFICATION_RESPONSES, VERIFICATIONS, ResponsesState
from kyc_pipeline.ledger.audit import AuditTrail, Author, operator
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy, hold
from kyc_pipeline.ledger.offload import offload, offloaded_dates
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.vocabulary import UNDECIDED
from kyc_pipeline.wording import plural

_UNDECIDED = frozenset(outcome.value for outcome in UNDECIDED)


@dg.op(
    ins={"after": dg.In(dg.Nothing)},
    description="With KYC_OFFLOAD_AFTER_DAYS, removes from the ledger the responses that the lake has, too.",
)
@safe_errors
def offload_responses(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> None:
    """Adds the numbers of days and responses as metadata. Skips a day on which a run works."""
    settings = pipeline.settings
    if settings.kyc_offload_after_days is None:
        context.log.info("KYC_OFFLOAD_AFTER_DAYS is not set: the ledger keeps every response")
        return
    before = datetime.now(UTC).date() - timedelta(days=settings.kyc_offload_after_days)
    lake, days, moved, kept = pipeline.lake, 0, 0, 0
    author = Author(operator(settings.kyc_operator), reason=f"job maintenance, run {context.run_id}")
    with pipeline.open_ledger() as ledger:
        trail = AuditTrail(ledger, lake, author, lambda: pipeline.pseudonymizer)
        for day in _due(lake, ledger, before):
            try:
                with hold(ledger, day, context.run_id) as held, trail.noted():
                    if not _is_finished(lake, day):
                        continue
                    done = offload(lake, ledger, held.lease, trail)
            except PartitionBusy as error:
                context.log.info(f"left for the next time: {error}")
                continue
            days, moved, kept = days + 1, moved + done.moved, kept + done.kept
            if done.kept:
                context.log.warning(
                    f"{day}: the ledger keeps {plural(done.kept, 'response')} that the lake does not have"
                )
    context.add_output_metadata({"days": days, "responses": moved, "kept": kept})
    context.log.info(f"moved {plural(moved, 'response')} of {plural(days, 'day')} out of the ledger")


def _due(lake: Lake, ledger: Ledger, before: date) -> Iterator[str]:
    """The days before `before` that have responses, and were not offloaded."""
    done = offloaded_dates(ledger, only_finished=True)
    yield from (
        day for day in lake.dates(VERIFICATION_RESPONSES) if day < before.isoformat() and day not in done
    )


def _is_finished(lake: Lake, day: str) -> bool:
    """Whether no later run would change the day's responses, and the curated tables were made from them."""
    if lake.metadata(VERIFICATION_RESPONSES, day).get(STATE_KEY) != ResponsesState.COMPLETE:
        return False
    outcomes = lake.read(VERIFICATION_RESPONSES, day, ["outcome"])["outcome"].unique().to_pylist()
    if not _UNDECIDED.isdisjoint(map(str, outcomes)) or not lake.exists(VERIFICATIONS, day):
        return False
    return is_flattened(lake, day)
