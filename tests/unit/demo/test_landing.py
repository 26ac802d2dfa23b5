"""The demo's landing zone keeps its promises when it is really ingested."""

from collections import Counter
from datetime import date
from pathlib import Path

from kyc_pipeline.demo.landing import write_landing
from kyc_pipeline.ingest.manifests import ingest_partition, manifest_dates
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.vocabulary import Reason

START = date(2024, 9, 1)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Each file's first bytes and modification time (one file is a 50 MB hole)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = (file.read(100_000), path.stat().st_mtime_ns)
    return found


def test_every_reason_occurs_all_other_rows_are_accepted_and_people_come_again(tmp_path: Path) -> None:
    landing = write_landing(tmp_path / "landing", days=14, per_day=6, start=START, seed=1)
    lake = Lake(str(tmp_path / "lake"))
    found: Counter[Reason] = Counter()
    accepted = 0
    customers: Counter[str] = Counter()
    owners: dict[str, set[str]] = {}
    companies: set[str] = set()
    for day in landing.dates:
        summary = ingest_partition(landing=landing.folder, lake=lake, date=day)
        found.update(summary.rejected)
        accepted += summary.accepted
        for row in lake.read(SUBMISSIONS, day).to_pylist():
            tags = dict(row["tags"])
            assert row["submission_id"].startswith(f"{day}-")
            customers[tags["customerId"]] += 1
            owners.setdefault(row["id_sha256"], set()).add(tags["customerId"])
            companies.add(tags["companyId"])
    assert list(landing.dates) == manifest_dates(landing.folder)
    assert found == dict(landing.rejected)
    only_by_setting = {Reason.DUPLICATE_DOCUMENTS, Reason.MISSING_CONSENT}
    assert set(found) == set(Reason) - only_by_setting - {Reason.ERASED_SUBJECT}
    assert accepted == landing.accepted == 14 * 6
    assert max(customers.values()) > 1
    assert any(len(who) > 1 for who in owners.values()), "documents are shared"
    assert len(companies) == 5


def test_the_second_run_changes_no_file(tmp_path: Path) -> None:
    first = write_landing(tmp_path / "landing", days=14, per_day=3, start=START, seed=3)
    before = contents(first.folder)
    assert write_landing(tmp_path / "landing", days=14, per_day=3, start=START, seed=3) == first
    assert contents(first.folder) == before


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    write_landing(tmp_path / "a", days=3, per_day=4, start=START, seed=4)
    write_landing(tmp_path / "b", days=3, per_day=4, start=START, seed=4)
    write_landing(tmp_path / "c", days=3, per_day=4, start=START, seed=5)
    a, b, c = (
        {name: data for name, (data, _) in contents(tmp_path / folder).items()} for folder in ("a", "b", "c")
    )
    assert a == b
    assert a != c


def test_images_are_small(tmp_path: Path) -> None:
    landing = write_landing(tmp_path / "landing", days=1, per_day=10, start=START, seed=6)
    sizes = [path.stat().st_size for path in landing.folder.glob("documents/**/*_id.*")]
    sizes += [path.stat().st_size for path in landing.folder.glob("documents/**/*_selfie.*")]
    assert len(sizes) == 20
    assert max(sizes) <= 30_000
