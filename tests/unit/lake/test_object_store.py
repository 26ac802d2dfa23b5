"""The lake in an object store: the same promises as in a folder, over real HTTP."""

import secrets
import subprocess
import sys
import threading
from typing import Any

import pyarrow as pa
import pytest
import s3fs
from aiobotocore.awsrequest import AioAWSResponse

from kyc_pipeline.lake.locks import LockBusy, LockLost, exclusive
from kyc_pipeline.lake.storage import Lake, PartitionMissing
from kyc_pipeline.lake.tables import CONTRACT_DRIFT

DAY, NEXT = "2024-09-01", "2024-09-02"


def drift(path: str, occurrences: int = 1) -> dict[str, object]:
    return {"path": path, "kind": "unknown_field", "occurrences": occurrences, "example_submission_id": "s"}


def paths(lake: Lake) -> list[str]:
    return lake.read(CONTRACT_DRIFT, DAY)["path"].to_pylist()


def another_instance(root: str) -> Lake:
    """A lake of another process, as far as file systems know."""
    s3fs.S3FileSystem.clear_instance_cache()
    return Lake(root)


def test_partitions_are_written_replaced_read_and_listed(s3_root: str) -> None:
    lake, other = Lake(s3_root), another_instance(s3_root)
    assert lake.fs is not other.fs
    with pytest.raises(PartitionMissing, match="contract_drift has no partition"):
        other.read(CONTRACT_DRIFT, DAY)
    assert (other.exists(CONTRACT_DRIFT, DAY), other.dates(CONTRACT_DRIFT)) == (False, [])
    lake.write(CONTRACT_DRIFT, DAY, [drift("a"), drift("b")], {"source": "x"})
    # What the other has looked at before, it must see now: nothing is remembered.
    assert (other.exists(CONTRACT_DRIFT, DAY), other.dates(CONTRACT_DRIFT)) == (True, [DAY])
    assert (paths(other), other.row_count(CONTRACT_DRIFT, DAY)) == (["a", "b"], 2)
    assert other.metadata(CONTRACT_DRIFT, DAY)["source"] == "x"
    first = other.sha256(CONTRACT_DRIFT, DAY)
    lake.write(CONTRACT_DRIFT, DAY, [drift("longer" * 50)], {"source": "y"})
    lake.write(CONTRACT_DRIFT, NEXT, [])
    assert other.dates(CONTRACT_DRIFT) == [DAY, NEXT]
    assert (paths(other), other.row_count(CONTRACT_DRIFT, DAY)) == (["longer" * 50], 1)
    assert other.metadata(CONTRACT_DRIFT, DAY)["source"] == "y"
    assert other.sha256(CONTRACT_DRIFT, DAY) == lake.sha256(CONTRACT_DRIFT, DAY) != first


def test_batches_stay_those_of_one_version(s3_root: str) -> None:
    lake = Lake(s3_root)
    lake.write(CONTRACT_DRIFT, DAY, [drift(str(n)) for n in range(100)])
    batches = lake.batches(CONTRACT_DRIFT, DAY, batch_size=7)
    found = next(batches)["path"].to_pylist()
    another_instance(s3_root).write(CONTRACT_DRIFT, DAY, [drift("other")])
    assert found + [p for batch in batches for p in batch["path"].to_pylist()] == [*map(str, range(100))]


def test_a_version_changes_with_every_replacement(s3_root: str) -> None:
    lake, other = Lake(s3_root), another_instance(s3_root)
    with pytest.raises(PartitionMissing, match="contract_drift has no partition"):
        lake.version(CONTRACT_DRIFT, DAY)
    other.write(CONTRACT_DRIFT, DAY, [drift("a")])
    first = lake.version(CONTRACT_DRIFT, DAY)
    assert lake.version(CONTRACT_DRIFT, DAY) == first
    other.write(CONTRACT_DRIFT, DAY, [drift("b")])
    assert lake.version(CONTRACT_DRIFT, DAY) != first


def test_a_failed_write_leaves_the_old_rows(s3_root: str) -> None:
    lake = Lake(s3_root)
    lake.write(CONTRACT_DRIFT, DAY, [drift("old")])

    def fail() -> None:
        with lake.writer(CONTRACT_DRIFT, DAY) as writer:
            writer.write([drift("new")])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert paths(another_instance(s3_root)) == ["old"]
    assert lake.fs.find(lake.root) == [lake.path(CONTRACT_DRIFT, DAY)]


