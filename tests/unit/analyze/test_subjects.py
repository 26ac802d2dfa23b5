"""People, not attempts: against plain Python over the same rows; and the time until a verdict."""

import datetime
import random
from collections import defaultdict
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from kyc_pipeline.analyze.sql_models import macros_sql
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Submission, Tags, write_day, write_submissions
from tests.unit.analyze.nasty import Nasty

NOON = datetime.datetime(2024, 9, 2, 12, tzinfo=datetime.UTC)


def is_verified(row: Any) -> bool:
    return row.verified is True


def days_between(first: Any, last: Any) -> int:
    return (datetime.date.fromisoformat(last.date) - datetime.date.fromisoformat(first.date)).days


def test_the_digits_of_a_number_are_those_that_duckdb_writes() -> None:
    """Published pseudonyms are made from them."""
    numbers = [0, 9, 10, 2**64, 2**127, 2**128 - 1, *(1 << bit for bit in range(1, 128, 7))]
    with duckdb.connect() as connection:
        connection.execute(macros_sql())
        rows = connection.execute(
            "SELECT digits_of(n::UHUGEINT) FROM unnest($1::VARCHAR[]) AS t(n)", [[*map(str, numbers), None]]
        ).fetchall()
    assert [digits for (digits,) in rows] == [*map(str, numbers), ""]


def test_subjects_against_plain_python(nasty: Nasty) -> None:
    expected = []
    for rows in nasty.attempts().values():
        successes = [number for number, row in enumerate(rows) if is_verified(row)]
        last = rows[-1]
        expected.append(
            (
                rows[0].date,
                last.date,
                len(rows),
                bool(successes),
                {True: "verified", False: "not_verified"}.get(last.verified, last.outcome),
                successes[0] + 1 if successes else None,
                days_between(rows[0], rows[successes[0]]) if successes else None,
                sum(row.undecided for row in rows),
                sum(row.billable for row in rows),
                Decimal("0.35") * int(sum(row.billable for row in rows)),
                is_verified(rows[0]),
            )
        )
    found = [tuple(row.values()) for row in nasty.rows("FROM subjects")]
    assert len({subject for subject, *_ in found}) == len(found)
    assert {len(subject) for subject, *_ in found} == {32}
    assert sorted((row[1:] for row in found), key=str) == sorted(expected, key=str)
    assert {row[5] for row in found} > {"verified", "not_verified", "not_attempted"}


def test_rates_by_person_against_statsmodels(nasty: Nasty) -> None:
    cohorts: dict[str, list[list[Any]]] = defaultdict(list)
    for rows in nasty.attempts().values():
        cohorts[rows[0].date].append(rows)
    found = {row["date"]: row for row in nasty.rows("FROM verified_rates_by_subject")}
    assert set(found) == set(cohorts)
    last = max(nasty.submissions.date)
    for date, people in cohorts.items():
        row, n = found[date], len(people)
        verified = sum(any(map(is_verified, rows)) for rows in people)
        first = sum(is_verified(rows[0]) for rows in people)
        undecided = sum(
            not any(map(is_verified, rows)) and any(row.undecided for row in rows) for rows in people
        )
        assert (row["subjects"], row["verified"], row["first_verified"]) == (n, verified, first)
        assert (row["undecided"], row["is_complete"]) == (undecided, undecided == 0)
        assert row["verified_within_7_days"] == sum(
            any(is_verified(row) and days_between(rows[0], row) < 7 for row in rows) for rows in people
        )
        for name, count in (("verified_rate", verified), ("first_verified_rate", first)):
            assert row[name] == pytest.approx(count / n)
            low_high = proportion_confint(count, n, method="wilson")
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(low_high, abs=1e-6)
        bounds = (verified / n, (verified + undecided) / n)
        assert (row["rate_worst"], row["rate_best"]) == pytest.approx(bounds)
        age = datetime.date.fromisoformat(last) - datetime.date.fromisoformat(date)
        assert (row["low_n"], row["mature"]) == (n < 30, age.days >= 7)
    assert sum(row["undecided"] for row in found.values()) > 0


