"""The analysts' examples run unchanged on an empty warehouse, and give pandas' numbers on a nasty one."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from kyc_pipeline.analyze.lake_views import check_names
from kyc_pipeline.analyze.sql_models import sql_folder
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, write_day
from tests.unit.analyze.nasty import HELD, Nasty, day
from tests.unit.analyze.test_error_rates import label, write_labels

EXAMPLES = sorted((sql_folder() / "examples").glob("*.sql"))


def test_every_example_says_its_question_and_runs(
    lake: Lake,
    built: Callable[..., duckdb.DuckDBPyConnection],
    empty: Path,
    connections: list[duckdb.DuckDBPyConnection],
) -> None:
    for number, date in enumerate(("2024-09-02", "2024-09-09")):
        day = [
            Submission(
                failing > number,
                [
                    Check("LIVENESS", "PASS" if failing > number else "FAIL", failing / 4),
                    Check("FACE_MATCH", "PASS" if failing % 2 else "FAIL", 0.9),
                ],
                tags={"companyId": (f"c{failing % 2}", None), "customerId": (None, f"p{failing}")},
                document="d",
            )
            for failing in range(4)
        ]
        write_day(lake, date, [*day, *[Submission(outcome="uncertain")] * (1 - number)])
        write_labels(lake, [label(submission.submission_id, "genuine") for submission in day])
    filled = built()
    connections.append(without_rows := duckdb.connect(empty, read_only=True))
    assert len(EXAMPLES) >= 12
    with_rows: set[str] = set()
    for example in EXAMPLES:
        text = example.read_text(encoding="utf-8")
        assert text.startswith("-- "), example.name
        columns = [column[0] for column in without_rows.execute(text).description or []]
        assert len(columns) == len(set(columns)), example.name
        without_rows.fetchall()
        check_names(filled, text)  # so that it runs on views, too
        if filled.execute(text).fetchall():
            with_rows.add(example.stem)
    of_large_samples = {"05_what_changed_this_week", "10_companies_that_stand_out", "11_drift_to_look_at"}
    of_large_samples |= {"16_what_changed_later", "17_is_it_the_mix"}  # of a second build, of complete weeks
    assert {example.stem for example in EXAMPLES} - with_rows <= of_large_samples


GROUP = ["check_group", "check_type"]


def run(nasty: Nasty, number: int) -> list[dict[str, Any]]:
    [path] = [path for path in EXAMPLES if path.name.startswith(f"{number:02}_")]
    return nasty.rows(path.read_text(encoding="utf-8").rstrip().removesuffix(";"))


def complete(nasty: Nasty, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of complete days."""
    open_days = nasty.submissions[nasty.submissions.undecided].date.unique()
    return frame[~frame.date.isin(open_days)]


def test_03_the_pass_rate_of_the_recent_complete_days(nasty: Nasty) -> None:
    checks = complete(nasty, nasty.checks)
    checks = checks[checks.date > day(41 - 28)]
    decided = checks[checks.status.isin(["PASS", "FAIL"])]
    expected = {key: (group.status == "PASS").mean() for key, group in decided.groupby(GROUP)}
    found = {(r["check_group"], r["check_type"]): r for r in run(nasty, 3)}
    assert {key: row["pass_rate"] for key, row in found.items()} == pytest.approx(expected)
    assert all(row["pass_rate_low"] < row["pass_rate"] <= row["pass_rate_high"] for row in found.values())


def test_04_the_bounds_of_the_moving_average(nasty: Nasty) -> None:
    found = {row["date"]: row for row in run(nasty, 4)}
    week = nasty.submissions[nasty.submissions.date.between(day(HELD - 6), day(HELD))]
    verified, verdicts = (week.verified == True).sum(), week.verified.notna().sum()  # noqa: E712
    open_ = week.undecided.sum()
    row = found[day(HELD)]
    assert (row["verified"], row["verifications"]) == (verified, verdicts)
    assert row["rate_worst"] == pytest.approx(verified / (verdicts + open_))
    assert row["rate_best"] == pytest.approx((verified + open_) / (verdicts + open_))


