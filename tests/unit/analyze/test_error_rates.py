"""Ground truth: error rates and intervals, against pandas, scipy, statsmodels and a known population."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from kyc_pipeline.analyze.sql_models import load_steps, macros_sql
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS
from tests.unit.analyze.lake_maker import Check, Submission, write_day

Build = Callable[..., duckdb.DuckDBPyConnection]
DAY, NEXT = "2024-09-02", "2024-09-03"
NOON = datetime.datetime(2024, 10, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
SIMULATIONS = 1000


def label(submission_id: str, label: str, **changes: Any) -> dict[str, Any]:
    row = {"submission_id": submission_id, "label": label, "source": "review", "decided_at": NOON}
    return row | {"manifest": "a.csv", "manifest_row": 1} | changes


def write_labels(lake: Lake, rows: Sequence[dict[str, Any]]) -> None:
    lake.write(LABELS, WHOLE, list(rows))


def frame(connection: duckdb.DuckDBPyConnection, query: str) -> pd.DataFrame:
    return connection.execute(query).df()


# --- what a label amounts to ------------------------------------------------------------------------------


DECISIONS: list[tuple[list[tuple[str, str, int, str | None]], tuple[Any, ...]]] = [
    ([("genuine", "a", 0, None)], ("genuine", None, False)),
    ([("genuine", "a", 0, None), ("fraud", "b", 1, "document")], ("fraud", "document", True)),
    ([("fraud", "b", 1, "other"), ("genuine", "a", 2, None)], ("genuine", None, True)),
    ([("genuine", "a", 0, None), ("fraud", "a", 1, None)], ("fraud", None, False)),
    ([("genuine", "a", 0, None), ("unsure", "b", 1, None)], ("genuine", None, False)),
    ([("unsure", "a", 0, None), ("unsure", "b", 1, None)], ("unsure", None, False)),
    ([("genuine", "a", 0, None), ("fraud", "b", 0, "other")], ("conflict", None, True)),
    ([("genuine", "a", 0, None), ("fraud", "a", 0, "other")], ("conflict", None, False)),
    ([("fraud", "a", 0, "presentation"), ("fraud", "b", 1, None)], ("fraud", "presentation", False)),
]
"""(label, source, hour, attack) of each statement, and what they amount to."""


def test_the_latest_decision_counts(lake: Lake, computed: Build) -> None:
    day = [Submission() for _ in DECISIONS]
    write_day(lake, DAY, day)
    write_labels(
        lake,
        [
            label(submission.submission_id, what, source=source, decided_at=NOON + hour * HOUR, attack=attack)
            for submission, (rows, _) in zip(day, DECISIONS, strict=True)
            for what, source, hour, attack in rows
        ],
    )
    found = (
        computed("submission_labels")
        .execute("SELECT label, attack, sources_disagree FROM submission_labels ORDER BY submission_id")
        .fetchall()
    )
    assert found == [expected for _, expected in DECISIONS]


def test_the_weight_of_a_drawn_submission_stays_with_it(lake: Lake, computed: Build) -> None:
    submission = Submission()
    write_day(lake, DAY, [submission])
    drawn = label(submission.submission_id, "genuine", weight=7.0, stratum="s1")
    write_labels(lake, [drawn, label(submission.submission_id, "fraud", source="b", decided_at=NOON + HOUR)])
    found = (
        computed("submission_labels")
        .execute("SELECT label, weight, stratum FROM submission_labels")
        .fetchall()
    )
    assert found == [("fraud", 7.0, "s1")]


# --- figures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A lake with labels of every kind, and its rows as a frame: one row per labelled result."""
    from kyc_pipeline.analyze.build import build
    from kyc_pipeline.analyze.choices import Choices

    folder = tmp_path_factory.mktemp("known")
    lake, rng = Lake(str(folder / "lake")), np.random.default_rng(3)
    labels, rows = [], []
    for date in (DAY, NEXT):
        day = []
        for number in range(400):
            is_fraud = rng.random() < 0.3
            scores = [round(float(rng.beta(2, 5) if is_fraud else rng.beta(6, 2)), 2) for _ in range(3)]
            statuses = ["PASS" if score >= 0.5 else "FAIL" for score in scores]
            statuses = ["REVIEW" if rng.random() < 0.05 else status for status in statuses]
            checks = [
                Check(kind, status, score if rng.random() < 0.95 else None)
                for kind, status, score in zip(("FACE", "FACE", "LIVENESS"), statuses, scores, strict=True)
            ]
            outcome = "uncertain" if number % 50 == 0 else "completed"
            country = "NL" if number % 3 else "DE"
            tags: dict[str, tuple[str | None, str | None]] = {"country": (country, None)}
            verified = bool(rng.random() < (0.15 if is_fraud else 0.92))
            submission = Submission(verified, checks, outcome, tags=tags)
            day.append(submission)
            what = "unsure" if rng.random() < 0.1 else "fraud" if is_fraud else "genuine"
            attack = "presentation" if what == "fraud" and number % 2 else None
            weight, stratum = (None, None) if number % 2 else (20.0, "v") if verified else (3.5, "d")
            if rng.random() < 0.8:
                labels.append(
                    label(submission.submission_id, what, attack=attack, weight=weight, stratum=stratum)
                )
                base = {"country": country, "label": what, "attack": attack, "weight": weight}
                base |= {"stratum": stratum, "id": submission.submission_id}
                decided = outcome == "completed"
                rows.append(base | {"check": "VERIFIED", "accepted": verified if decided else None})
                for kind in ("FACE", "LIVENESS") if decided else ():
                    own = [check for check in checks if check.type == kind]
                    found = {check.normalized_status for check in own}
                    accepted = False if "FAIL" in found else True if "PASS" in found else None
                    known_scores = [check.confidence for check in own if check.confidence is not None]
                    lowest = min(known_scores) if known_scores else None
                    rows.append(base | {"check": kind, "accepted": accepted, "confidence": lowest})
        write_day(lake, date, day)
    labels.append(label("nobody", "genuine"))
    write_labels(lake, labels)
    build(lake, folder / "w.duckdb", run_id="run", choices=Choices(dimensions=("country",)))
    with duckdb.connect(folder / "w.duckdb", read_only=True) as connection:
        yield connection, pd.DataFrame(rows)


