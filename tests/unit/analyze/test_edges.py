"""Tables at their edges: none, one, all equal, no scores, a late start, gaps; and the known vectors."""

import datetime
from collections.abc import Callable, Iterable
from typing import Any

import duckdb
import pytest
from scipy import stats

from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, Tags, write_day, write_submissions

Built = Callable[..., duckdb.DuckDBPyConnection]
MONDAY = datetime.date(2024, 9, 2)
QUANTILES = ("min", "p01", "p05", "p25", "p50", "p75", "p95", "p99", "max")
DISTANCES = ("psi", "psi_noise_floor", "ks", "ks_p_value", "js_distance")


def day(number: int) -> str:
    return (MONDAY + datetime.timedelta(days=number)).isoformat()


def rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    found = connection.execute(sql)
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def scored(confidences: Iterable[float | None], check_type: str = "T") -> list[Submission]:
    return [Submission(True, [Check(check_type, "PASS", confidence) for confidence in confidences])]


def decided(passed: int, failed: int, check_type: str = "T") -> list[Submission]:
    checks = [Check(check_type, "PASS", None)] * passed + [Check(check_type, "FAIL", None)] * failed
    return [Submission(failed == 0, checks)]


def test_one_check(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), scored([0.5]))
    connection = computed("confidence_summary", "pass_rates", "confidence_drift", "pass_rate_changes")
    [summary] = rows(connection, "FROM confidence_summary")
    assert {summary[name] for name in (*QUANTILES, "mean")} == {0.5}
    assert summary["stddev"] is None
    [rate] = rows(connection, "FROM pass_rates")
    assert (rate["pass_rate"], rate["pass_rate_low"], rate["pass_rate_high"]) == pytest.approx(
        (1, 0.206549, 1), abs=5e-7
    )
    assert rate["low_n"]
    [drift] = rows(connection, "FROM confidence_drift")
    assert (drift["checks"], drift["baseline_checks"], drift["level"]) == (1, 0, "insufficient")
    assert {drift[name] for name in DISTANCES} == {None}
    [change] = rows(connection, "FROM pass_rate_changes WHERE check_type = 'T'")
    assert (change["previous_decided"], change["change_low"], change["significant"]) == (None, None, False)


def test_one_check_against_one(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), scored([0.1]))
    write_day(lake, day(1), scored([0.9]))
    drift = rows(computed("confidence_drift"), "FROM confidence_drift ORDER BY date")[1]
    assert (drift["ks"], drift["js_distance"]) == pytest.approx((1, 1))
    assert drift["level"] == "insufficient"


def test_all_equal(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), scored([1.0] * 50))
    connection = computed("confidence_summary", "confidence_histogram", "threshold_sensitivity")
    [summary] = rows(connection, "FROM confidence_summary")
    assert {summary[name] for name in (*QUANTILES, "mean")} == {1}
    assert (summary["stddev"], summary["distinct_values"], summary["saturated"]) == (0, 1, 50)
    assert rows(connection, "SELECT bin, checks FROM confidence_histogram WHERE checks > 0") == [
        {"bin": 99, "checks": 50}
    ]
    assert rows(connection, "SELECT DISTINCT rate FROM threshold_sensitivity") == [{"rate": 1}]


def test_no_confidence_at_all(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), scored([None, None]))
    connection = computed(
        "confidence_summary", "confidence_histogram", "confidence_drift", "threshold_sensitivity"
    )
    [summary] = rows(connection, "FROM confidence_summary")
    assert (summary["checks"], summary["with_confidence"], summary["saturated"]) == (2, 0, 0)
    assert {summary[name] for name in (*QUANTILES, "mean", "stddev")} == {None}
    assert rows(connection, "SELECT count(*) AS bins, sum(checks) AS checks FROM confidence_histogram") == [
        {"bins": 100, "checks": 0}
    ]
    assert rows(connection, "FROM confidence_drift") == []
    assert rows(
        connection,
        "SELECT DISTINCT scored, at_or_above, rate, rate_null_as_fail, auc, orientation_verified"
        " FROM threshold_sensitivity",
    ) == [
        {
            "scored": 0,
            "at_or_above": 0,
            "rate": None,
            "rate_null_as_fail": 0,
            "auc": None,
            "orientation_verified": False,
        }
    ]


def test_nothing_decided(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), [Submission(False, [Check("T", "REVIEW"), Check("T", "UNKNOWN")])])
    connection = computed("pass_rates", "pass_rate_changes")
    [rate] = rows(connection, "FROM pass_rates")
    assert (rate["checks"], rate["other"]) == (2, 2)
    assert {rate[name] for name in ("pass_rate", "pass_rate_low", "pass_rate_high")} == {None}
    assert rate["low_n"]
    [change] = rows(connection, "FROM pass_rate_changes WHERE check_type = 'T'")
    assert (change["decided"], change["pass_rate"], change["change"]) == (0, None, None)


