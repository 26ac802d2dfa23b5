"""Ingest and verify of a day exclude each other, so that no row changes while it is sent."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import LeaseLost, PartitionBusy, hold
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from tests.conftest import Landing
from tests.faults import WaitsForTest

DAY = "2024-09-08"
TOKEN = "test-token"
INGEST = [dg.AssetKey(SUBMISSIONS.name), dg.AssetKey(REJECTED_SUBMISSIONS.name)]


def contents(lake: Lake) -> dict[str, str]:
    rows = lake.read(SUBMISSIONS, DAY, ["submission_id", "content_sha256"]).to_pylist()
    return {row["submission_id"]: row["content_sha256"] for row in rows}


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    events: Sequence[Any] = result.filter_events(lambda event: event.is_step_failure)
    return [event.step_failure_data.user_failure_data.description for event in events]


@pytest.fixture
def ingest(instance: dg.DagsterInstance) -> Callable[[Pipeline], list[str]]:
    """Runs the day's ingest through Dagster; returns the descriptions of its failures."""

    def run(pipeline: Pipeline) -> list[str]:
        job = build_defs(pipeline).resolve_job_def("verify_and_publish")
        return failures(
            job.execute_in_process(
                instance=instance, partition_key=DAY, asset_selection=INGEST, raise_on_error=False
            )
        )

    return run


def test_a_changed_manifest_waits_while_its_day_is_verified(
    landing: Landing, settings: Settings, ingest: Callable[[Pipeline], list[str]]
) -> None:
    ids = landing.day(DAY, 3)
    waits = WaitsForTest()
    with running_simulator(token=TOKEN, faults={id_: [waits] for id_ in ids}) as simulator:
        settings = settings.model_copy(update={"deepxl_base_url": simulator.url})
        pipeline = Pipeline(settings)
        assert ingest(pipeline) == []
        before = contents(pipeline.lake)

        def verify() -> None:
            with pipeline.open_ledger() as ledger:
                verify_partition(
                    settings=settings,
                    lake=pipeline.lake,
                    ledger=ledger,
                    date=DAY,
                    run_id="the-other-run",
                    stop=StopFlag(),
                )

        other = threading.Thread(target=verify)
        other.start()
        for _ in ids:
            assert waits.received.acquire(timeout=60)
        # Every submission is delivered again, under its id but with another image.
        landing.manifest(DAY, [landing.submission(id_, 1000 + n) for n, id_ in enumerate(ids)])
        try:
            refused = ingest(pipeline)
        finally:
            waits.go.set()
            other.join()
        assert len(refused) == 1
        assert "is held by run the-other-run" in refused[0]
        assert contents(pipeline.lake) == before
        # Submissions that are paid for do not change.
        assert ingest(pipeline) == []
        assert contents(pipeline.lake) == before
        assert Lake(settings.kyc_lake).row_count(REJECTED_SUBMISSIONS, DAY) == 3
        assert simulator.received.total() == 3


def test_a_day_is_not_verified_while_it_is_ingested(landing: Landing, pipeline: Pipeline) -> None:
    landing.day(DAY, 2)
    with pipeline.day_lease(DAY, "an-ingest") as held:
        ingest_partition(
            landing=pipeline.settings.kyc_landing, lake=pipeline.lake, date=DAY, confirm=held.check
        )
        with pipeline.open_ledger() as ledger, pytest.raises(PartitionBusy, match="an-ingest"):
            verify_partition(
                settings=pipeline.settings,
                lake=pipeline.lake,
                ledger=ledger,
                date=DAY,
                run_id="run",
                stop=StopFlag(),
            )
    assert not pipeline.lake.exists(VERIFICATION_RESPONSES, DAY)


def test_an_ingest_whose_lease_expired_changes_nothing(landing: Landing, pipeline: Pipeline) -> None:
    ids = landing.day(DAY, 2)
    arguments: dict[str, Any] = {"landing": pipeline.settings.kyc_landing, "lake": pipeline.lake, "date": DAY}
    ingest_partition(**arguments)
    before = contents(pipeline.lake)
    landing.manifest(DAY, [landing.submission(id_, 1000 + n) for n, id_ in enumerate(ids)])
    url = pipeline.settings.kyc_ledger_url
    with (
        Ledger(url, lease_seconds=0) as asleep,
        Ledger(url) as ledger,
        hold(asleep, DAY, "an-ingest") as held,
        hold(ledger, DAY, "run"),
        pytest.raises(LeaseLost, match=f"partition {DAY} was taken over"),
    ):
        ingest_partition(**arguments, confirm=held.check)
    assert contents(pipeline.lake) == before
    drafts = [path.name for path in Path(pipeline.settings.kyc_lake).rglob(".draft-*")]
    assert drafts == []