def failed_checks(nasty: Nasty) -> pd.Series:
    """The set of failed (group, type) of each verification, by id."""
    failing = nasty.checks[nasty.checks.status == "FAIL"]
    sets = {
        key: set(zip(rows.check_group, rows.check_type, strict=True)) for key, rows in failing.groupby("id")
    }
    return nasty.verifications.id.map(lambda key: sets.get(key, set()))


def test_06_shares_are_of_all_declines(nasty: Nasty) -> None:
    failed = failed_checks(nasty)[~nasty.verifications.verified]
    expected = {
        key: (sum(key in one for one in failed), sum(one == {key} for one in failed))
        for key in {(row.check_group, row.check_type) for row in nasty.checks.itertuples()}
    }
    expected["verdict", "UNEXPLAINED_DECLINE"] = sum(not one for one in failed), 0
    found = {(row["check_group"], row["check_type"]): row for row in run(nasty, 6)}
    assert set(found) == set(expected)
    for key, (with_it, alone) in expected.items():
        assert found[key]["declined_with_it"] == with_it
        assert found[key]["share"] == pytest.approx(with_it / len(failed))
        assert found[key]["share_alone"] == pytest.approx(alone / len(failed))


def test_07_lift_is_among_verifications_with_both_checks(nasty: Nasty) -> None:
    decided = nasty.checks[nasty.checks.status.isin(["PASS", "FAIL"])]
    table = decided.assign(failed=decided.status == "FAIL").pivot_table(
        index="id", columns=GROUP, values="failed", aggfunc="max"
    )
    found = {
        (row["first_group"], row["first"], row["second_group"], row["second"]): row for row in run(nasty, 7)
    }
    pairs = 0
    for a, b in itertools.combinations(sorted(table.columns), 2):
        both = table[[a, b]].dropna().astype(bool)
        together = int((both[a] & both[b]).sum())
        if not together:
            assert (*a, *b) not in found
            continue
        pairs += 1
        row = found[(*a, *b)]
        assert (row["verifications"], row["together"]) == (len(both), together)
        assert row["lift"] == pytest.approx(together * len(both) / (both[a].sum() * both[b].sum()))
    assert pairs == len(found) >= 3


def test_09_a_threshold_is_that_of_a_check_in_its_group(nasty: Nasty) -> None:
    found = {(row["check_group"], row["check_type"]): row for row in run(nasty, 9)}
    key: Any
    groups = dict(list(nasty.checks.dropna(subset="confidence").groupby(GROUP)))
    assert set(found) == set(groups)
    for key, group in groups.items():
        rates = {step / 100: (group.confidence >= step / 100).mean() for step in range(101)}
        threshold = max(step for step, rate in rates.items() if rate >= 0.95)
        assert (found[key]["threshold"], found[key]["rate"]) == pytest.approx((threshold, rates[threshold]))
        below = (group.confidence < threshold) & (group.status == "PASS")
        assert found[key]["flips_to_fail"] == below.sum()
        # Nothing fails in the other group, so nothing is known of it.
        assert found[key]["trusted"] == (key[0] == "technicalChecks")


def test_10_companies_stand_out_by_benjamini_and_hochberg(nasty: Nasty) -> None:
    open_cells = nasty.submissions[nasty.submissions.undecided]
    keys = set(zip(open_cells.date, open_cells.company, strict=True))
    is_open = [key in keys for key in zip(nasty.verifications.date, nasty.verifications.company, strict=True)]
    rows = nasty.verifications[~np.array(is_open)]
    total = rows.verified.mean()
    tested = {}
    for company, group in rows.groupby("company"):
        others = rows[rows.company != company]
        if len(group) < 30:
            continue
        z = (others.verified.mean() - group.verified.mean()) / np.sqrt(
            total * (1 - total) * (1 / len(group) + 1 / len(others))
        )
        bound = np.exp(-(z**2) / 2) / 2 if z > 0 else 1.0
        assert bound >= stats.norm.sf(z)
        tested[company] = bound
    chosen = multipletests(list(tested.values()), 0.05, "fdr_bh")[0]
    found = run(nasty, 10)
    assert {row["company_id"] for row in found} == {
        company for company, is_chosen in zip(tested, chosen, strict=True) if is_chosen
    }
    assert {row["company_id"]: row["p_at_most"] for row in found} == pytest.approx(
        {row["company_id"]: tested[row["company_id"]] for row in found}
    )


