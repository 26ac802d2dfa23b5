"""`kyc-pipeline erase`, byte by byte: lake, ledger, warehouse, report, Dagster's storage."""

import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from sqlalchemy import select, text

from kyc_pipeline.analyze import build as build_module
from kyc_pipeline.analyze.build import BuildSummary
from kyc_pipeline.cli.local_run import run_partitions
from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.erasure.find import ID_COLUMN
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, TABLES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.ledger.publications import forget_replaced, record, reserve
from kyc_pipeline.ledger.schema import erasures, submissions
from kyc_pipeline.orchestration.assets import analyze as assets
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
RANGE = ("--from", DAY, "--to", NEXT_DAY)
KEY = "0123456789abcdef" * 2
MARK = "Zq7mark"
CUSTOMER = f"{MARK}-9999"
TAG = f"customerId={CUSTOMER}"
# A company of their own, because analysts may see its name.
THEIR_TAGS = {"customerId": CUSTOMER, "customerName": f"Jané {MARK}", "companyName": f"{MARK} Ltd"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def pseudonym_key(run_on_disk: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", KEY)


def tags_of(number: int) -> Mapping[str, str]:
    return {"customerId": f"other-{number}", "customerName": "Nobody", "companyId": "COMP-001"}


def deliver(landing: Any) -> None:
    """Delivers two days of submissions, with the person on both."""
    for start, day in ((0, DAY), (100, NEXT_DAY)):
        others = [landing.submission(f"{day}-{n}", start + 10 * n, tags_of(start + n)) for n in range(4)]
        landing.manifest(day, [*others, landing.submission(f"{MARK}-{day}", start + 70, THEIR_TAGS)])


def places_with(root: Path, *marks: str) -> set[str]:
    """The places that store one of `marks`: files outside the landing zone, by their bytes, and tables."""
    found = set()
    for path in root.rglob("*"):
        if path.is_file() and "landing" not in path.parts:
            content = path.read_bytes()
            found |= {str(path.relative_to(root)) for mark in marks if mark.encode() in content}
    lake = Lake(str(root / "lake"))
    for table in TABLES:
        for date in lake.dates(table):
            rows = str(lake.read(table, date).to_pylist())
            found |= {f"{table.name} {date}" for mark in marks if mark in rows}
    for name, table_rows in warehouse_rows(root).items():
        found |= {f"warehouse {name}" for mark in marks if mark in str(table_rows)}
    return found


def warehouse_rows(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the published warehouse, by table."""
    with duckdb.connect(str(root / "warehouse" / "kyc.duckdb"), read_only=True) as warehouse:
        names = [name for (name,) in warehouse.sql("SELECT table_name FROM duckdb_tables()").fetchall()]
        return {name: warehouse.sql(f"FROM {name} ORDER BY ALL").fetchall() for name in names}


def test_a_person_is_erased_to_the_last_byte_and_stays_erased(
    landing: Any, run_on_disk: Run, simulator: Simulator, tmp_path: Path
) -> None:
    run = run_on_disk
    deliver(landing)
    assert run("backfill", *RANGE)[0] == 0
    assert run("publications")[0] == 0
    there = "other-host:/data/kyc.duckdb"
    with Ledger("sqlite:///ledger.sqlite") as ledger:
        record(ledger, reserve(ledger, there, "run"))
    pseudonym = Tombstone.of_tag(Pseudonymizer(KEY), "customerId", CUSTOMER).pseudonym
    before, published = warehouse_rows(tmp_path), (tmp_path / "warehouse" / "kyc.duckdb").read_bytes()
    stored = places_with(tmp_path, MARK)
    assert {"warehouse submissions", "warehouse verification_tags", f"submissions {DAY}"} <= stored
    assert any(place.startswith("ledger.sqlite") for place in stored)

    code, out, err = run("erase", "--tag", TAG, "--dry-run")
    assert (code, err) == (0, "")
    assert "lake: submissions" in out
    assert "2 rows in 2 manifests" in out
    assert "warehouse and report are rebuilt" in out
    assert MARK not in out
    header, _, dry_run = out.partition("\n")
    assert header == "dry run: nothing changes. The erasure would do this:"
    assert places_with(tmp_path, MARK) == stored
    assert (tmp_path / "warehouse" / "kyc.duckdb").read_bytes() == published

    # It fails after lake and ledger, because the report cannot be written.
    (tmp_path / "blocked").mkdir()
    code, out, err = run("erase", "--tag", TAG, KYC_REPORT="blocked")
    assert out == dry_run
    ids = sorted(record.verification_id for record in simulator.records if MARK in str(record.tags))
    assert f"verifications {ids[0]}, {ids[1]}" in out
    assert code == 1
    assert "erase again" in err
    assert MARK not in out + err
    # The person is in the manifests still, and stays out.
    code, _, err = run("backfill", "--no-publish", *RANGE)
    assert (code, err.count("nothing to send")) == (0, 2), err
    assert simulator.received.total() == 10, "no second call"
    rejected = Lake("lake").read(REJECTED_SUBMISSIONS, DAY).to_pylist()
    assert [(row["submission_id"], row["reason"]) for row in rejected] == [(None, "erased_subject")]
    # Nothing is left in the stores, but the ledger remembers that the report is still to be rebuilt.
    code, out, err = run("erase", "--tag", TAG, "--landing")
    assert (code, "nothing of the person is left" in out) == (3, True)
    assert f"the warehouse at {there} is from before the last erasure: run `kyc-pipeline publish`" in err
    assert "the person was erased before" in out
    assert "4 documents: deleted" in out
    assert not list((landing.root / "documents").glob(f"{MARK}*"))
    assert MARK not in out + err
    assert places_with(tmp_path, MARK) == set()
    left = places_with(tmp_path, pseudonym)
    assert left
    assert all(place.startswith("ledger.sqlite") for place in left), "the tombstone is in the ledger only"

    after = warehouse_rows(tmp_path)
    their_ids = {str(each) for each in ids}
    for table in ("submissions", "verifications", "model_checks", "verification_tags", "verification_files"):
        others = [row for row in before[table] if MARK not in str(row) and str(row[1]) not in their_ids]
        assert after[table] == others
    funnel = [row[1:5] for row in after["submission_funnel"]]
    assert funnel == [(5, 1, 4, 4), (5, 1, 4, 4)]
    assert run("plan", *RANGE)[0] == 0

    # The warehouse of another host is named until it is published again.
    code, out, _ = run("publications")
    assert code == 3
    assert [line.split()[0] for line in out.splitlines() if "before the last erasure" in line] == [there]
    assert run("erase", "--tag", TAG)[0] == 3, "it is said each time"
    with Ledger("sqlite:///ledger.sqlite") as ledger:
        sequence = reserve(ledger, there, "run")
        record(ledger, sequence)
        forget_replaced(ledger, sequence)
    assert run("publications")[0] == 0
    assert run("erase", "--tag", TAG)[0] == 0
    assert run("publications", "--forget", there)[:2] == (0, f"forgotten: {there}\n")
    assert run("publications", "--forget", there)[0] == 2


def their_rows(root: Path) -> dict[str, int]:
    """How many rows of each store have the id of one of the person's submissions."""
    lake = Lake(str(root / "lake"))
    ids = {
        f"lake: {table.name}": [
            row[ID_COLUMN[table]] for date in lake.dates(table) for row in lake.read(table, date).to_pylist()
        ]
        for table in TABLES
    }
    with Ledger(f"sqlite:///{root / 'ledger.sqlite'}") as ledger, ledger.read() as connection:
        ids["ledger: submissions"] = list(connection.execute(select(submissions.c.submission_id)).scalars())
        ids["tombstones"] = [MARK for _ in connection.execute(select(erasures))]
    counts = {name: sum(MARK in str(each) for each in own) for name, own in ids.items()}
    counts["documents"] = len(list((root / "landing" / "documents").glob(f"*{MARK}*")))
    return {name: count for name, count in counts.items() if count}


def test_the_dry_run_lists_exactly_what_the_erasure_does(landing: Any, run: Run, tmp_path: Path) -> None:
    deliver(landing)
    landing.manifest(NEXT_DAY, [{"submission_id": f"{MARK}-x", "tags": THEIR_TAGS}], name="more.jsonl")
    assert run("backfill", "--no-publish", *RANGE)[0] == 0
    before = their_rows(tmp_path)
    _, out, _ = run("erase", "--tag", TAG, "--landing", "--dry-run")
    listed = {
        name: int(count)
        for name, count in re.findall(r"^((?:lake|ledger): \w+) +(\d+) +\d+$", out, re.MULTILINE)
    }
    assert "remembered as pseudonyms: the tag, 2 submissions, 4 documents" in out
    assert "4 documents: deleted" in out
    assert before == listed | {"documents": 4}
    assert their_rows(tmp_path) == before
    assert run("erase", "--tag", TAG, "--landing")[0] == 0
    assert their_rows(tmp_path) == {"tombstones": 7}


def test_what_only_the_response_ties_to_the_person_stays_and_is_told(landing: Any, run: Run) -> None:
    deliver(landing)
    assert run("backfill", "--no-publish", *RANGE)[0] == 0
    with Ledger("sqlite:///ledger.sqlite") as ledger, ledger.write() as connection:
        echo = (
            "UPDATE submissions SET response = replace(response, 'other-0', :new) WHERE submission_id = :id"
        )
        connection.execute(text(echo), {"new": CUSTOMER, "id": f"{DAY}-0"})
    for arguments in (("--dry-run",), (), ()):
        code, out, err = run("erase", "--tag", TAG, *arguments)
        assert code == 3
        assert "1 submission left that only the response ties to the person" in err
        assert "erase again with --with-responses" in err
        assert "nothing of the person is left" not in out
        assert MARK not in out + err
    code, out, err = run("erase", "--tag", TAG, "--with-responses")
    assert (code, err) == (0, "")
    assert "nothing of the person is left" in out


def test_an_unknown_person_is_no_failure_and_one_not_yet_ingested_is_rejected(
    landing: Any, run: Run, tmp_path: Path
) -> None:
    deliver(landing)
    nobody = (3, "nobody found: no submission and no manifest has this tag with this value\n")
    assert run("erase", "--tag", "customerId=unknown")[:2] == nobody
    no_tag = (3, "nobody found: no submission and no manifest has a tag of this name\n")
    assert run("erase", "--tag", f"custmerId={CUSTOMER}")[:2] == no_tag
    assert not (tmp_path / "ledger.sqlite").exists()
    # The person is in the manifests but not yet ingested.
    assert run("erase", "--tag", TAG)[0] == 0
    _, out, _ = run("plan", *RANGE)
    assert out.splitlines()[-3].split()[:3] == ["total", "8", "2"]
    code, out, _ = run("erase", "--tag", TAG)
    assert (code, "the person was erased before" in out, "erased:" in out) == (0, True, False)
    # The rows of a person who was erased are not those of a mistyped one.
    assert run("erase", "--tag", f"{TAG}0")[:2] == nobody
    # A reason that may not be kept is refused before the search.
    code, out, err = run("erase", "--tag", f"{TAG}0", "--reason", f"{CUSTOMER}0 asked for it")
    assert (code, out, "must not name the person" in err) == (2, "", True)


def test_a_leased_day_fails_with_the_name_of_the_holder(landing: Any, run: Run, tmp_path: Path) -> None:
    deliver(landing)
    lake = Lake("lake")
    for day in (DAY, NEXT_DAY):
        ingest_partition(landing=landing.root, lake=lake, date=day)
    with Ledger("sqlite:///ledger.sqlite") as ledger:
        lease = acquire_lease(ledger, NEXT_DAY, "run-of-somebody-else")
        code, _, err = run("erase", "--tag", TAG)
        release_lease(ledger, lease)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "run-of-somebody-else" in err
    assert NEXT_DAY in err
    assert lake.row_count(SUBMISSIONS, DAY) == lake.row_count(SUBMISSIONS, NEXT_DAY) == 5
    assert run("erase", "--tag", TAG)[0] == 0
    assert lake.row_count(SUBMISSIONS, DAY) == lake.row_count(SUBMISSIONS, NEXT_DAY) == 4
    assert not (tmp_path / "warehouse").exists(), "what was never published is not published now"


def test_the_value_may_come_from_standard_input(
    landing: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(landing)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{CUSTOMER}\n"))
    code, out, _ = run("erase", "--tag", "customerId=-", "--dry-run")
    assert code == 0
    assert "2 rows in 2 manifests" in out


@pytest.mark.parametrize("tag", ["secret-value", "=secret-value", "customerId=", "customerId= "])
def test_wrong_usage_exits_with_2_and_shows_no_value(landing: Any, run: Run, tag: str) -> None:
    code, out, err = run("erase", "--tag", tag)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "secret-value" not in err


def test_a_build_that_read_the_lake_before_an_erasure_is_not_published(
    pipeline: Pipeline, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = build_module.build

    def build_slowly(*arguments: Any, **options: Any) -> BuildSummary:
        summary = build(*arguments, **options)
        with pipeline.open_ledger() as ledger:
            LedgerErasure(ledger).remember([Tombstone("customerId", "0" * 64, "0" * 8)])
        return summary

    monkeypatch.setattr(assets, "build", build_slowly)
    [failure] = run_partitions(pipeline, [], instance)
    assert "somebody was erased" in failure
    assert not Path(pipeline.settings.kyc_warehouse).exists()
