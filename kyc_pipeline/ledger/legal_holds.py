"""Legal holds: people whose data must be kept, even if they or a retention rule require its removal.

A hold identifies a person by the HMAC of a tag, as a tombstone does, so it can be set before any of their
data is delivered. It covers every submission that has the tag, whichever tag an erasure names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, insert, select

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ledger.audit import AuditAction, AuditTrail
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.schema import legal_holds
from kyc_pipeline.ledger.times import now, to_datetime
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer


class LegalHoldError(KycError):
    """A legal hold forbids the removal: nothing was removed."""


@dataclass(frozen=True, slots=True)
class LegalHold:
    """A legal hold. `subject` is the tombstone that an erasure of the person would leave."""

    subject: Tombstone
    reason: str
    set_at: int
    """Microseconds since the epoch."""
    set_by: str

    def __str__(self) -> str:
        return f"legal hold on a {self.subject.name} since {to_datetime(self.set_at):%Y-%m-%d}: {self.reason}"


class Holds:
    """All holds. Call it with a submission's tags, including `submissionId`, for those that cover it."""

    def __init__(self, holds: Iterable[LegalHold], pseudonymizer: Pseudonymizer) -> None:
        self._subjects = {hold: ErasedSubjects([hold.subject], pseudonymizer) for hold in holds}

    def __bool__(self) -> bool:
        return bool(self._subjects)

    def __call__(self, tags: Mapping[str, str]) -> set[LegalHold]:
        """The holds that cover a submission with these tags."""
        return {hold for hold, subject in self._subjects.items() if subject(tags)}

    def items(self) -> Iterable[tuple[LegalHold, ErasedSubjects]]:
        """Each hold with the matcher of its person."""
        return self._subjects.items()


def read_holds(ledger: Ledger) -> list[LegalHold]:
    """All holds, oldest first. Does not create a ledger."""
    if not ledger.exists():
        return []
    with ledger.read() as connection:
        rows = connection.execute(select(legal_holds).order_by(legal_holds.c.set_at)).all()
    return [
        LegalHold(
            Tombstone(row.name, row.pseudonym, row.key_id, earlier_keys=key_ids(row.earlier_keys)),
            row.reason,
            row.set_at,
            row.set_by,
        )
        for row in rows
    ]


def key_ids(text: str) -> tuple[str, ...]:
    """The ids in a column `earlier_keys`."""
    return tuple(filter(None, text.split(",")))


def add_hold(
    ledger: Ledger, trail: AuditTrail, person: tuple[str, str], subject: Tombstone, reason: str, who: str
) -> None:
    """Sets a hold. Raises :class:`UsageError` without a reason, or if the tag already has a hold."""
    if not reason.strip():
        raise UsageError("say why the data must be kept: --reason must not be empty")
    with ledger.write() as connection:
        if connection.execute(select(legal_holds.c.name).where(_is(subject))).first() is not None:
            raise UsageError("there is a legal hold on this tag already: see `kyc-pipeline legal-hold list`")
        values = {
            "name": subject.name,
            "pseudonym": subject.pseudonym,
            "key_id": subject.key_id,
            "reason": reason.strip(),
            "set_at": now(),
            "set_by": who,
        }
        connection.execute(insert(legal_holds).values(values))
        trail.append(connection, AuditAction.HOLD, [person])


def remove_hold(ledger: Ledger, trail: AuditTrail, person: tuple[str, str], subject: Tombstone) -> None:
    """Lifts a hold. Raises :class:`UsageError` if there is none."""
    if not ledger.exists():
        raise UsageError(_NONE)
    with ledger.write() as connection:
        if not connection.execute(delete(legal_holds).where(_is(subject))).rowcount:
            raise UsageError(_NONE)
        trail.append(connection, AuditAction.LIFT, [person])


_NONE: Final = "there is no legal hold on this tag with this value: see `kyc-pipeline legal-hold list`"


def _is(subject: Tombstone) -> ColumnElement[bool]:
    return and_(legal_holds.c.name == subject.name, legal_holds.c.pseudonym == subject.pseudonym)