def test_10_of_many_equal_companies_none_stands_out_and_of_bad_ones_all(
    lake: Lake, computed: Callable[..., duckdb.DuckDBPyConnection]
) -> None:
    generator = np.random.default_rng(3)
    sizes = {f"c{number:03}": generator.binomial(100, 0.8) for number in range(200)} | {
        "bad": 55,
        "worse": 40,
    }
    write_day(
        lake,
        "2024-09-02",
        [
            Submission(number < passed, tags={"companyId": (company, None)})
            for company, passed in sizes.items()
            for number in range(100)
        ],
    )
    [path] = [path for path in EXAMPLES if path.name.startswith("10_")]
    found = [
        row[0]
        for row in computed("verified_rates_by_company").execute(path.read_text(encoding="utf-8")).fetchall()
    ]
    assert found[:2] == ["worse", "bad"]
    assert len(found) <= 3  # at an error rate of 0.05 for each, seven would be there by chance


def test_11_drift_is_of_complete_days_and_beyond_noise(nasty: Nasty) -> None:
    found = run(nasty, 11)
    rows = nasty.rows("FROM confidence_drift WHERE level IN ('moderate', 'large')")
    assert len(found) == sum(row["is_complete"] for row in rows)
    assert all(row["psi"] > max(0.1, row["psi_noise_floor"]) for row in found)


def test_12_the_cost_of_a_verified_one_is_of_complete_days(nasty: Nasty) -> None:
    found = {row["month"]: row for row in run(nasty, 12)}
    rows = nasty.submissions[nasty.submissions.outcome != "not_attempted"]
    for month, group in rows.groupby(rows.date.str[:7]):
        row = found[f"{month}-01"]
        whole = complete(nasty, group)
        assert float(row["estimated_cost"]) == pytest.approx(group.cost.sum())
        assert (row["calls"], row["retries"]) == (group.attempts.sum(), (group.attempts - 1).sum())
        assert row["incomplete_days"] == group.date.nunique() - whole.date.nunique()
        assert float(row["cost_per_verified"]) == pytest.approx(
            whole.cost.sum() / (whole.verified == True).sum()  # noqa: E712
        )
    assert sum(row["incomplete_days"] for row in found.values()) == 2


def test_15_people_are_customers_of_a_company(nasty: Nasty) -> None:
    rows = nasty.verifications.dropna(subset=["customer", "document"])
    people = rows.assign(person=rows.company + "/" + rows.customer).groupby("document").person.nunique()
    found = {row["id_document_pseudonym"]: row["people"] for row in run(nasty, 15)}
    assert found == people[people > 1].to_dict()
    # By the number alone, people of different companies would be one.
    assert people.sum() > rows.groupby("document").customer.nunique().sum()


def test_repeat_subjects_are_customers_of_a_company(nasty: Nasty) -> None:
    rows = nasty.verifications.dropna(subset="customer")
    counts = rows.groupby(["company", "customer"]).id.count()
    [found] = nasty.rows(
        "SELECT sum(subjects)::INT AS subjects, sum(repeat_subjects)::INT AS repeated FROM repeat_subjects"
    )
    assert found == {"subjects": len(counts), "repeated": int((counts >= 2).sum())}
    assert len(counts) > 2 * rows.customer.nunique()