def bounds(errors: float, results: float) -> tuple[float, float]:
    """Agresti-Coull; where there is no error, or nothing else, the other bound is the exact one."""
    method = "beta" if errors in (0, results) else "agresti_coull"
    low, high = proportion_confint(errors, results, method=method)
    return float(low), float(high)


def weighted_bounds(
    results: pd.DataFrame, error: "pd.Series[bool]", drawn: pd.DataFrame
) -> tuple[float, float]:
    """The bounds by definition: unit by unit, as `error_estimates` describes them."""
    largest = drawn["weight"].max()
    weight, total = results["weight"], results["weight"].sum()
    if error.all() or not error.any():
        return bounds(total / largest * error.all(), total / largest)
    wrong = (weight * error).sum()
    found = []
    for is_error in (0, 1):
        rate = (wrong + largest * is_error) / (total + largest)
        z = pd.Series(0.0, index=drawn["id"])
        z[results["id"]] = (weight * (error - rate)).to_numpy()
        variance = (largest * (is_error - rate)) ** 2
        for _, ids in drawn.groupby("stratum")["id"]:
            own = z[ids]
            variance += len(own) * own.var(ddof=1)
        size = rate * (1 - rate) / (variance / (total + largest) ** 2)
        found.append(bounds(rate * size - is_error, size - 1)[is_error])
    return found[0], found[1]


