"""The lake in an object store: the same promises as in a folder, over real HTTP."""

import secrets
import socket
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
import s3fs
from s3fs.core import S3File

from kyc_pipeline.errors import is_outside_fault, plain_line
from kyc_pipeline.lake.storage import SMALL, Lake, PartitionMissing, PartitionReplaced
from kyc_pipeline.lake.tables import CONTRACT_DRIFT
from tests.unit.conftest import new_bucket

DAY, NEXT = "2024-09-01", "2024-09-02"


def drift(path: str, occurrences: int = 1) -> dict[str, object]:
    return {"path": path, "kind": "unknown_field", "occurrences": occurrences, "example_submission_id": "s"}


def paths(lake: Lake) -> list[str]:
    paths: list[Any] = lake.read(CONTRACT_DRIFT, DAY)["path"].to_pylist()
    return paths


def another_instance(root: str) -> Lake:
    """A lake as another process would open it: without a shared file system instance."""
    s3fs.S3FileSystem.clear_instance_cache()
    return Lake(root)


def test_partitions_are_written_replaced_read_and_listed(s3_root: str) -> None:
    lake, other = Lake(s3_root), another_instance(s3_root)
    assert lake.fs is not other.fs
    with pytest.raises(PartitionMissing, match="contract_drift has no partition"):
        other.read(CONTRACT_DRIFT, DAY)
    assert (other.exists(CONTRACT_DRIFT, DAY), other.dates(CONTRACT_DRIFT)) == (False, [])
    lake.write(CONTRACT_DRIFT, DAY, [drift("a"), drift("b")], {"source": "x"})
    # The other instance looked before the write, and must not read from a cache.
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


@pytest.mark.parametrize("before", [["old"], []], ids=["replaced", "new"])
def test_a_suspended_writer_does_not_replace_what_others_wrote(
    seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    root = new_bucket(seaweed_endpoint, monkeypatch)
    lake, other = Lake(root), another_instance(root)
    for path in before:
        lake.write(CONTRACT_DRIFT, DAY, [drift(path)])

    def sleep() -> None:
        """Between the confirmation and the commit, somebody else takes the day over."""
        other.write(CONTRACT_DRIFT, DAY, [drift("theirs")])

    def write() -> None:
        with lake.writer(CONTRACT_DRIFT, DAY, confirm=sleep) as writer:
            writer.write([drift("ours")])

    with pytest.raises(PartitionReplaced, match=r"2024-09-01/part-0.parquet was replaced by another run"):
        write()
    assert paths(other) == ["theirs"]


def test_the_bucket_may_be_an_access_point(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the two servers has any, so this shows only which object a writer looks for."""
    bucket, asked = "arn:aws:s3:us-east-1:123456789012:accesspoint/mine", []
    lake = Lake(f"s3://{bucket}/prefix")

    def call_s3(_method: str, **arguments: str) -> None:
        asked.append((arguments["Bucket"], arguments["Key"]))
        raise ConnectionError

    monkeypatch.setattr(lake.fs, "call_s3", call_s3)
    with pytest.raises(ConnectionError):
        lake.write(CONTRACT_DRIFT, DAY, [])
    assert asked == [(bucket, f"prefix/curated/contract_drift/date={DAY}/part-0.parquet")]


def test_a_commit_whose_response_is_lost_counts(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client repeats the request, and the store then says that the version is another one."""
    lake = Lake(s3_root)
    commit = S3File.commit

    def twice(file: S3File) -> None:
        upload, parts = file.mpu, file.parts
        commit(file)
        file.mpu, file.parts = upload, parts
        commit(file)

    monkeypatch.setattr(S3File, "commit", twice)
    lake.write(CONTRACT_DRIFT, DAY, [drift("a")])
    assert paths(another_instance(s3_root)) == ["a"]


READER = """
import sys
from kyc_pipeline.lake.storage import SMALL, Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT
lake = Lake(sys.argv[1])
while True:
    rows = lake.read(CONTRACT_DRIFT, "2024-09-01").column("occurrences")
    print(len(rows), *sorted(set(rows.to_pylist())), flush=True)
"""


def test_a_reader_in_another_process_sees_whole_partitions_and_every_replacement(s3_root: str) -> None:
    lake = Lake(s3_root)
    # Large enough for several reads per copy, so the object is often replaced in the middle of one.
    rows = pa.Table.from_pylist([drift(secrets.token_hex(100)) for _ in range(90_000)])
    assert lake.write(CONTRACT_DRIFT, DAY, rows) == 90_000
    assert lake.fs.size(lake.path(CONTRACT_DRIFT, DAY)) > SMALL
    with subprocess.Popen(
        [sys.executable, "-c", READER, s3_root], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        for version in range(2, 7):
            occurrences = pa.array([version] * 90_000)
            lake.write(CONTRACT_DRIFT, DAY, rows.set_column(2, "occurrences", occurrences))
            while (line := reader.stdout.readline()) != f"90000 {version}\n":
                size, *versions = line.split()
                assert (size, len(versions)) == ("90000", 1)
        reader.kill()


def test_a_store_that_refuses_or_is_away_is_told_in_one_line(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)  # its client knows the wrong address
    lake = Lake("s3://no-such-bucket/lake")
    with pytest.raises(OSError, match=r".") as refused:
        lake.write(CONTRACT_DRIFT, DAY, [drift("a")])
    assert plain_line(refused.value).startswith(
        "the object store cannot be used (NoSuchBucket in kyc_pipeline."
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # it refuses connections, since nothing listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        with pytest.raises(Exception, match="Could not connect") as away:
            another_instance(s3_root).exists(CONTRACT_DRIFT, DAY)
    assert is_outside_fault(refused.value)
    assert is_outside_fault(away.value)
    line = plain_line(away.value)
    assert line.startswith(
        "the object store cannot be used (EndpointConnectionError in kyc_pipeline.lake.storage"
    )
    assert line.endswith(
        "check AWS_ENDPOINT_URL, the network, the credentials and the policy, then run again"
    )
