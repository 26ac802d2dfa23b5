"""Labels: the manifests in `labels/`, read and validated like those of submissions."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.labels import LabelsSummary, are_ingested, ingest_labels
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS, REJECTED_LABELS
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import LabelReason
from tests.effort import tries
from tests.unit.ingest.conftest import csv_text

HEADER = ["submission_id", "label", "source", "decided_at", "attack", "weight", "stratum"]
GOOD = ["s-1", "genuine", "review", "2024-09-01T10:00:00Z", "", "", ""]
DECIDED = datetime(2024, 9, 1, 10, tzinfo=UTC)


class Labels:
    """A landing zone with labels, and the lake beside it."""

    def __init__(self, folder: Path) -> None:
        self.landing = folder / "landing"
        self.lake = Lake(str(folder / "lake"))
        self.landing.mkdir(parents=True)

    def put(self, name: str, content: bytes | str) -> Path:
        path = self.landing / "labels" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def ids_in(self, name: str, ids: str) -> None:
        """Writes a manifest with one label for each letter."""
        self.csv(*([letter, *GOOD[1:]] for letter in ids), name=name)

    @property
    def places(self) -> list[tuple[str, str, int]]:
        return [(row["submission_id"], row["manifest"], row["manifest_row"]) for row in self.accepted]

    def csv(self, *rows: Sequence[str], name: str = "a.csv") -> Path:
        return self.put(name, csv_text(HEADER, rows))

    def read(self, **arguments: Any) -> LabelsSummary:
        summary = ingest_labels(landing=self.landing, lake=self.lake, **arguments)
        # In every test: no row is ever lost.
        assert summary.received == summary.accepted + summary.rejected_rows
        assert len(self.accepted) == summary.accepted + summary.kept
        unreadable = {row["manifest"] for row in self.rejected if row["manifest_row"] == 0}
        of_before = [row for row in self.rejected if row["manifest"] in unreadable and row["manifest_row"]]
        assert len(self.rejected) - len(of_before) == sum(summary.rejected.values())
        assert {row["reason"] for row in of_before} <= {"duplicate_label"}
        return summary

    @property
    def accepted(self) -> list[dict[str, Any]]:
        return self.lake.read(LABELS, WHOLE).to_pylist()

    @property
    def rejected(self) -> list[dict[str, Any]]:
        return self.lake.read(REJECTED_LABELS, WHOLE).to_pylist()

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(row["manifest_row"], row["reason"]) for row in self.rejected]

    @property
    def ids(self) -> list[str]:
        return [row["submission_id"] for row in self.accepted]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(tmp_path)


@pytest.fixture
def make_labels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Labels]:
    return lambda: Labels(tmp_path_factory.mktemp("labels"))


def test_a_label_with_everything(labels: Labels) -> None:
    labels.csv([" s-1 ", "FRAUD", "Chargeback", "2024-09-01T12:00:00+02:00", "Presentation", "12.5", "s-01"])
    labels.read()
    assert labels.accepted == [
        {
            "submission_id": "s-1",
            "label": "fraud",
            "source": "chargeback",
            "decided_at": DECIDED,
            "attack": "presentation",
            "weight": 12.5,
            "stratum": "s-01",
            "manifest": "a.csv",
            "manifest_row": 1,
        }
    ]


def test_optional_columns_may_be_missing(labels: Labels) -> None:
    labels.put("a.csv", csv_text(HEADER[:4], [GOOD[:4]]))
    labels.read()
    (row,) = labels.accepted
    assert (row["attack"], row["weight"], row["stratum"]) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"submission_id": ""}, "missing_field"),
        ({"label": " "}, "missing_field"),
        ({"source": ""}, "missing_field"),
        ({"decided_at": ""}, "missing_field"),
        ({"submission_id": "a b"}, "invalid_submission_id"),
        ({"submission_id": "a" * 65}, "invalid_submission_id"),
        ({"label": "good"}, "invalid_label"),
        ({"source": "jane.doe@example.com"}, "invalid_source"),
        ({"source": "a" * 33}, "invalid_source"),
        ({"decided_at": "2024-09-01T10:00:00"}, "invalid_decided_at"),
        ({"decided_at": "2024-09-01"}, "invalid_decided_at"),
        ({"decided_at": "2024-02-30T10:00:00Z"}, "invalid_decided_at"),
        ({"attack": "presentation"}, "invalid_attack"),
        ({"label": "unsure", "attack": "other"}, "invalid_attack"),
        ({"label": "fraud", "attack": "mask"}, "invalid_attack"),
        ({"weight": "0.99"}, "invalid_weight"),
        ({"weight": "-1"}, "invalid_weight"),
        ({"weight": "nan"}, "invalid_weight"),
        ({"weight": "inf"}, "invalid_weight"),
        ({"weight": "1_000"}, "invalid_weight"),
        ({"weight": "1,5"}, "invalid_weight"),
        ({"weight": "1e10"}, "invalid_weight"),
        ({"stratum": "s-01"}, "invalid_stratum"),
        ({"weight": "2", "stratum": "a stratum"}, "invalid_stratum"),
    ],
)
def test_a_row_that_breaks_a_rule_is_rejected_and_stops_no_other(
    labels: Labels, changes: dict[str, str], reason: str
) -> None:
    bad = list((dict(zip(HEADER, GOOD, strict=True)) | {"submission_id": "secret-1"} | changes).values())
    labels.csv(bad, GOOD)
    labels.read()
    assert labels.reasons == [(1, reason)]
    assert labels.ids == ["s-1"]
    assert "secret-1" not in str(labels.rejected), "a rejected row keeps no id"
    assert not any(value in labels.rejected[0]["detail"] for value in ("jane", "good", "mask"))


def test_every_form_gives_the_same_labels(make_labels: Callable[[], Labels]) -> None:
    """CSV of Excel, JSON Lines with numbers, Parquet with types, and a workbook."""
    rows: list[dict[str, Any]] = [
        {**dict(zip(HEADER, GOOD, strict=True)), "weight": 2.5, "stratum": "s-01"},
        {**dict(zip(HEADER, GOOD, strict=True)), "submission_id": "s-2", "label": "fraud", "weight": None},
    ]
    texts = [["" if value is None else str(value) for value in row.values()] for row in rows]
    frame = pd.DataFrame(rows).replace({"": None})
    frame["decided_at"] = pd.to_datetime(frame["decided_at"])
    workbook, book = openpyxl.Workbook(), io.BytesIO()
    for row in [HEADER, *({**row, "weight": row["weight"] or ""}.values() for row in rows)]:
        workbook.active.append(list(row))
    workbook.save(book)
    results = []
    for name, content in (
        ("a.csv", csv_text(HEADER, texts).encode()),
        ("b.csv", csv_text(HEADER, texts).replace(",", ";").encode("utf-16")),
        ("c.csv.gz", gzip.compress(csv_text([h.title() for h in HEADER], texts).encode("utf-8-sig"))),
        ("d.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()),
        ("e.parquet", frame.to_parquet()),
        ("f.xlsx", book.getvalue()),
    ):
        made = make_labels()
        made.put(name, content)
        made.read()
        results.append([{**row, "manifest": ""} for row in made.accepted])
        assert made.rejected == []
    assert [row["weight"] for row in results[0]] == [2.5, None]
    assert results == [results[0]] * len(results)


def test_the_first_of_equal_labels_counts(labels: Labels) -> None:
    labels.csv(GOOD, [*GOOD[:3], "2024-09-01T12:00:00+02:00", "", "", ""])
    labels.csv(GOOD, ["s-1", "fraud", *GOOD[2:]], name="b.csv")
    labels.read()
    assert labels.reasons == [(2, "duplicate_label"), (1, "duplicate_label")]
    assert [row["label"] for row in labels.accepted] == ["genuine", "fraud"], "a contradiction stays"


def test_a_file_that_cannot_be_read_keeps_its_labels_and_stops_no_other(labels: Labels) -> None:
    labels.csv(GOOD)
    labels.csv(["s-2", *GOOD[1:]], name="b.csv")
    assert labels.read().accepted == 2
    labels.put("b.csv", "id,verdict\ns-2,genuine\n")
    labels.csv(GOOD, ["s-3", *GOOD[1:]])
    summary = labels.read()
    assert (summary.kept, summary.unreadable, labels.ids) == (1, 1, ["s-1", "s-2", "s-3"])
    (row,) = labels.rejected
    assert (row["reason"], row["manifest"], row["manifest_row"]) == ("unreadable_file", "b.csv", 0)
    assert row["detail"].startswith("labels/b.csv: has no column submission_id")


def test_a_label_stays_if_an_unreadable_file_had_it_too(labels: Labels) -> None:
    """Although the row of that file was rejected, since an earlier one had it."""
    labels.ids_in("a.csv", "AB")
    labels.ids_in("b.csv", "BC")
    labels.read()
    (row,) = labels.rejected
    assert (row["first_manifest"], row["first_row"]) == ("a.csv", 2)
    labels.put("b.csv", b"\0")
    for _ in range(2):  # also if only the reading before the last one could read it
        summary = labels.read()
        assert (summary.received, summary.accepted, summary.kept) == (2, 2, 1)
        assert labels.places == [("A", "a.csv", 1), ("B", "a.csv", 2), ("C", "b.csv", 2)]
        assert labels.reasons == [(0, "unreadable_file"), (1, "duplicate_label")]
    (labels.landing / "labels" / "a.csv").unlink()
    for _ in range(2):
        summary = labels.read()
        assert (summary.received, summary.accepted, summary.kept) == (0, 0, 2)
        assert labels.places == [("B", "b.csv", 1), ("C", "b.csv", 2)], "A was in the other file only"
    (labels.landing / "labels" / "b.csv").unlink()
    labels.ids_in("c.csv", "D")
    labels.read()
    assert labels.ids == ["D"]


@pytest.mark.parametrize("name", ["a.csv", "c.csv"])
def test_an_unreadable_file_changes_nothing_of_the_others(labels: Labels, name: str) -> None:
    """Of equal labels the first counts, as if the file could be read; what is counted is what was read."""
    labels.ids_in("b.csv", "BC")
    labels.read()
    labels.ids_in(name, "AC")
    labels.read()
    figures = labels.places, [row for row in labels.rejected if row["reason"] == "duplicate_label"]
    labels.put("b.csv", b"\0")
    summary = labels.read()
    assert (labels.places, [row for row in labels.rejected if row["manifest_row"]]) == figures
    accepted = 2 if name == "a.csv" else 1
    assert (summary.received, summary.accepted, summary.rejected_rows) == (2, accepted, 2 - accepted)
    labels.ids_in(name, "A")
    assert labels.read().kept == 2
    assert labels.ids == ["A", "B", "C"]


def test_a_repeat_is_not_looked_up_in_the_labels_of_another_reading(labels: Labels) -> None:
    """A crash between the two tables leaves them so: then a place is that of another label."""
    labels.ids_in("a.csv", "AB")
    labels.ids_in("b.csv", "BC")
    labels.read()
    before = labels.lake.read(LABELS, WHOLE), labels.lake.metadata(LABELS, WHOLE)
    labels.ids_in("a.csv", "XAB")
    labels.read()
    labels.lake.write(LABELS, WHOLE, *before)
    labels.put("b.csv", b"\0")
    labels.ids_in("a.csv", "X")
    labels.read()
    assert labels.places == [("C", "b.csv", 2), ("X", "a.csv", 1)]


def test_labels_are_read_again_only_if_a_file_changed(labels: Labels) -> None:
    assert not are_ingested(labels.landing, labels.lake)
    labels.read()
    assert are_ingested(labels.landing, labels.lake), "a landing zone without labels is read once"
    labels.csv(GOOD)
    assert not are_ingested(labels.landing, labels.lake)
    labels.read()
    assert are_ingested(labels.landing, labels.lake)
    assert not are_ingested(labels.landing, labels.lake, "cp1252"), "another encoding may change what is read"
    version = labels.lake.version(LABELS, WHOLE)
    labels.read()
    assert labels.lake.version(LABELS, WHOLE) == version, "the same labels are the same file"


def test_a_landing_zone_that_is_not_mounted_removes_no_label(labels: Labels) -> None:
    path = labels.csv(GOOD)
    labels.read()
    path.unlink()
    with pytest.raises(KycError, match="labels/ has no manifests, but the lake has labels"):
        labels.read()
    path.parent.rmdir()
    labels.landing.rmdir()
    with pytest.raises(KycError, match="KYC_LANDING"):
        labels.read()
    labels.landing.mkdir()
    labels.csv(name="empty.csv")
    labels.read()
    assert labels.accepted == []


def test_a_label_of_an_erased_submission_is_rejected_without_its_id(labels: Labels) -> None:
    pseudonymizer = Pseudonymizer("k" * 32)
    erased = ErasedSubjects([Tombstone.of_tag(pseudonymizer, "submissionId", "s-1")], pseudonymizer)
    labels.csv(GOOD, ["s-1", "bad", *GOOD[2:]], ["s-2", *GOOD[1:]])
    labels.read(erased=erased)
    assert labels.reasons == [(1, "erased_subject"), (2, "erased_subject")]
    assert labels.ids == ["s-2"]
    assert "s-1" not in str(labels.rejected)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)
CELLS = st.fixed_dictionaries(
    {
        "submission_id": st.sampled_from(["s-1", "s-2", " s-3 ", "a b"]) | TEXT,
        "label": st.sampled_from(["genuine", "Fraud", "unsure"]) | TEXT,
        "source": st.sampled_from(["review", "Chargeback"]) | TEXT,
        "decided_at": st.datetimes(
            datetime(1990, 1, 1),
            datetime(2200, 1, 1),
            timezones=st.just(UTC),
        ).map(datetime.isoformat)
        | TEXT,
        "attack": st.sampled_from(["", "presentation", "other"]) | TEXT,
        "weight": st.sampled_from(["", "1", "2.5"]) | st.floats().map(repr) | TEXT,
        "stratum": st.sampled_from(["", "s-01"]) | TEXT,
    }
)


@settings(max_examples=tries(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CELLS, max_size=8))
def test_any_row_is_a_valid_label_or_is_rejected(
    make_labels: Callable[[], Labels], rows: list[dict[str, str]]
) -> None:
    """Whatever is delivered: nothing is lost, and what is accepted keeps every rule."""
    made = make_labels()
    made.put("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert made.read().received == len(rows)
    for row in made.accepted:
        given_row = rows[row["manifest_row"] - 1]
        assert row["submission_id"] == given_row["submission_id"].strip()
        assert row["label"] == given_row["label"].strip().lower() in ("genuine", "fraud", "unsure")
        assert row["attack"] is None or row["label"] == "fraud"
        assert row["weight"] is None or 1 <= row["weight"] <= 1e9
        assert row["stratum"] is None or row["weight"] is not None
        assert row["decided_at"].utcoffset() == timedelta(0)
    assert {row["reason"] for row in made.rejected} <= set(LabelReason)
    contents = [tuple(row[name] for name in HEADER) for row in made.accepted]
    assert len(set(contents)) == len(contents)


def test_the_order_of_rows_and_files_changes_no_label(make_labels: Callable[[], Labels]) -> None:
    rows = [[f"s-{n}", "genuine", "review", f"2024-09-0{1 + n % 7}T10:00:00Z", "", "", ""] for n in range(9)]
    one, two = make_labels(), make_labels()
    one.csv(*rows)
    two.csv(*reversed(rows[:4]), name="z.csv")
    two.csv(*reversed(rows[4:]), name="b.csv")
    for each in (one, two):
        each.read()
    place = {"manifest": "", "manifest_row": 0}
    assert [row | place for row in one.accepted] == [row | place for row in two.accepted]
