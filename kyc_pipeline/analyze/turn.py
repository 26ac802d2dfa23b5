"""The turn of one publication: over all hosts that share a ledger, only one builds at a time.

It has the lock and the sequence of `ledger/publications.py`, and keeps the ledger's list of published copies.
Without a ledger there are no other hosts, and nothing to lock.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kyc_pipeline.analyze.publish import Place, name_of, publish, published_sequence, remove_old
from kyc_pipeline.ledger import publications
from kyc_pipeline.ledger.database import Ledger


@dataclass(frozen=True)
class Turn:
    """The right to publish, while the block of :func:`publication_turn` runs."""

    check: Callable[[], None]
    """Raises :class:`LeaseLost` if another host has taken over."""
    _ledger: Ledger | None
    _run_id: str

    def begin(self, place: Place) -> int | None:
        """The sequence of a build that begins now; None without a ledger. Call it before anything is read."""
        if self._ledger is None:
            return None
        return publications.reserve(
            self._ledger, name_of(place), self._run_id, above=published_sequence(place)
        )

    def publish(
        self,
        draft: Path,
        place: Place,
        built_ns: int,
        sequence: int | None,
        confirm: Callable[[], None],
        *,
        is_erasure: bool = False,
    ) -> None:
        """Publishes a build; see :func:`publish.publish`. Then removes old builds from an object store.

        `is_erasure`: they all go at once, because somebody was erased.
        """
        ledger = self._ledger
        if ledger is None or sequence is None:
            publish(draft, place, built_ns, confirm=confirm)
            return
        replaced = published_sequence(place)

        def confirm_and_record() -> None:
            confirm()
            publications.record(ledger, sequence)
            self.check()

        publish(draft, place, built_ns, sequence, confirm_and_record)
        remove_old(place, publications.last_erasure(ledger), at_once=is_erasure)
        publications.forget_replaced(ledger, sequence, replaced=replaced)


@contextlib.contextmanager
def publication_turn(ledger: Ledger, place: Place, run_id: str) -> Iterator[Turn]:
    """Waits for the turn to publish at `place`. A ledger is created only for an object store.

    Raises :class:`PartitionBusy` if another publication takes too long.
    """
    if isinstance(place, Path) and not ledger.exists():
        yield Turn(lambda: None, None, run_id)
        return
    with publications.publication_lock(ledger, run_id) as check:
        yield Turn(check, ledger, run_id)
