"""Labels as nobody should deliver them, from manifests to figures, against pandas on the same rows."""

import json
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.ingest.labels import ingest_labels
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import REJECTED_LABELS
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.analyze.lake_maker import Check, Submission, write_day
from tests.unit.analyze.test_error_rates import bounds, frame

DAYS = ("2024-09-02", "2024-09-03", "2024-09-04")
SOURCES = ("review", "chargeback")
TIMES = ("2023-01-01T00:00:00Z", "2024-09-20T10:00:00+02:00", "2024-09-20T08:00:00Z", "2024-10-01T00:00:00Z")
"""Long before any submission; twice the same time; and later."""
ERASED = 7
"""Every so many submissions of the first day are of erased people."""


def manifest_rows(ids: list[str], rng: "np.random.Generator") -> list[dict[str, str]]:
    """One to four labels of most submissions: repeated, contradictory, from two sources, at four times."""
    rows = []
    for each in ids:
        for _ in range(int(rng.integers(0, 5))):
            what = str(rng.choice(["genuine", "genuine", "fraud", "unsure"]))
            attack = str(rng.choice(["", "presentation", "document"])) if what == "fraud" else ""
            row = {"submission_id": each, "label": what, "source": str(rng.choice(SOURCES)), "attack": attack}
            row["decided_at"] = str(rng.choice(TIMES))
            rows += [row] * int(rng.integers(1, 3))
    return rows


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The warehouse, the manifests' rows, the submissions, and the reasons of the rejected rows."""
    folder = tmp_path_factory.mktemp("labels")
    lake, rng = Lake(str(folder / "lake")), np.random.default_rng(20)
    submissions, ids = [], []
    for date in DAYS:
        day = []
        for _ in range(120):
            status = str(rng.choice(["PASS", "PASS", "FAIL", "REVIEW"]))
            outcome = str(rng.choice(["completed", "completed", "uncertain", "refused"]))
            country = str(rng.choice(["NL", "DE"]))
            each = Submission(
                bool(rng.random() < 0.7), [Check("FACE", status)], outcome, {"country": (country, None)}
            )
            day.append(each)
            submissions.append(
                {"submission_id": each.submission_id, "date": date, "country": country, "status": status}
                | {"verified": each.verified if outcome == "completed" else None}
            )
        write_day(lake, date, day)
        ids += [each.submission_id for each in day] if date != DAYS[2] else []  # a day without labels
    rows = manifest_rows([*ids, *(f"unknown-{number}" for number in range(30))], rng)
    bad = [row | {"label": "maybe"} for row in rows[:5]] + [
        row | {"decided_at": "2024-09-20"} for row in rows[:5]
    ]
    erased = ids[:120:ERASED]
    pseudonymizer = Pseudonymizer("k" * 32)
    tombstones = [Tombstone.of_tag(pseudonymizer, "submissionId", each) for each in erased]
    (folder / "landing" / "labels").mkdir(parents=True)
    shuffled = [rows[place] for place in rng.permutation(len(rows))]
    half = len(shuffled) // 2
    table = pd.DataFrame(shuffled[:half] + bad)
    table.to_csv(folder / "landing" / "labels" / "a.csv", index=False)
    lines = "".join(json.dumps(row) + "\n" for row in shuffled[half:])
    (folder / "landing" / "labels" / "b.jsonl").write_text(lines)
    ingest_labels(landing=folder / "landing", lake=lake, erased=ErasedSubjects(tombstones, pseudonymizer))
    build(lake, folder / "w.duckdb", run_id="run", choices=Choices(dimensions=("country",)))
    with duckdb.connect(folder / "w.duckdb", read_only=True) as connection:
        reasons = lake.read(REJECTED_LABELS, WHOLE).to_pandas()["reason"].value_counts().to_dict()
        yield connection, pd.DataFrame(rows), pd.DataFrame(submissions), erased, reasons


def accepted(rows: pd.DataFrame, erased: list[str]) -> pd.DataFrame:
    """The labels that count: of nobody erased, and each once, however its time is written."""
    kept = rows[~rows["submission_id"].isin(erased)]
    return kept.assign(decided_at=pd.to_datetime(kept["decided_at"], utc=True)).drop_duplicates()


def decide(labels: pd.DataFrame) -> pd.Series:
    """What the labels of one submission amount to, by definition."""
    decided = labels[labels["label"] != "unsure"]
    if decided.empty:
        return pd.Series({"label": "unsure", "presentation": False, "decided_at": labels["decided_at"].max()})
    newest = decided[decided["decided_at"] == decided["decided_at"].max()]
    what = newest["label"].iloc[0] if newest["label"].nunique() == 1 else "conflict"
    attacks = labels[labels["attack"] != ""].sort_values(["decided_at", "attack"], ascending=[False, True])
    is_presentation = what == "fraud" and not attacks.empty and attacks["attack"].iloc[0] == "presentation"
    return pd.Series(
        {"label": what, "presentation": is_presentation, "decided_at": newest["decided_at"].iloc[0]}
    )