def expected(rows: pd.DataFrame, threshold: float | None, *, weighted: bool) -> dict[str, Any]:
    drawn = rows.drop_duplicates("id")
    drawn = drawn[drawn["weight"].notna()]
    mine = rows[rows["weight"].notna() == weighted]
    if threshold is None:
        results = mine[mine["accepted"].notna()]
        accepted = results["accepted"].astype(bool)
    else:
        results = mine[mine["confidence"].notna()]
        accepted = results["confidence"] >= threshold
    figures: dict[str, Any] = {}
    for name, count, errors, mask, wrong in (
        ("frr", "genuine", "false_rejects", results["label"] == "genuine", ~accepted),
        ("far", "fraud", "false_accepts", results["label"] == "fraud", accepted),
        ("apcer", "presentation_attacks", "attacks_accepted", results["attack"] == "presentation", accepted),
    ):
        n, k = int(mask.sum()), int((mask & wrong).sum())
        figures[count], figures[errors] = n, k
        if not n:
            continue
        if weighted:
            own, error = results[mask], wrong[mask]
            figures[name] = (own["weight"] * error).sum() / own["weight"].sum()
            low, high = weighted_bounds(own, error, drawn)
        else:
            figures[name] = k / n
            low, high = bounds(k, n)
        figures[f"{name}_low"], figures[f"{name}_high"] = low, high
    labelled = rows[rows["label"].isin(["genuine", "fraud"])].drop_duplicates("id")
    counted = figures["genuine"] + figures["fraud"]
    figures["not_counted"] = int((labelled["weight"].notna() == weighted).sum()) - counted
    return figures


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("check", ["VERIFIED", "FACE", "LIVENESS"])
def test_error_rates_as_decided_and_by_threshold(known: Any, check: str, weighted: bool) -> None:
    connection, rows = known
    found = frame(
        connection,
        f"FROM error_rates WHERE check_type = '{check}' AND weighted = {weighted}"
        " ORDER BY threshold NULLS FIRST",
    )
    of_check = rows[rows["check"] == check]
    whole = rows[~rows["id"].isin(of_check["id"])].assign(accepted=None, confidence=None)
    assert len(found) == (1 if check == "VERIFIED" else 102)
    assert (found["low_n"] == (found[["genuine", "fraud"]].min(axis=1) < 30)).all()
    some = found.iloc[[0, *range(1, len(found), 5)]]  # as decided, and every fifth threshold from 0 to 1
    for row in some.to_dict("records"):
        threshold = None if pd.isna(row["threshold"]) else row["threshold"]
        for name, value in expected(pd.concat([of_check, whole]), threshold, weighted=weighted).items():
            assert row[name] == pytest.approx(value, abs=1e-7), (threshold, name)


def test_error_rates_by_dimension(known: Any) -> None:
    connection, rows = known
    found = frame(connection, "FROM error_rates_by_dimension WHERE dimension = 'country'")
    assert len(found) == 2 * 3 * 2
    for row in found[~found["weighted"]].to_dict("records"):
        own = rows[(rows["country"] == row["value"]) & (rows["check"] == row["check_type"])]
        figures = expected(own, None, weighted=False)
        del figures["not_counted"]
        for name, value in figures.items():
            assert row[name] == pytest.approx(value, abs=1e-7), name
    model_version = frame(connection, "FROM error_rates_by_dimension WHERE dimension = 'model_version'")
    assert set(model_version["value"]) == {"UNKNOWN"}


def test_label_quality(known: Any) -> None:
    connection, rows = known
    (row,) = frame(connection, "FROM label_quality WHERE source = 'ALL'").to_dict("records")
    people = rows[rows["check"] == "VERIFIED"]
    decided = people["accepted"].notna()
    ((verdicts,),) = connection.execute(
        "SELECT count(*) FROM submissions WHERE verified IS NOT NULL"
    ).fetchall()
    assert row["labels"] == len(people) + 1
    assert row["submissions"] == len(people)
    assert row["unknown_submissions"] == 1
    assert row["without_verdict"] == (~decided).sum()
    counts = people["label"].value_counts()
    assert [row[name] for name in ("genuine", "fraud", "unsure")] == [
        counts[name] for name in ("genuine", "fraud", "unsure")
    ]
    assert row["unsure_share"] == pytest.approx(counts["unsure"] / len(people))
    assert row["coverage"] == pytest.approx((decided & (people["label"] != "unsure")).sum() / verdicts)
    assert row["drawn"] == people["weight"].notna().sum()
    assert (row["conflicts"], row["disagreements"]) == (0, 0)
    assert row["days_to_label_p50"] in (28, 28.5, 29)


def test_label_quality_of_sources_that_disagree(lake: Lake, computed: Build) -> None:
    day = [Submission() for _ in range(4)]
    write_day(lake, DAY, day)
    one, two, three, four = [submission.submission_id for submission in day]
    write_labels(
        lake,
        [
            label(one, "genuine"),
            label(one, "fraud", source="chargeback", decided_at=NOON + HOUR),
            label(two, "genuine"),
            label(two, "fraud"),
            label(three, "unsure"),
            label(four, "genuine"),
            label(four, "fraud", source="chargeback"),
        ],
    )
    columns = "labels, submissions, genuine, fraud, unsure, conflicts, disagreements, coverage"
    assert computed("label_quality").execute(
        f"SELECT source, {columns} FROM label_quality ORDER BY source"
    ).fetchall() == [
        ("ALL", 7, 4, 0, 1, 1, 2, 2, 1 / 4),
        ("chargeback", 2, 2, 0, 2, 0, 0, 2, 2 / 4),
        ("review", 5, 4, 2, 0, 1, 1, 2, 2 / 4),
    ]


