"""Every table against an independent computation: pandas, scipy and statsmodels on the same rows."""

import datetime
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from scipy.spatial.distance import jensenshannon
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.sql_models import load_steps, macros_sql
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.vocabulary import UNDECIDED, Outcome
from tests.effort import tries
from tests.unit.analyze.lake_maker import Check, Submission, Tags, rejected, write_day, write_submissions

Built = Callable[..., duckdb.DuckDBPyConnection]
Counts = np.ndarray[Any, np.dtype[np.int64]]
START = datetime.date(2024, 9, 2)  # a Monday
TYPES = ("FACE_MATCH", "LIVENESS", "ID_QUALITY", None)
STATUSES = ("PASS", "PASS", "PASS", "PASS", "FAIL", "REVIEW", "UNKNOWN")


def day(number: int) -> str:
    return (START + datetime.timedelta(days=number)).isoformat()


def random_day(rnd: random.Random, size: int, types: Sequence[str | None] = TYPES) -> list[Submission]:
    submissions: list[Submission] = []
    for _ in range(size):
        checks = [
            Check(
                rnd.choice(types),
                rnd.choice(STATUSES),
                rnd.choice([None, 0.0, 1.0, round(rnd.random(), 2), rnd.random(), rnd.random()]),
                rnd.choice(["technicalChecks", "documentChecks"]),
            )
            for _ in range(rnd.randrange(5))
        ]
        submissions.append(
            Submission(
                rnd.random() < 0.7,
                checks,
                rnd.choices([*Outcome], [20, 1, 1, 1, 1, 1, 1])[0].value,
                tags={
                    "companyId": (rnd.choice(["a", "b"]), None),
                    "customerId": (None, f"p{rnd.randrange(25)}"),
                }
                if rnd.random() < 0.8
                else {},
                document=rnd.choice([None, f"d{rnd.randrange(30)}"]),
                attempts=rnd.randrange(4),
                latency_ms=rnd.choice([None, rnd.expovariate(1 / 300)]),
                billable_calls=rnd.randrange(2),
            )
        )
    return submissions