def truth_of(rows: pd.DataFrame, erased: list[str]) -> pd.DataFrame:
    return accepted(rows, erased).groupby("submission_id").apply(decide).reset_index()


def test_each_row_is_a_label_or_rejected(nasty: Any) -> None:
    connection, rows, _, erased, reasons = nasty
    labels = accepted(rows, erased)
    of_erased = int(rows["submission_id"].isin(erased).sum())
    first = rows["submission_id"].head(5).isin(erased).sum()  # of these rows there are two bad copies
    assert connection.execute("SELECT count(*) FROM labels").fetchall() == [(len(labels),)]
    assert reasons == {
        "erased_subject": of_erased + 2 * first,
        "duplicate_label": len(rows) - of_erased - len(labels),
        "invalid_label": 5 - first,
        "invalid_decided_at": 5 - first,
    }


def test_the_label_of_each_submission(nasty: Any) -> None:
    connection, rows, submissions, erased, _ = nasty
    found = frame(
        connection, "SELECT submission_id, label, decided_at, sources_disagree FROM submission_labels"
    )
    expected = truth_of(rows, erased)
    expected = expected[expected["submission_id"].isin(submissions["submission_id"])]
    both = found.merge(expected, on="submission_id", how="outer", suffixes=("", "_expected"))
    assert (both["label"] == both["label_expected"]).all()
    assert (both["decided_at"] == both["decided_at_expected"].dt.tz_localize(None)).all()
    assert set(both["label"]) == {"genuine", "fraud", "unsure", "conflict"}
    by_source = accepted(rows, erased).groupby(["submission_id", "source"]).apply(decide)["label"]
    decided = by_source[by_source.isin(["genuine", "fraud"])].groupby("submission_id").nunique()
    disagree = set(decided[decided > 1].index) & set(found["submission_id"])
    assert set(found.loc[found["sources_disagree"], "submission_id"]) == disagree
    assert disagree


@pytest.mark.parametrize("country", [None, "NL", "DE"])
@pytest.mark.parametrize("check", ["VERIFIED", "FACE"])
def test_the_error_rates(nasty: Any, check: str, country: str | None) -> None:
    connection, rows, submissions, erased, _ = nasty
    table, where = (
        ("error_rates", "threshold IS NULL")
        if country is None
        else ("error_rates_by_dimension", f"dimension = 'country' AND value = '{country}'")
    )
    (row,) = frame(connection, f"FROM {table} WHERE check_type = '{check}' AND {where}").to_dict("records")
    people = submissions if country is None else submissions[submissions["country"] == country]
    merged = people.merge(truth_of(rows, erased), on="submission_id")
    merged = merged[merged["label"].isin(["genuine", "fraud"])]
    has_verdict = merged["verified"].notna()
    answer = (
        merged["verified"] if check == "VERIFIED" else merged["status"].map({"PASS": True, "FAIL": False})
    )
    results = merged[has_verdict & answer.notna()].assign(accepted=answer)
    for rate, names, chosen, is_error in (
        ("frr", ("genuine", "false_rejects"), results["label"] == "genuine", results["accepted"] == False),  # noqa: E712
        ("far", ("fraud", "false_accepts"), results["label"] == "fraud", results["accepted"] == True),  # noqa: E712
        (
            "apcer",
            ("presentation_attacks", "attacks_accepted"),
            results["presentation"].astype(bool),
            results["accepted"] == True,  # noqa: E712
        ),
    ):
        n, k = int(chosen.sum()), int((chosen & is_error).sum())
        assert [row[name] for name in names] == [n, k]
        assert [row[name] for name in (rate, f"{rate}_low", f"{rate}_high")] == pytest.approx(
            [k / n, *bounds(k, n)], abs=1e-7
        )
    if country is None:
        assert row["not_counted"] == len(merged) - len(results)


def test_the_quality(nasty: Any) -> None:
    connection, rows, submissions, erased, _ = nasty
    (row,) = frame(connection, "FROM label_quality WHERE source = 'ALL'").to_dict("records")
    labels, truth = accepted(rows, erased), truth_of(rows, erased)
    known = truth.merge(submissions, on="submission_id")
    assert row["labels"] == len(labels)
    assert (row["submissions"], row["unknown_submissions"]) == (len(known), len(truth) - len(known))
    assert row["without_verdict"] == known["verified"].isna().sum()
    assert [row[name] for name in ("genuine", "fraud", "unsure", "conflicts")] == [
        (known["label"] == name).sum() for name in ("genuine", "fraud", "unsure", "conflict")
    ]
    counted = known["verified"].notna() & known["label"].isin(["genuine", "fraud"])
    assert row["coverage"] == pytest.approx(counted.sum() / submissions["verified"].notna().sum())
    days = (known["decided_at"].dt.tz_localize(None).dt.normalize() - pd.to_datetime(known["date"])).dt.days
    assert days.min() < 0, "a label before its submission"
    assert [row["days_to_label_p50"], row["days_to_label_p90"]] == [days.quantile(0.5), days.quantile(0.9)]
