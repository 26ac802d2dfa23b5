"""Small cells of labelled people: what error rates by dimension hide, and that nothing gives it away."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.label_cells import hide_label_cells
from kyc_pipeline.analyze.publish import open_warehouse, restricted_path
from kyc_pipeline.analyze.report.evidence import read_evidence
from kyc_pipeline.analyze.small_cells import publish_submissions
from kyc_pipeline.cli.query import query
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.storage import Lake
from tests.effort import tries
from tests.unit.analyze.lake_maker import Check, Submission, write_day
from tests.unit.analyze.test_error_rates import label, write_labels

MIN_CELL = 5
HIDDEN, NOWHERE = "SUPPRESSED", "nowhere"


class Row(NamedTuple):
    """A submission with a verdict; `truth` is a kind, or None without a label."""

    country: str
    version: str
    person: int | None
    truth: str | None
    weighted: bool
    has_check: bool


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from("xxxyyz"),
        st.sampled_from("1112"),
        st.none() | st.integers(0, 60),
        st.sampled_from(["genuine", "genuine", "fraud", "presentation", None]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=150,
)


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("ATTACH ':memory:' AS lake; ATTACH ':memory:' AS exact")
        yield connection


class Shown(NamedTuple):
    """A row of `labelled_slices`: the number of a submission, and the values that it shows."""

    number: int
    check: str
    kind: str
    weighted: bool
    country: str
    version: str


def hidden(connection: duckdb.DuckDBPyConnection, rows: Sequence[Row]) -> list[Shown]:
    """`labelled_slices` of these rows, all of one day, as published."""
    frame_ = pd.DataFrame(rows).assign(number=range(len(rows))).astype({"person": "Int64"})
    connection.register("people", frame_)
    connection.execute("DROP TABLE IF EXISTS submissions")
    submission = "DATE '2024-09-02' AS date, printf('s%04d', number) AS submission_id"
    for table, columns in {
        "lake.submissions": f"{submission}, person FROM people",
        "exact.submissions": f"{submission}, TRUE AS verified, 'a' AS company_id,"
        " map {'country': country, 'model_version': version} AS dimensions FROM people",
        "model_checks": f"{submission}, 'g' AS check_group, 'c' AS check_type, unnest([0, 1]) AS check_index,"
        " 'PASS' AS normalized_status FROM people WHERE has_check",
    }.items():
        connection.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT {columns}")
    publish_submissions(connection, MIN_CELL)
    connection.execute(
        "CREATE OR REPLACE TABLE labelled_slices AS SELECT s.submission_id, person, number, weighted,"
        " check_group, if(check_group = 'g', 'c', 'VERIFIED') AS check_type, TRUE AS accepted, kind,"
        " s.dimensions FROM people JOIN submissions AS s ON s.submission_id = printf('s%04d', number),"
        " unnest(if(has_check, ['verdict', 'g'], ['verdict'])) AS g(check_group),"
        " unnest(if(truth = 'presentation', ['fraud', truth], [truth])) AS k(kind) WHERE truth IS NOT NULL"
    )
    hide_label_cells(connection, MIN_CELL)
    found = connection.execute(
        "SELECT number, check_type, kind, weighted, coalesce(dimensions['country'], $1),"
        " coalesce(dimensions['model_version'], $1) FROM labelled_slices ORDER BY ALL",
        [NOWHERE],
    )
    return [Shown(*row) for row in found.fetchall()]


def people(rows: Sequence[Row], numbers: Sequence[int]) -> int:
    return len({(number if rows[number].person is None else -1, rows[number].person) for number in numbers})


@settings(max_examples=tries(25), deadline=None)
@given(rows=ROWS)
def test_no_published_cell_of_labelled_people_is_small_nor_can_be_computed(
    connection: duckdb.DuckDBPyConnection, rows: list[Row]
) -> None:
    shown = hidden(connection, rows)
    for check in ("VERIFIED", "c"):
        require_large(rows, [row for row in shown if row.check == check])
    # Tables of the day may be of few people who have a check or a model version: so this is about the
    # verdict, and the day's sums are by country.
    days = connection.execute("SELECT dimensions['country'] FROM submissions ORDER BY submission_id")
    sums: dict[tuple[Any, ...], set[Atom]] = defaultdict(set)
    for row, (country,) in zip(rows, days.fetchall(), strict=True):
        sums[country,].add(atom(row))
    for found in shown:
        if found.check == "VERIFIED" and found.kind != "presentation":
            sums[found[2:]].add(atom(rows[found.number]))
    require_hidden(rows, list(sums.values()))


def require_large(rows: Sequence[Row], shown: Sequence[Shown]) -> None:
    """Asserts that each value shows what is true, or nothing, and stands for enough people."""
    cells: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in shown:
        assert row.country in {rows[row.number].country, HIDDEN, NOWHERE}
        assert row.version in {rows[row.number].version, HIDDEN, NOWHERE}
        cells[row.kind, row.weighted, "country", row.country].append(row.number)
        cells[row.kind, row.weighted, "version", row.version].append(row.number)
    for (*cell, value), numbers in cells.items():
        assert people(rows, numbers) >= MIN_CELL or value == NOWHERE, cell


def require_hidden(rows: Sequence[Row], sums: list[set["Atom"]]) -> None:
    """Asserts that no sum or difference of what is known is a small cell, unless it is all of its kind.

    What is known: how many show each combination, in the tables of the day and of each kind of labels. All
    figures are sums of these.
    """
    atoms = sorted({atom(row) for row in rows})
    known = [[each in chosen for each in atoms] for chosen in sums]
    for kind, weighted, country in {each[1:] for each in atoms if each.kind != "none"}:
        wanted = {each for each in atoms if each[1:] == (kind, weighted, country)}
        of_kind = {each for each in atoms if each[1:3] == (kind, weighted)}
        numbers = [number for number, row in enumerate(rows) if atom(row) in wanted]
        if people(rows, numbers) < MIN_CELL and wanted != of_kind:
            assert not is_sum(known, [each in wanted for each in atoms]), (kind, weighted, country)


class Atom(NamedTuple):
    """Submissions that no figure can tell apart."""

    version: str
    kind: str
    weighted: bool
    country: str


def atom(row: Row) -> Atom:
    """That of a row: a presentation attack is a fraud."""
    kind = {None: "none", "presentation": "fraud"}.get(row.truth, row.truth)
    assert kind is not None
    return Atom(row.version, kind, row.weighted and kind != "none", row.country)


def is_sum(known: list[list[bool]], wanted: list[bool]) -> bool:
    """Whether sums and differences of what is known give what is wanted."""
    rank = np.linalg.matrix_rank
    matrix = np.array(known, dtype=float)
    return bool(rank(np.vstack([matrix, np.array(wanted, dtype=float)])) == rank(matrix))


# --- in the warehouse ----------------------------------------------------------------------------------

LABELS = ("labels", "submission_labels", "labelled_results")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse of 40 submissions from NL, 20 from DE and 12 from MT, where few frauds are known.

    Its lake is beside it.
    """
    folder = tmp_path_factory.mktemp("labelled")
    lake = Lake(str(folder / "lake"))
    day = [
        Submission(number % 4 > 0, [Check()], tags={"country": (country, None)})
        for country, n in {"NL": 40, "DE": 20, "MT": 12}.items()
        for number in range(n)
    ]
    write_day(lake, "2024-09-02", day)
    truth = ["genuine"] * 30 + ["fraud"] * 8 + [""] * 2 + ["genuine"] * 12 + ["fraud"] * 6 + [""] * 2
    truth += ["fraud"] * 3 + ["genuine"] * 9
    write_labels(lake, [label(s.submission_id, what) for s, what in zip(day, truth, strict=True) if what])
    path = folder / "kyc.duckdb"
    build(lake, path, run_id="run", choices=Choices(dimensions=("country",), min_cell=MIN_CELL))
    return path


