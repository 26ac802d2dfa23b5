"""The register of what DeepXL must delete: its records of erased people's submissions.

The API has no delete call, so an operator asks DeepXL, and confirms the deletion here. Before an erasure
removes anything, it registers every submission that was sent, whatever its outcome. DeepXL identifies a
record by its verification id. If a call may have left a record with an unknown id, only the tag
`submissionId` finds it, so the register keeps that id in the clear until the deletion is confirmed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from kyc_pipeline.ledger.audit import AuditAction, AuditTrail, Details
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import AttemptResult
from kyc_pipeline.ledger.schema import attempts, submissions, vendor_deletions
from kyc_pipeline.ledger.times import now

_NOT_KEPT: Final = frozenset(
    {AttemptResult.NOT_SENT, AttemptResult.NOT_PROCESSED, AttemptResult.ACCESS_DENIED}
)
"""Results of calls that leave nothing at DeepXL."""
_ROWS: Final = 500


@dataclass(slots=True)
class VendorRecord:
    """What DeepXL may have of one submission."""

    verification_ids: set[int] = field(default_factory=set)
    calls: int = 0
    """Calls that may have left a record."""
    sent_at: int | None = None
    """When it was first sent, in microseconds since the epoch."""

    @property
    def is_incomplete(self) -> bool:
        """Whether a call may have left a record whose id is unknown."""
        return self.calls > len(self.verification_ids)


def find_records(
    ledger: Ledger,
    ids: Sequence[str],
    found: dict[str, VendorRecord],
    read_id: Callable[[str], int | None],
) -> None:
    """Adds to `found`, by submission id, what the calls of these submissions may have left at DeepXL.

    `read_id` reads the verification id of a stored response.
    """
    if not ledger.exists():
        return
    with ledger.read() as connection:
        for start in range(0, len(ids), _ROWS):
            part = ids[start : start + _ROWS]
            responses = select(submissions.c.submission_id, submissions.c.response)
            calls = select(
                attempts.c.submission_id, attempts.c.body, attempts.c.result, attempts.c.started_at
            )
            for key, response in connection.execute(responses.where(submissions.c.submission_id.in_(part))):
                _add(found, key, response, read_id)
            for key, body, result, started_at in connection.execute(
                calls.where(attempts.c.submission_id.in_(part))
            ):
                _add(found, key, body, read_id)
                if result in _NOT_KEPT:
                    continue
                record = found.setdefault(key, VendorRecord())
                record.calls += 1
                record.sent_at = min(started_at, record.sent_at or started_at)


def register(
    ledger: Ledger, records: Mapping[str, VendorRecord], pseudonyms: Mapping[str, str], request: str | None
) -> None:
    """Adds the records, by submission id, to the register, or completes their entries.

    A confirmed entry that gets another verification id must be confirmed again.
    """
    keys = list(records)
    for start in range(0, len(keys), _ROWS):  # runs of other days must not wait long for the ledger
        with ledger.write() as connection:
            for key in keys[start : start + _ROWS]:
                _register(connection, key, records[key], pseudonyms[key], request)


def _register(
    connection: Connection, key: str, record: VendorRecord, pseudonym: str, request: str | None
) -> None:
    this = vendor_deletions.c.submission == pseudonym
    known = connection.execute(select(vendor_deletions).where(this)).one_or_none()
    before = set(verification_ids(known)) if known else set()
    # An erasure that was killed may have removed the responses with the ids that it registered.
    whole = VendorRecord(before | record.verification_ids, record.calls)
    values = {
        "submission_id": key if whole.is_incomplete else known and known.submission_id,
        "verification_ids": ",".join(map(str, sorted(whole.verification_ids))),
        "sent_at": record.sent_at or (known and known.sent_at),
        "request": request or (known and known.request),
    }
    if known is None:
        entry = values | {"submission": pseudonym, "erased_at": now()}
        connection.execute(insert(vendor_deletions).values(entry))
    elif known.confirmed_on is None or record.verification_ids - before:
        reopened = dict.fromkeys(("confirmed_on", "confirmed_by", "evidence"))
        connection.execute(update(vendor_deletions).where(this).values(values | reopened))


def verification_ids(row: Row[Any]) -> list[int]:
    """The verification ids of a row of the register."""
    return [int(each) for each in row.verification_ids.split(",") if each]


def read_register(ledger: Ledger, *, with_confirmed: bool = False) -> Iterator[Row[Any]]:
    """What DeepXL must delete, the oldest first. Does not create a ledger."""
    if not ledger.exists():
        return
    query = select(vendor_deletions).order_by(vendor_deletions.c.erased_at, vendor_deletions.c.submission)
    if not with_confirmed:
        query = query.where(vendor_deletions.c.confirmed_on.is_(None))
    with ledger.read() as connection:
        yield from connection.execution_options(yield_per=_ROWS).execute(query)


def confirm(
    ledger: Ledger,
    trail: AuditTrail,
    *,
    on: date,
    who: str,
    evidence: str,
    request: str | None = None,
    verifications: Iterable[int] = (),
) -> int:
    """Records that DeepXL deleted the records of a request, or these verifications, or else all open ones.

    Removes their submission ids. `evidence` says what proves the deletion. Returns how many it confirmed.
    """
    if not ledger.exists():
        return 0
    wanted = set(verifications)
    chosen = vendor_deletions.c.confirmed_on.is_(None)
    with ledger.write() as connection:
        rows = connection.execute(select(vendor_deletions).where(chosen).with_for_update()).all()
        confirmed = [
            row.submission
            for row in rows
            if (request is None or row.request == request)
            and (not wanted or wanted.intersection(verification_ids(row)))
        ]
        for start in range(0, len(confirmed), _ROWS):
            part = confirmed[start : start + _ROWS]
            connection.execute(
                update(vendor_deletions)
                .where(vendor_deletions.c.submission.in_(part))
                .values(submission_id=None, confirmed_on=on.isoformat(), confirmed_by=who, evidence=evidence)
            )
        if confirmed:
            details: Details = {"records": len(confirmed), "on": on.isoformat()}
            trail.append(connection, AuditAction.VENDOR_DELETION, [None], details)
    return len(confirmed)


def _add(
    found: dict[str, VendorRecord], key: str, text: str | None, read_id: Callable[[str], int | None]
) -> None:
    verification_id = read_id(text) if text is not None else None
    if verification_id is not None:
        found.setdefault(key, VendorRecord()).verification_ids.add(verification_id)