def test_company_and_cost_are_on_every_submission(nasty: Nasty) -> None:
    found = pd.DataFrame(
        nasty.rows(
            "SELECT submission_id, company_id, dimensions, billable_calls, estimated_cost FROM submissions"
        )
    )
    expected = nasty.submissions.assign(submission_id=nasty.submissions.id.map("s-{:06d}".format))
    both = expected.merge(found, on="submission_id")
    assert len(both) == len(expected) == len(found)
    assert (both.company == both.company_id).all()
    assert (both.country == both.dimensions.map(lambda one: one["country"])).all()
    assert (both.model_version == both.dimensions.map(lambda one: one["model_version"])).all()
    assert (both.billable == both.billable_calls).all()
    assert both.estimated_cost.astype(float).to_numpy() == pytest.approx(both.cost.to_numpy())


def test_17_the_change_at_an_equal_mix(nasty: Nasty) -> None:
    rows = nasty.verifications.assign(
        week=pd.to_datetime(nasty.verifications.date).dt.to_period("W-SUN").dt.start_time.dt.date.astype(str)
    )
    open_weeks = pd.to_datetime(nasty.submissions[nasty.submissions.undecided].date).dt.to_period("W-SUN")
    closed = sorted(set(rows.week) - set(open_weeks.dt.start_time.dt.date.astype(str)))
    found = {(row["week"], row["dimension"]): row for row in run(nasty, 17)}
    weeks = 0
    for before, week in itertools.pairwise(closed):
        if (pd.Timestamp(week) - pd.Timestamp(before)).days != 7:
            continue
        weeks += 1
        for dimension in ("company", "country"):
            table = rows[rows.week.isin([before, week])].pivot_table(
                index=dimension, columns="week", values="verified", aggfunc=["mean", "count"]
            )
            both = table.dropna()
            counts = both["count"].to_numpy()
            weight = counts.sum(axis=1) / counts.sum()
            adjusted = (weight * (both["mean"][week] - both["mean"][before])).sum()
            row = found[week, dimension]
            plain = rows[rows.week == week].verified.mean() - rows[rows.week == before].verified.mean()
            assert (row["change"], row["adjusted_change"]) == pytest.approx((plain, adjusted))
            assert row["mix_effect"] == pytest.approx(plain - adjusted)
            assert row["adjusted_low"] < adjusted < row["adjusted_high"]
    assert weeks >= 1


def test_18_error_rates_are_those_of_pandas(
    lake: Lake, computed: Callable[..., duckdb.DuckDBPyConnection]
) -> None:
    generator = np.random.default_rng(4)
    rows = pd.DataFrame(
        {
            "verified": generator.random(300) < 0.7,
            "passed": generator.random(300) < 0.8,
            "label": generator.choice(["genuine", "fraud", "unsure"], 300),
        }
    )
    submissions = [
        Submission(bool(row.verified), [Check("FACE", "PASS" if row.passed else "FAIL")])
        for row in rows.itertuples()
    ]
    write_day(lake, "2024-09-02", submissions)
    write_labels(
        lake, [label(each.submission_id, what) for each, what in zip(submissions, rows.label, strict=True)]
    )
    [path] = [path for path in EXAMPLES if path.name.startswith("18_")]
    found = computed("error_rates").execute(path.read_text(encoding="utf-8")).df()
    assert list(found.check_type) == ["VERIFIED", "FACE"]
    assert not found.weighted.any()
    for row, accepted in zip(found.itertuples(), (rows.verified, rows.passed), strict=True):
        genuine, fraud = rows.label == "genuine", rows.label == "fraud"
        assert (row.genuine, row.fraud) == (genuine.sum(), fraud.sum())
        assert (row.frr, row.far) == pytest.approx(((~accepted[genuine]).mean(), accepted[fraud].mean()))
        low, high = proportion_confint(accepted[fraud].sum(), fraud.sum(), method="agresti_coull")
        assert (row.far_low, row.far_high) == pytest.approx((low, high))