def by_country(path: Path, *, exact: bool) -> dict[str, list[int]]:
    with open_warehouse(path, exact=exact) as connection:
        rows = connection.execute(
            "SELECT value, genuine, false_rejects, fraud, false_accepts FROM error_rates_by_dimension"
            " WHERE dimension = 'country' AND check_group = 'verdict'"
        ).fetchall()
    return {value: counts for value, *counts in rows}


def test_few_frauds_hide_their_far_and_what_would_give_them_away(labelled: Path) -> None:
    assert by_country(labelled, exact=True) == {
        "NL": [30, 8, 8, 6],
        "DE": [12, 3, 6, 4],
        "MT": [9, 2, 3, 2],
    }
    # All of MT have labels, so its frauds would be what its genuine people leave of its verdicts.
    assert by_country(labelled, exact=False) == {
        "NL": [30, 8, 8, 6],
        HIDDEN: [21, 5, 9, 6],
    }


def test_only_the_restricted_file_has_labels_of_single_submissions(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYC_WAREHOUSE", str(labelled))
    for table in LABELS:
        hint = f"^only the restricted file has the table {table}: `kyc-pipeline query --exact` reads it$"
        with pytest.raises(UsageError, match=hint):
            CliRunner().invoke(query, [f"FROM {table.upper()}"], catch_exceptions=False)
        assert CliRunner().invoke(query, [f"FROM {table}", "--exact"]).exit_code == 0
    with pytest.raises(UsageError, match=r"does not exist(?!.*restricted)"):
        CliRunner().invoke(query, ["FROM no_such_table"], catch_exceptions=False)
    with open_warehouse(labelled) as connection:
        assert connection.execute("SELECT labels FROM label_quality WHERE source = 'ALL'").fetchall() == [
            (68,)
        ]
        assert connection.execute("SELECT genuine, fraud FROM error_rates WHERE threshold IS NULL").fetchall()
    with open_warehouse(labelled, exact=True) as connection:
        for table in LABELS:
            assert connection.execute(f"SELECT count(*) >= 68 FROM {table}").fetchall() == [(True,)]
            comment = f"SELECT comment FROM duckdb_tables() WHERE table_name = '{table}'"
            assert connection.execute(comment).fetchall()[0][0]


def test_the_evidence_counts_frauds_although_the_published_file_has_no_labels(labelled: Path) -> None:
    found = [f for f in read_evidence(labelled, None, None).figures if f.metric.title == "Confirmed fraud"]
    assert [(figure.n, figure.of) for figure in found] == [(17, 72)]


def test_without_small_cells_nothing_is_restricted(labelled: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.duckdb"
    build(Lake(str(labelled.parent / "lake")), plain, run_id="run", choices=Choices(dimensions=("country",)))
    assert not restricted_path(plain).exists()
    assert by_country(plain, exact=False) == by_country(labelled, exact=True)
    with open_warehouse(plain) as connection, open_warehouse(labelled, exact=True) as hiding:
        for table in (*LABELS, "error_rates", "error_rates_by_dimension", "label_quality"):
            rows = f"FROM {table} ORDER BY ALL"
            assert connection.execute(rows).fetchall() == hiding.execute(rows).fetchall(), table
