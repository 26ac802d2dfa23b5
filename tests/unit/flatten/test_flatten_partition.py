"""Flattening a day of responses into the five curated tables."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.errors import KycError
from kyc_pipeline.flatten import partition
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake import storage
from kyc_pipeline.lake.storage import PartitionMissing, PartitionWriter
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    SUBMISSIONS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.conftest import new_bucket
from tests.unit.flatten.support import (
    CLEAR,
    CURATED,
    DAY,
    PSEUDONYMS,
    SEED_TAGS,
    SEED_TEXT,
    SHA,
    Day,
    echo,
    response_row,
    submission_row,
    text_of,
)


def test_the_seed_example_becomes_these_rows(day: Day) -> None:
    summary = day.flatten(SEED_TEXT)
    key = {"verification_id": 457, "submission_id": "s-0"}
    moment = datetime(2024, 9, 8, 11, 40, tzinfo=UTC)
    assert day.rows(VERIFICATIONS) == [
        key
        | {
            "verified": True,
            "model": "verification",
            "model_version": None,
            "verified_at": moment,
            "timestamp_iso": "2024-09-08T10:00:00.000000",
            "iso_offset_seconds": -6000.0,
            "id_file_type": "jpeg",
            "id_file_size": 234567,
            "selfie_file_type": "jpeg",
            "selfie_file_size": 112233,
            "check_count": 3,
            "id_document_pseudonym": PSEUDONYMS.document(SHA),
            "anomalies": ["echo_tags_missing"],
        }
    ]
    checks = [
        ("FACE_MATCH", 0.97, "0.97", "Face match confidence: 97%"),
        ("LIVENESS", 0.99, "0.99", "Liveness check passed"),
        ("ID_QUALITY", 0.92, "0.92", "ID document quality is acceptable"),
    ]
    assert day.rows(MODEL_CHECKS) == [
        key
        | {
            "check_group": "technicalChecks",
            "check_index": index,
            "type": check_type,
            "status": "PASS",
            "normalized_status": "PASS",
            "confidence": score,
            "confidence_raw": raw,
            "details": details,
        }
        for index, (check_type, score, raw, details) in enumerate(checks)
    ]
    assert day.rows(VERIFICATION_TAGS) == [
        key
        | {"name": name, "value": value if name in CLEAR else None, "pseudonym": PSEUDONYMS.tag(name, value)}
        for name, value in SEED_TAGS.items()
    ]
    assert day.rows(VERIFICATION_FILES) == [
        key | {"category": category, "content_type": "image/jpeg", "file_size": size, "uploaded_at": moment}
        for category, size in (("id", 234567), ("face", 112233))
    ]
    assert day.rows(CONTRACT_DRIFT) == []
    assert (summary.responses, summary.completed, summary.verifications) == (1, 1, 1)
    assert (summary.checks, summary.tags, summary.files, summary.drift) == (3, 5, 2, 0)
    assert summary.anomalies == {"echo_tags_missing": 1}


def test_a_response_that_echoes_what_was_sent_has_no_anomaly(day: Day) -> None:
    day.flatten(text_of(echo("s-0")))
    assert day.anomalies() == []
    assert {"name": "submissionId", "value": "s-0"}.items() <= day.rows(VERIFICATION_TAGS)[-1].items()


def test_only_completed_responses_have_rows(day: Day) -> None:
    outcomes = ["completed", "failed", "not_attempted", "quarantined", "refused", "uncertain"]
    day.write(
        [response_row(f"s-{i}", text_of(echo(f"s-{i}")), outcome) for i, outcome in enumerate(outcomes)]
    )
    summary = day.flatten()
    assert (summary.responses, summary.completed) == (6, 1)
    assert {row["submission_id"] for table in CURATED[:4] for row in day.rows(table)} == {"s-0"}


def test_a_day_without_responses_makes_five_empty_partitions(day: Day) -> None:
    day.write([], [])
    summary = day.flatten()
    assert summary.responses == 0
    for table in CURATED:
        assert day.lake.read(table, DAY).schema.remove_metadata() == table.schema
        assert day.lake.row_count(table, DAY) == 0


def test_the_five_tables_carry_one_source(day: Day) -> None:
    summary = day.flatten(text_of(echo("s-0")))
    footers = [day.lake.metadata(table, DAY) for table in CURATED]
    assert all(footer == footers[0] for footer in footers)
    assert footers[0]["source"] == summary.source
    assert footers[0]["key_id"] == PSEUDONYMS.key_id
    assert day.flatten(text_of(echo("s-0", verified=False))).source != summary.source


AGAIN = """
import sys
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.storage import Lake
from tests.unit.flatten.support import CLEAR, DAY, PSEUDONYMS
flatten_partition(Lake(sys.argv[1]), DAY, PSEUDONYMS, CLEAR, force=True)
"""


def test_the_same_responses_give_the_same_bytes_in_any_process(day: Day) -> None:
    odd: dict[str, Any] = {"extra": {"b": 1, "a": 2}, "model": None, "timestampISO": "x", "tags": []}
    day.flatten(*(text_of(echo(f"s-{i}", verificationId=i, **(odd if i % 2 else {}))) for i in range(9)))
    paths = [Path(day.lake.path(table, DAY)) for table in CURATED]
    before = [(path.read_bytes(), path.stat().st_ino) for path in paths]
    # The order of sets, which depends on the hash seed of a process, must not matter.
    subprocess.run(
        [sys.executable, "-c", AGAIN, day.lake.root], check=True, env=os.environ | {"PYTHONHASHSEED": "1"}
    )
    for path, (content, inode) in zip(paths, before, strict=True):
        assert path.stat().st_ino != inode
        assert path.read_bytes() == content


def test_many_responses_keep_their_order_over_batches_and_row_groups(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "BATCH_ROWS", 64)
    monkeypatch.setattr(partition, "ROW_GROUP_ROWS", 1000)
    ids = [f"s-{i:06}" for i in range(420)]
    checks = ", ".join(["{}"] * 3)
    slim = f'{{"result": {{"verificationId": %d, "verified": true, "modelResults": {{"a": [{checks}]}}}}}}'
    day.write([response_row(id_, slim % index) for index, id_ in enumerate(ids)])
    summary = day.flatten()
    assert day.lake.read(VERIFICATIONS, DAY)["submission_id"].to_pylist() == ids
    assert summary.without_submission == 0
    footer = pq.ParquetFile(day.lake.path(MODEL_CHECKS, DAY)).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [1000, 260]


def test_a_response_without_its_submission_keeps_its_rows(day: Day) -> None:
    day.write(
        [response_row(id_, text_of(echo(id_))) for id_ in ("s-1", "s-3", "s-5")],
        [submission_row(id_) for id_ in ("s-0", "s-1", "s-2", "s-5", "s-6")],
    )
    assert day.flatten().without_submission == 1
    rows = day.rows(VERIFICATIONS)
    assert [row["anomalies"] for row in rows] == [[], ["submission_missing", "text_withheld"], []]
    assert [row["id_document_pseudonym"] is None for row in rows] == [False, True, False]


@pytest.mark.parametrize("text", [None, "", "[]", '{"result": {"verificationId": 1}}'])
def test_a_completed_response_without_the_hard_contract_is_counted(day: Day, text: str | None) -> None:
    summary = day.flatten(text, text_of(echo("s-1")))
    assert (summary.completed, summary.verifications, summary.unreadable) == (2, 1, 1)
    assert day.drift() == {("result", "type_mismatch"): 1}


@pytest.mark.parametrize("table", [SUBMISSIONS, VERIFICATION_RESPONSES])
@pytest.mark.parametrize("order", [["s-2", "s-1"], ["s-1", "s-1"]])
def test_an_unsorted_partition_is_refused_and_nothing_changes(day: Day, table: Any, order: list[str]) -> None:
    day.flatten(text_of(echo("s-0")))
    before = [day.rows(each) for each in CURATED]
    make = submission_row if table is SUBMISSIONS else lambda id_: response_row(id_, text_of(echo(id_)))
    day.write([response_row(id_, text_of(echo(id_))) for id_ in ("s-1", "s-2")])
    day.lake.write(table, DAY, [make(id_) for id_ in order])
    with pytest.raises(KycError, match=f"{table.name} partition {DAY} is not sorted by submission_id"):
        day.flatten()
    assert [day.rows(each) for each in CURATED] == before


@pytest.mark.parametrize("completed", [[], ["s-1"], ["s-1", "s-2"]])
def test_submissions_out_of_order_are_found_wherever_they_stand(
    day: Day, completed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "BATCH_ROWS", 1)
    submissions = [submission_row(id_) for id_ in ("s-1", "s-2", "s-3", "s-5", "s-4")]
    day.write([response_row(id_, text_of(echo(id_))) for id_ in completed], submissions)
    with pytest.raises(KycError, match=f"submissions partition {DAY} is not sorted by submission_id"):
        day.flatten()


@pytest.mark.parametrize(("completed", "sent"), [(0, 500), (1, 500), (500, 1), (499, 500)])
def test_a_day_is_read_in_few_batches(
    day: Day, completed: int, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"s-{n:03}" for n in range(500)]
    day.write([response_row(id_, SEED_TEXT) for id_ in ids[:completed]], [*map(submission_row, ids[:sent])])
    sizes = []
    read = day.lake.batches

    def batches(*arguments: Any) -> Any:
        for batch in read(*arguments):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(day.lake, "batches", batches)
    summary = day.flatten()
    assert (summary.completed, summary.without_submission) == (completed, max(0, completed - sent))
    assert sum(sizes) == completed + sent
    assert len(sizes) <= 4


@pytest.mark.parametrize("table", [SUBMISSIONS, VERIFICATION_RESPONSES], ids=lambda table: table.name)
def test_an_input_that_is_replaced_while_it_is_read_fails_the_day(
    day: Day, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    day.flatten(text_of(echo("s-0")))
    before = [day.rows(curated) for curated in CURATED]
    read = day.lake.batches

    def batches(*arguments: Any) -> Any:
        yield from read(*arguments)
        day.lake.write(table, DAY, day.rows(table))  # the same rows, in another file

    monkeypatch.setattr(day.lake, "batches", batches)
    with pytest.raises(KycError, match=f"the responses of {DAY} were replaced while they were read"):
        day.flatten()
    assert [day.rows(curated) for curated in CURATED] == before


@pytest.mark.parametrize("force", [False, True])
def test_another_run_may_flatten_a_day_in_an_object_store_meanwhile(
    seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """It replaces what this one found. That is no fault of either: neither has a lease."""
    day, write, others = Day(new_bucket(seaweed_endpoint, monkeypatch)), PartitionWriter.write, ["first"]
    day.flatten(text_of(echo("s-0")))
    day.write([response_row("s-1", text_of(echo("s-1")))])

    def interrupted(writer: PartitionWriter, rows: Any) -> None:
        if others:
            others.clear()
            day.flatten()
        write(writer, rows)

    monkeypatch.setattr(PartitionWriter, "write", interrupted)
    summary = flatten_partition(day.lake, DAY, PSEUDONYMS, CLEAR, force=force)
    assert summary.up_to_date is not force, "without `force`, the tables of the other run will do"
    assert [row["submission_id"] for row in day.rows(VERIFICATIONS)] == ["s-1"]
    assert {day.lake.metadata(table, DAY)["source"] for table in CURATED} == {summary.source}


def test_both_inputs_are_hashed_once(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    sha256 = day.lake.sha256

    def counting(table: Table, date: str) -> str:
        hashed.append(table.name)
        return sha256(table, date)

    monkeypatch.setattr(day.lake, "sha256", counting)
    day.flatten(text_of(echo("s-0")))
    assert sorted(hashed) == ["submissions", "verification_responses"]


@given(st.integers(0, 10**7), st.integers(0, 10**12))
def test_batches_are_alike_and_as_many_for_each_worker(rows: int, size: int) -> None:
    batch = partition._batch_rows(rows, size)
    count = math.ceil(rows / batch)
    assert 1 <= batch <= partition.BATCH_ROWS
    assert batch == 1 or size / max(1, rows) * (batch - 1) <= partition.BATCH_BYTES
    # If the rows do not divide evenly, the last batches of a round may be smaller or missing.
    assert count % partition.WORKERS == 0 or rows - (count - 1) * batch <= batch <= max(1, count)


def test_a_day_of_large_responses_is_read_in_small_batches(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text_of(echo(f"s-{n}", more="x" * 3_000, verificationId=n)) for n in range(10)]
    usual = day.flatten(*texts)
    before = [day.rows(table) for table in CURATED]
    monkeypatch.setattr(partition, "BATCH_BYTES", 10_000)
    summary = day.flatten(*texts)
    assert [day.rows(table) for table in CURATED] == before
    assert summary == usual


@pytest.mark.parametrize("table", [SUBMISSIONS, VERIFICATION_RESPONSES])
def test_a_missing_partition_is_named(day: Day, table: Any) -> None:
    day.write([])
    Path(day.lake.path(table, DAY)).unlink()
    with pytest.raises(PartitionMissing, match=f"{table.name} has no partition"):
        day.flatten()


def test_no_personal_value_is_in_the_curated_tables(day: Day) -> None:
    day.flatten(text_of(echo("s-0", unknown={"Acme Corp": {"9999": 1, "DOC-2024-001": 2}})))
    everything = json.dumps([day.rows(table) for table in CURATED], default=str)
    for secret in ("9999", "Acme", "DOC-2024-001", "passport.jpg", "v_id_457", "a.jpg"):
        assert secret not in everything


@pytest.mark.parametrize("key", ["Acme", "acme_corp", "AcmeCorp", "Corp", "corp"])
def test_no_path_shows_a_word_of_a_tag(day: Day, key: str) -> None:
    day.flatten(text_of(echo("s-0", unknown={key: 1})))
    assert key not in json.dumps([day.rows(table) for table in CURATED], default=str)


def test_the_schema_of_what_is_written_is_the_dictionary(day: Day) -> None:
    day.flatten(SEED_TEXT)
    for table in CURATED:
        written = pq.read_schema(day.lake.path(table, DAY))
        assert written.remove_metadata() == pa.schema(table.schema)


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sets small batches and row groups; returns the texts of a day that has many of both."""
    monkeypatch.setattr(partition, "BATCH_ROWS", 50)
    for module in (partition, storage):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 200)
    return [text_of(echo("s-0", verificationId=i, **({"new": 1} if i % 7 == 3 else {}))) for i in range(600)]


