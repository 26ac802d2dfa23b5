"""Whether a ledger and a lake belong together: with the wrong ledger, everything would be paid for again.

Each has an id and knows the other's. The ledger's `generation` counts its commits and never runs backwards: a
process remembers the last one that it wrote, and the lake one that is a few seconds old. So an older copy of
a ledger is recognised, even in the middle of a run, however it took the ledger's place.
"""

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow.compute as pc
from sqlalchemy import Connection, select, text, update

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.identity import (
    LakeIdentity,
    note_generation,
    read_lake_identity,
    write_lake_identity,
)
from kyc_pipeline.lake.storage import Lake, PartitionUnreadable
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger import sqlite
from kyc_pipeline.ledger.database import Ledger, WrongLedger, damaged
from kyc_pipeline.ledger.queries import read_entries
from kyc_pipeline.ledger.schema import identity
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import Outcome
from kyc_pipeline.wording import plural

_NOTE_SECONDS: Final = 5.0
"""Interval at which a run writes the ledger's generation into the lake."""
_IDENTITY: Final = select(identity)
_LOCKED: Final = _IDENTITY.with_for_update()
_RESTORE: Final = "restore it with `kyc-pipeline ledger restore`"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which ledger this is."""

    ledger_id: str
    lake_id: str | None
    """The lake that it belongs to; None until the first call."""
    generation: int
    restored_at: int | None
    """When it was last restored (microseconds since the epoch): it may lack calls made before."""
    moved_to: str | None
    """The URL of the ledger that took its place."""
    pseudonym_key_id: str | None
    """Identifies the key of the pseudonyms; None before the first."""


def lock_identity(connection: Connection) -> Identity:
    """The ledger's identity, whose row stays locked until the transaction ends."""
    return Identity(*connection.execute(_LOCKED).one())


def read_identity(ledger: Ledger) -> Identity:
    """The ledger's identity. Raises :class:`WrongLedger` if somebody removed it."""
    with ledger.read() as connection:
        row = connection.execute(_IDENTITY).one_or_none()
    if row is None:
        raise WrongLedger(f"the ledger {ledger.name} has lost its identity: {_RESTORE}")
    return Identity(*row)


def open_ledger(settings: Settings) -> Ledger:
    """The ledger at `KYC_LEDGER_URL`. Raises :class:`WrongLedger` if it is known not to be the lake's."""
    ledger = Ledger(settings.kyc_ledger_url)
    try:
        check_bond(Lake(settings.kyc_lake), ledger)
    except KycError:
        ledger.close()
        raise
    return ledger


def check_bond(lake: Lake, ledger: Ledger) -> None:
    """Raises :class:`WrongLedger` if the two are known not to belong together. Creates nothing."""
    known = read_lake_identity(lake)
    if not ledger.exists():
        if known is not None or any(
            any(_attempted(lake, date)) for date in lake.dates(VERIFICATION_RESPONSES)
        ):
            raise WrongLedger(
                f"there is no ledger at {ledger.name}, but the lake {lake.root} has had one, and a new one "
                f"would pay again: mount its volume, correct KYC_LEDGER_URL or KYC_HOME, or {_RESTORE}"
            )
        return
    mine = read_identity(ledger)
    if mine.moved_to is not None:
        raise _moved(ledger, mine.moved_to)
    if known is None:
        return
    if known.ledger_id != mine.ledger_id or mine.lake_id not in (None, known.lake_id):
        raise WrongLedger(
            f"the ledger {ledger.name} is not the ledger of the lake {lake.root}: correct KYC_LEDGER_URL or "
            "KYC_LAKE (each lake needs a ledger of its own), or bind them with `kyc-pipeline ledger restore`"
        )
    if mine.generation < known.generation:
        raise WrongLedger(
            f"the ledger {ledger.name} is older than the lake {lake.root} has seen it, so it does not know "
            f"all calls: use the newest one, or {_RESTORE}, which looks up what it may lack"
        )


def require_in_use(ledger: Ledger, connection: Connection) -> None:
    """Raises :class:`WrongLedger` if the ledger was moved, perhaps since this process opened it."""
    moved_to = connection.execute(select(identity.c.moved_to)).scalar()
    if moved_to is not None:
        raise _moved(ledger, moved_to)


def _moved(ledger: Ledger, url: str) -> WrongLedger:
    if url == ledger.name:
        return WrongLedger(
            f"the move to the ledger {ledger.name} did not end: run `kyc-pipeline ledger restore`"
        )
    return WrongLedger(f"the ledger {ledger.name} was moved: set KYC_LEDGER_URL to {url}")


def check_lake(lake: Lake, ledger: Ledger) -> None:
    """Raises :class:`WrongLedger` if the ledger belongs to another lake, or this one has lost its identity.

    Its volume may not be mounted. A missing or an older ledger is accepted, because a publication needs none.
    Creates nothing.
    """
    if not ledger.exists():
        return
    known, mine = read_lake_identity(lake), read_identity(ledger)
    if mine.lake_id is not None and (known is None or known.lake_id != mine.lake_id):
        raise _another_lake(lake, ledger)


def _another_lake(lake: Lake, ledger: Ledger) -> WrongLedger:
    return WrongLedger(
        f"the ledger {ledger.name} belongs to another lake than {lake.root}: mount the lake, or correct "
        "KYC_LAKE or KYC_LEDGER_URL; if this lake was rebuilt, run `kyc-pipeline ledger check --bind`"
    )


