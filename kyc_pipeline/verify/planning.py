"""What a run would do and cost. Makes no call and writes nothing, not even an empty ledger file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.partition import Scan, scan
from kyc_pipeline.verify.summary import estimated_cost
from kyc_pipeline.vocabulary import SETTLED
from kyc_pipeline.wording import Money, plural


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What a run of one partition would do."""

    date: str
    submissions: int
    rejected: Counter[str]
    """Rejected rows by reason."""
    already_paid: int
    """Settled submissions: completed, refused or quarantined."""
    calls_to_make: int
    """Without retries. Includes uncertain submissions to be sent again unless a look-up finds them."""
    held: int
    conflicts: int
    estimated_cost: Money | None
    """Of `calls_to_make`; None without a price."""
    duplicate_documents: int = 0
    """Calls to make for two documents that another submission has too. Ingest counts them."""
    open_calls: int = 0
    """Begun by a run that still works or was killed: neither paid nor held yet."""
    ignored_columns: frozenset[str] = frozenset()
    """Names of columns that ingest does not use. They may be personal."""
    warnings: tuple[str, ...] = ()
    """What ingest warns of, one line each."""
    scan: Scan | None = None
    """The scan behind the plan; a run that starts at once can begin with it."""

    def __str__(self) -> str:
        cost = "" if self.estimated_cost is None else f", estimated cost {self.estimated_cost}"
        return (
            f"{plural(self.submissions, 'submission')}, {self.already_paid} already paid, {self.held} held, "
            f"{plural(self.calls_to_make, 'call')} to make{cost}"
        )


def duplicate_documents_line(count: int) -> str:
    """Says how many calls would pay for the same documents twice, and how to prevent that."""
    return (
        f"{plural(count, 'call')} would pay for two documents that another submission has too: set "
        "KYC_DUPLICATE_DOCUMENTS=reject to reject these rows"
    )


def open_calls_line(count: int) -> str:
    """Says what becomes of calls that have no outcome yet."""
    calls = f"{plural(count, 'call')} begun without a recorded outcome"
    return f"{calls}: a run is at work, or the next run looks up what is open"


def plan_partitions(
    lake: Lake, ledger: Ledger, dates: Sequence[str], settings: Settings
) -> list[PartitionPlan]:
    """One plan per date; all zeros if the date has no `submissions`."""
    known = ledger if ledger.exists() else None
    return [_plan(lake, known, date, settings) for date in dates]


def total(plans: Sequence[PartitionPlan], settings: Settings) -> PartitionPlan:
    """The sum of the plans, with the date `total`."""
    calls = sum(plan.calls_to_make for plan in plans)
    return PartitionPlan(
        date="total",
        submissions=sum(plan.submissions for plan in plans),
        rejected=sum((plan.rejected for plan in plans), Counter()),
        already_paid=sum(plan.already_paid for plan in plans),
        calls_to_make=calls,
        held=sum(plan.held for plan in plans),
        conflicts=sum(plan.conflicts for plan in plans),
        duplicate_documents=sum(plan.duplicate_documents for plan in plans),
        open_calls=sum(plan.open_calls for plan in plans),
        ignored_columns=frozenset[str]().union(*(plan.ignored_columns for plan in plans)),
        warnings=tuple(f"{plan.date}: {warning}" for plan in plans for warning in plan.warnings),
        estimated_cost=estimated_cost(settings, calls),
    )


def _plan(lake: Lake, ledger: Ledger | None, date: str, settings: Settings) -> PartitionPlan:
    rejected = Counter[str]()
    if lake.exists(REJECTED_SUBMISSIONS, date):
        rejected.update(map(str, lake.read(REJECTED_SUBMISSIONS, date, ["reason"])["reason"].to_pylist()))
    if not lake.exists(SUBMISSIONS, date):
        return PartitionPlan(date, 0, rejected, 0, 0, 0, 0, estimated_cost(settings, 0))
    seen = scan(lake, ledger, date, settings.deepxl_uncertain)
    return PartitionPlan(
        date=date,
        submissions=seen.submissions,
        rejected=rejected,
        already_paid=sum(seen.outcomes[outcome] for outcome in SETTLED),
        calls_to_make=seen.to_send,
        held=seen.held,
        conflicts=seen.conflict_count,
        estimated_cost=estimated_cost(settings, seen.to_send),
        open_calls=seen.open_claims,
        scan=seen,
    )