class World:
    """A random lake with a gap and with a type that appears half-way, as frames and as the built file."""

    connection: duckdb.DuckDBPyConnection

    def __init__(self, lake: Lake) -> None:
        rnd = random.Random(20240902)
        self.days: dict[str, list[Submission]] = {}
        self.rejected: dict[str, int] = {}
        for number in range(20):
            if number in {5, 6}:
                continue
            types = TYPES if number < 10 else (*TYPES, "TAMPERING")
            self.days[day(number)] = random_day(rnd, 40, types)
            self.rejected[day(number)] = rnd.randrange(3)
            rejections = [rejected(row=row) for row in range(self.rejected[day(number)])]
            write_day(lake, day(number), self.days[day(number)], rejections)
        self.submissions = pd.DataFrame(
            [
                {
                    "date": date,
                    "id": s.id,
                    "outcome": s.outcome,
                    "verified": s.verified,
                    "attempts": s.attempts,
                    "latency_ms": s.latency_ms,
                    "billable": s.billable_calls,
                    "company": (s.tags.get("companyId") or ("UNKNOWN", None))[0],
                    "subject": (s.tags.get("customerId") or (None, None))[1],
                    "document": s.document,
                    "failed": sorted(
                        {(c.group, c.type or "UNKNOWN") for c in s.checks if c.normalized_status == "FAIL"}
                    ),
                }
                for date, submissions in self.days.items()
                for s in submissions
            ]
        )
        self.verifications = self.submissions[self.submissions.outcome == "completed"]
        self.checks = pd.DataFrame(
            [
                {
                    "date": date,
                    "check_group": c.group,
                    "check_type": c.type or "UNKNOWN",
                    "status": c.normalized_status,
                    "confidence": c.confidence,
                    "verified": s.verified,
                }
                for date, submissions in self.days.items()
                for s in submissions
                if s.outcome == "completed"
                for c in s.checks
            ]
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    lake = Lake(str(folder / "lake"))
    world = World(lake)
    build(lake, folder / "draft", run_id="run", choices=Choices(Decimal("0.35")))
    with duckdb.connect(folder / "draft", read_only=True) as world.connection:
        yield world


def records(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    found = connection.execute(sql)
    names = [column[0] for column in found.description or []]
    return [
        {
            name: value.isoformat() if isinstance(value, datetime.date) else value
            for name, value in zip(names, row, strict=True)
        }
        for row in found.fetchall()
    ]


def wilson(k: int, n: int) -> tuple[float, float]:
    low, high = proportion_confint(k, n, alpha=0.05, method="wilson")
    return float(low), float(high)


def test_rates_against_statsmodels(world: World) -> None:
    connection = world.connection
    found = records(connection, "FROM pass_rates")
    expected = {
        key: Counter(group.status)
        for key, group in world.checks.groupby(["date", "check_group", "check_type"])
    }
    undecided = world.submissions[world.submissions.outcome.isin(UNDECIDED)].date.unique()
    types = {(group, name) for _, group, name in expected}
    keys = {*expected, *((date, *name) for date in undecided for name in types)}
    assert len(keys) > len(expected)
    assert [(r["date"], r["check_group"], r["check_type"]) for r in found] == sorted(keys)
    for row in found:
        counts = expected.get((row["date"], row["check_group"], row["check_type"]), Counter())
        k, n = counts["PASS"], counts["PASS"] + counts["FAIL"]
        assert (row["checks"], row["passed"], row["failed"], row["other"]) == (
            counts.total(),
            k,
            n - k,
            counts.total() - n,
        )
        assert row["low_n"] == (n < 30)
        if n:
            assert row["pass_rate"] == pytest.approx(k / n, abs=1e-12)
            assert (row["pass_rate_low"], row["pass_rate_high"]) == pytest.approx(wilson(k, n), abs=1e-7)
        else:
            assert row["pass_rate"] is row["pass_rate_low"] is row["pass_rate_high"] is None
    assert any(row["pass_rate"] is None for row in found)

    for row in records(connection, "FROM verified_rates"):
        verified = world.verifications[world.verifications.date == row["date"]].verified
        assert (row["verified"], row["verifications"]) == (verified.sum(), len(verified))
        bounds = (row["verified_rate_low"], row["verified_rate_high"])
        assert bounds == pytest.approx(wilson(verified.sum(), len(verified)), abs=1e-7)

    by_company = {
        (r["date"], r["company_id"]): (r["verified"], r["verifications"])
        for r in records(connection, "FROM verified_rates_by_company WHERE verifications > 0")
    }
    assert by_company == {
        key: (group.verified.sum(), len(group))
        for key, group in world.verifications.groupby(["date", "company"])
    }


def test_weekly_changes_against_statsmodels(world: World) -> None:
    checks = world.checks.assign(
        week=pd.to_datetime(world.checks.date).dt.to_period("W-SUN").dt.start_time.dt.strftime("%Y-%m-%d")
    )
    counts = {
        key: (int((group.status == "PASS").sum()), int(group.status.isin(["PASS", "FAIL"]).sum()))
        for key, group in checks.groupby(["week", "check_group", "check_type"])
    }
    found = [r for r in records(world.connection, "FROM pass_rate_changes") if r["check_group"] != "verdict"]
    assert {
        (r["week"], r["check_group"], r["check_type"]): (r["passed"], r["decided"]) for r in found
    } == counts
    compared = 0
    for row in found:
        week = datetime.date.fromisoformat(row["week"]) - datetime.timedelta(days=7)
        before = counts.get((week.isoformat(), row["check_group"], row["check_type"]))
        if before is None or not before[1] or not row["decided"]:
            assert row["change_low"] is row["change_high"] is None
            assert not row["significant"]
            continue
        compared += 1
        low, high = confint_proportions_2indep(
            row["passed"], row["decided"], *before, method="newcomb", compare="diff"
        )
        assert (row["change_low"], row["change_high"]) == pytest.approx((low, high), abs=1e-6)
        enough = min(row["decided"], before[1]) >= 30
        assert row["significant"] == (enough and (low > 0 or high < 0))
        assert row["low_n"] == (not enough)
    assert compared > 8


def test_histogram_bins_agree_with_their_edges_and_add_up(world: World) -> None:
    found = records(world.connection, "FROM confidence_histogram")
    bins: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in found:
        bins.setdefault(
            (row["date"], row["check_group"], row["check_type"], row["normalized_status"]), []
        ).append(row)
    groups = dict(list(world.checks.groupby(["date", "check_group", "check_type", "status"])))
    assert set(bins) == set(groups)
    for key, rows in bins.items():
        assert [row["bin"] for row in rows] == list(range(100))
        values = groups[key].confidence.dropna().to_numpy()
        for row in rows:
            high = values <= row["bin_high"] if row["bin"] == 99 else values < row["bin_high"]
            assert row["checks"] == int(((values >= row["bin_low"]) & high).sum())
        assert sum(row["checks"] for row in rows) == len(values)


def test_every_edge_falls_into_the_bin_that_it_opens(lake: Lake, computed: Built) -> None:
    edges = [hundredth / 100 for hundredth in range(101)]
    below = [math.nextafter(edge, 0) for edge in edges[1:]]
    write_day(lake, day(0), [Submission(True, [Check("T", "PASS", value) for value in (*edges, *below)])])
    connection = computed("confidence_histogram", "threshold_sensitivity")
    counts = connection.execute("SELECT checks FROM confidence_histogram ORDER BY bin").fetchall()
    assert counts == [(2,)] * 99 + [(3,)]
    at_or_above = connection.execute(
        "SELECT at_or_above FROM threshold_sensitivity ORDER BY threshold"
    ).fetchall()
    values = np.array([*edges, *below])
    assert at_or_above == [(int((values >= hundredth / 100).sum()),) for hundredth in range(101)]
    assert connection.execute(
        "SELECT count(*) FROM threshold_sensitivity WHERE threshold IN (0.07, 0.29, 0.57, 1.00)"
    ).fetchall() == [(4,)]


def test_summary_against_numpy(world: World) -> None:
    groups = dict(list(world.checks.groupby(["date", "check_group", "check_type"])))
    found = records(world.connection, "FROM confidence_summary")
    assert len(found) == len(groups)
    for row in found:
        group = groups[row["date"], row["check_group"], row["check_type"]]
        values = group.confidence.dropna().to_numpy()
        assert (row["checks"], row["with_confidence"]) == (len(group), len(values))
        assert row["saturated"] == int(np.isin(values, [0, 1]).sum())
        names = ["min", "p01", "p05", "p25", "p50", "p75", "p95", "p99", "max"]
        if len(values) == 0:
            assert {row[name] for name in [*names, "mean", "stddev"]} == {None}
            continue
        expected = np.quantile(values, [0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
        assert [row[name] for name in names] == pytest.approx(expected.tolist())
        assert row["mean"] == pytest.approx(values.mean())
        assert row["stddev"] == (None if len(values) == 1 else pytest.approx(values.std(ddof=1)))


def test_thresholds_against_pandas_and_a_rank_test(world: World) -> None:
    found = records(world.connection, "FROM threshold_sensitivity")
    groups = dict(list(world.checks.groupby(["check_group", "check_type"])))
    assert len(found) == 101 * len(groups)
    for row in found:
        group = groups[row["check_group"], row["check_type"]]
        scores = group.confidence.to_numpy()
        reached, missed = scores >= row["threshold"], scores < row["threshold"]
        passed, failed = (group.status == "PASS").to_numpy(), (group.status == "FAIL").to_numpy()
        scored = int((reached | missed).sum())
        assert (row["scored"], row["at_or_above"]) == (scored, reached.sum())
        assert row["rate"] == pytest.approx(reached.sum() / scored)
        assert row["rate_null_as_fail"] == pytest.approx(reached.sum() / len(group))
        assert row["flips_to_fail"] == (missed & passed).sum()
        assert row["flips_to_pass"] == (reached & failed).sum()
    aucs: dict[Any, tuple[Any, Any, Any]] = {
        (r["check_group"], r["check_type"]): (r["auc"], r["auc_low"], r["orientation_verified"])
        for r in found
    }
    for key, group in groups.items():
        scored_checks = group.dropna(subset="confidence")
        above = scored_checks[scored_checks.status == "PASS"].confidence
        below = scored_checks[scored_checks.status == "FAIL"].confidence
        auc = stats.mannwhitneyu(above, below).statistic / (len(above) * len(below))
        low = lower_bound_of_auc(auc, len(above), len(below))
        assert aucs[key] == (pytest.approx(auc), pytest.approx(low - 0.0005, abs=0.000501), low > 0.501)


def lower_bound_of_auc(auc: float, n: int, m: int) -> float:
    """Newcombe 2006, method 5: where the AUC is z standard errors above."""
    mean = (n + m) / 2 - 1

    def excess(true: float) -> float:
        spread = 1 + mean * ((1 - true) / (2 - true) + true / (1 + true))
        return float((auc - true) ** 2 - stats.norm.ppf(0.975) ** 2 * true * (1 - true) * spread / (n * m))

    return float(optimize.brentq(excess, 1e-9, auc - 1e-9)) if auc else 0.0


@pytest.mark.parametrize(
    ("checks", "auc", "verified"),
    [
        ([Check(confidence=0.9)], None, False),
        ([Check(confidence=0.9), Check(normalized_status="FAIL", confidence=0.2)], 1.0, False),
        ([Check(confidence=0.9), Check(normalized_status="FAIL", confidence=0.2)] * 5, 1.0, True),
        (  # above 0.5 by chance only
            [
                *[Check(confidence=0.5)] * 99,
                Check(confidence=0.6),
                Check(normalized_status="FAIL", confidence=0.5),
            ],
            0.505,
            False,
        ),
        ([Check(confidence=0.2), Check(normalized_status="FAIL", confidence=0.9)], 0.0, False),
        ([Check(confidence=0.5), Check(normalized_status="FAIL", confidence=0.5)], 0.5, False),
        ([Check(confidence=None), Check(normalized_status="FAIL", confidence=None)], None, False),
    ],
)
def test_orientation_at_the_edges(
    lake: Lake, computed: Built, checks: list[Check], auc: float | None, verified: bool
) -> None:
    write_day(lake, day(0), [Submission(True, checks)])
    assert computed("threshold_sensitivity").execute(
        "SELECT DISTINCT auc, orientation_verified FROM threshold_sensitivity"
    ).fetchall() == [(auc, verified)]


def psi_noise_floor(before: Counts, after: Counts) -> float:
    """The floor of the PSI of two histograms, from scipy's distributions."""
    sides = sorted([before.sum(), after.sum()])
    mean = variance = third = 0.0
    for pooled in before + after:
        share = pooled / sum(sides)
        scale = 1 / sides[0] + 1 / sides[1]
        if share * sides[0] < 30:
            to_smaller = np.arange(min(pooled, sides[0], 80) + 1)
            chances = stats.binom.pmf(to_smaller, pooled, sides[0] / sum(sides))
            p = np.maximum((pooled - to_smaller) / sides[1], 0.0001)
            q = np.maximum(to_smaller / sides[0], 0.0001)
            terms = (q - p) * np.log(q / p)
            own = float(chances @ terms)
            moments = own, *(float(chances @ (terms - own) ** power) for power in (2, 3))
        else:
            moments = scale, 2 * scale**2, 8 * scale**3
        mean += (1 - share) * moments[0]
        variance += moments[1]
        third += (1 - share) * moments[2]
    skewness = max(third / variance**1.5, 1e-6)
    cubed = (1 + skewness * stats.norm.ppf(0.99) / 6 - skewness**2 / 36) ** 3
    return float(mean + variance**0.5 * 2 / skewness * (cubed - 1))


def test_drift_against_scipy(lake: Lake, computed: Built) -> None:
    generator = np.random.default_rng(7)
    values: dict[int, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for number in [0, 1, 2, 3, 20, 28, 29, 40, 75]:  # windows with gaps, one that is empty
        shape = (8, 2) if number < 40 else (4, 2)
        values[number] = generator.beta(*shape, size=230)
        if number == 3:
            values[number] = np.round(values[number], 1)  # ties
        checks = [Check("T", "PASS", float(value)) for value in values[number]]
        write_day(lake, day(number), [Submission(True, [*checks, Check("T", "PASS", None)])])
    found = {row["date"]: row for row in records(computed("confidence_drift"), "FROM confidence_drift")}
    assert set(found) == {day(number) for number in values}
    levels = set()
    for number, current in values.items():
        row = found[day(number)]
        window = [values[n] for n in values if 1 <= number - n <= 28]
        baseline = np.concatenate(window) if window else np.array([])
        assert (row["checks"], row["baseline_checks"]) == (len(current), len(baseline))
        levels.add(row["level"])
        if not window:
            assert {row[name] for name in ("psi", "psi_noise_floor", "ks", "ks_p_value", "js_distance")} == {
                None
            }
            assert row["level"] == "insufficient"
            continue
        before, after = (np.histogram(side, bins=np.arange(11) / 10)[0] for side in (baseline, current))
        p, q = before / len(baseline), after / len(current)
        floored_p, floored_q = np.maximum(p, 0.0001), np.maximum(q, 0.0001)
        psi = float(((floored_q - floored_p) * np.log(floored_q / floored_p)).sum())
        assert row["psi"] == pytest.approx(psi)
        noise_floor = psi_noise_floor(before, after)
        assert row["psi_noise_floor"] == pytest.approx(noise_floor)
        assert row["js_distance"] == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)
        ks = stats.ks_2samp(baseline, current, method="asymp").statistic
        assert row["ks"] == pytest.approx(ks)
        effective = len(current) * len(baseline) / (len(current) + len(baseline))
        assert row["ks_p_value"] == pytest.approx(stats.kstwobign.sf(ks * math.sqrt(effective)), abs=1e-10)
        assert row["level"] == (
            "none" if psi < max(0.1, noise_floor) else "moderate" if psi < 0.25 else "large"
        )
    assert {"insufficient", "none", "large"} <= levels


SHAPES = {
    "uniform": np.ones(10) / 10,
    "peaked": np.diff(stats.beta.cdf(np.arange(11) / 10, 4, 1)),
    "one bin has 95%": np.array([0.05 / 9] * 9 + [0.95]),
    "two bins": np.array([0.1, *[0.0] * 8, 0.9]),
}


@pytest.mark.parametrize("sizes", [(200, 200), (5600, 200), (1000, 1000)])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_of_a_hundred_samples_without_drift_exceeds_the_noise_floor(
    shape: str, sizes: tuple[int, int]
) -> None:
    samples = tries(12_000)
    generator = np.random.default_rng(3)
    histograms = np.stack([generator.multinomial(size, SHAPES[shape], samples) for size in sizes])
    day_number, sample, bin_, checks = (*np.nonzero(histograms), histograms[np.nonzero(histograms)])
    counts = pd.DataFrame({"day": day_number, "sample": sample, "bin": bin_, "checks": checks})
    [drift] = [step.sql for step in load_steps() if step.name == "confidence_drift"]
    with duckdb.connect() as connection:
        connection.execute(macros_sql())
        connection.register("counts", counts)
        connection.execute(
            "CREATE TABLE confidence_counts AS SELECT DATE '2024-09-02' + day::INT AS date,"
            " 'g' AS check_group, sample AS check_type, bin / 10 + 0.05 AS confidence, checks FROM counts"
        )
        connection.execute(
            "CREATE TABLE days AS SELECT DISTINCT date, TRUE AS is_complete FROM confidence_counts"
        )
        [(exceeded, found)] = connection.execute(
            f"SELECT count(*) FILTER (psi > psi_noise_floor), count(*) FROM ({drift}) WHERE psi IS NOT NULL"
        ).fetchall()
    assert found == samples
    assert stats.binomtest(exceeded, samples, 0.005, "less").pvalue > 0.001
    assert stats.binomtest(exceeded, samples, 0.014, "greater").pvalue > 0.001


def test_drift_with_one_value_and_one_bin(lake: Lake, computed: Built) -> None:
    same = [Submission(True, [Check("T", "PASS", 0.95)]) for _ in range(200)]
    write_day(lake, day(0), same)
    write_day(lake, day(1), [Submission(True, [Check("T", "PASS", 0.95)]) for _ in range(200)])
    write_day(lake, day(2), [Submission(True, [Check("T", "PASS", 0.05)]) for _ in range(200)])
    _, equal, opposite = records(computed("confidence_drift"), "FROM confidence_drift ORDER BY date")
    assert (equal["psi"], equal["ks"], equal["js_distance"], equal["ks_p_value"]) == (0, 0, 0, 1)
    assert equal["level"] == "none"
    assert (opposite["ks"], opposite["js_distance"]) == pytest.approx((1, 1))
    assert opposite["ks_p_value"] < 1e-6
    assert opposite["level"] == "large"


def test_failures_against_pandas(world: World) -> None:
    connection = world.connection
    combinations = Counter[tuple[str, str]]()
    verified = Counter[tuple[str, str]]()
    row: Any
    for row in world.verifications.itertuples():
        key = (row.date, "+".join(sorted({check_type for _, check_type in row.failed})) or "none")
        combinations[key] += 1
        verified[key] += row.verified
    assert {
        (r["date"], r["failed_checks"]): (r["verifications"], r["verified"])
        for r in records(connection, "FROM failure_combinations")
    } == {key: (count, verified[key]) for key, count in combinations.items()}

    expected: tuple[Any, ...]
    for row in records(connection, "FROM failure_attribution"):
        that_day = world.verifications[world.verifications.date == row["date"]]
        declined = that_day[~that_day.verified]
        assert row["not_verified"] == len(declined)
        if row["check_type"] == "UNEXPLAINED_DECLINE":
            expected = (declined.failed.map(len) == 0).sum(), 0, 0
        elif row["check_type"] == "OVERRIDE":
            overrides = (that_day[that_day.verified].failed.map(len) > 0).sum()
            expected = overrides, 0, overrides
        else:
            check = (row["check_group"], row["check_type"])
            expected = (
                declined.failed.map(lambda failed, check=check: check in failed).sum(),
                declined.failed.map(lambda failed, check=check: failed == [check]).sum(),
                that_day[that_day.verified].failed.map(lambda failed, check=check: check in failed).sum(),
            )
        assert (row["failing"], row["sole_blocker"], row["failing_verified"]) == expected


def test_each_day_explains_all_its_declines(world: World) -> None:
    rows = records(world.connection, "FROM failure_attribution WHERE check_group = 'verdict'")
    assert len(rows) == 2 * world.verifications.date.nunique()


def test_funnel_and_api_performance_against_pandas(world: World) -> None:
    connection = world.connection
    funnel = {row["date"]: row for row in records(connection, "FROM submission_funnel")}
    api = {row["date"]: row for row in records(connection, "FROM api_performance")}
    assert set(funnel) == set(api) == set(world.days)
    date: Any
    for date, group in world.submissions.groupby("date"):
        row = funnel[date]
        outcomes = Counter(group.outcome)
        assert {name: row[name] for name in outcomes} == dict(outcomes)
        assert row["accepted"] == len(group) == sum(outcomes.values())
        assert row["rejected"] == world.rejected[date]
        assert row["received"] == row["accepted"] + row["rejected"]
        verified = group[group.outcome == "completed"].verified.sum()
        assert row["verified"] == verified
        row = api[date]
        assert row["calls"] == group.attempts.sum()
        assert row["retries"] == (group.attempts - 1).clip(lower=0).sum()
        answered = group[~group.outcome.isin(["uncertain", "abandoned"])]
        expected = np.quantile(answered.latency_ms.dropna(), [0.5, 0.9, 0.95, 0.99, 1])
        found = [row[name] for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")]
        assert found == pytest.approx(expected.tolist())
        assert row["billable_calls"] == group.billable.sum()
        assert row["estimated_cost"] == Decimal("0.35") * int(group.billable.sum())
        if group.outcome.isin(["uncertain", "failed", "not_attempted"]).any():
            assert row["cost_per_verified"] is None
        else:
            assert float(row["cost_per_verified"]) == pytest.approx(
                float(row["estimated_cost"]) / verified, abs=1e-6
            )


def test_without_a_price_there_is_no_cost(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), [Submission()])
    assert computed("api_performance").execute(
        "SELECT DISTINCT estimated_cost, cost_per_verified FROM api_performance"
    ).fetchall() == [(None, None)]


def test_nobody_verified_has_no_cost_for_each(lake: Lake, computed: Built) -> None:
    write_day(lake, day(0), [Submission(False)])
    assert computed("api_performance", price_per_call=Decimal("0.35")).execute(
        "SELECT estimated_cost, cost_per_verified FROM api_performance"
    ).fetchall() == [(Decimal("0.350000"), None)]


def test_repeat_subjects_against_plain_python(world: World) -> None:
    attempts: dict[str, list[tuple[str, int, bool]]] = {}
    presented: dict[str, dict[str, str]] = {}
    row: Any
    for row in world.verifications.dropna(subset="subject").itertuples():
        attempts.setdefault(row.subject, []).append((row.date, row.id, row.verified))
        if isinstance(row.document, str):
            presented.setdefault(row.document, {}).setdefault(row.subject, row.date)
    cohorts: dict[str, Counter[str]] = {}
    for own in attempts.values():
        own.sort()
        first = datetime.date.fromisoformat(own[0][0])
        counts = cohorts.setdefault(own[0][0], Counter())
        counts["subjects"] += 1
        counts["repeat_subjects"] += len(own) >= 2
        counts["first_attempt_passed"] += own[0][2]
        counts["passed_within_3"] += any(verified for _, _, verified in own[:3])
        counts["passed_within_7_days"] += any(
            verified and (datetime.date.fromisoformat(date) - first).days < 7 for date, _, verified in own[:3]
        )
    for subjects in presented.values():
        dates = sorted(subjects.values())
        if len(dates) >= 2:
            cohorts.setdefault(dates[1], Counter())["shared_documents"] += 1
    names = [
        "subjects",
        "repeat_subjects",
        "first_attempt_passed",
        "passed_within_3",
        "shared_documents",
        "passed_within_7_days",
    ]
    found = {row["date"]: row for row in records(world.connection, "FROM repeat_subjects")}
    assert {date: [row[name] for name in names] for date, row in found.items()} == {
        date: [counts[name] for name in names] for date, counts in cohorts.items()
    }
    last = max(world.days)
    for date, row in found.items():
        age = datetime.date.fromisoformat(last) - datetime.date.fromisoformat(date)
        assert row["mature"] == (age.days >= 7)


def test_submissions_of_one_day_are_ordered_by_their_time(lake: Lake, computed: Built) -> None:
    noon = datetime.datetime(2024, 9, 2, 12, tzinfo=datetime.UTC)
    person: Tags = {"customerId": (None, "p")}
    write_day(
        lake,
        day(0),
        [
            Submission(False, tags=person, submitted_at=noon),
            Submission(True, tags=person, submitted_at=noon - datetime.timedelta(hours=1)),
        ],
    )
    assert computed("repeat_subjects").execute(
        "SELECT subjects, repeat_subjects, first_attempt_passed FROM repeat_subjects"
    ).fetchall() == [(1, 1, 1)]


def test_a_fourth_submission_is_outside_the_first_three(lake: Lake, computed: Built) -> None:
    person: Tags = {"customerId": (None, "p")}
    for number in range(4):
        write_day(lake, day(number), [Submission(number == 3, tags=person)])
    assert computed("repeat_subjects").execute(
        "SELECT subjects, repeat_subjects, passed_within_3 FROM repeat_subjects"
    ).fetchall() == [(1, 1, 0)]


def test_days_without_responses_have_counts_but_no_rates(lake: Lake, computed: Built) -> None:
    write_submissions(lake, day(0), [Submission()])
    connection = computed("submission_funnel", "verified_rates", "pass_rates")
    assert connection.execute("SELECT count(*) FROM submission_funnel").fetchall() == [(1,)]
    assert connection.execute(
        "SELECT verifications, verified_rate, undecided FROM verified_rates"
    ).fetchall() == [(0, None, 1)]
    assert connection.execute("SELECT count(*) FROM pass_rates").fetchall() == [(0,)]  # no type is known
