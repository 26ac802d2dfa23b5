"""Alarms: statistics against scipy and statsmodels, false alarms and delays by simulation, and the table."""

import datetime
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bench.alarms import FALL_AT, FOLLOWED, HISTORY, YEAR, Board, weeks_of_days
from kyc_pipeline.analyze.build import build, open_draft, record_checks
from kyc_pipeline.analyze.changes import _benjamini_hochberg, find_changes, write_changes
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.publish import open_warehouse
from kyc_pipeline.analyze.quality import check_build, load_checks
from kyc_pipeline.analyze.report import write_report
from kyc_pipeline.analyze.sql_models import load_steps, macros_sql
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.rules import ALARM_RATE, SUPPRESSED
from tests.unit.analyze.lake_maker import Check, Submission, write_day

MONDAY = datetime.date(2024, 1, 1)


# --- the statistics ------------------------------------------------------------------------------------


def test_chi_squared_of_the_days_is_scipys() -> None:
    random = np.random.default_rng(1)
    passed = random.binomial(50, 0.8, (1, 1, 3, 7)).astype(float)
    weeks = weeks_of_days(passed, np.full(passed.shape, 50.0))
    for week in range(3):
        table = np.array([passed[0, 0, week], 50 - passed[0, 0, week]])
        expected = stats.chi2_contingency(table, correction=False)
        assert weeks.excess[0, 0, week] == pytest.approx(expected.statistic)
        assert weeks.freedom[0, 0, week] == expected.dof


def test_p_is_that_of_students_t_of_the_angles() -> None:
    random = np.random.default_rng(2)
    passed = random.binomial(300, np.clip(0.9 + random.normal(0, 0.02, (1, 1, 21, 7)), 0, 1)).astype(float)
    passed[0, 0, -1] -= 22
    weeks = weeks_of_days(passed, np.full(passed.shape, 300.0))
    [change] = find_changes(weeks)
    (k, n), (j, m) = ((w.sum(), w.size * 300.0) for w in (passed[0, 0, 20], passed[0, 0, :20]))
    freedom, excess = weeks.freedom[0, 0, :20].sum(), weeks.excess[0, 0, :20].sum()
    dispersion = max(excess / freedom, 1)
    angles = [2 * np.arcsin(np.sqrt((a + 3 / 8) / (b + 3 / 4))) for a, b in ((k, n), (j, m))]
    t = (angles[0] - angles[1]) / np.sqrt(dispersion * (1 / (n + 0.5) + 1 / (m + 0.5)))
    assert change.p == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=0.02)
    assert dispersion > 1.2
    assert change.dispersion == pytest.approx(dispersion)
    variance = sum((a + 1) * (b - a + 1) / (b + 2) ** 3 for a, b in ((k, n), (j, m)))
    half = stats.norm.ppf(0.975) * np.sqrt(dispersion * variance)
    assert (change.low, change.effect, change.high) == pytest.approx(
        (k / n - j / m - half, k / n - j / m, k / n - j / m + half), abs=1e-6
    )


@pytest.mark.parametrize("seed", range(20))
def test_benjamini_hochberg_is_that_of_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).beta(0.3, 3, (2, 5, 3))
    found = _benjamini_hochberg(p, 0.05)
    for board in range(2):
        expected = multipletests(p[board].ravel(), 0.05, "fdr_bh")[0]
        assert found[board].ravel().tolist() == expected.tolist()


def test_what_is_not_tested_is_not_significant_however_much_of_it_there_is() -> None:
    p = np.ones((1, 60, 4))
    assert not _benjamini_hochberg(p, 0.01).any()
    p[0, :2, 0] = 0.001, 0.5
    assert np.argwhere(_benjamini_hochberg(p, 0.01)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "board", [Board(4, 300, 0.0), Board(11, 60, 0.007), Board(11, 3000, 0.007), Board(60, 10, 0.0)]
)
def test_a_quiet_board_has_at_most_one_false_alarm_a_year(board: Board) -> None:
    years = 30
    found = find_changes(board.weeks(years, HISTORY + YEAR))
    assert sum(change.last >= HISTORY for change in found) / years <= 1