def test_without_labels_there_are_no_error_rates(lake: Lake, computed: Build) -> None:
    write_day(lake, DAY, [Submission()])
    tables = ("labels", "submission_labels", "labelled_results", "error_rates", "label_quality")
    connection = computed(*tables)
    for table in tables:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]


# --- a population with known error rates ------------------------------------------------------------------

ESTIMATES = next(model for model in load_steps() if model.name == "error_estimates")


def population(size: int, *, fraud: float, frr: float, far: float, seed: int = 5) -> pd.DataFrame:
    """Submissions with their truth and their verdict; the rates of errors are exact, not left to chance."""
    frauds = round(size * fraud)
    wrong = round((size - frauds) * frr), round(frauds * far)
    accepted = np.ones(size, bool)
    accepted[: wrong[0]] = False
    accepted[size - frauds : size - wrong[1]] = False
    labels = np.repeat(["genuine", "fraud"], [size - frauds, frauds])
    country = np.random.default_rng(seed).choice(["NL", "DE", "MT"], size, p=[0.6, 0.3, 0.1])
    return pd.DataFrame({"label": labels, "accepted": accepted, "country": country})


def samples(people: pd.DataFrame, strata: "pd.Series[Any]", sizes: dict[Any, int]) -> pd.DataFrame:
    """SIMULATIONS samples: of each stratum, so many without replacement, with their weights."""
    rng, parts = np.random.default_rng(11), []
    names = np.arange(SIMULATIONS).astype(str)
    for stratum, group in people.groupby(strata):
        n = sizes[stratum]
        places = [rng.choice(len(group), n, replace=False) for _ in names]
        drawn = group.iloc[np.concatenate(places)]
        drawn = drawn.assign(weight=len(group) / n, sample=np.repeat(names, n))
        parts.append(drawn.assign(stratum=f"{stratum}-" + drawn["sample"]))
    return pd.concat(parts, ignore_index=True).assign(id=lambda rows: rows.index.astype(str))


def estimates(results: pd.DataFrame) -> pd.DataFrame:
    """`error_estimates` of many samples at once: each is a check type of its own."""
    with duckdb.connect() as connection:
        connection.execute(macros_sql())
        connection.register("results", results)
        connection.execute("CREATE TABLE submission_labels AS SELECT weight, stratum FROM results")
        connection.execute(
            "CREATE TABLE labelled_slices AS SELECT 'g' AS check_group, sample AS check_type, label AS kind,"
            " weight IS NOT NULL AS weighted, coalesce(stratum, '') AS stratum,"
            " coalesce(weight, 1) AS weight, accepted, NULL::INTEGER AS step,"
            " MAP {}::MAP(VARCHAR, VARCHAR) AS dimensions FROM results"
        )
        return frame(connection, ESTIMATES.sql)


@pytest.mark.parametrize(
    ("design", "fraud", "frr", "far"),
    [
        ("simple", 0.2, 0.1, 0.3),
        ("verdict", 0.2, 0.1, 0.3),
        ("verdict", 0.05, 0.02, 0.02),
        ("country", 0.1, 0.05, 0.1),
    ],
)
def test_the_intervals_cover_the_rates_of_the_population(
    design: str, fraud: float, frr: float, far: float
) -> None:
    """Never less than 94%, and more where errors are few; 0.015 is for the simulation's own chance.

    In the third case most samples have no accepted fraud, and it would be one of many that nobody drew.
    """
    people = population(40_000, fraud=fraud, frr=frr, far=far)
    strata = {
        "simple": pd.Series("all", people.index),
        "verdict": people["accepted"].map({True: "v", False: "d"}),
        "country": people["country"],
    }[design]
    drawn = samples(people, strata, {"all": 600, "v": 400, "d": 200, "NL": 200, "DE": 200, "MT": 200})
    if design == "simple":
        drawn = drawn.assign(weight=None, stratum=None)
    found = estimates(drawn)
    is_error = people["accepted"] != (people["label"] == "genuine")
    for kind, errors in is_error.groupby(people["label"]):
        rate = found["frr" if kind == "genuine" else "far"]
        low, high = found[f"{rate.name}_low"], found[f"{rate.name}_high"]
        missed = (low > errors.mean()) | (high < errors.mean())
        covered = 1 - missed.sum() / SIMULATIONS
        assert covered >= 0.94, (kind, covered)
        if frr >= 0.1:
            assert covered <= 0.975, (kind, covered)
            assert rate.mean() == pytest.approx(errors.mean(), rel=0.02), "without bias"