def check_outcomes(lake: Lake, ledger: Ledger, dates: Iterable[str]) -> None:
    """Raises :class:`WrongLedger` if the lake shows outcomes that the ledger does not know."""
    for date in dates:
        if unknown := unknown_outcomes(lake, ledger, date):
            raise WrongLedger(
                f"the lake {lake.root} shows {plural(len(unknown), 'outcome')} of {date} (such as "
                f"{unknown[0]}'s) that the ledger {ledger.name} does not know: use the ledger that made "
                f"these calls, or {_RESTORE}"
            )


def unknown_outcomes(lake: Lake, ledger: Ledger, date: str) -> list[str]:
    """Ids of submissions with an outcome in the lake that are not in the ledger.

    Raises :class:`WrongLedger` if the lake's partition is damaged, so that it cannot tell.
    """
    unknown: list[str] = []
    if lake.exists(VERIFICATION_RESPONSES, date):
        try:
            for ids in _attempted(lake, date):
                entries = read_entries(ledger, ids)
                unknown += [submission_id for submission_id in ids if submission_id not in entries]
        except PartitionUnreadable as error:
            raise WrongLedger(
                f"{lake.path(VERIFICATION_RESPONSES, date)} is damaged, so it cannot show that the ledger "
                f"{ledger.name} knows all calls: restore the file from a backup; or, if no other ledger was "
                f"used since, move it away; then run {date} again"
            ) from error
    return unknown


def bind(lake: Lake, ledger: Ledger) -> Identity:
    """Before a run's first claim, checks that the ledger is healthy and is this lake's.

    On first use it gives each the other's id. Raises :class:`WrongLedger`.
    """
    check_bond(lake, ledger)
    if not ledger.generation:  # once for each object: it reads the whole file
        check_health(ledger)
    with ledger.read() as connection:
        is_new = connection.execute(select(identity.c.lake_id)).scalar_one() is None
    if is_new and read_lake_identity(lake) is None:
        check_outcomes(lake, ledger, lake.dates(VERIFICATION_RESPONSES))
    # The row's lock makes this the only process that binds.
    with ledger.write() as connection:
        mine = lock_identity(connection)
        known = read_lake_identity(lake)
        if known is None:
            if mine.lake_id is not None:
                raise _another_lake(lake, ledger)
            known = LakeIdentity(secrets.token_hex(16), mine.ledger_id)
            write_lake_identity(lake, known)
        connection.execute(update(identity).values(lake_id=known.lake_id))
        generation = advance(ledger, connection)
    ledger.generation = max(ledger.generation, generation)
    note_generation(lake, generation)
    return dataclasses.replace(mine, lake_id=known.lake_id, generation=generation)


def advance(ledger: Ledger, connection: Connection) -> int:
    """Increments and returns the generation. Call it last in a transaction, since it locks the only row.

    Raises :class:`WrongLedger` if the ledger was moved away, or an older copy took its place.
    """
    generation = connection.execute(_ADVANCE).scalar_one_or_none()
    if generation is None:
        raise WrongLedger(f"the ledger {ledger.name} was moved while a run used it: run the same days again")
    if generation <= ledger.generation:
        raise WrongLedger(_overtaken(ledger))
    return int(generation)


_ADVANCE: Final = (
    update(identity)
    .where(identity.c.moved_to.is_(None))
    .values(generation=identity.c.generation + 1)
    .returning(identity.c.generation)
)


def _overtaken(ledger: Ledger) -> str:
    return (
        f"an older copy took the place of the ledger {ledger.name} while a run used it: nothing more is "
        f"sent; use the newest one, or {_RESTORE}"
    )


def check_same(ledger: Ledger) -> None:
    """Raises :class:`WrongLedger` if the ledger is older than what this process has committed."""
    if read_identity(ledger).generation < ledger.generation:
        raise WrongLedger(_overtaken(ledger))


def may_lack_calls(ledger: Ledger, date: str) -> bool:
    """Whether the ledger was restored on this partition's date or later, so that it may lack its calls."""
    restored_at = to_datetime(read_identity(ledger).restored_at)
    return restored_at is not None and date <= restored_at.date().isoformat()


def check_health(ledger: Ledger) -> None:
    """Raises :class:`WrongLedger` if the database is damaged or does not keep what it commits."""
    with ledger.read() as connection:
        if ledger.file is None:
            if connection.execute(text("SHOW fsync")).scalar_one() == "off":
                raise WrongLedger(
                    f"the PostgreSQL server of the ledger {ledger.name} has fsync=off, so a power cut may "
                    "lose what was paid: set fsync=on"
                )
            return
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        try:
            sqlite.check_structure(driver_connection)
        except sqlite.Damaged as error:
            raise damaged(ledger, error) from None


class LakeNote:
    """Writes the ledger's generation into the lake every few seconds. Call it after each commit."""

    def __init__(self, lake: Lake, ledger: Ledger) -> None:
        self._lake = lake
        self._ledger = ledger
        self._due = time.monotonic() + _NOTE_SECONDS

    def __call__(self) -> None:
        """Writes the ledger's generation into the lake if it is due."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _NOTE_SECONDS
            self.write()

    def write(self) -> None:
        """Writes it now."""
        # A failure of either store makes the next check weaker, never wrong; the calls continue.
        with contextlib.suppress(Exception):
            note_generation(self._lake, self._ledger.generation)


def _attempted(lake: Lake, date: str) -> Iterator[list[str]]:
    """Ids of the submissions that the lake shows as attempted, in batches, none of them empty."""
    for rows in lake.batches(VERIFICATION_RESPONSES, date, ["submission_id", "outcome"]):
        attempted = rows.filter(pc.field("outcome") != Outcome.NOT_ATTEMPTED.value)
        if attempted.num_rows:
            yield [str(submission_id) for submission_id in attempted["submission_id"].to_pylist()]
