"""Labels are erased with the person, do not come back, and are part of the export."""

from typing import Any

from click.testing import CliRunner

from kyc_pipeline.cli.rejected import rejected as command
from kyc_pipeline.erasure.export import export
from kyc_pipeline.lake.storage import WHOLE
from kyc_pipeline.lake.tables import LABELS, REJECTED_LABELS
from tests.unit.erasure.deployment import Deployment
from tests.unit.erasure.test_erasure import MARK, PERSON, fill

ROWS = [
    "submission_id,label,source,decided_at,attack,weight,stratum",
    f"{MARK}-0,fraud,chargeback,2024-10-01T10:00:00Z,presentation,,",
    "a-0,genuine,review,2024-10-01T10:00:00Z,,4,s1",
    f"{MARK}-2,unsure,review,2024-10-01T10:00:00Z,,4,s1",
    "a-1,genuine,review,nonsense,,,",
]
UNKNOWN = f"{MARK}-unknown"


def deliver(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    folder = deployment.root / "landing" / "labels"
    folder.mkdir()
    (folder / "a.csv").write_text("\n".join(ROWS), encoding="utf-8")
    assert deployment.ingest_labels().accepted == 3


def test_nothing_of_a_label_is_left(landing: Any, deployment: Deployment) -> None:
    deliver(landing, deployment)
    assert any("labels" in place for place in deployment.places_with(MARK))
    found = deployment.find(*PERSON)
    assert (found.rows[LABELS], found.manifest_rows, len(found.manifests)) == (2, 5, 3)

    deployment.erase(*PERSON)

    assert deployment.places_with(MARK) == []
    lake = deployment.lake
    assert lake.read(LABELS, WHOLE)["submission_id"].to_pylist() == ["a-0"]
    reasons = lake.read(REJECTED_LABELS, WHOLE).select(["manifest_row", "reason"]).to_pylist()
    expected = [(1, "erased_subject"), (3, "erased_subject"), (4, "invalid_decided_at")]
    assert [(row["manifest_row"], row["reason"]) for row in reasons] == expected

    before = deployment.rows()
    assert deployment.ingest_labels().accepted == 1
    assert deployment.rows() == before, "reading again gives what the erasure made"


def test_a_label_of_a_submission_that_never_came(landing: Any, deployment: Deployment) -> None:
    deliver(landing, deployment)
    path = deployment.root / "landing" / "labels" / "b.csv"
    path.write_text("\n".join([ROWS[0], ROWS[1].replace(f"{MARK}-0", UNKNOWN)]), encoding="utf-8")
    deployment.ingest_labels()
    found = deployment.find("submissionId", UNKNOWN)
    assert found.is_known
    assert found.rows == {LABELS: 1}
    deployment.erase("submissionId", UNKNOWN)
    assert deployment.places_with(UNKNOWN) == []
    assert not deployment.find("submissionId", UNKNOWN).is_stored


def test_the_export_has_the_persons_labels(landing: Any, deployment: Deployment) -> None:
    deliver(landing, deployment)
    exported = export(deployment.stores, deployment.find(*PERSON))
    assert [(row["submission_id"], row["label"]) for row in exported["lake"]["labels"]] == [
        (f"{MARK}-0", "fraud"),
        (f"{MARK}-2", "unsure"),
    ]
    delivered = [(row["date"], row["manifest"], row["row"]) for row in exported["landing"]]
    assert delivered[-2:] == [("labels", "a.csv", 1), ("labels", "a.csv", 3)]
    assert "'a-0'" not in str(exported)


def test_rejected_labels_are_listed_without_data(
    landing: Any, deployment: Deployment, monkeypatch: Any
) -> None:
    deliver(landing, deployment)
    monkeypatch.setenv("KYC_LAKE", deployment.settings.kyc_lake)
    listed = CliRunner().invoke(command)
    assert listed.output.splitlines()[-1].split() == ["labels", "a.csv", "4", "invalid_decided_at"]
    assert MARK not in listed.output
    assert "nonsense" not in listed.output
