"""Small cells: what is hidden, and that nothing published gives it away."""

import shutil
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from kyc_pipeline.analyze.build import build, open_draft, record_checks
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.publish import new_draft, open_warehouse, publish, restricted_path
from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.analyze.report import write_report
from kyc_pipeline.analyze.small_cells import publish_submissions
from kyc_pipeline.analyze.sql_models import sliced_models
from kyc_pipeline.cli.query import query
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from tests.effort import tries
from tests.unit.analyze.lake_maker import Check, Submission, Tags, rejected, write_day

MIN_CELL = 5
HIDDEN = "SUPPRESSED"
Row = tuple[int, str, str, str, int | None, bool | None]
"""Day, company, country, region, person (None: unknown), verdict (None: none yet)."""

ROWS = st.lists(
    st.tuples(
        st.integers(1, 2),
        st.sampled_from("aaaaaabbbccd"),
        st.sampled_from("xxxxyyz"),
        st.sampled_from("mn"),
        st.none() | st.integers(0, 40),
        st.sampled_from([True, True, False, None]),
    ),
    min_size=1,
    max_size=120,
)


def published(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The company, country and region that each row shows."""
    with duckdb.connect() as connection:
        connection.execute("ATTACH ':memory:' AS lake; ATTACH ':memory:' AS exact")
        frame = pd.DataFrame(rows, columns=["date", "company", "country", "region", "person", "verified"])
        frame["number"] = range(len(rows))
        connection.register("frame", frame.astype({"person": "Int64", "verified": "boolean"}))
        name = "printf('s%04d', number) AS submission_id"
        connection.execute(f"CREATE TABLE lake.submissions AS SELECT date, {name}, person FROM frame")
        connection.execute(
            f"CREATE TABLE exact.submissions AS SELECT date, {name}, verified, company AS company_id,"
            " map {'country': country, 'region': region, 'model_version': '1'} AS dimensions FROM frame"
        )
        publish_submissions(connection, MIN_CELL)
        found = connection.execute(
            "SELECT submission_id, company_id, dimensions['country'], dimensions['region'],"
            " dimensions['model_version'] FROM submissions ORDER BY submission_id"
        ).fetchall()
    assert [row[0] for row in found] == [f"s{number:04}" for number in range(len(rows))]
    assert {row[4] for row in found} == {"1"}
    return [row[1:4] for row in found]


def people(rows: Sequence[Row], numbers: Sequence[int]) -> int:
    """People of a cell: with a verdict, if there are any."""
    decided = [number for number in numbers if rows[number][5] is not None] or numbers
    return len({(number if rows[number][4] is None else -1, rows[number][4]) for number in decided})


@settings(max_examples=tries(25), deadline=None)
@given(ROWS)
def test_no_sum_or_difference_of_what_is_published_gives_a_small_cell(rows: list[Row]) -> None:
    shown = published(rows)
    for date in {row[0] for row in rows}:
        day = [number for number, row in enumerate(rows) if row[0] == date]
        # What is known: how many submissions show each combination. All tables are sums of these.
        combinations = sorted({rows[number][1:4] for number in day})
        classes: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
        members: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number in day:
            classes[shown[number]].add(rows[number][1:4])
            members[shown[number]].append(number)
        assert sum(map(len, classes.values())) == len(combinations)
        known = np.array([[c in group for c in combinations] for group in classes.values()], dtype=float)
        for slice_ in range(3):
            cells: dict[str, list[int]] = defaultdict(list)
            for number in day:
                assert shown[number][slice_] in {rows[number][1 + slice_], HIDDEN}
                cells[shown[number][slice_]].append(number)
            for numbers in cells.values():
                assert people(rows, numbers) >= MIN_CELL or len(cells) == 1
            for value in {rows[number][1 + slice_] for number in day}:
                cell = [number for number in day if rows[number][1 + slice_] == value]
                if people(rows, cell) < MIN_CELL and len(cell) < len(day):
                    wanted = np.array([c[slice_] == value for c in combinations], dtype=float)
                    rank = np.linalg.matrix_rank
                    # A combination of the known counts would not raise the rank.
                    assert rank(np.vstack([known, wanted])) > rank(known)
        for combination, numbers in members.items():
            if HIDDEN in combination:
                assert people(rows, numbers) >= MIN_CELL or len(members) == 1


def test_large_cells_stay() -> None:
    rows: list[Row] = [(1, company, "x", "m", None, True) for company in "aaaaabbbbb"]
    assert [company for company, _, _ in published(rows)] == list("aaaaabbbbb")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"a": 20, "b": 9, "c": 2}, "ahh"),  # the next smallest one hides the small one
        ({"a": 20, "b": 9, "c": 3, "d": 2}, "abhh"),  # the small ones hide one another
        ({"a": 3}, "h"),
        ({"a": 3, "b": 1}, "hh"),
    ],
)
def test_what_hides_a_small_company(sizes: dict[str, int], expected: str) -> None:
    rows: list[Row] = [(1, name, "x", "m", None, True) for name, size in sizes.items() for _ in range(size)]
    shown = dict(zip((row[1] for row in rows), (row[0] for row in published(rows)), strict=True))
    assert "".join("h" if shown[name] == HIDDEN else shown[name] for name in sizes) == expected


def test_a_country_of_few_is_not_the_rest_of_its_region() -> None:
    """Region n has the countries y (large) and z (2 people): n - y would be z."""
    rows: list[Row] = [
        *[(1, "a", "x", "m", None, True)] * 50,
        *[(1, "a", "y", "n", None, True)] * 20,
        *[(1, "a", "z", "n", None, True)] * 2,
    ]
    shown = published(rows)
    countries = {row[2:4]: row[1:] for row in zip(*zip(*rows, strict=True), strict=True)}
    assert len(countries) == 3
    in_region = [country for _, country, region in shown if region == "n"]
    assert HIDDEN not in in_region or in_region.count(HIDDEN) >= MIN_CELL


def test_attempts_of_one_person_are_one_person() -> None:
    rows: list[Row] = [
        *[(1, "a", "x", "m", None, True)] * 9,
        *[(1, "b", "x", "m", None, True)] * 6,
        *[(1, "c", "x", "m", 7, True)] * 30,
    ]
    assert {company for company, _, _ in published(rows)} == {"a", HIDDEN}


def test_rates_of_few_verdicts_are_hidden_too() -> None:
    rows: list[Row] = [
        *[(1, "a", "x", "m", None, True)] * 9,
        *[(1, "b", "x", "m", None, True)] * 6,
        *[(1, "c", "x", "m", None, None)] * 9,
        *[(1, "d", "x", "m", None, None)] * 9,
        (1, "d", "x", "m", None, True),
    ]
    assert {company for company, _, _ in published(rows)} == {"a", "c", HIDDEN}


# --- in the warehouse ----------------------------------------------------------------------------------


def submission(company: str, country: str, verified: bool = True, number: int = 0) -> Submission:
    tags: Tags = {
        "companyId": (company, f"p-{company}"),
        "companyName": (f"{company} Ltd", f"n-{company}"),
        "country": (country, f"p-{country}"),
        "customerId": (None, f"c-{number}"),
    }
    return Submission(verified, [Check("LIVENESS", "PASS" if verified else "FAIL")], tags=tags)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("small") / "lake"))
    for date in ("2024-09-02", "2024-09-03", "2024-09-09"):
        day = [submission("acme", "NL", number % 5 > 0, number) for number in range(40)]
        day += [submission("bank", "DE", number % 3 > 0, number) for number in range(12)]
        day += [submission("marked-tiny", "LI", number > 0, number) for number in range(2)]
        write_day(lake, date, day, [rejected()])
    return lake


def tables(connection: duckdb.DuckDBPyConnection) -> dict[str, list[Any]]:
    return {
        model.name: connection.execute(f"FROM {model.name}").fetchall()
        for model in sliced_models()
        if model.published
    }


@pytest.fixture(scope="module")
def deployed(small: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published warehouse that hides cells, with the results of its checks."""
    warehouse = tmp_path_factory.mktemp("deployed") / "kyc.duckdb"
    with new_draft(warehouse) as draft:
        choices = Choices(dimensions=("country",), min_cell=MIN_CELL)
        summary = build(small, draft, run_id="run", choices=choices)
        with open_draft(draft) as connection:
            results = check_build(connection)
        record_checks(draft, results)
        publish(draft, warehouse, summary.built_ns)
    return warehouse


def test_the_restricted_file_has_what_the_published_one_hides(
    small: Lake, deployed: Path, tmp_path: Path
) -> None:
    plain, hiding = tmp_path / "plain.duckdb", deployed
    build(small, plain, run_id="run", choices=Choices(dimensions=("country",)))
    assert not restricted_path(plain).exists()
    with open_warehouse(plain) as connection:
        expected = tables(connection)
        submissions = connection.execute("FROM submissions").fetchall()
        repeats = connection.execute("FROM repeat_subjects").fetchall()
    with open_warehouse(hiding, exact=True) as connection:
        assert tables(connection) == expected
        assert connection.execute("FROM submissions").fetchall() == submissions
        comments = "SELECT count(*) FROM duckdb_columns() WHERE database_name = 'exact' AND comment IS NULL"
        assert connection.execute(comments).fetchall() == [(0,)]
    with open_warehouse(hiding) as connection:
        rows = connection.execute(
            "SELECT company_id, sum(verifications)::INT, sum(verified)::INT FROM verified_rates_by_company"
            " GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        assert rows == [(HIDDEN, 42, 27), ("acme", 120, 96)]
        found = tables(connection)
        assert "'LI'" not in str(found)
        assert "marked" not in str(found)
        assert found["funnel_by_dimension"] != expected["funnel_by_dimension"]
        assert connection.execute("FROM repeat_subjects").fetchall() == repeats
        assert connection.execute(
            "SELECT name, count(*), count(value), count(pseudonym) FROM verification_tags GROUP BY ALL"
            " ORDER BY ALL"
        ).fetchall() == [
            ("companyId", 120, 120, 120),
            ("companyName", 120, 120, 120),
            ("country", 120, 120, 120),
            ("customerId", 162, 0, 162),
        ]
    assert b"marked" not in hiding.read_bytes()
    assert b"marked" in restricted_path(hiding).read_bytes()


def test_nobody_finds_a_hidden_company_by_its_pseudonym_on_another_day(lake: Lake, tmp_path: Path) -> None:
    """The person of a hidden company, made of the pseudonyms of their tag and of a company seen elsewhere."""
    for date, banks in (("2024-09-02", 20), ("2024-09-03", 2)):
        day = [submission("acme", "NL", number=number) for number in range(40)]
        write_day(lake, date, day + [submission("bank", "NL", number=100 + n) for n in range(banks)])
    path = tmp_path / "kyc.duckdb"
    build(lake, path, run_id="run", choices=Choices(min_cell=MIN_CELL, subject_secret="s" * 64))
    with open_warehouse(path) as connection:
        assert connection.execute(
            "SELECT count(DISTINCT pseudonym) FROM verification_tags WHERE name = 'companyId'"
        ).fetchall() == [(2,)]
        people = """
            SELECT DISTINCT
                lpad(lower(hex(md5_number(concat_ws(':', person, md5_number(c.pseudonym), '')))), 32, '0')
            FROM verification_tags AS c, (
                SELECT md5_number(pseudonym) AS person FROM verification_tags WHERE name = 'customerId'
            )
            WHERE c.name = 'companyId' AND c.pseudonym IS NOT NULL
        """
        guessed = {subject for (subject,) in connection.execute(people).fetchall()}
        published = {subject for (subject,) in connection.execute("SELECT subject FROM subjects").fetchall()}
    assert len(published) == 60
    assert not guessed & published


def test_no_row_of_a_tag_tells_hidden_companies_from_submissions_without_one(
    lake: Lake, tmp_path: Path
) -> None:
    day = [submission("acme", "NL", number=number) for number in range(20)]
    day += [submission("tiny", "NL", number=100 + number) for number in range(3)]
    for one in [submission("", "NL", number=200 + number) for number in range(3)]:
        day.append(replace(one, tags={k: v for k, v in one.tags.items() if not k.startswith("company")}))
    write_day(lake, "2024-09-02", day)
    path = tmp_path / "kyc.duckdb"
    build(lake, path, run_id="run", choices=Choices(min_cell=MIN_CELL))
    with open_warehouse(path) as connection:
        assert connection.execute(
            "SELECT t.name, count(*) FROM verification_tags AS t JOIN submissions USING (submission_id) "
            f"WHERE company_id = '{HIDDEN}' GROUP BY ALL ORDER BY ALL"
        ).fetchall() == [("country", 6), ("customerId", 6)]
        # Nor does the number of rows that are left out.
        assert connection.execute(
            "SELECT table_name FROM build_partitions WHERE rows IS NULL"
        ).fetchall() == [("verification_tags",)]


def test_a_tag_whose_values_are_all_hidden_is_not_reported_as_mistyped(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, "2024-09-02", [submission("tiny", "LI", number=number) for number in range(2)])
    path = tmp_path / "kyc.duckdb"
    settings = {"KYC_DIMENSIONS": "country", "KYC_SUBJECT_TAGS": "companyId,customerId"}
    build(
        lake, path, run_id="run", choices=Choices(dimensions=("country",), min_cell=MIN_CELL), inputs=settings
    )
    with open_draft(path) as connection:
        assert {result.name for result in check_build(connection) if not result.passed} == set()


BLANKS = [chr(code) for code in range(0x110000) if chr(code).isspace()]


@pytest.mark.parametrize("column", ["person", "company_id"])
def test_a_value_is_the_same_however_its_blanks_and_accents_are_written(column: str) -> None:
    sql = Choices().submission_columns()[column][0]
    values = ["caf\u00e9", "cafe\u0301", *(f"{blank}caf\u00e9{blank}" for blank in BLANKS)]
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT DISTINCT {sql} FROM (SELECT MAP {{'companyId': v, 'customerId': v}} AS tags "
            "FROM (SELECT unnest($1::VARCHAR[]) AS v))",
            [values],
        ).fetchall()
        assert len(found) == 1


def test_a_view_over_the_lake_hides_them_too(small: Lake, tmp_path: Path) -> None:
    path = tmp_path / "kyc.duckdb"
    choices = Choices(dimensions=("country",), min_cell=MIN_CELL)
    summary = build(small, path, run_id="run", choices=choices, max_fact_rows=0)
    assert summary.views_read
    with open_warehouse(path) as connection:
        assert connection.execute(
            "SELECT DISTINCT value FROM verification_tags WHERE name LIKE 'company%' ORDER BY ALL"
        ).fetchall() == [("acme",), ("acme Ltd",)]


@pytest.fixture(scope="module")
def viewed(small: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse that hides cells, whose facts are views over the lake."""
    path = tmp_path_factory.mktemp("viewed") / "kyc.duckdb"
    choices = Choices(dimensions=("country",), min_cell=MIN_CELL)
    assert build(small, path, run_id="run", choices=choices, max_fact_rows=0).views_read
    return path


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT stats(value) FROM verification_tags",
        "SELECT min(value), max(value), approx_count_distinct(value) FROM verification_tags",
        "SUMMARIZE verification_tags",
        "FROM verification_tags WHERE value LIKE 'marked%' AND value::INTEGER > 0",
        "FROM verification_tags WHERE value LIKE 'marked%' AND error(value)",
        "FROM verification_tags WHERE value LIKE 'marked%' AND value ~ (value || '(')",
        "FROM verification_tags WHERE value LIKE 'marked%' AND json_keys(value) = []",
        "FROM verification_tags WHERE CASE WHEN value LIKE 'marked%' THEN value::DATE END > current_date",
        "FROM verification_tags WHERE value LIKE 'marked%' AND write_log(value) IS NULL; FROM duckdb_logs",
        "FROM verification_tags JOIN range(3) AS r ON error(value) = r.range AND value LIKE 'marked%'",
        "SELECT (SELECT error(value) FROM verification_tags WHERE value LIKE 'marked%') AS shown",
        "FROM verification_tags SEMI JOIN submissions ON value LIKE 'marked%' AND value::INTEGER = attempts",
        "SELECT value::INTEGER FROM verification_tags WHERE value LIKE 'marked%' GROUP BY ALL",
        "FROM verification_tags ORDER BY CASE WHEN value LIKE 'marked%' THEN value::INTEGER END LIMIT 1",
        "EXPLAIN ANALYZE FROM verification_tags WHERE value = 'marked-tiny'",
        "SELECT details FROM model_checks",
        "FROM duckdb_views()",
    ],
)
def test_sql_does_not_see_what_a_view_hides(
    viewed: Path, small: Lake, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """Neither in rows, nor in an error about a row that DuckDB reads before it is hidden."""
    monkeypatch.setenv("KYC_WAREHOUSE", str(viewed))
    monkeypatch.setenv("KYC_LAKE", small.root)
    result = CliRunner().invoke(query, [sql, "--format", "csv"])
    shown = f"{result.stdout} {result.exception}".replace("value LIKE 'marked%'", "")
    assert "marked" not in shown
    assert ",DE," not in shown


def test_a_view_hides_submissions_that_are_newer_than_its_build(lake: Lake, tmp_path: Path) -> None:
    """They may be of a company that is too small, which only the next build knows."""
    day = [submission("acme", "NL", number=number) for number in range(20)]
    write_day(lake, "2024-09-02", day)
    path = tmp_path / "kyc.duckdb"
    build(lake, path, run_id="run", choices=Choices(min_cell=MIN_CELL), max_fact_rows=0)
    write_day(lake, "2024-09-02", [*day, submission("tiny", "NL", number=99)])
    sql = "SELECT value, count(*) FROM verification_tags WHERE name = 'companyId' GROUP BY ALL"
    with open_warehouse(path) as connection:
        assert connection.execute("SELECT count(*) FROM verifications").fetchall() == [(21,)]
        assert connection.execute(sql).fetchall() == [("acme", 20)]


def test_only_its_owner_can_open_the_restricted_file(deployed: Path) -> None:
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in deployed.parent.iterdir()} == {
        "kyc.duckdb": 0o444,
        "kyc_restricted.duckdb": 0o600,
    }


def test_query_reads_it_only_with_exact(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_WAREHOUSE", str(deployed))
    sql = "SELECT DISTINCT company_id FROM verified_rates_by_company ORDER BY ALL"
    runner = CliRunner()
    assert runner.invoke(query, [sql, "--format", "csv"]).stdout.split() == ["company_id", HIDDEN, "acme"]
    exact = runner.invoke(query, [sql, "--format", "csv", "--exact"], catch_exceptions=False).stdout.split()
    assert exact == ["company_id", "acme", "bank", "marked-tiny"]
    joined = "SELECT count(*) AS n FROM submissions JOIN verifications USING (date, submission_id)"
    assert runner.invoke(query, [joined, "--format", "csv", "--exact"]).stdout.split() == ["n", "162"]


def test_a_build_that_hides_nothing_removes_the_restricted_file(
    small: Lake, deployed: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(deployed.parent, tmp_path / "copy"), deployed.name)
    with new_draft(copy) as draft:
        publish(draft, copy, build(small, draft, run_id="run").built_ns)
    assert [path.name for path in copy.parent.iterdir()] == ["kyc.duckdb"]
    with pytest.raises(KycError, match="KYC_MIN_CELL=1"), open_warehouse(copy, exact=True):
        pass


def test_the_report_names_no_small_company(deployed: Path, tmp_path: Path) -> None:
    write_report(deployed, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "marked-tiny" not in page
    assert "small ones together" in page
    assert ">1 company<" in page
    assert "acme · acme Ltd" in page
