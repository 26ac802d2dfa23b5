"""A whole day: its folder, its identity, files that change during the ingest, and crashes."""

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ingest.manifests import (
    ignored_files,
    is_ingested,
    manifest_dates,
    manifest_identity,
    manifest_signature,
    require_landing,
    strays,
)
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.vocabulary import Reason
from tests.unit.ingest.conftest import ZoneWithLedger

DAY = "2024-09-01"


@pytest.fixture
def kind_of_zone() -> type[ZoneWithLedger]:
    return ZoneWithLedger


def test_a_day_without_manifests_is_two_partitions_without_rows(zone: Any) -> None:
    summary = zone.ingest()
    assert (summary.received, summary.accepted, summary.manifests) == (0, 0, 0)
    assert zone.lake.exists(SUBMISSIONS, DAY)
    assert zone.lake.exists(REJECTED_SUBMISSIONS, DAY)


def test_a_manifest_without_rows(zone: Any) -> None:
    zone.manifest("a.csv", "submission_id,id_file,selfie_file\n")
    zone.manifest("b.jsonl", "")
    summary = zone.ingest()
    assert (summary.received, summary.manifests) == (0, 2)


def test_an_impossible_date_is_refused(zone: Any) -> None:
    with pytest.raises(UsageError, match="not a partition date"):
        zone.ingest("2024-9-1")


