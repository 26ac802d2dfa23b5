"""Faults that the pipeline once had, put back one at a time: the simulation must find each of them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from kyc_pipeline.cli import plan
from kyc_pipeline.deepxl import call_errors, transport
from kyc_pipeline.deepxl.call_errors import LookupFailed, NotProcessed, Refused
from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.deepxl.transport import Reply, Transport
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.ingest.ownership import Ownership
from kyc_pipeline.ingest.state import Records
from kyc_pipeline.ledger.leases import HeldLease
from kyc_pipeline.ledger.owners import Owner, find
from kyc_pipeline.verify.dispatcher import Dispatcher
from kyc_pipeline.verify.fence import Fence
from kyc_pipeline.verify.shards import _Shards
from tests.simulation.vendor import Fault

Replace = Callable[[Any, str, Any], None]


def _status_is_believed(replace: Replace) -> None:
    believed = dict.fromkeys((408, 425, 429, 503), NotProcessed)
    replace(call_errors, "_BY_STATUS", call_errors._BY_STATUS | believed)


def _failed_look_up_means_none(replace: Replace) -> None:
    find = DeepXLClient.find

    async def find_or_nothing(*arguments: Any, **named: Any) -> Any:
        try:
            return await find(*arguments, **named)
        except LookupFailed:
            return []

    replace(DeepXLClient, "find", find_or_nothing)


def _lease_is_not_confirmed(replace: Replace) -> None:
    async def confirm(_: Fence) -> None:
        pass

    replace(Fence, "confirm", confirm)


def _early_response_counts(replace: Replace) -> None:
    post = Transport.post

    async def post_whole(*arguments: Any, **named: Any) -> Reply:
        return (await post(*arguments, **named))._replace(is_early=False)

    replace(Transport, "post", post_whole)


def _anybodys_response_counts(replace: Replace) -> None:
    contradictions = Dispatcher._contradictions

    def of_records(self: Dispatcher, item: Any, echo: Any, *, exactly: bool = False) -> list[str]:
        return contradictions(self, item, echo, exactly=exactly) if exactly else []

    replace(Dispatcher, "_contradictions", of_records)


def _anybodys_record_counts(replace: Replace) -> None:
    contradictions = Dispatcher._contradictions

    def of_responses(self: Dispatcher, item: Any, echo: Any, *, exactly: bool = False) -> list[str]:
        return [] if exactly else contradictions(self, item, echo)

    replace(Dispatcher, "_contradictions", of_responses)


def _used_connection_is_trusted(replace: Replace) -> None:
    """Two checks stand in the way of a surplus response: of its connection, and of what it is about."""
    replace(transport._Request, "send", aiohttp.ClientRequest.send)
    _anybodys_response_counts(replace)


def _gateway_is_final(replace: Replace) -> None:
    replace(call_errors, "_BY_STATUS", call_errors._BY_STATUS | dict.fromkeys((404, 405), Refused))


def _day_is_never_due_again(replace: Replace) -> None:
    replace(Records, "holds", lambda *_: True)


def _sent_rows_move(replace: Replace) -> None:
    replace(Ownership, "_sent_batches", lambda _: iter(()))


def _ids_are_not_reserved(replace: Replace) -> None:
    def others(self: Owners, date: str, rows: Iterable[Owner], *, sent: bool) -> Iterator[Owner]:
        return find(self.ledger, date, rows)

    replace(Owners, "others", others)


def _plan_knows_no_deliveries(replace: Replace) -> None:
    replace(plan, "ingest_partition", lambda **_: None)


def _orphans_send(replace: Replace) -> None:
    replace(HeldLease, "_is_orphan", False)


def _nobody_waits_for_shards(replace: Replace) -> None:
    async def ended(_: _Shards, **__: object) -> None:
        pass

    replace(_Shards, "ended", ended)


@dataclass(frozen=True)
class Mutation:
    """A fault, what brings it to light, and how it is put back."""

    faults: frozenset[Fault]
    put_back: Callable[[Replace], None]
    seed: int
    """The first that finds it today, from which the search begins."""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The fault is in the code while the block runs."""
        undo: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str, value: Any) -> None:
            undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

        self.put_back(replace)
        try:
            yield
        finally:
            for owner, name, value in reversed(undo):
                setattr(owner, name, value)


MUTATIONS = {
    "a status is believed after the whole body": Mutation(
        frozenset({Fault.BUSY, Fault.BUSY_BUT_PROCESSED}), _status_is_believed, 3
    ),
    "a surplus response is believed": Mutation(frozenset({Fault.SURPLUS}), _used_connection_is_trusted, 57),
    "an early response is believed": Mutation(frozenset({Fault.EARLY}), _early_response_counts, 10),
    "another submission's response is believed": Mutation(
        frozenset({Fault.SWAPPED}), _anybodys_response_counts, 3
    ),
    "any record with the tag is adopted": Mutation(
        frozenset({Fault.FOREIGN_RECORD, Fault.LOST}), _anybodys_record_counts, 4
    ),
    "a look-up that failed means that there is no record": Mutation(
        frozenset({Fault.HISTORY_FAILS, Fault.LOST}), _failed_look_up_means_none, 42
    ),
    "a suspended run sends after a takeover": Mutation(
        frozenset({Fault.FREEZE, Fault.SLEEP}), _lease_is_not_confirmed, 190
    ),
    "a shard sends though its run is dead": Mutation(frozenset({Fault.CRASH}), _orphans_send, 680),
    "a run ends before its shards": Mutation(frozenset({Fault.STOP}), _nobody_waits_for_shards, 3),
    "a gateway's page is final": Mutation(frozenset({Fault.GATEWAY}), _gateway_is_final, 5),
    "a day is not due when another gives up an id that it wants": Mutation(
        frozenset({Fault.MOVES}), _day_is_never_due_again, 7
    ),
    "a row that was sent moves with its manifest": Mutation(frozenset({Fault.MOVES}), _sent_rows_move, 1),
    "a day takes ids without reserving them": Mutation(frozenset({Fault.MOVES}), _ids_are_not_reserved, 0),
    "plan knows nothing of what was delivered since": Mutation(
        frozenset({Fault.MOVES}), _plan_knows_no_deliveries, 7
    ),
}