def test_a_response_without_checks_counts_as_a_verification_only(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), [Submission(True), Submission(False)])
    connection = computed("pass_rates", "failure_combinations", "failure_attribution")
    assert rows(connection, "FROM pass_rates") == []
    assert rows(connection, "SELECT failed_checks, verifications, verified FROM failure_combinations") == [
        {"failed_checks": "none", "verifications": 2, "verified": 1}
    ]
    assert rows(connection, "SELECT check_type, failing FROM failure_attribution ORDER BY check_type") == [
        {"check_type": "OVERRIDE", "failing": 0},
        {"check_type": "UNEXPLAINED_DECLINE", "failing": 1},
    ]


def test_a_type_that_appears_half_way_has_no_past(lake: Lake, computed: Built) -> None:
    for number in range(14):
        old = [Check("OLD", "PASS", 0.9)] * 30
        new = [Check("NEW", "PASS", 0.9)] * 30 if number >= 10 else []
        write_day(lake, day(number), [Submission(True, [*old, *new])])
    connection = computed("confidence_drift", "pass_rate_changes", "threshold_sensitivity")
    first, second = rows(connection, "FROM confidence_drift WHERE check_type = 'NEW' ORDER BY date LIMIT 2")
    assert (first["date"], first["baseline_checks"], first["psi"]) == (
        MONDAY + datetime.timedelta(days=10),
        0,
        None,
    )
    assert (second["baseline_checks"], second["psi"]) == (30, 0)
    # From the 13th day on, the last seven days take the place of the day.
    assert rows(
        connection,
        "SELECT window_days, max(checks) AS n, max(baseline_checks) AS m FROM confidence_drift GROUP BY ALL"
        " ORDER BY ALL",
    ) == [{"window_days": 1, "n": 30, "m": 12 * 30}, {"window_days": 7, "n": 7 * 30, "m": 7 * 30}]
    assert rows(
        connection, "SELECT week, previous_decided, change FROM pass_rate_changes WHERE check_type = 'NEW'"
    ) == [{"week": MONDAY + datetime.timedelta(days=7), "previous_decided": None, "change": None}]
    assert rows(connection, "SELECT DISTINCT scored FROM threshold_sensitivity WHERE check_type = 'NEW'") == [
        {"scored": 4 * 30}
    ]


def test_a_week_without_data_is_not_compared_across(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), decided(40, 0))
    write_submissions(lake, day(8), [Submission()])
    write_day(lake, day(14), decided(0, 40))
    found = rows(computed("pass_rate_changes"), "FROM pass_rate_changes WHERE check_type = 'T' ORDER BY week")
    assert [(row["week"], row["previous_decided"], row["significant"]) for row in found] == [
        (MONDAY, None, False),
        (MONDAY + datetime.timedelta(days=14), None, False),
    ]


def test_a_change_is_significant_when_its_interval_excludes_zero(lake: Lake, computed: Built) -> None:
    weeks = {
        "CLEAR": ((95, 5), (80, 20)),
        "NOISE": ((95, 5), (93, 7)),
        "TOO_FEW": ((29, 0), (0, 100)),
    }
    for week, number in enumerate((6, 7)):  # a Sunday and the Monday after it
        write_day(
            lake,
            day(number),
            [submission for name, counts in weeks.items() for submission in decided(*counts[week], name)],
        )
    found = rows(
        computed("pass_rate_changes"),
        "FROM pass_rate_changes WHERE check_group <> 'verdict' ORDER BY week, check_type",
    )
    assert [row["significant"] for row in found] == [False, False, False, True, False, False]
    assert [row["low_n"] for row in found[3:]] == [False, False, True]
    for row, (before, after) in zip(found[3:], weeks.values(), strict=True):
        assert row["change"] == pytest.approx(after[0] / sum(after) - before[0] / sum(before))


def test_psi_and_jensen_shannon_of_the_known_vector(lake: Lake, computed: Built) -> None:
    centres = (0.05, 0.35, 0.65, 1.0)
    for number, counts in enumerate(((10, 20, 40, 30), (20, 20, 30, 30))):
        values = [value for value, count in zip(centres, counts, strict=True) for _ in range(2 * count)]
        write_day(lake, day(number), scored(values))
    drift = rows(computed("confidence_drift"), "FROM confidence_drift ORDER BY date")[1]
    assert drift["psi"] == pytest.approx(0.0980829, abs=5e-8)
    assert drift["js_distance"] == pytest.approx(0.1320067, abs=5e-8)
    assert drift["level"] == "none"


def test_ks_of_the_known_vector_and_how_far_its_p_value_is_from_the_exact_one(
    lake: Lake, computed: Built
) -> None:
    samples = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.4, 0.5, 0.6, 0.7]]
    large_samples = [[(step + shift) / 400 for step in range(200)] for shift in (0, 24)]
    for number, sample in zip((0, 1, 40, 41), (*samples, *large_samples), strict=True):
        write_day(lake, day(number), scored(sample))
    _, small, _, large = rows(computed("confidence_drift"), "FROM confidence_drift ORDER BY date")
    exact = stats.ks_2samp(*samples, method="exact")
    assert exact.pvalue == pytest.approx(0.873016, abs=5e-7)
    assert small["ks"] == pytest.approx(exact.statistic)
    assert small["ks_p_value"] == pytest.approx(exact.pvalue, abs=0.06)
    exact = stats.ks_2samp(*large_samples, method="exact")
    assert large["ks"] == pytest.approx(exact.statistic)
    assert large["ks_p_value"] == pytest.approx(exact.pvalue, abs=0.01)