@pytest.mark.parametrize(("volume", "fall", "weeks"), [(60, 0.05, 8), (300, 0.05, 2), (3000, 0.02, 2)])
def test_a_fall_is_found_in_time(volume: int, fall: float, weeks: int) -> None:
    years = 20
    found = find_changes(Board(4, volume, 0.007).weeks(years, FALL_AT + FOLLOWED, fall))
    delays = {
        change.board: change.seen - FALL_AT + 1
        for change in found
        if change.series == 0 and change.effect < 0 and change.seen >= FALL_AT
    }
    assert np.median([delays.get(year, np.inf) for year in range(years)]) <= weeks


# --- the table -----------------------------------------------------------------------------------------

Days = Mapping[str, Sequence[tuple[int, int]]]
"""Series → passed and decided of each day: `verdict` is the decision, `company:x` a slice, else a check."""


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(macros_sql())
        yield connection


def row_of(series: str, date: datetime.date, k: int, n: int) -> tuple[str, tuple[Any, ...]]:
    """The table that a day of the series is in, and its row."""
    name, _, value = series.partition(":")
    if name == "verdict":
        return "verified_rates", (date, k, n)
    if name == "company":
        return "verified_rates_by_company", (date, value, k, n)
    if value:
        return "verified_rates_by_dimension", (date, name, value, k, n)
    return "pass_rates", (date, "g", name, n, k, n - k)


def alarms(
    connection: duckdb.DuckDBPyConnection,
    days: Days,
    *,
    incomplete: Sequence[int] = (),
    timeouts: Mapping[int, int] = {},
    versions: Mapping[str, int] = {},
) -> list[dict[str, Any]]:
    """The rows of `alarms` for these days, from the models' own SQL; days begin on a Monday."""
    length = max(map(len, days.values()))
    dates = [MONDAY + datetime.timedelta(days=number) for number in range(length)]
    execute = connection.execute
    execute("CREATE TABLE days (date DATE, accepted BIGINT, is_complete BOOLEAN)")
    execute("CREATE TABLE api_performance (date DATE, timeouts BIGINT)")
    execute(
        "CREATE TABLE pass_rates (date DATE, check_group TEXT, check_type TEXT, checks INT, passed INT,"
        " failed INT)"
    )
    execute("CREATE TABLE verified_rates (date DATE, verified INT, verifications INT)")
    execute(
        "CREATE TABLE verified_rates_by_company (date DATE, company_id TEXT, verified INT, verifications INT)"
    )
    execute(
        "CREATE TABLE verified_rates_by_dimension (date DATE, dimension TEXT, value TEXT, verified INT,"
        " verifications INT)"
    )
    rows: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for number, date in enumerate(dates):
        rows["days"].append((date, 100, number not in incomplete))
        rows["api_performance"].append((date, timeouts.get(number, 0)))
    for name, counts in days.items():
        for date, (k, n) in zip(dates[-len(counts) :], counts, strict=True):
            table, row = row_of(name, date, k, n)
            rows[table].append(row)
    for version, number in versions.items():
        # Of the first day, only undecided submissions.
        for date, n in ((dates[0], 0), (dates[number], 1)):
            rows["verified_rates_by_dimension"].append((date, "model_version", version, n, n))
    for table, own in rows.items():
        marks = ", ".join("?" for _ in own[0])
        values = [value for row in own for value in row]
        execute(f"INSERT INTO {table} VALUES " + ", ".join(f"({marks})" for _ in own), values)
    models = {model.name: model.sql for model in load_steps()}
    for name in ("rate_weeks", "found_changes", "events", "alarms"):
        execute(f"CREATE TABLE {name} AS {models[name]}")
        if name == "found_changes":
            write_changes(connection)
    found = execute("FROM alarms")
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def days_at(*rates: tuple[float, int], volume: int = 300) -> list[tuple[int, int]]:
    """Days at each rate, for so many days, with the scatter of chance."""
    random = np.random.default_rng(3)
    wanted = [rate for rate, count in rates for _ in range(count)]
    return [(int(random.binomial(volume, rate)), volume) for rate in wanted]


