"""The build: facts, comments, incomplete lakes, and a lake that changes or is broken."""

import datetime
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kyc_pipeline.analyze import build as build_module
from kyc_pipeline.analyze.build import BuildSummary, build, list_partitions, open_draft
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.analyze.sql_models import load_models
from kyc_pipeline.checks import Severity
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import MODEL_CHECKS, VERIFICATIONS
from tests.unit.analyze.lake_maker import (
    Check,
    Submission,
    rejected,
    write_day,
    write_submissions,
)

Built = Callable[..., duckdb.DuckDBPyConnection]
DAY = "2024-09-08"


def one_day() -> list[Submission]:
    return [
        Submission(True, [Check("LIVENESS"), Check(None, "UNKNOWN", None)], tags={"companyId": ("c1", "p")}),
        Submission(False, [Check("LIVENESS", "FAIL", 0.2)], attempts=3),
        Submission(outcome="uncertain", latency_ms=None, attempts=1),
    ]


PEOPLE = one_day()


@dataclass(frozen=True)
class Whole:
    """A build of one day, which tests only read."""

    lake: Lake
    draft: Path
    summary: BuildSummary
    connection: duckdb.DuckDBPyConnection


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("whole")
    lake, draft = Lake(str(folder / "lake")), folder / "draft"
    write_day(lake, DAY, PEOPLE, [rejected()])
    summary = build(lake, draft, run_id="run", choices=Choices(Decimal("0.35")))
    with duckdb.connect(draft, read_only=True) as connection:
        yield Whole(lake, draft, summary, connection)


def test_every_table_column_and_macro_has_a_comment(whole: Whole) -> None:
    connection = whole.connection
    tables = dict(connection.execute("SELECT table_name, comment FROM duckdb_tables()").fetchall())
    assert set(tables) == {model.name for model in load_models()} | {
        "build_info",
        "build_inputs",
        "build_partitions",
    }
    assert all(tables.values())
    bare = connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL"
    ).fetchall()
    assert bare == []
    functions = connection.execute(
        "SELECT function_name, comment FROM duckdb_functions() WHERE function_type = 'macro' AND NOT internal"
    ).fetchall()
    assert {name for name, _ in functions} >= {"ratio", "wilson_low", "newcombe_high"}
    assert all(comment for _, comment in functions)
    assert not {name for name, _ in functions} & {"hundredths", "ks_p"}  # only models need these


def test_columns_are_those_of_the_header_in_order(whole: Whole) -> None:
    for model in load_models():
        columns = [row[0] for row in whole.connection.execute(f"DESCRIBE {model.name}").fetchall()]
        assert columns == [name for name, _ in model.columns], model.name


def test_an_empty_lake_gives_empty_tables_with_the_same_types(empty: Path, whole: Whole) -> None:
    with open_draft(empty) as connection:
        for model in load_models():
            assert connection.execute(f"SELECT count(*) FROM {model.name}").fetchall() == [(0,)], model.name
            describe = f"SELECT column_name, column_type FROM (DESCRIBE {model.name})"
            types = whole.connection.execute(describe).fetchall()
            assert connection.execute(describe).fetchall() == types, model.name
        assert all(result.passed for result in check_build(connection))


def test_dates_are_dates_and_facts_carry_them(whole: Whole) -> None:
    for table in ("submissions", "verifications", "model_checks", "verification_tags", "verification_files"):
        dates = whole.connection.execute(f"SELECT DISTINCT date, typeof(date) FROM {table}").fetchall()
        assert dates == [(datetime.date(2024, 9, 8), "DATE")]


def test_a_day_that_has_only_submissions_counts_as_not_attempted(lake: Lake, built: Built) -> None:
    write_day(lake, DAY, one_day())
    write_submissions(lake, "2024-09-09", [Submission(), Submission()])
    connection = built()
    assert connection.execute(
        "SELECT accepted, not_attempted, completed FROM submission_funnel ORDER BY date"
    ).fetchall() == [(3, 0, 2), (2, 2, 0)]
    results = {result.name: result for result in check_build(connection)}
    assert [
        name for name, result in results.items() if result.severity == "error" and not result.passed
    ] == []
    assert not results["days_not_verified"].passed


