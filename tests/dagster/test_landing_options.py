"""What the settings say about files of the landing zone holds for plan, run and erasure alike."""

import dagster as dg

from kyc_pipeline.cli.plan import plan_days
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.erasure.find import find
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import DocumentType
from tests.conftest import Landing

DAY = "2024-09-08"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def test_a_code_page_and_heic(landing: Landing, settings: Settings, instance: dg.DagsterInstance) -> None:
    landing.manifest(DAY, [landing.submission("A1", 1)])
    landing.document("A1-selfie.jpg", HEIC)
    manifest = landing.root / "manifests" / DAY / "ansi.csv"
    text = "submission_id,id_file,selfie_file,tag.customerId\nA2,A1-id.jpg,A1-selfie.jpg,Müller\n"
    manifest.write_text(text, encoding="cp1252")
    types = frozenset(DocumentType)
    changes = {"kyc_csv_encoding": "windows-1252", "deepxl_document_types": types}
    pipeline = Pipeline(settings.model_copy(update=changes))

    plans, unreadable = plan_days(pipeline, [DAY])
    assert (unreadable, plans[0].submissions, plans[0].rejected.total()) == ({}, 2, 0)

    job = build_defs(pipeline).resolve_job_def("verify_and_publish")
    tables = [dg.AssetKey(SUBMISSIONS.name), dg.AssetKey(REJECTED_SUBMISSIONS.name)]
    job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=tables)
    assert pipeline.lake.read(SUBMISSIONS, DAY)["submission_id"].to_pylist() == ["A1", "A2"]

    with pipeline.open_ledger() as ledger:
        found = find(Stores.of(pipeline.settings, ledger, pipeline.pseudonymizer), "customerId", "Müller")
    assert found.manifests == {(DAY, "ansi.csv")}