def test_failed_steps_against_plain_python(nasty: Nasty) -> None:
    checks: Any = nasty.checks.groupby("id")
    open_days = {rows[0].date for rows in nasty.attempts().values() if any(row.undecided for row in rows)}
    passed: dict[Any, list[Any]] = defaultdict(list)
    for rows in nasty.attempts().values():
        steps: dict[Any, bool] = defaultdict(bool)
        for row in rows:
            if row.id in checks.groups:
                for check in checks.get_group(row.id).itertuples():
                    steps[check.check_group, check.check_type] |= check.status == "PASS"
        for (group, kind), has_passed in steps.items():
            is_open = not has_passed and any(row.undecided for row in rows)
            passed[rows[0].date, group, kind].append((has_passed, is_open))
    found = {
        (row["date"], row["check_group"], row["check_type"]): row
        for row in nasty.rows("FROM failed_steps_by_subject")
    }
    assert set(found) == set(passed)
    for key, people in passed.items():
        row, n = found[key], len(people)
        never = sum(not has_passed for has_passed, _ in people)
        undecided = sum(is_open for _, is_open in people)
        assert (row["subjects"], row["never_passed"], row["undecided"]) == (n, never, undecided)
        low_high = proportion_confint(never, n, method="wilson")
        bounds = row["never_passed_rate_low"], row["never_passed_rate_high"]
        assert bounds == pytest.approx(low_high, abs=1e-6)
        assert (row["rate_worst"], row["rate_best"]) == pytest.approx((never / n, (never - undecided) / n))
        assert (row["never_passed_rate"], row["low_n"]) == (pytest.approx(never / n), n < 30)
        assert row["is_complete"] == (key[0] not in open_days)
    assert sum(row["never_passed"] for row in found.values()) > 0


def test_a_person_whom_no_response_names_has_no_row(lake: Lake, computed: Any) -> None:
    named: Tags = {"companyId": ("acme", "p-acme"), "customerId": (None, "p1")}
    one, two = ({"customerId": name} for name in ("1", "2"))
    write_day(lake, "2024-09-02", [Submission(False, tags=named, manifest_tags=one)])
    unnamed: Tags = {"companyId": ("acme", "p-acme")}
    write_submissions(
        lake,
        "2024-09-03",
        [Submission(tags=unnamed, manifest_tags=one), Submission(tags=unnamed, manifest_tags=two)],
    )
    assert computed("subjects").execute(
        "SELECT attempts, final_outcome, verified, undecided FROM subjects"
    ).fetchall() == [(2, "not_attempted", False, 1)]


def test_without_the_tag_there_are_no_people(lake: Lake, computed: Any) -> None:
    write_day(lake, "2024-09-02", [Submission()])
    connection = computed("subjects", "verified_rates_by_subject")
    assert connection.execute("FROM subjects").fetchall() == []
    assert connection.execute("FROM verified_rates_by_subject").fetchall() == []


def test_verdict_times_against_numpy(lake: Lake, computed: Any) -> None:
    rnd = random.Random(5)
    days: dict[str, list[Submission]] = {}
    for number in range(3):
        date = f"2024-09-0{number + 2}"
        days[date] = []
        for _ in range(40):
            seconds = rnd.choice([-1.5, 0, 600, rnd.expovariate(1 / 500)])
            days[date].append(
                Submission(
                    rnd.random() < 0.8,
                    outcome=rnd.choice(["completed"] * 4 + ["uncertain", "refused"]),
                    submitted_at=rnd.choice([NOON, NOON, None]),
                    responded_at=NOON + datetime.timedelta(seconds=seconds),
                )
            )
        write_day(lake, date, days[date])
    write_day(lake, "2024-09-05", [Submission()])
    write_submissions(lake, "2024-09-06", [Submission(submitted_at=NOON)])
    found = {
        str(row[0]): row[1:]
        for row in computed("verdict_times", verdict_target_seconds=600)
        .execute("FROM verdict_times")
        .fetchall()
    }
    assert set(found) == {*days, "2024-09-06"}  # on the 5th, no time is known
    assert found.pop("2024-09-06") == (0, None, None, None, 600, 0, None, None, None, True, 1, 0, 1, False)
    for date, row in found.items():
        known = [s for s in days[date] if s.submitted_at]
        times = [
            (s.responded_at - s.submitted_at).total_seconds()
            for s in known
            if s.outcome == "completed" and s.responded_at and s.submitted_at
        ]
        n, k = len(times), sum(seconds <= 600 for seconds in times)
        open_ = sum(s.outcome == "uncertain" for s in known)
        assert (row[0], row[4], row[5], row[9], row[10]) == (n, 600, k, n < 30, open_)
        assert row[1:4] == pytest.approx([np.mean(times), *np.quantile(times, [0.5, 0.9])])
        assert row[6:9] == pytest.approx((k / n, *proportion_confint(k, n, method="wilson")), abs=1e-6)
        assert row[11:13] == pytest.approx((k / (n + open_), (k + open_) / (n + open_)))
        assert row[13] == (open_ == 0)
