"""Faults that the pipeline once had, put back one at a time: the simulation must find each of them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kyc_pipeline.deepxl import errors
from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.deepxl.errors import LookupFailed, NotProcessed, Refused
from kyc_pipeline.ledger.leases import HeldLease
from tests.simulation.vendor import Fault

Replace = Callable[[Any, str, Any], None]


def _status_is_believed(replace: Replace) -> None:
    believed = dict.fromkeys((408, 425, 429, 503), NotProcessed)
    replace(errors, "_BY_STATUS", errors._BY_STATUS | believed)


def _failed_look_up_means_none(replace: Replace) -> None:
    find = DeepXLClient.find

    async def find_or_nothing(*arguments: Any, **named: Any) -> Any:
        try:
            return await find(*arguments, **named)
        except LookupFailed:
            return []

    replace(DeepXLClient, "find", find_or_nothing)


def _lease_is_not_confirmed(replace: Replace) -> None:
    if hasattr(HeldLease, "confirm"):
        replace(HeldLease, "confirm", lambda _self: None)


def _gateway_is_final(replace: Replace) -> None:
    replace(errors, "_BY_STATUS", errors._BY_STATUS | dict.fromkeys((404, 405), Refused))


def _nothing(_replace: Replace) -> None:
    """The fault is still in the code."""


@dataclass(frozen=True)
class Mutation:
    """A fault, what brings it to light, and how it is put back."""

    faults: frozenset[Fault]
    put_back: Callable[[Replace], None]

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
        frozenset({Fault.BUSY, Fault.BUSY_BUT_PROCESSED}), _status_is_believed
    ),
    "a surplus answer is believed": Mutation(frozenset({Fault.SURPLUS}), _nothing),
    "an early answer is believed": Mutation(frozenset({Fault.EARLY}), _nothing),
    "another submission's answer is believed": Mutation(frozenset({Fault.SWAPPED}), _nothing),
    "any record with the tag is adopted": Mutation(frozenset({Fault.FOREIGN_RECORD, Fault.LOST}), _nothing),
    "a look-up that failed means that there is no record": Mutation(
        frozenset({Fault.HISTORY_FAILS, Fault.LOST}), _failed_look_up_means_none
    ),
    "a suspended run sends after a takeover": Mutation(
        frozenset({Fault.FREEZE, Fault.SLEEP}), _lease_is_not_confirmed
    ),
    "a gateway's page is final": Mutation(frozenset({Fault.GATEWAY}), _gateway_is_final),
}
