"""The demo's labels: every one is accepted, and most reviewers agree with the verdict."""

from collections import Counter
from datetime import date
from pathlib import Path

from kyc_pipeline.demo.labels import write_labels
from kyc_pipeline.ingest.labels import ingest_labels
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS


def test_labels_of_a_sample(tmp_path: Path) -> None:
    landing, lake = tmp_path / "landing", Lake(str(tmp_path / "lake"))
    file = landing / "labels" / "reviewed.csv"
    reviewed = [(f"s-{number:03d}", 3.5, f"s-{number % 2}", number % 2 == 0) for number in range(200)]
    write_labels(file, reviewed, decided_on=date(2024, 9, 16), seed=1)
    content = file.read_bytes()
    write_labels(file, reviewed, decided_on=date(2024, 9, 16), seed=1)
    assert file.read_bytes() == content, "the same bytes again"
    summary = ingest_labels(landing=landing, lake=lake)
    assert (summary.accepted, summary.rejected_rows) == (200, 0)
    labels = lake.read(LABELS, WHOLE).to_pylist()
    assert {(row["submission_id"], row["weight"], row["stratum"]) for row in labels} == {
        each[:3] for each in reviewed
    }
    of_verified = Counter(row["label"] for row in labels if row["stratum"] == "s-0")
    of_declined = Counter(row["label"] for row in labels if row["stratum"] == "s-1")
    assert of_verified["genuine"] > 80
    assert of_declined["fraud"] > 50
    assert of_declined["genuine"] > 10
    assert all((row["attack"] is not None) == (row["label"] == "fraud") for row in labels)