def week(number: int) -> datetime.date:
    return MONDAY + datetime.timedelta(days=7 * number)


def test_the_benchmark_counts_weeks_as_sql_does(database: duckdb.DuckDBPyConnection) -> None:
    days = days_at((0.9, 7), (1.0, 7), (0.5, 7), volume=20)
    alarms(database, {"T": days})
    passed, decided = np.array(days, dtype=float).T.reshape(2, 1, 1, 3, 7)
    weeks = weeks_of_days(passed, decided)
    sql = "SELECT passed, decided, excess, freedom FROM rate_weeks ORDER BY week"
    assert np.array(database.execute(sql).fetchall()) == pytest.approx(
        np.stack([weeks.passed, weeks.decided, weeks.excess, weeks.freedom], axis=-1)[0, 0]
    )


def test_one_bad_week_is_one_alarm_without_an_echo(database: duckdb.DuckDBPyConnection) -> None:
    days = days_at((0.9, 20 * 7), (0.8, 7), (0.9, 12 * 7))
    [alarm] = alarms(database, {"verdict": days, "T": days_at((0.9, 33 * 7))})
    assert (alarm["kind"], alarm["series"]) == ("rate_fell", "verdict/VERIFIED")
    assert (alarm["from_date"], alarm["to_date"]) == (week(20), week(21) - datetime.timedelta(days=1))
    k, n = (sum(day[i] for day in days[140:147]) for i in range(2))
    j, m = (sum(day[i] for day in days[:140]) for i in range(2))
    assert alarm["effect"] == pytest.approx(k / n - j / m)
    assert alarm["effect_low"] < -0.1 < alarm["effect_high"] < 0
    assert f"{k / n:.1%} of 2,100 against {j / m:.1%} of 42,000 before" in alarm["evidence"]
    assert "mix_adjusted_changes" in alarm["look_at"]
    assert alarm["explained_by"] is None


def test_a_lasting_fall_is_one_alarm_until_it_is_the_new_normal(database: duckdb.DuckDBPyConnection) -> None:
    [alarm] = alarms(database, {"T": days_at((0.9, 20 * 7), (0.8, 20 * 7))})
    assert (alarm["check_group"], alarm["check_type"], alarm["dimension"]) == ("g", "T", None)
    assert (alarm["from_date"], alarm["to_date"]) == (week(20), week(28) - datetime.timedelta(days=1))


def test_a_slow_slide_is_found(database: duckdb.DuckDBPyConnection) -> None:
    slide = [(0.9 - 0.03 * number / 12, 7) for number in range(1, 13)]
    found = alarms(database, {"T": days_at((0.9, 20 * 7), *slide, (0.87, 14), volume=1000)})
    assert found
    assert {alarm["kind"] for alarm in found} == {"rate_fell"}


def test_a_running_week_does_not_count(database: duckdb.DuckDBPyConnection) -> None:
    assert alarms(database, {"T": days_at((0.9, 20 * 7), (0.6, 6))}) == []


def test_incomplete_days_do_not_count(database: duckdb.DuckDBPyConnection) -> None:
    days = {"T": days_at((0.9, 20 * 7), (0.6, 3), (0.9, 4))}
    assert alarms(database, days, incomplete=range(140, 143)) == []


def test_a_small_change_is_none_however_certain(database: duckdb.DuckDBPyConnection) -> None:
    days = [(900_000, 1_000_000)] * 140 + [(896_000, 1_000_000)] * 7
    assert alarms(database, {"T": days}) == []


def test_a_rate_of_one_that_falls(database: duckdb.DuckDBPyConnection) -> None:
    [alarm] = alarms(database, {"T": [(300, 300)] * 140 + [(280, 300)] * 7})
    assert alarm["effect"] == pytest.approx(-20 / 300)


