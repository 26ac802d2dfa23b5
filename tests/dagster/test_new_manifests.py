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
from tests.conftest import Landing

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
INGEST = [dg.AssetKey(SUBMISSIONS.name), dg.AssetKey(REJECTED_SUBMISSIONS.name)]


class House:
    """The sensor, and the part of the job that its requests are about."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.pipeline = pipeline
        self.instance = instance
        self.definitions = build_defs(pipeline)
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
def house(pipeline: Pipeline, instance: dg.DagsterInstance) -> House:
    return House(pipeline, instance)


def test_a_former_version_of_a_manifest_is_a_run_again(landing: Landing, house: House) -> None:
    versions = {"A": [landing.submission("a", 1)], "B": [landing.submission("b", 3)]}
    keys = []
    for version in "ABABA":
        landing.manifest(DAY, versions[version])
        keys.append(house.requests()[DAY])
        assert house.ingest(DAY)
        assert house.ids(DAY) == [version.lower()]
        assert house.requests() == {}
    assert len(set(keys)) == 5  # Dagster ignores a run key that it knows


def test_the_request_waits_for_the_run_that_works_on_the_day(landing: Landing, house: House) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 1)
        assert house.ingest(day)
    for key, tags, waits in (
        ("x", {"dagster/partition": DAY}, True),
        ("y", range_tags("2024-09-01", DAY), True),
        ("z", {"dagster/partition": NEXT_DAY}, False),
    ):
        status = dg.DagsterRunStatus.STARTED
        run = house.instance.add_run(dg.DagsterRun("verify_and_publish", status=status, tags=tags))
        landing.manifest(DAY, [landing.submission(key, 50)], name=f"{key}.jsonl")
        assert (DAY not in house.requests()) == waits
        house.instance.delete_run(run.run_id)
        if waits:
            assert [request.partition_key for request in house.tick()] == [DAY]
        assert house.ingest(DAY)


def test_today_does_not_wait_for_a_queued_backfill(landing: Landing, house: House) -> None:
    queued = dg.DagsterRun(
        "verify_and_publish",
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags={"dagster/backfill": "big", **range_tags("2024-09-01", DAY)},
    )
    house.instance.add_run(queued)
    landing.day(DAY, 1)
    assert set(house.requests()) == {DAY}


def test_a_day_whose_run_failed_is_requested_again_later(
    landing: Landing, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing.day(DAY, 1)
    first = house.requests()[DAY]
    with house.pipeline.day_lease(DAY, "a command line elsewhere"):
        assert not house.ingest(DAY)
    assert house.requests() == {}  # not at once
    monkeypatch.setattr(new_manifests, "ASK_AGAIN_SECONDS", 0)
    again = house.requests()[DAY]
    assert again != first
    assert house.ingest(DAY)
    assert house.requests() == {}


def test_the_waits_between_requests_grow_up_to_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000
    monkeypatch.setattr(time, "time", lambda: now)
    seen = new_manifests.Seen("s", "i").in_state("v1")
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


def test_a_day_is_requested_when_another_gives_up_its_id(landing: Landing, house: House) -> None:
    row = landing.submission("moved", 1)
    for day in (DAY, NEXT_DAY):
        landing.manifest(day, [row])
        assert house.ingest(day)
    assert house.requests() == {}
    landing.manifest(DAY, [])
    assert set(house.requests()) == {DAY}
    assert house.ingest(DAY)
    assert set(house.requests()) == {NEXT_DAY}
    assert house.ingest(NEXT_DAY)
    assert house.ids(NEXT_DAY) == ["moved"]
    assert house.requests() == {}


def test_a_sensor_without_a_cursor_requests_no_day_that_is_ingested(landing: Landing, house: House) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 1)
    assert house.ingest(DAY)
    assert set(house.requests()) == {NEXT_DAY}


def test_an_emptied_landing_zone_requests_nothing_and_says_so(landing: Landing, house: House) -> None:
    landing.day(DAY, 1)
    assert house.ingest(DAY)
    house.requests()
    before = house.cursor
    (landing.root / "manifests").rename(landing.root.with_name("unmounted"))
    assert house.requests() == {}
    assert house.cursor == before
    assert not house.ingest(DAY)
    assert len(house.ids(DAY)) == 1
