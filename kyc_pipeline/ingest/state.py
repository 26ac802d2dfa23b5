"""What the lake records of each day's ingest, and whether that still holds.

A day is ingested if its `submissions` were made from its present manifests, if the settings would still
decide as they did, and if every id that it left to another day still belongs to that day, with the same
content. Otherwise the id may be free: the day must be ingested again, or a row that moved from one day to
another would be in neither.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.landing_options import DEFAULTS, LandingOptions
from kyc_pipeline.lake.storage import Lake, PartitionMissing
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.vocabulary import Reason

MANIFESTS_KEY: Final = "manifests"
"""Footer key of `submissions`: the identity of the manifests."""
DECIDED_KEY: Final = "decided"
"""Footer key: what the settings decided; see :class:`~kyc_pipeline.ingest.landing_options.Decided`."""
RECEIVED_KEY: Final = "received"
"""Footer key: the manifest rows."""
ACCEPTED_KEY: Final = "accepted"
"""Footer key: the :class:`Digest` of the accepted ids and contents."""
OWNERS_KEY: Final = "owners"
"""Footer key, in JSON: the other days that own ids of this day's rows, each with its `accepted` digest and
the digest of those ids and contents."""
LEFT_TO_OWNER: Final = (Reason.DUPLICATE_SUBMISSION_ID.value, Reason.CONFLICTING_SUBMISSION_ID.value)
"""Reasons of rows whose id has another owner, in the same day or in another one."""
_ROW: Final = ["submission_id", "content_sha256"]
_CACHED_DAYS: Final = 1 << 14


class Digest:
    """A digest of ids and contents."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, rows: pa.Table | pa.RecordBatch) -> "Digest":
        """Adds rows, which are sorted by id over all calls."""
        pairs = zip(*(rows[name].to_pylist() for name in _ROW), strict=True)
        self._digest.update("".join(f"{key} {content}\n" for key, content in pairs).encode())
        return self

    def __str__(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class DayFooter:
    """The footer of a day's `submissions`, and where it was read."""

    lake: Lake
    date: str
    version: object
    manifests: str
    decided: str
    received: int
    accepted: str
    owners: Mapping[str, tuple[str, str]]


class Records:
    """The records of the lake. Those of `planned`, if given, take precedence."""

    def __init__(
        self,
        lake: Lake,
        planned: Lake | None = None,
        versions: Mapping[str, object] | None = None,
        options: LandingOptions = DEFAULTS,
    ) -> None:
        """`versions` of the lake's days, if known from a listing, save a request for each day.

        `options` come from the settings.
        """
        self._lakes = [lake] if planned is None else [planned, lake]
        self._versions = versions
        self._options = options

    def of(self, date: str) -> DayFooter:
        """The record of a day. Raises :class:`PartitionMissing` or :class:`PartitionUnreadable`."""
        *planned, lake = self._lakes
        for first in planned:
            if first.exists(SUBMISSIONS, date):
                lake = first
        if self._versions is None:
            version: object = lake.version(SUBMISSIONS, date)
        elif (version := self._versions.get(date)) is None:
            raise PartitionMissing(f"{SUBMISSIONS.name} has no partition {date}")
        return _read(lake, date, version)

    def is_current(self, date: str, manifests: str) -> bool:
        """Whether the day was made from the manifests of this identity, and all decisions still hold.

        The first digits of the identity are enough.
        """
        try:
            record = self.of(date)
            is_made = record.manifests.startswith(manifests) and self._options.would_repeat(record.decided)
            return is_made and self.holds(date)
        except KycError:
            return False

    def holds(self, date: str) -> bool:
        """Whether every id that the day left to another day is still that day's. Raises as :meth:`of`."""
        record = self.of(date)
        for owner, (accepted, owned) in record.owners.items():
            try:
                now = self.of(owner)
            except KycError:
                return False
            # Most changes of the other day concern other ids.
            if now.accepted != accepted and _owned(record, now) != owned:
                return False
        return True


def has_received_rows(lake: Lake) -> bool:
    """Whether any day of the lake was made from manifests with rows, as far as it can be read."""
    records = Records(lake)

    def received(date: str) -> int:
        try:
            return records.of(date).received
        except KycError:
            return 1

    return any(map(received, lake.dates(SUBMISSIONS)))


def kept_rows(lake: Lake, date: str) -> int:
    """How many of the day's `submissions` have no manifest row any more, but may have been paid for.

    Raises as :meth:`Records.of`.
    """
    rows = lake.row_count(SUBMISSIONS, date) + lake.row_count(REJECTED_SUBMISSIONS, date)
    return max(rows - Records(lake).of(date).received, 0)


def ingest_order(days: Sequence[str], is_outdated: Callable[[str], bool]) -> Iterator[str]:
    """The days in the order in which a run ingests them: each once, then those that a later one outdated.

    A third round would change nothing: in the first, every day gives up the ids that it no longer has.
    """
    yield from days
    yield from filter(is_outdated, days)


@functools.lru_cache(maxsize=_CACHED_DAYS)
def _read(lake: Lake, date: str, version: object) -> DayFooter:
    footer = lake.metadata(SUBMISSIONS, date)
    owners: dict[str, Any] = json.loads(footer.get(OWNERS_KEY, "{}"))
    return DayFooter(
        lake=lake,
        date=date,
        version=version,
        manifests=footer.get(MANIFESTS_KEY, ""),
        decided=footer.get(DECIDED_KEY, ""),
        received=int(footer.get(RECEIVED_KEY, 0)),
        accepted=footer.get(ACCEPTED_KEY, ""),
        owners={day: (accepted, owned) for day, (accepted, owned) in owners.items()},
    )


def _owned(record: DayFooter, owner: DayFooter) -> str:
    """The digest of the ids that the day left to `owner`, as they are there now."""
    return _owned_at(record.lake, record.date, record.version, owner.lake, owner.date, owner.version)


@functools.lru_cache(maxsize=_CACHED_DAYS)
def _owned_at(lake: Lake, date: str, _: object, owner_lake: Lake, owner: str, __: object) -> str:
    rejected = lake.read(REJECTED_SUBMISSIONS, date, ["submission_id", "reason"])
    ids = rejected.filter(pc.field("reason").isin(LEFT_TO_OWNER))["submission_id"]
    rows = owner_lake.read(SUBMISSIONS, owner, _ROW)
    return str(Digest().add(rows.filter(pc.is_in(rows["submission_id"], value_set=ids.combine_chunks()))))