def test_a_company_has_alarms_but_what_is_hidden_has_none(database: duckdb.DuckDBPyConnection) -> None:
    bad = days_at((0.9, 20 * 7), (0.6, 7))
    [alarm] = alarms(database, {"company:acme": bad, f"company:{SUPPRESSED}": bad})
    assert (alarm["dimension"], alarm["value"]) == ("company", "acme")
    assert alarm["series"] == "verdict/VERIFIED/company/acme"


def test_a_company_that_is_a_dimension_too_has_one_alarm(database: duckdb.DuckDBPyConnection) -> None:
    bad = days_at((0.9, 20 * 7), (0.6, 7))
    [alarm] = alarms(database, {"company:acme": bad, "companyId:acme": bad})
    assert alarm["series"] == "verdict/VERIFIED/companyId/acme"


@pytest.mark.parametrize("undecided_before", [0, 138])
def test_events_explain_an_alarm(database: duckdb.DuckDBPyConnection, undecided_before: int) -> None:
    new = [(0, 0)] * undecided_before + days_at((0.9, 9))
    days = {"T": days_at((0.9, 20 * 7), (0.8, 7)), "NEW": new}
    [alarm] = alarms(database, days, timeouts={141: 10, 142: 9}, versions={"1.0": 0, "2.0": 140})
    assert alarm["series"] == "g/T"
    assert alarm["explained_by"] == "model_version 2.0, new_check_type NEW, outage"


def test_events_of_other_weeks_do_not(database: duckdb.DuckDBPyConnection) -> None:
    days = {"T": days_at((0.9, 20 * 7), (0.8, 7))}
    [alarm] = alarms(database, days, timeouts={100: 50, 141: 9}, versions={"1.0": 0, "2.0": 130})
    assert alarm["explained_by"] is None


def test_nothing_is_no_alarm(database: duckdb.DuckDBPyConnection) -> None:
    assert alarms(database, {"T": [(1, 1)]}) == []
    assert ALARM_RATE * 52 < 1


def test_the_check_warns_of_a_recent_alarm_that_nothing_explains(
    database: duckdb.DuckDBPyConnection,
) -> None:
    alarms(database, {"T": days_at((0.9, 10 * 7), (0.8, 7), (0.9, 14))})
    [sql] = [check.sql for check in load_checks() if check.definition.name == "recent_alarms"]
    assert len(database.execute(sql).fetchall()) == 1
    database.execute("UPDATE alarms SET explained_by = 'outage'")
    assert database.execute(sql).fetchall() == []
    database.execute("UPDATE alarms SET explained_by = NULL, to_date = to_date - 28")
    assert database.execute(sql).fetchall() == []


def test_from_the_lake_to_the_report(lake: Lake, tmp_path: Path) -> None:
    """Nine weeks of four days; in the last one, verdicts and a check fall."""
    random = np.random.default_rng(4)
    for number in range(10):
        for weekday in range(4 if number < 9 else 1):
            verdicts = random.random(60) < (0.6 if number == 8 else 0.9)
            day = [Submission(bool(v), [Check("T", "PASS" if v else "FAIL")]) for v in verdicts]
            write_day(lake, str(week(number) + datetime.timedelta(days=weekday)), day)
    draft = tmp_path / "kyc.duckdb"
    build(lake, draft, run_id="run", choices=Choices(min_cell=5))
    with open_draft(draft) as connection:
        results = {result.name: result for result in check_build(connection)}
        rows = connection.execute("SELECT series, from_date, kind FROM alarms").fetchall()
    expected = [
        (series, week(8), "rate_fell")
        for series in ("technicalChecks/T", "verdict/VERIFIED", "verdict/VERIFIED/company/UNKNOWN")
    ]
    assert rows == expected
    assert results["recent_alarms"].metadata["count"] == 3
    record_checks(draft, list(results.values()))
    with open_warehouse(draft, exact=True) as connection:
        assert connection.execute("SELECT series, from_date, kind FROM alarms").fetchall() == expected
    write_report(draft, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The verified rate fell by" in page
    assert "The pass rate of T fell by" in page
    assert "times that of chance" in page
