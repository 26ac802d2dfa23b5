"""Retention: removes data a number of days after the relationship with a person ended.

The age of a row does not decide how long it must be kept: laws count from the end of the relationship, which
the data's owner delivers (`relationships.py`). If that is unknown, nothing is removed.

Rejected rows are an exception: they verified nobody, so their age decides (`rejected.py`).
"""

from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from kyc_pipeline.erasure.find import Findings, find_submissions
from kyc_pipeline.erasure.rejected import RejectedRows, find_rejected
from kyc_pipeline.erasure.relationships import Relationships
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.ledger.legal_holds import Holds, LegalHold, LegalHoldError
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import SUBMISSION_TAG

NO_PERIOD: Final = (
    "no retention period: set KYC_RETAIN_DAYS or KYC_RETAIN_DOCUMENTS_DAYS, or for rejected rows "
    "KYC_RETAIN_REJECTED_DAYS"
)


@dataclass(frozen=True, slots=True)
class RetentionPeriods:
    """How many days after the relationship's end each class of data is removed; None keeps it."""

    data_days: int | None
    """Rows of the lake, responses, and bodies in the ledger."""
    documents_days: int | None
    """Documents in the landing zone."""
    rejected_days: int | None = None
    """Days after which rejected rows lose their id and detail."""

    @classmethod
    def of(cls, settings: Settings) -> "RetentionPeriods":
        """The configured rules."""
        return cls(
            settings.kyc_retain_days, settings.kyc_retain_documents_days, settings.kyc_retain_rejected_days
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ever removed."""
        return self == RetentionPeriods(None, None)


@dataclass(frozen=True)
class Plan:
    """What is due for removal on one day."""

    relationships: int
    """Number of subjects that the input names."""
    data: Findings
    """The submissions whose data are due."""
    documents: Findings
    """The submissions whose documents are due; `deletable_documents` are those to delete."""
    held: Counter[LegalHold]
    """Legal holds, each with the number of submissions that would be due without it."""
    rejected: RejectedRows
    """The rejected rows that are due."""

    @property
    def erases(self) -> bool:
        """Whether there is something to erase: data that are due, or what an interrupted removal left."""
        return bool(self.data.ids) or self.data.unfinished

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.erases or self.documents.deletable_documents or self.rejected.due)

    def counts(self, rules: RetentionPeriods) -> dict[str, int | None]:
        """What is due, for the audit trail and for Dagster."""
        return {
            "days": rules.data_days,
            "submissions": len(self.data.ids),
            "documents_days": rules.documents_days,
            "documents": len(self.documents.deletable_documents),
            "rejected_days": rules.rejected_days,
            "rejected_rows": self.rejected.count,
            "held": sum(self.held.values()) + self.rejected.held,
        }


def make_plan(stores: Stores, relationships: Relationships, rules: RetentionPeriods, today: date) -> Plan:
    """Finds what is due. Read-only.

    Raises :class:`UsageError` if the landing zone is not mounted, and :class:`LegalHoldError` if a hold
    covers something that is due, but its accepted tags do not show that.
    """
    stores.landing.require_mounted(stores.lake)
    holds = Holds(stores.ledger.holds(), stores.pseudonymizer)
    held: Counter[LegalHold] = Counter()
    due: dict[int, set[str]] = {
        days: set() for days in (rules.data_days, rules.documents_days) if days is not None
    }
    for day in stores.lake.dates(SUBMISSIONS) if relationships else ():
        for batch in stores.lake.batches(SUBMISSIONS, day, ["submission_id", "tags"], ROW_GROUP_ROWS):
            for row in batch.to_pylist():
                tags = dict(row["tags"] or ()) | {SUBMISSION_TAG: row["submission_id"]}
                end = relationships(tags)
                if end is None:
                    continue
                past = [days for days in due if end + timedelta(days=days) < today]
                if past and (covering := holds(tags)):
                    held.update(covering)
                    continue
                for days in past:
                    due[days].add(row["submission_id"])
    data, documents = (
        find_submissions(stores, frozenset(() if days is None else due[days]))
        for days in (rules.data_days, rules.documents_days)
    )
    rejected = find_rejected(stores, today, rules.rejected_days)
    plan = Plan(len(relationships), data, documents, held, rejected)
    if hidden := {*plan.data.holds, *plan.documents.holds}:
        raise LegalHoldError(f"nothing was removed: {'; '.join(sorted(map(str, hidden)))}")
    return plan