def test_drift_needs_two_hundred_checks_on_both_sides_and_looks_28_days_back(
    lake: Lake, computed: Built
) -> None:
    last = 40
    sizes = {  # days before the last, with the checks of each side
        "ENOUGH": (28, 200, 200),
        "TOO_FEW_BEFORE": (1, 199, 200),
        "TOO_FEW_NOW": (1, 200, 199),
        "TOO_LONG_AGO": (29, 200, 200),
    }
    days: dict[int, list[Submission]] = {}
    for name, (ago, before, now) in sizes.items():
        days.setdefault(last - ago, []).extend(scored([0.95] * before, name))
        days.setdefault(last, []).extend(scored([0.95] * now, name))
    for number, submissions in days.items():
        write_day(lake, day(number), submissions)
    found = rows(
        computed("confidence_drift"), f"FROM confidence_drift WHERE date = '{day(last)}' ORDER BY check_type"
    )
    assert [(row["check_type"], row["baseline_checks"], row["level"]) for row in found] == [
        ("ENOUGH", 200, "none"),
        ("TOO_FEW_BEFORE", 199, "insufficient"),
        ("TOO_FEW_NOW", 200, "insufficient"),
        ("TOO_LONG_AGO", 0, "insufficient"),
    ]


def test_drift_of_few_checks_a_day_is_that_of_longer_windows(lake: Lake, computed: Built) -> None:
    for number in range(60):
        confidence = 0.15 if number >= 50 else 0.95
        write_day(
            lake, day(number), [*scored([confidence] * 40, "WEEKLY"), *scored([confidence] * 10, "MONTHLY")]
        )
    found = rows(computed("confidence_drift"), "FROM confidence_drift ORDER BY check_type, date")
    monthly, weekly = found[:60], found[60:]
    assert [row["window_days"] for row in weekly] == [1] * 11 + [7] * 49
    assert [(row["checks"], row["baseline_checks"]) for row in weekly[50:]] == [(280, 1120)] * 10
    assert {row["level"] for row in weekly[11:50]} == {"none"}
    assert [row["level"] for row in weekly[51:]] == ["large"] * 9
    assert [row["window_days"] for row in monthly] == [1] * 47 + [28] * 13
    assert (monthly[59]["checks"], monthly[59]["baseline_checks"]) == (280, 280)
    assert (monthly[46]["level"], monthly[47]["level"], monthly[59]["level"]) == (
        "insufficient",
        "none",
        "large",
    )


def test_drift_within_noise_is_none(lake: Lake, computed: Built) -> None:
    for number, counts in enumerate(((50, 50, 50, 50), (75, 54, 41, 30))):
        values = [
            value for value, count in zip((0.1, 0.3, 0.5, 0.7), counts, strict=True) for _ in range(count)
        ]
        write_day(lake, day(number), scored(values))
    drift = rows(computed("confidence_drift"), "FROM confidence_drift ORDER BY date")[1]
    assert 0.1 < drift["psi"] < drift["psi_noise_floor"]
    assert drift["level"] == "none"


@pytest.mark.parametrize(("gap", "within", "mature"), [(6, 1, False), (7, 0, True)])
def test_a_cohort_has_seven_days(lake: Lake, computed: Built, gap: int, within: int, mature: bool) -> None:
    person: Tags = {"customerId": (None, "p")}
    write_day(lake, day(0), [Submission(False, tags=person)])
    write_day(lake, day(gap), [Submission(True, tags=person)])
    [cohort] = rows(computed("repeat_subjects"), "FROM repeat_subjects")
    assert (cohort["subjects"], cohort["repeat_subjects"], cohort["passed_within_3"]) == (1, 1, 1)
    assert (cohort["passed_within_7_days"], cohort["mature"]) == (within, mature)


def test_a_day_of_uncertain_submissions_only_has_bounds_but_no_rate(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), [Submission(outcome="uncertain", latency_ms=None)])
    connection = computed("verified_rates", "api_performance")
    [rate] = rows(connection, "FROM verified_rates")
    assert {rate[name] for name in ("verified_rate", "verified_rate_low", "verified_rate_high")} == {None}
    assert (rate["verifications"], rate["undecided"], rate["rate_worst"], rate["rate_best"]) == (0, 1, 0, 1)
    assert (rate["low_n"], rate["is_complete"]) == (True, False)
    [api] = rows(connection, "FROM api_performance")
    assert {api[name] for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")} == {None}
    assert api["timeouts"] == 1
