"""Incomplete days: they are marked, move no rate unmarked, and what they change later is on record."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from kyc_pipeline.analyze.build import build
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, write_curated, write_day, write_responses
from tests.unit.analyze.nasty import HELD, PRICE, REJECTED_ONLY, UNFLATTENED, UNVERIFIED, Nasty, day

DAY, NEXT = "2024-09-02", "2024-09-03"
CHECK = ("check_group", "check_type")


def test_every_table_with_a_day_says_whether_it_is_complete(nasty: Nasty) -> None:
    columns: dict[str, set[str]] = {}
    for table, column in nasty.connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
    ).fetchall():
        columns.setdefault(table, set()).add(column)
    tables = [table for table, names in columns.items() if "date" in names]
    assert len(tables) > 20
    assert [table for table in tables if "is_complete" not in columns[table]] == []
    # Apart from the rows of a company, or of people first seen on a day: complete once their own submissions
    # are decided, whatever their day.
    undecided = nasty.submissions.groupby("date").undecided.sum()
    apart = {"verified_rates_by_company", "verified_rates_by_subject", "failed_steps_by_subject"}
    for table in set(tables) - apart:
        for row in nasty.rows(f"SELECT DISTINCT date, is_complete FROM {table}"):
            assert row["is_complete"] == (undecided.get(row["date"], 0) == 0), (table, row)


def test_days_against_pandas(nasty: Nasty) -> None:
    found = {row["date"]: row for row in nasty.rows("FROM days")}
    groups = nasty.submissions.groupby("date")
    assert set(found) == {*groups.groups, day(REJECTED_ONLY)}
    assert found[day(REJECTED_ONLY)]["is_complete"]
    for date, group in groups:
        row = found[str(date)]
        assert (row["accepted"], row["undecided"]) == (len(group), group.undecided.sum())
        assert row["is_complete"] == (group.undecided.sum() == 0)
    assert {number for number in range(42) if not found.get(day(number), {}).get("is_complete", True)} == {
        UNFLATTENED,
        HELD,
        UNVERIFIED,
    }


@pytest.mark.parametrize("table", ["verified_rates", "pass_rates", "verified_rates_by_company"])
def test_the_bounds_of_rates_against_pandas(nasty: Nasty, table: str) -> None:
    names = {"pass_rates": ("passed", "failed")}.get(table, ("verified", "verifications"))
    undecided = nasty.submissions.groupby("date").undecided.sum()
    of_company = nasty.submissions.groupby(["date", "company"]).undecided.sum()
    found = nasty.rows(f"FROM {table}")
    for row in found:
        open_ = (
            of_company[row["date"], row["company_id"]]
            if table == "verified_rates_by_company"
            else undecided.get(row["date"], 0)
        )
        k = row[names[0]]
        n = k + row["failed"] if table == "pass_rates" else row["verifications"]
        assert row["undecided"] == open_
        assert row["is_complete"] == (open_ == 0)
        if n + open_:
            assert row["rate_worst"] == pytest.approx(k / (n + open_))
            assert row["rate_best"] == pytest.approx((k + open_) / (n + open_))
    assert {row["is_complete"] for row in found} == {False, True}


SLICED = [
    ("verified_rates", (), "verifications"),
    ("verified_rates_by_company", ("company",), "verifications"),
    ("verified_rates_by_dimension WHERE dimension = 'country'", ("country",), "verifications"),
    ("verified_rates_by_dimension WHERE dimension = 'model_version'", ("model_version",), "verifications"),
    ("pass_rates", (*CHECK,), "passed + failed"),
    ("pass_rates_by_dimension WHERE dimension = 'country'", ("country", *CHECK), "passed + failed"),
    (
        "pass_rates_by_dimension WHERE dimension = 'model_version'",
        ("model_version", *CHECK),
        "passed + failed",
    ),
]


@pytest.mark.parametrize(("rows", "by", "decided"), SLICED)
def test_the_bounds_of_a_period_add_up_over_its_days(
    nasty: Nasty, rows: str, by: tuple[str, ...], decided: str
) -> None:
    """Undecided submissions count for every check and model version that the warehouse has."""
    names = {"company": "company_id", "country": "value", "model_version": "value"}
    keys = [names.get(name, name) for name in by]
    of_checks = by[-2:] == CHECK
    source, k = (nasty.checks, "passed") if of_checks else (nasty.verifications, "verified")
    for since, until in ((0, 41), (HELD, HELD), (UNFLATTENED, UNFLATTENED + 6), (35, UNVERIFIED)):
        period = f"date BETWEEN '{day(since)}' AND '{day(until)}'"
        found = {
            tuple(row[key] for key in keys): (row["k"], row["n"], row["undecided"])
            for row in nasty.rows(
                f"SELECT {', '.join([*keys, ''])} sum({k})::INT AS k, sum({decided})::INT AS n,"
                f" sum(undecided)::INT AS undecided FROM (FROM {rows}) WHERE {period} GROUP BY ALL"
            )
        }
        own = source[source.date.between(day(since), day(until))]
        own = own[own.status.isin(["PASS", "FAIL"])] if of_checks else own
        of_period = nasty.submissions[nasty.submissions.date.between(day(since), day(until))]
        sliced = [name for name in by if name in {"company", "country"}]
        seen = source[[*by]].drop_duplicates().itertuples(index=False) if by else [()]
        types = {tuple(key) for key in nasty.checks[[*CHECK]].drop_duplicates().itertuples(index=False)}
        wanted = {tuple(key) for key in seen}
        if of_checks and sliced:
            wanted = {(value, *name) for value, *_ in wanted for name in types}
        expected = {}
        for key in wanted:
            mine, open_ = own, of_period
            for name, value in zip(by, key, strict=True):
                mine = mine[mine[name] == value]
                open_ = open_[open_[name] == value] if name in sliced else open_
            passed = (mine.status == "PASS").sum() if of_checks else mine.verified.sum()
            expected[key] = passed, len(mine), open_.undecided.sum()
        # A key without any row of the period has neither decided nor undecided ones.
        assert {key: expected[key] for key in found if sum(found[key])} == {
            key: counts for key, counts in found.items() if sum(counts)
        }
        assert {key for key, counts in expected.items() if sum(counts)} <= set(found)


def test_cost_per_verified_is_of_complete_days_only(nasty: Nasty) -> None:
    for row in nasty.rows("FROM api_performance"):
        group = nasty.submissions[nasty.submissions.date == row["date"]]
        assert float(row["estimated_cost"]) == pytest.approx(group.cost.sum())
        if group.undecided.any():
            assert row["cost_per_verified"] is None
        else:
            assert float(row["cost_per_verified"]) == pytest.approx(
                group.cost.sum() / group.verified.sum(), abs=1e-6
            )


def test_the_funnel_does_not_count_an_unflattened_day_as_declined(nasty: Nasty) -> None:
    [row] = nasty.rows(f"FROM submission_funnel WHERE date = '{day(UNFLATTENED)}'")
    assert row["completed"] > 50
    assert (row["verified"], row["not_verified"]) == (0, 0)
    [other] = nasty.rows(f"FROM submission_funnel WHERE date = '{day(HELD)}'")
    assert other["completed"] == other["verified"] + other["not_verified"]


def weeks(lake: Lake, held: int) -> None:
    """Two weeks at 85%; in the second, `held` of the bad cases time out."""
    write_day(lake, "2024-09-02", [Submission(number >= 60) for number in range(400)])
    second = [
        Submission(number >= 60, outcome="uncertain" if number < held else "completed")
        for number in range(400)
    ]
    write_day(lake, "2024-09-09", second)


@pytest.mark.parametrize("held", [0, 40])
def test_timeouts_of_bad_cases_are_no_significant_rise(lake: Lake, computed: Any, held: int) -> None:
    weeks(lake, held)
    [row] = (
        computed("pass_rate_changes")
        .execute(
            "SELECT change, change_low > 0, significant, undecided, is_complete FROM pass_rate_changes"
            " WHERE week = '2024-09-09' AND check_type = 'VERIFIED'"
        )
        .fetchall()
    )
    assert row == (pytest.approx(340 / (400 - held) - 0.85), held > 0, False, held, held == 0)


def test_a_real_rise_stays_significant_beside_a_few_held(lake: Lake, computed: Any) -> None:
    write_day(lake, "2024-09-02", [Submission(number >= 120) for number in range(400)])
    later = [
        Submission(number >= 20, outcome="uncertain" if number < 5 else "completed") for number in range(400)
    ]
    write_day(lake, "2024-09-09", later)
    assert computed("pass_rate_changes").execute(
        "SELECT significant FROM pass_rate_changes ORDER BY week"
    ).fetchall() == [
        (False,),
        (True,),
    ]


def test_a_week_without_a_verdict_has_no_change_and_makes_that_of_the_next_incomplete(
    lake: Lake, computed: Any
) -> None:
    write_day(lake, "2024-09-02", [Submission(outcome="uncertain")] * 2)
    write_day(lake, "2024-09-09", [Submission(True, [Check("T")])])
    assert computed("pass_rate_changes").execute(
        "SELECT check_type, week::VARCHAR, change, previous_decided, previous_undecided, is_complete"
        " FROM pass_rate_changes ORDER BY check_type"
    ).fetchall() == [
        ("T", "2024-09-09", None, None, 2, False),
        ("VERIFIED", "2024-09-09", None, None, 2, False),
    ]


def restated(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return connection.execute(
        'SELECT date::VARCHAR, metric, check_type, was, "is", first_seen_build, changed_by, was_complete'
        " FROM restatements"
    ).fetchall()


def test_restatements_say_which_build_changed_which_past_figure(
    lake: Lake, built: Any, tmp_path: Path
) -> None:
    people = [Submission(True, [Check("T")]), Submission(False, [Check("T", "FAIL")])]
    late = Submission(True, outcome="uncertain")
    write_day(lake, DAY, [*people, late])
    assert restated(built(run_id="one")) == []
    write_day(lake, NEXT, [Submission()])  # a new day restates nothing
    answered = [*people, Submission(True, [Check("T")], id=late.id)]
    write_responses(lake, DAY, answered)
    write_curated(lake, DAY, answered)
    second = built(run_id="two", previous=tmp_path / "draft-0.duckdb")
    changes = [
        (DAY, "pass_rate", "T", 1 / 2, pytest.approx(2 / 3), "one", "two", False),
        (DAY, "completed", None, 2, 3, "one", "two", False),
        (DAY, "verified", None, 1, 2, "one", "two", False),
        (DAY, "verified_rate", None, 1 / 2, pytest.approx(2 / 3), "one", "two", False),
    ]
    assert restated(second) == changes
    write_day(lake, DAY, answered[:2])  # a person was erased
    third = restated(built(run_id="three", previous=tmp_path / "draft-1.duckdb"))
    assert [row for row in third if row[6] == "two"] == changes
    assert (DAY, "verified", None, 2, 1, "two", "three", True) in third
    assert (DAY, "received", None, 3, 2, "one", "three", True) in third


@pytest.mark.parametrize("content", [None, b"", b"no database"])
def test_without_a_readable_published_build_nothing_is_restated(
    lake: Lake, tmp_path: Path, content: bytes | None
) -> None:
    previous = tmp_path / "previous.duckdb"
    if content is not None:
        previous.write_bytes(content)
    write_day(lake, DAY, [Submission()])
    build(lake, tmp_path / "draft", run_id="one", previous=previous)
    with duckdb.connect(tmp_path / "draft", read_only=True) as connection:
        assert restated(connection) == []
        assert connection.execute("SELECT DISTINCT first_seen_build FROM daily_figures").fetchall() == [
            ("one",)
        ]


def test_the_price_is_that_of_the_frames(nasty: Nasty) -> None:
    assert nasty.rows("SELECT price_per_call FROM build_info") == [{"price_per_call": PRICE}]
