"""The turns of publications, on both databases."""

from datetime import datetime

import pytest

from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy
from kyc_pipeline.ledger.publications import (
    copies_before_erasure,
    forget_place,
    forget_replaced,
    last_erasure,
    list_copies,
    publication_lock,
    record,
    reserve,
)
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

HERE, THERE = "a:/data/kyc.duckdb", "b:/data/kyc.duckdb"


def publish(ledger: Ledger, place: str, *, replaced: int = 0) -> int:
    sequence = reserve(ledger, place, "run", above=replaced)
    record(ledger, sequence)
    forget_replaced(ledger, sequence, replaced=replaced)
    return sequence


def copies(ledger: Ledger) -> dict[str, int]:
    return {copy.place: copy.sequence for copy in list_copies(ledger)}


def test_no_ledger_is_created_to_look(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger:
        assert (list_copies(ledger), last_erasure(ledger)) == ([], None)
        assert not ledger.exists()


def test_sequences_grow_over_all_hosts_and_are_never_used_again(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger, Ledger(ledger_url) as other:
        assert [publish(ledger, HERE), publish(other, THERE), publish(ledger, HERE)] == [1, 2, 3]
        assert reserve(ledger, HERE, "crashed") == 4
        assert publish(other, THERE) == 5
        assert copies(ledger) == {HERE: 3, THERE: 5}
        assert forget_place(ledger, THERE) == 1
        assert copies(ledger) == {HERE: 3}
        assert publish(ledger, HERE) == 6


def test_a_ledger_from_a_backup_does_not_fall_behind_what_is_published(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger:
        assert publish(ledger, HERE, replaced=41) == 42


def test_a_file_that_another_host_replaces_is_one_copy(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger:
        first = publish(ledger, HERE)
        publish(ledger, THERE, replaced=first)
        assert copies(ledger) == {THERE: 2}


def test_copies_from_before_an_erasure_are_known_until_they_are_replaced(ledger_url: str) -> None:
    tombstone = Tombstone.of_tag(Pseudonymizer("0123456789abcdef" * 2), "customerId", "3")
    with Ledger(ledger_url) as ledger:
        publish(ledger, HERE)
        publish(ledger, THERE)
        assert copies_before_erasure(ledger) == []
        store = LedgerErasure(ledger)
        store.remember([tombstone])
        store.swept([tombstone])
        publish(ledger, HERE)
        store.finish([tombstone])
        assert [copy.place for copy in copies_before_erasure(ledger)] == [THERE]
        assert isinstance(last_erasure(ledger), datetime)
        publish(ledger, THERE)
        assert copies_before_erasure(ledger) == []


def test_one_host_publishes_at_a_time(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger, Ledger(ledger_url) as other:
        with (
            publication_lock(ledger, "first"),
            pytest.raises(PartitionBusy, match=r"another publication: .* by run first"),
            publication_lock(other, "second", wait_seconds=0),
        ):
            pass
        with publication_lock(other, "second", wait_seconds=0) as check:
            check()