READER = """
import sys
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT
lake = Lake(sys.argv[1])
while True:
    rows = lake.read(CONTRACT_DRIFT, "2024-09-01").column("occurrences")
    print(len(rows), *sorted(set(rows.to_pylist())), flush=True)
"""


def test_a_reader_in_another_process_sees_whole_partitions_and_every_replacement(s3_root: str) -> None:
    lake = Lake(s3_root)
    # A copy takes several reads, so that the object is replaced in the middle of many a copy.
    rows = pa.Table.from_pylist([drift(secrets.token_hex(100)) for _ in range(60_000)])
    assert lake.write(CONTRACT_DRIFT, DAY, rows) == 60_000
    assert lake.fs.size(lake.path(CONTRACT_DRIFT, DAY)) > 6_000_000
    with subprocess.Popen(
        [sys.executable, "-c", READER, s3_root], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        for version in range(2, 7):
            occurrences = pa.array([version] * 60_000)
            lake.write(CONTRACT_DRIFT, DAY, rows.set_column(2, "occurrences", occurrences))
            while (line := reader.stdout.readline()) != f"60000 {version}\n":
                size, *versions = line.split()
                assert (size, len(versions)) == ("60000", 1)
        reader.kill()


# --- the lock ---------------------------------------------------------------------------------------------


def test_the_lock_is_held_by_one_at_a_time_and_is_free_afterwards(s3_root: str) -> None:
    inside = 0

    def work() -> None:
        nonlocal inside
        with exclusive(Lake(s3_root), "lock", wait_seconds=60, lease_seconds=5) as check:
            inside += 1
            assert inside == 1
            check()
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == 0
    with exclusive(Lake(s3_root), "lock", wait_seconds=0):
        pass


def test_a_lock_is_renewed_while_it_is_held(s3_root: str) -> None:
    lake = Lake(s3_root)
    with exclusive(lake, "lock", wait_seconds=0, lease_seconds=0.4):
        first = lake.fs.cat_file(f"{lake.root}/lock")
        while lake.fs.cat_file(f"{lake.root}/lock") == first:
            pass
        with (
            pytest.raises(LockBusy, match="another process holds the lake's lock for 0 s"),
            exclusive(Lake(s3_root), "lock", wait_seconds=0),
        ):
            raise AssertionError("two have the lock")


def test_the_lock_of_a_dead_process_is_taken_after_its_lease(s3_root: str) -> None:
    lake = Lake(s3_root)
    lake.fs.pipe_file(f"{lake.root}/lock", b"held by a process that was killed")
    with exclusive(lake, "lock", wait_seconds=60, lease_seconds=0.2) as check:
        check()


def test_a_lock_that_was_lost_says_so_and_stays_with_its_new_holder(s3_root: str) -> None:
    lake = Lake(s3_root)
    with exclusive(lake, "lock", wait_seconds=0) as check:
        lake.fs.pipe_file(f"{lake.root}/lock", b"held by another")
        with pytest.raises(LockLost, match="run the day again"):
            check()
    assert lake.fs.cat_file(f"{lake.root}/lock") == b"held by another"


def test_a_lock_whose_object_was_deleted_is_lost(s3_root: str) -> None:
    lake = Lake(s3_root)
    with exclusive(lake, "lock", wait_seconds=0) as check:
        lake.fs.rm_file(f"{lake.root}/lock")
        with pytest.raises(LockLost):
            check()
    assert not lake.fs.exists(f"{lake.root}/lock")


def test_a_store_that_is_busy_with_another_write_means_not_now(s3_root: str) -> None:
    """AWS answers 409 where two conditional writes meet; the store of these tests never does."""
    lake = Lake(s3_root)
    with exclusive(lake, "lock", wait_seconds=0):
        pass  # the object is there, and free
    conflicts = [409, 409]

    class Nothing:
        async def read(self) -> bytes:
            return b""

    def conflict(request: Any, **_: object) -> AioAWSResponse | None:
        return AioAWSResponse(request.url, conflicts.pop(), {}, Nothing()) if conflicts else None

    lake.fs.s3.meta.events.register("before-send.s3.PutObject", conflict)
    with exclusive(lake, "lock", wait_seconds=60, lease_seconds=1) as check:
        check()
    assert conflicts == []


def test_a_lock_in_a_folder(tmp_path: str) -> None:
    lake = Lake(f"{tmp_path}/lake")
    with (
        exclusive(lake, "lock", wait_seconds=0) as check,
        pytest.raises(LockBusy, match="for 0 s"),
        exclusive(lake, "lock", wait_seconds=0),
    ):
        raise AssertionError("two have the lock")
    check()