def test_a_missing_landing_zone_is_not_an_empty_day(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    before = zone.files()
    zone.landing.rename(zone.landing.with_name("unmounted"))
    with pytest.raises(UsageError, match="is not a folder"):
        zone.ingest()
    assert zone.files() == before


@pytest.mark.parametrize("emptied", ["landing", "manifests"])
@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_a_landing_zone_that_became_empty_is_not_an_empty_day(zone: Any, emptied: str, when: str) -> None:
    zone.rows({})
    zone.ingest()
    before = zone.files()
    zone.rows({}, {"submission_id": "A2"})

    def unmount(tags: Mapping[str, str] | None = None) -> bool:
        folder = zone.landing if emptied == "landing" else zone.landing / "manifests"
        if not (away := zone.landing.with_name("unmounted")).exists():
            folder.rename(away)
            folder.mkdir()
        return False

    if when == "before":
        unmount()
    erased = None if when == "before" else unmount
    with pytest.raises(UsageError, match="has no manifests, but the lake has days that were made from"):
        zone.ingest(erased=erased)
    assert zone.files() == before
    with pytest.raises(UsageError, match="mount its volume"):
        require_landing(zone.landing, zone.lake)


@pytest.mark.parametrize("mount_point", [True, False])
def test_documents_that_are_not_mounted_are_not_missing_files(zone: Any, mount_point: bool) -> None:
    zone.rows({}, {"submission_id": "A2"})
    zone.ingest()
    before = zone.files()
    zone.rows({}, {"submission_id": "A2"}, {"submission_id": "A3"})
    documents = zone.landing / "documents"
    documents.rename(documents.with_name("unmounted"))
    if mount_point:
        documents.mkdir()
    with pytest.raises(UsageError, match=r"^KYC_LANDING: /.*/documents is (empty|not a folder): mount its"):
        zone.ingest()
    assert zone.files() == before
    zone.document("removed-on-purpose", b"")
    assert zone.ingest().rejected == {Reason.FILE_NOT_FOUND: 3}


def test_days_without_rows_are_no_sign_of_an_unmounted_landing_zone(zone: Any) -> None:
    zone.ingest()
    assert zone.ingest().manifests == 0
    # Nor is a landing zone whose manifests were removed on purpose.
    path = zone.rows({})
    zone.ingest()
    path.unlink()
    assert zone.ingest().received == 0
    assert zone.ids() == []


def test_require_landing(zone: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        require_landing(tmp_path / "nowhere", zone.lake)
    with pytest.raises(UsageError, match="has no manifests"):
        require_landing(zone.landing, zone.lake)
    (zone.landing / "manifests/notes").mkdir(parents=True)
    with pytest.raises(UsageError, match="has no manifests"):
        require_landing(zone.landing, zone.lake)
    zone.rows({})
    require_landing(zone.landing, zone.lake)


def test_folders_that_no_partition_reads_and_manifests_in_no_folder_are_reported(zone: Any) -> None:
    days, unfinished = ("2024-09-02", "2024-09-01"), (".snapshot", "2024-09-03.tmp", "2024-09-04.Part")
    for name in (*days, *unfinished, "2024-9-3", "20240904", "backup"):
        (zone.landing / "manifests" / name).mkdir(parents=True)
    for name in ("2024-09-03", "2024-09-04.csv", "M.JSONL.gz", ".gitkeep", "~$m.xlsx", "README.md"):
        (zone.landing / "manifests" / name).touch()
    assert manifest_dates(zone.landing) == ["2024-09-01", "2024-09-02"]
    for name in ("2024-08-31", "2025-09-03", "2025-09-04", "2204-09-01"):
        (zone.landing / "manifests" / name).mkdir()
    assert strays(zone.landing, datetime.date(2024, 9, 1), datetime.date(2024, 9, 2)) == [
        "2024-08-31",
        "2024-9-3",
        "20240904",
        "2025-09-04",
        "2204-09-01",
        "backup",
        "2024-09-03",
        "2024-09-04.csv",
        "M.JSONL.gz",
    ]


def test_other_files_are_counted_and_only_the_ingest_fails_if_the_day_cannot_be_listed(
    zone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone.manifest("notes.txt", b"")
    (zone.landing / "manifests" / DAY / "more").mkdir()
    zone.rows({})
    assert len(ignored_files(zone.landing, DAY)) == 2

    def refuse(path: Path) -> None:
        raise PermissionError(13, "refused")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert ignored_files(zone.landing, DAY) == []
    with pytest.raises(KycError, match=f"manifests/{DAY}: cannot be listed"):
        zone.ingest()


def test_identity_follows_names_and_contents_only(zone: Any) -> None:
    assert manifest_identity(zone.landing, DAY) == zone.ingest().identity
    a, b = zone.rows({}, name="a.csv"), zone.rows({"submission_id": "A2"}, name="b.csv")
    first = manifest_identity(zone.landing, DAY)
    signature = manifest_signature(zone.landing, DAY)
    assert zone.ingest().identity == first
    assert zone.lake.metadata(SUBMISSIONS, DAY)["manifests"] == first
    os.utime(a, (1, 1))
    assert manifest_identity(zone.landing, DAY) == first
    assert manifest_signature(zone.landing, DAY) != signature
    (a.parent / "c.csv").write_bytes(b.read_bytes())
    (a.parent / "d.csv.part").write_bytes(b"unfinished")
    assert manifest_identity(zone.landing, DAY) == first
    b.rename(b.with_name("e.csv"))
    assert manifest_identity(zone.landing, DAY) != first
    zone.rows({"submission_id": "A3"}, name="a.csv")
    assert manifest_identity(zone.landing, DAY) not in {
        first,
        zone.lake.metadata(SUBMISSIONS, DAY)["manifests"],
    }


def test_a_day_is_ingested_as_long_as_its_partition_matches_its_manifests(zone: Any) -> None:
    path = zone.rows({})
    assert not is_ingested(zone.landing, zone.lake, DAY)
    zone.ingest()
    assert is_ingested(zone.landing, zone.lake, DAY)
    zone.rows({"submission_id": "A2"})
    assert not is_ingested(zone.landing, zone.lake, DAY)
    zone.ingest()
    path.unlink()
    assert not is_ingested(zone.landing, zone.lake, DAY)
    zone.ingest()
    assert is_ingested(zone.landing, zone.lake, DAY)
    Path(zone.lake.path(SUBMISSIONS, DAY)).write_bytes(b"damaged")
    assert not is_ingested(zone.landing, zone.lake, DAY)


def test_a_manifest_that_cannot_be_opened_is_named_and_fails_only_its_own_day(zone: Any) -> None:
    for day in (DAY, "2024-09-02"):
        zone.rows({"submission_id": day}, day=day)
        zone.ingest(day)
    # A regular file that can be opened, but whose first byte nobody can read.
    (zone.landing / "manifests/2024-09-02/b.csv").symlink_to("/proc/self/mem")
    for read in (zone.ingest, lambda day: manifest_identity(zone.landing, day)):
        with pytest.raises(KycError, match=r"^manifests/2024-09-02/b\.csv: cannot be opened \(OSError\)$"):
            read("2024-09-02")
    assert not is_ingested(zone.landing, zone.lake, "2024-09-02")
    assert is_ingested(zone.landing, zone.lake, DAY)


def test_a_manifest_that_grows_while_it_is_read_is_read_again(zone: Any) -> None:
    path = zone.rows({})
    grown: list[bool] = []

    def grow_once(tags: Mapping[str, str]) -> bool:
        if not grown:
            grown.append(True)
            with path.open("a") as file:
                file.write("A2,id.jpg,selfie.png\n")
        return False

    assert zone.ingest(erased=grow_once).received == 2
    assert zone.ids() == ["A1", "A2"]


def test_a_manifest_that_never_stops_growing_fails_the_day(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    before = zone.files()
    path = zone.rows({"submission_id": "A2"})

    def grow(tags: Mapping[str, str]) -> bool:
        with path.open("a") as file:
            file.write("A3,id.jpg,selfie.png\n")
        return False

    with pytest.raises(KycError, match=r"manifests/2024-09-01/a\.csv: is still being written"):
        zone.ingest(erased=grow)
    assert zone.files() == before


def test_a_manifest_that_vanishes_while_it_is_read(zone: Any) -> None:
    path = zone.rows({})

    def remove(tags: Mapping[str, str]) -> bool:
        path.unlink(missing_ok=True)
        return False

    assert zone.ingest(erased=remove).received == 0


@pytest.mark.parametrize("step", range(1, 9))
def test_a_crash_at_any_write_leaves_the_old_partitions(
    zone: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    zone.rows({}, {"submission_id": "bad", "id_file": "lost.jpg"})
    zone.ingest()
    before = zone.files()
    zone.rows({"submission_id": "A2"}, {"submission_id": "bad2", "id_file": "lost.jpg"})
    calls = 0
    whole = pq.ParquetWriter.write_table

    def crash(self: pq.ParquetWriter, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(28, "No space left on device")
        whole(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", crash)
    if step <= 4:
        with pytest.raises(OSError, match="No space left"):
            zone.ingest()
        assert zone.files() == before
    else:
        zone.ingest()
        assert calls == 4
        assert zone.ids() == ["A2"]
    drafts = [p for p in Path(zone.lake.root).rglob("*") if p.is_file() and p.name.startswith(".draft")]
    assert drafts == []


def test_a_day_whose_second_file_could_not_be_replaced_is_not_ingested(zone: Any) -> None:
    zone.rows({"submission_id": "A1"})
    # Makes the last step for this table fail after the other table was published.
    Path(zone.lake.path(REJECTED_SUBMISSIONS, DAY), "in-the-way").mkdir(parents=True)
    with pytest.raises((KycError, OSError)):
        zone.ingest()
    assert not is_ingested(zone.landing, zone.lake, DAY)