def test_build_info_says_what_the_build_is_of(whole: Whole) -> None:
    connection = whole.connection
    ((run, days, rows, first, last, price),) = connection.execute(
        "SELECT run_id, partitions, rows, first_date, last_date, price_per_call FROM build_info"
    ).fetchall()
    day = datetime.date(2024, 9, 8)
    assert (run, days, first, last, price) == ("run", 1, day, day, Decimal("0.350000"))
    tables = [row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
    assert rows == sum(
        connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
        for table in tables
        if table != "build_info"
    )


def test_a_second_build_is_equal_and_a_small_memory_limit_is_enough(whole: Whole, tmp_path: Path) -> None:
    choices = Choices(Decimal("0.35"))
    summary = build(
        whole.lake, tmp_path / "draft", run_id="run", choices=choices, memory_limit="100MB", threads=1
    )
    assert summary.rows == sum(summary.tables.values())
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
    with duckdb.connect(tmp_path / "draft", read_only=True) as second:
        for model in load_models():
            everything = f"SELECT * FROM {model.name} ORDER BY ALL"
            first = whole.connection.execute(everything).fetchall()
            assert first == second.execute(everything).fetchall(), model.name


def test_a_column_that_older_files_lack_is_null(lake: Lake, built: Built) -> None:
    write_day(lake, DAY, one_day())
    write_day(lake, "2024-09-09", one_day())
    path = lake.path(VERIFICATIONS, DAY)
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t AS SELECT * EXCLUDE (model) FROM read_parquet('{path}')")
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    assert built().execute("SELECT DISTINCT date, model FROM verifications ORDER BY date").fetchall() == [
        (datetime.date(2024, 9, 8), None),
        (datetime.date(2024, 9, 9), "kyc"),
    ]


def test_an_unreadable_partition_is_named_and_leaves_no_draft(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, DAY, one_day())
    Path(lake.path(MODEL_CHECKS, DAY)).write_bytes(b"PAR1 nonsense PAR1")
    draft = tmp_path / "out" / "draft"
    with pytest.raises(KycError, match=f"model_checks partition {DAY} cannot be read"):
        build(lake, draft, run_id="run")
    assert list(draft.parent.iterdir()) == []


def test_a_partition_replaced_during_the_build_is_read_again(lake: Lake, tmp_path: Path) -> None:
    day = one_day()
    write_day(lake, DAY, day)
    changes = iter([[*day, Submission(True, [Check()])]])

    def replace_once(model: str, seconds: float) -> None:
        if model == "verifications" and (new := next(changes, None)):
            write_day(lake, DAY, new)

    draft = tmp_path / "draft"
    summary = build(lake, draft, run_id="run", progress=replace_once)
    assert summary.tables["verifications"] == 3
    with duckdb.connect(draft, read_only=True) as connection:
        assert [r.name for r in check_build(connection) if r.severity == "error" and not r.passed] == []


def test_a_lake_that_never_stands_still_is_an_error(lake: Lake, tmp_path: Path) -> None:
    day = one_day()
    write_day(lake, DAY, day)

    def replace(model: str, seconds: float) -> None:
        if model == "verifications":
            write_day(lake, DAY, day)

    with pytest.raises(KycError, match="kept changing"):
        build(lake, tmp_path / "out" / "draft", run_id="run", progress=replace)
    assert list((tmp_path / "out").iterdir()) == []


def test_new_days_during_the_build_do_not_disturb_it(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, DAY, one_day())

    def add(model: str, seconds: float) -> None:
        if model == "verifications":
            write_day(lake, "2024-09-09", one_day())

    summary = build(lake, tmp_path / "draft", run_id="run", progress=add)
    assert summary.partitions == (DAY,)


def test_an_object_store_is_read_through_its_file_system(s3_root: str, tmp_path: Path) -> None:
    lake = Lake(s3_root)
    write_day(lake, DAY, one_day())
    assert not lake.is_local
    summary = build(lake, tmp_path / "draft", run_id="run", max_fact_rows=0)
    assert summary.tables["verifications"] == 2
    # Readers of the file may have no access to the store, so facts are tables, whatever their size.
    with open_draft(tmp_path / "draft") as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_views() WHERE NOT internal").fetchall() == [
            (0,)
        ]
        assert all(result.passed for result in check_build(connection) if result.severity is Severity.ERROR)
    assert all(partition for partition in list_partitions(lake)["verifications"].values())


@pytest.mark.parametrize("max_fact_rows", [None, 0], ids=["tables", "views"])
def test_a_lake_below_an_odd_folder_has_rows_under_its_own_days(
    tmp_path: Path, max_fact_rows: int | None
) -> None:
    lake = Lake(str(tmp_path / "a[1]/date=2020-01-01/verified=x/lake"))
    for day in (DAY, "2024-09-09"):
        write_day(lake, day, one_day())
    build(lake, tmp_path / "draft", run_id="run", max_fact_rows=max_fact_rows)
    with open_draft(tmp_path / "draft") as connection:
        sql = f"SELECT DISTINCT date::VARCHAR, verified FROM verifications WHERE date = '{DAY}' ORDER BY ALL"
        assert connection.sql(sql).fetchall() == [(DAY, False), (DAY, True)]
        if max_fact_rows == 0:  # DuckDB opens the file of that day only
            plan = connection.sql(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1]
            assert "Total Files Read: 1" in " ".join(plan.split())
        sql = "SELECT date::VARCHAR, rows FROM build_partitions WHERE table_name = 'verifications' ORDER BY 1"
        assert connection.sql(sql).fetchall() == [(DAY, 2), ("2024-09-09", 2)]


