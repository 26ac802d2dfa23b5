"""Rates and outcomes by dimension against pandas, and changes that only the mix makes."""

from typing import Any

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.vocabulary import Outcome
from tests.unit.analyze.lake_maker import Check, Submission, write_day
from tests.unit.analyze.nasty import HELD, Nasty, day

DIMENSIONS = ("country", "model_version")


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_verified_rates_by_dimension_against_pandas(nasty: Nasty, dimension: str) -> None:
    found = {
        (row["date"], row["value"]): row
        for row in nasty.rows(
            f"FROM verified_rates_by_dimension WHERE dimension = '{dimension}' AND verifications > 0"
        )
    }
    groups: Any = nasty.verifications.groupby(["date", dimension])
    assert set(found) == set(groups.groups)
    keys = ["date"] if dimension == "model_version" else ["date", dimension]
    undecided: Any = nasty.submissions.groupby(keys).undecided.sum()
    for key, group in groups:
        row, k, n = found[key], group.verified.sum(), len(group)
        open_ = undecided[key[0] if dimension == "model_version" else key]
        assert (row["verified"], row["verifications"], row["low_n"]) == (k, n, n < 30)
        bounds = (row["verified_rate_low"], row["verified_rate_high"])
        assert bounds == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-6)
        assert (row["undecided"], row["is_complete"]) == (open_, open_ == 0)
        assert (row["rate_worst"], row["rate_best"]) == pytest.approx(
            (k / (n + open_), (k + open_) / (n + open_))
        )
    assert len({value for _, value in found}) == 3


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_pass_rates_by_dimension_against_pandas(nasty: Nasty, dimension: str) -> None:
    found = {
        (row["date"], row["value"], row["check_group"], row["check_type"]): (
            row["checks"],
            row["passed"],
            row["failed"],
            row["other"],
        )
        for row in nasty.rows(f"FROM pass_rates_by_dimension WHERE dimension = '{dimension}' AND checks > 0")
    }
    expected = {}
    for key, group in nasty.checks.groupby(["date", dimension, "check_group", "check_type"]):
        passed, failed = (group.status == "PASS").sum(), (group.status == "FAIL").sum()
        expected[key] = len(group), passed, failed, len(group) - passed - failed
    assert found == expected


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_funnel_by_dimension_against_pandas(nasty: Nasty, dimension: str) -> None:
    found = {
        (row["date"], row["value"]): row
        for row in nasty.rows(f"FROM funnel_by_dimension WHERE dimension = '{dimension}'")
    }
    groups: Any = nasty.submissions.groupby(["date", dimension])
    assert set(found) == set(groups.groups)
    for key, group in groups:
        row = found[key]
        assert row["accepted"] == len(group)
        for outcome in Outcome:
            assert row[outcome] == (group.outcome == outcome).sum()
        verdicts = group.verified.dropna().astype(bool)
        assert (row["verified"], row["not_verified"]) == (verdicts.sum(), (~verdicts).sum())
        assert row["billable_calls"] == group.billable.sum()
        assert float(row["estimated_cost"]) == pytest.approx(group.cost.sum())
    [held] = nasty.rows(
        f"SELECT sum(uncertain)::INT AS n FROM funnel_by_dimension WHERE dimension = '{dimension}'"
        f" AND date = '{day(HELD)}'"
    )
    assert held["n"] > 3


def test_without_dimensions_and_with_one_model_version_the_slices_are_the_whole(
    lake: Lake, computed: Any
) -> None:
    write_day(lake, "2024-09-02", [Submission(number > 2, [Check("T")]) for number in range(9)])
    connection = computed("verified_rates_by_dimension", "pass_rates_by_dimension")
    assert connection.execute(
        "SELECT dimension, value, verifications, verified FROM verified_rates_by_dimension"
    ).fetchall() == [("model_version", "UNKNOWN", 9, 6)]
    assert connection.execute(
        "SELECT dimension, value, check_type, checks, passed FROM pass_rates_by_dimension"
    ).fetchall() == [("model_version", "UNKNOWN", "T", 9, 9)]


def test_a_change_of_the_mix_is_no_change_at_an_equal_mix(lake: Lake, computed: Any) -> None:
    """Constant rates of 90% and 76%; the mix goes from 85/15 to 55/45."""
    for date, sizes in (("2024-09-02", (1700, 300)), ("2024-09-09", (1100, 900))):
        write_day(
            lake,
            date,
            [
                Submission(
                    number < round(rate * size), tags={"companyId": (name, None), "country": (name, None)}
                )
                for name, rate, size in zip(("a", "b"), (0.90, 0.76), sizes, strict=True)
                for number in range(size)
            ],
        )
    found = (
        computed("mix_adjusted_changes", dimensions=("country",))
        .execute(
            "SELECT dimension, change, adjusted_change, adjusted_low, adjusted_high, mix_effect,"
            " compared_share FROM mix_adjusted_changes WHERE series = 'verdict/VERIFIED' ORDER BY dimension"
        )
        .fetchall()
    )
    weights = np.array([2800, 1200]) / 4000
    counts = np.array([[1700, 300], [1100, 900]])
    passed = counts * [0.90, 0.76]
    variance = ((passed + 1) / (counts + 2) * (counts - passed + 1) / (counts + 2) ** 2).sum(axis=0)
    half = 1.959964 * np.sqrt((weights**2 * variance).sum())
    for row in found[:2]:
        assert row[1:] == pytest.approx((-0.042, 0, -half, half, -0.042, 1), abs=1e-9)
    assert [row[0] for row in found] == ["company", "country", "model_version"]
    assert found[2][1:3] == pytest.approx((-0.042, -0.042))


def test_only_values_and_versions_with_undecided_submissions_have_rows_without_a_check(
    lake: Lake, computed: Any
) -> None:
    def of(country: str, **other: Any) -> Submission:
        return Submission(tags={"country": (country, None)}, model_version="1", **other)

    write_day(lake, "2024-09-02", [of("NL", checks=[Check("T")]), of("DE", outcome="uncertain")])
    write_day(lake, "2024-09-03", [of("NL", checks=[Check("U")])])
    connection = computed("pass_rates_by_dimension", dimensions=("country",))
    assert connection.execute(
        "SELECT dimension, value, check_type, checks, undecided FROM pass_rates_by_dimension"
        " WHERE date = '2024-09-02' ORDER BY ALL"
    ).fetchall() == [
        ("country", "DE", "T", 0, 1),
        ("country", "DE", "U", 0, 1),
        ("country", "NL", "T", 1, 0),
        ("model_version", "1", "T", 1, 1),
        ("model_version", "1", "U", 0, 1),
    ]
