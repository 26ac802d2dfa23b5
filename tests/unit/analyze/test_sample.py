"""The sample for manual review: reproducible, stratified, blind, and its weights undo its design."""

import csv
import datetime
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.sample import By, allocate, draw
from kyc_pipeline.cli.sample import sample as command
from kyc_pipeline.errors import UsageError
from kyc_pipeline.ingest.labels import ingest_labels
from kyc_pipeline.lake.storage import Lake
from tests.effort import tries
from tests.unit.analyze.lake_maker import Check, Submission, write_day

DAY, NEXT = "2024-09-02", "2024-09-03"


def submission(number: int) -> Submission:
    verified = number % 8 > 0
    fails = [kind for kind, n in (("FACE", 8), ("LIVENESS", 24)) if number % n == 0]
    checks = [Check(kind, "FAIL" if kind in fails else "PASS") for kind in ("FACE", "LIVENESS")]
    country = "NL" if number % 5 else "DE"
    outcome = "uncertain" if number % 97 == 1 else "completed"
    return Submission(verified, checks, outcome, tags={"country": (country, None)}, id=100_000 + number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake, and the warehouse made from it."""
    folder = tmp_path_factory.mktemp("sample")
    lake = Lake(str(folder / "lake"))
    write_day(lake, DAY, [submission(number) for number in range(600)])
    write_day(lake, NEXT, [submission(number) for number in range(600, 1000)])
    build(lake, folder / "kyc.duckdb", run_id="run", choices=Choices(dimensions=("country",)))
    return folder


def facts(folder: Path) -> dict[str, tuple[bool, str]]:
    with duckdb.connect(folder / "kyc.duckdb", read_only=True) as connection:
        rows = connection.execute(
            "SELECT submission_id, verified, dimensions['country'] FROM submissions"
            " WHERE verified IS NOT NULL"
        ).fetchall()
    return {submission_id: (verified, country) for submission_id, verified, country in rows}


@pytest.mark.parametrize("by", [None, By.CHECK, By.DIMENSION])
def test_weights_add_up_to_the_population_in_each_stratum(folder: Path, by: By | None) -> None:
    known, drawn = facts(folder), draw(folder / "kyc.duckdb", 120, 7, by)
    assert len(drawn.rows) == len({row.submission_id for row in drawn.rows}) == 120
    assert drawn.population == len(known)
    assert sum(row.weight for row in drawn.rows) == pytest.approx(len(known))
    assert drawn.strata == {None: 2, By.CHECK: 3, By.DIMENSION: 4}[by]
    for kind in (True, False):
        own = sum(row.weight for row in drawn.rows if known[row.submission_id][0] == kind)
        assert own == pytest.approx(sum(verified == kind for verified, _ in known.values()))
    weights = {(row.stratum, row.weight) for row in drawn.rows}
    assert len(weights) == len({stratum for stratum, _ in weights}) == drawn.strata


def test_the_seed_decides_and_nothing_else(folder: Path) -> None:
    path = folder / "kyc.duckdb"
    assert draw(path, 50, 7) == draw(path, 50, 7)
    one, other = ({row.submission_id for row in draw(path, 50, seed).rows} for seed in (7, 8))
    assert len(one & other) < 25


def test_the_days_can_be_limited(folder: Path) -> None:
    first = datetime.date.fromisoformat(NEXT)
    drawn = draw(folder / "kyc.duckdb", 1000, 7, None, first, first)
    assert len(drawn.rows) == drawn.population < 400
    assert {row.weight for row in drawn.rows} == {1.0}
    with pytest.raises(UsageError, match="no submission has a verdict"):
        draw(folder / "kyc.duckdb", 10, 7, None, datetime.date(2025, 1, 1))


def test_every_submission_of_a_stratum_is_drawn_equally_often(folder: Path) -> None:
    counts: Counter[str] = Counter()
    samples = tries(200)
    for seed in range(samples):
        counts.update(row.submission_id for row in draw(folder / "kyc.duckdb", 100, seed).rows)
    known = facts(folder)
    for kind in (True, False):
        own = [counts[each] for each, (verified, _) in known.items() if verified == kind]
        mean = sum(own) / len(own)
        chi_squared = sum((count - mean) ** 2 for count in own) / (mean * (1 - mean / samples))
        assert abs(chi_squared - len(own)) < 4 * (2 * len(own)) ** 0.5


def test_places_go_by_the_root_of_the_size() -> None:
    sizes: dict[tuple[str, ...], int] = {("a",): 10_000, ("b",): 100, ("c",): 1, ("d",): 3}
    assert allocate(sizes, 7) == {("a",): 2, ("b",): 2, ("c",): 1, ("d",): 2}
    assert allocate(sizes, 117) == {("a",): 103, ("b",): 11, ("c",): 1, ("d",): 2}
    assert allocate(sizes, 20_000) == sizes
    with pytest.raises(UsageError, match="--n 6 is too small for 4 strata: draw at least 7"):
        allocate(sizes, 6)


def test_the_file_comes_back_as_labels(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_WAREHOUSE", str(folder / "kyc.duckdb"))
    file = tmp_path / "landing" / "labels" / "sample.csv"
    arguments = ["--n", "60", "--seed", "7", "--by", "check", "--output", str(file)]
    missing = CliRunner().invoke(command, arguments)
    assert (missing.exit_code, f"the folder {file.parent} does not exist" in missing.output) == (2, True)
    file.parent.mkdir(parents=True)
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.output.startswith("60 of ")
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open(newline="") as source:
        rows = list(csv.DictReader(source))
    known = facts(folder)
    verdicts = [known[row["submission_id"]][0] for row in rows]
    assert sum(one != next_one for one, next_one in itertools.pairwise(verdicts)) > 10, (
        "the order does not say what DeepXL decided"
    )
    again = CliRunner().invoke(command, arguments)
    assert isinstance(again.exception, UsageError), "filled-in labels are not overwritten"

    labelled = [row | {"label": "genuine", "decided_at": "2024-10-01T10:00:00Z"} for row in rows[:59]]
    with file.open("w", newline="") as target:
        writer: Any = csv.DictWriter(target, rows[0])
        writer.writeheader()
        writer.writerows([*labelled, rows[59]])
    summary = ingest_labels(landing=tmp_path / "landing", lake=Lake(str(tmp_path / "lake")))
    assert (summary.accepted, summary.rejected) == (59, {"missing_field": 1})
