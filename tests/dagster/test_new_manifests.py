"""The sensor `new_manifests` requests a day until it is ingested, and then no more."""

import time
from typing import Any

import dagster as dg
import pytest

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.orchestration import new_manifests
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import DocumentType
from tests.conftest import Landing

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
INGEST = [dg.AssetKey(SUBMISSIONS.name), dg.AssetKey(REJECTED_SUBMISSIONS.name)]


class Deployment:
    """The sensor, and the part of the job that its requests are about."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.pipeline = pipeline
        self.instance = instance
        self.definitions = build_defs(pipeline, publication=False)
        self.cursor: str | None = None

    def tick(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.definitions.get_repository_def(),
            resources=self.definitions.resources,
        )
        data = self.definitions.resolve_sensor_def("new_manifests").evaluate_tick(context)
        self.cursor = data.cursor
        return list(data.run_requests or [])

    def requests(self) -> dict[str, str]:
        """The run keys, by day, of the two ticks that it takes to see that files are complete."""
        return {str(r.partition_key): str(r.run_key) for r in [*self.tick(), *self.tick()]}

    def ingest(self, day: str) -> bool:
        job = self.definitions.resolve_job_def("verify_and_publish")
        return job.execute_in_process(
            instance=self.instance, partition_key=day, asset_selection=INGEST, raise_on_error=False
        ).success

    def ids(self, day: str) -> list[str]:
        found: list[Any] = self.pipeline.lake.read(SUBMISSIONS, day)["submission_id"].to_pylist()
        return found


@pytest.fixture
def deployment(pipeline: Pipeline, instance: dg.DagsterInstance) -> Deployment:
    return Deployment(pipeline, instance)


def test_a_former_version_of_a_manifest_is_a_run_again(landing: Landing, deployment: Deployment) -> None:
    versions = {"A": [landing.submission("a", 1)], "B": [landing.submission("b", 3)]}
    keys = []
    for version in "ABAB":
        landing.manifest(DAY, versions[version])
        keys.append(deployment.requests()[DAY])
        assert deployment.ingest(DAY)
        assert deployment.ids(DAY) == [version.lower()]
        assert deployment.requests() == {}
    assert len(set(keys)) == 4  # Dagster ignores a run key that it knows: B follows A twice


def test_the_request_waits_for_the_run_that_works_on_the_day(
    landing: Landing, deployment: Deployment
) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 1)
        assert deployment.ingest(day)
    for key, tags, waits in (
        ("x", {"dagster/partition": DAY}, True),
        ("y", range_tags("2024-09-01", DAY), True),
        ("z", {"dagster/partition": NEXT_DAY}, False),
    ):
        status = dg.DagsterRunStatus.STARTED
        run = deployment.instance.add_run(dg.DagsterRun("verify_and_publish", status=status, tags=tags))
        landing.manifest(DAY, [landing.submission(key, 50)], name=f"{key}.jsonl")
        assert (DAY not in deployment.requests()) == waits
        deployment.instance.delete_run(run.run_id)
        if waits:
            assert [request.partition_key for request in deployment.tick()] == [DAY]
        assert deployment.ingest(DAY)


def test_today_does_not_wait_for_a_queued_backfill(landing: Landing, deployment: Deployment) -> None:
    queued = dg.DagsterRun(
        "verify_and_publish",
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags={"dagster/backfill": "big", **range_tags("2024-09-01", DAY)},
    )
    deployment.instance.add_run(queued)
    landing.day(DAY, 1)
    assert set(deployment.requests()) == {DAY}


def test_a_day_whose_run_failed_is_requested_again_later(
    landing: Landing, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing.day(DAY, 1)
    first = deployment.requests()[DAY]
    with deployment.pipeline.day_lease(DAY, "a command line elsewhere"):
        assert not deployment.ingest(DAY)
    assert deployment.requests() == {}  # not at once
    monkeypatch.setattr(new_manifests, "ASK_AGAIN_SECONDS", 0)
    again = deployment.requests()[DAY]
    assert again != first
    assert deployment.ingest(DAY)
    assert deployment.requests() == {}


def test_the_waits_between_requests_grow_up_to_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000
    monkeypatch.setattr(time, "time", lambda: now)
    seen = new_manifests.KnownDay("s", "i").in_state("v1")
    waits: list[int] = []
    while len(waits) < 20:
        seen, before = seen.requested(), now
        while not seen.is_due:
            now += 60
        waits.append(now - before)
    assert waits[:5] == [60, 120, 240, 480, 960]
    assert waits[-1] == 86_400
    assert seen.in_state("v1") == seen
    assert seen.in_state("v2").requests == 0


def test_a_day_is_requested_when_another_gives_up_its_id(landing: Landing, deployment: Deployment) -> None:
    row = landing.submission("moved", 1)
    for day in (DAY, NEXT_DAY):
        landing.manifest(day, [row])
        assert deployment.ingest(day)
    assert deployment.requests() == {}
    landing.manifest(DAY, [])
    assert set(deployment.requests()) == {DAY}
    assert deployment.ingest(DAY)
    assert set(deployment.requests()) == {NEXT_DAY}
    assert deployment.ingest(NEXT_DAY)
    assert deployment.ids(NEXT_DAY) == ["moved"]
    assert deployment.requests() == {}


def test_a_changed_setting_about_its_files_is_a_run_again(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance
) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 1)
    row = landing.submission("heic", 5)
    landing.document("heic-id.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    landing.manifest(DAY, [row], name="more.jsonl")
    before = Deployment(Pipeline(settings), instance)
    assert all(map(before.ingest, (DAY, NEXT_DAY)))
    assert before.requests() == {}
    changed = settings.model_copy(update={"deepxl_document_types": frozenset(DocumentType)})
    after = Deployment(Pipeline(changed), instance)
    after.cursor = before.cursor
    assert set(after.requests()) == {DAY}
    assert after.ingest(DAY)
    assert "heic" in after.ids(DAY)
    assert after.requests() == {}


def test_a_sensor_without_a_cursor_requests_no_day_that_is_ingested(
    landing: Landing, deployment: Deployment
) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 1)
    assert deployment.ingest(DAY)
    assert set(deployment.requests()) == {NEXT_DAY}


def test_an_emptied_landing_zone_requests_nothing_and_says_so(
    landing: Landing, deployment: Deployment
) -> None:
    landing.day(DAY, 1)
    assert deployment.ingest(DAY)
    deployment.requests()
    before = deployment.cursor
    (landing.root / "manifests").rename(landing.root.with_name("unmounted"))
    assert deployment.requests() == {}
    assert deployment.cursor == before
    assert not deployment.ingest(DAY)
    assert len(deployment.ids(DAY)) == 1