def bytes_of(day: Day) -> dict[str, bytes]:
    return {table.name: Path(day.lake.path(table, DAY)).read_bytes() for table in CURATED}


def test_row_groups_are_written_in_order_beside_the_next(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = small_pieces(monkeypatch)
    assert day.flatten_each(texts).exact == len([i for i in range(600) if i % 7 == 3])
    for table in (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES):
        ids = [row["verification_id"] for row in day.rows(table)]
        assert ids == sorted(ids)
        groups = pq.ParquetFile(day.lake.path(table, DAY)).metadata
        assert groups.num_row_groups == -(-len(ids) // 200)
        assert {groups.row_group(n).num_rows for n in range(groups.num_row_groups - 1)} == {200}
    before = bytes_of(day)
    day.flatten()
    assert bytes_of(day) == before


def test_a_row_group_waits_for_the_one_before(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = small_pieces(monkeypatch)
    writing, together = set[int](), []
    write = PartitionWriter.write

    def watched(writer: PartitionWriter, rows: Any) -> None:
        if id(writer) in writing:
            together.append(rows)
        writing.add(id(writer))
        write(writer, rows)
        writing.discard(id(writer))

    monkeypatch.setattr(PartitionWriter, "write", watched)
    day.flatten_each(texts)
    assert together == []


def test_a_failed_row_group_leaves_the_old_partition(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    day.flatten_each(small_pieces(monkeypatch))
    before, write = bytes_of(day), PartitionWriter.write
    calls = []

    def failing(writer: PartitionWriter, rows: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no space left on device")
        write(writer, rows)

    monkeypatch.setattr(PartitionWriter, "write", failing)
    with pytest.raises(OSError, match="no space"):
        day.flatten()
    assert bytes_of(day) == before
    assert [path.name for path in Path(day.lake.path(VERIFICATIONS, DAY)).parent.iterdir()] == [
        "part-0.parquet"
    ]


def test_an_error_while_parsing_leaves_no_thread_and_no_file_open(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = small_pieces(monkeypatch)

    def failing(*_: Any) -> None:
        raise ValueError("cannot select")

    monkeypatch.setattr(partition, "select", failing)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="cannot select"):
        day.flatten_each(texts)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def files_of(day: Day) -> dict[str, int]:
    return {table.name: Path(day.lake.path(table, DAY)).stat().st_ino for table in CURATED}


def test_a_day_that_is_up_to_date_is_not_written_again(day: Day) -> None:
    first = day.flatten(text_of(echo("s-0", unknown=1)), "not json")
    before = files_of(day)
    again = day.update()
    assert (first.up_to_date, again.up_to_date) == (False, True)
    assert replace(again, up_to_date=False) == first
    assert files_of(day) == before


def damage(day: Day, table: Table) -> None:
    """Overwrites the middle of the file: its footer stays readable."""
    path = Path(day.lake.path(table, DAY))
    content = bytearray(path.read_bytes())
    content[8:40] = bytes(32)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda day: day.write([response_row("s-0", text_of(echo("s-0", verified=False)))]),
        lambda day: Path(day.lake.path(VERIFICATION_TAGS, DAY)).unlink(),
        lambda day: damage(day, MODEL_CHECKS),
        lambda day: Path(day.lake.path(CONTRACT_DRIFT, DAY)).write_bytes(b"not parquet"),
    ],
    ids=["another response", "a missing table", "a damaged table", "a table that is no Parquet"],
)
def test_a_day_that_is_not_up_to_date_is_written_again(day: Day, change: Callable[[Day], object]) -> None:
    day.flatten(text_of(echo("s-0")))
    change(day)
    assert not day.update().up_to_date
    assert day.update().up_to_date
    assert day.rows(MODEL_CHECKS)


@pytest.mark.parametrize(
    ("pseudonymizer", "clear_tags", "force"),
    [
        (Pseudonymizer("another key, long enough"), CLEAR, False),
        (PSEUDONYMS, {"x"}, False),
        (PSEUDONYMS, CLEAR, True),
    ],
)
def test_another_key_other_clear_tags_or_force_write_the_day_again(
    day: Day, pseudonymizer: Pseudonymizer, clear_tags: set[str], force: bool
) -> None:
    day.flatten(text_of(echo("s-0")))
    assert not flatten_partition(day.lake, DAY, pseudonymizer, clear_tags, force=force).up_to_date