def test_facts_beyond_the_size_setting_are_views_over_the_lake(
    lake: Lake, whole: Whole, tmp_path: Path
) -> None:
    write_day(lake, DAY, PEOPLE, [rejected()])
    choices = Choices(Decimal("0.35"))
    summary = build(lake, tmp_path / "views", run_id="run", choices=choices, max_fact_rows=2)
    with duckdb.connect(tmp_path / "views", read_only=True) as views:
        kinds = dict(
            views.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
        )
        assert set(kinds) == {"model_checks", "verification_files"}
        assert all(kinds.values())
        for model in load_models():
            everything = f"SELECT * FROM {model.name} ORDER BY ALL"
            rows = views.execute(everything).fetchall()
            assert whole.connection.execute(everything).fetchall() == rows
            assert summary.tables[model.name] == len(rows)
        # They show the days of their build only, and stand until one of these is written again.
        write_day(lake, "2024-09-09", one_day())
        assert views.execute("SELECT count(DISTINCT date) FROM model_checks").fetchall() == [(1,)]
        assert [r.name for r in check_build(views) if r.severity == "error" and not r.passed] == []
    assert summary.is_current(lake)
    write_day(lake, DAY, PEOPLE, [rejected()])
    assert not summary.is_current(lake)
    assert whole.summary.is_current(lake), "tables need no lake"


def test_nothing_intermediate_is_left_when_a_build_ends(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(lake, DAY, one_day())
    left: list[tuple[str]] = []
    built = build_module._Build

    class Looking(built):  # type: ignore[misc, valid-type]
        def finish(self, *arguments: Any) -> Any:
            left.extend(
                self._connection.execute("SELECT table_name FROM duckdb_tables() WHERE temporary").fetchall()
            )
            return super().finish(*arguments)

    monkeypatch.setattr(build_module, "_Build", Looking)
    summary = build(lake, tmp_path / "draft", run_id="run")
    assert "confidence_counts" in summary.seconds
    assert left == []


def test_no_personal_value_is_in_the_file(whole: Whole) -> None:
    assert b"marked" not in whole.draft.read_bytes()
    for model in load_models():
        assert "marked" not in str(whole.connection.execute(f"SELECT * FROM {model.name}").fetchall())


def test_a_full_disk_is_told_as_such(lake: Lake, tmp_path: Path) -> None:
    """A limit of this process stands for the disk's end."""
    write_day(lake, DAY, one_day())
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(KycError, match="if the disk of KYC_WAREHOUSE is full, free space"):
            build(lake, tmp_path / "out" / "draft", run_id="run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_too_little_memory_names_the_setting(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, DAY, one_day())
    with pytest.raises(KycError, match="KYC_WAREHOUSE_MEMORY"):
        build(lake, tmp_path / "out" / "draft", run_id="run", memory_limit="1MB", threads=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_draft_is_opened_for_reading_within_the_limit(empty: Path) -> None:
    with open_draft(empty, "100MB") as connection:
        assert connection.execute("SELECT current_setting('memory_limit')").fetchall() == [("95.3 MiB",)]
        with pytest.raises(duckdb.InvalidInputException, match="read-only"):
            connection.execute("CREATE TABLE mine AS SELECT 1")


def test_duckdb_1_5_can_open_the_file(whole: Whole) -> None:
    tags = whole.connection.execute(
        "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = current_database()"
    )
    assert tags.fetchall() == [("v1.5.0+",)]


def test_a_partition_replaced_while_views_are_read_is_read_again(lake: Lake, tmp_path: Path) -> None:
    day = one_day()
    write_day(lake, DAY, day)
    changes = iter([[*day, Submission(True, [Check("LIVENESS")])]])

    def replace_once(model: str, seconds: float) -> None:
        if model == "pass_rates" and (new := next(changes, None)):
            write_day(lake, DAY, new)

    build(lake, tmp_path / "draft", run_id="run", progress=replace_once, max_fact_rows=0)
    with duckdb.connect(tmp_path / "draft", read_only=True) as connection:
        assert connection.execute(
            "SELECT checks FROM pass_rates WHERE check_type = 'LIVENESS'"
        ).fetchall() == [(3,)]
        assert connection.execute("SELECT verifications FROM verified_rates").fetchall() == [(3,)]
