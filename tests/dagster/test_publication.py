"""Declarative automation of the warehouse: when it is requested, and how often."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.checks import CheckResult
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.orchestration.assets import analyze as assets
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline
from tests.conftest import Landing
from tests.dagster.conftest import TOKEN, make_settings
from tests.faults import Meanwhile

WAREHOUSE = dg.AssetKey("warehouse")
WATCHED = dg.AssetSelection.assets("rejected_by_reason", "days", WAREHOUSE)
"""A table of what ingest wrote, one of what the calls wrote, and the published file. All tables have the same
condition, and one step builds them: the other forty would show the same, and take most of the time."""
FIRST, NEXT = date(2024, 9, 1), date(2024, 9, 2)


class Daemon:
    """Evaluates the conditions like the daemon, and runs what they request."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self.definitions, self.instance = definitions, instance
        self.job = definitions.resolve_job_def("verify_and_publish")
        self.daily = [
            spec.key for spec in definitions.resolve_all_asset_specs() if spec.partitions_def is not None
        ]
        self.tables = [
            spec.key
            for spec in definitions.resolve_all_asset_specs()
            if spec.partitions_def is None and spec.key != dg.AssetKey("report")
        ]
        self.cursor: dg.AutomationCursor | None = None
        self.published = 0

    def requests(self) -> bool:
        """Whether the conditions request a publication now."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=WATCHED,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        assert result.get_num_requested(WAREHOUSE) == bool(result.total_requested)
        return bool(result.total_requested)

    def tick(self) -> None:
        if self.requests():
            self.publish()
            self.published += 1

    def publish(self) -> None:
        """Like the sensor, with its tags."""
        tags = {"kyc/trigger": "publish_when_new"}
        assert self.job.execute_in_process(
            instance=self.instance, asset_selection=self.tables, tags=tags
        ).success

    def run_all(self, day: date) -> None:
        """A run of the whole job, which publishes too."""
        keys = [*self.daily, *self.tables]
        assert self.job.execute_in_process(
            instance=self.instance, partition_key=day.isoformat(), asset_selection=keys
        ).success

    def backfill_run(self, first: date, last: date) -> None:
        tags = range_tags(first.isoformat(), last.isoformat())
        assert self.job.execute_in_process(
            instance=self.instance, asset_selection=self.daily, tags=tags
        ).success


@pytest.fixture
def daemon(landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance) -> Daemon:
    landing.day(FIRST.isoformat(), 3)
    daemon = Daemon(build_defs(pipeline), instance)
    daemon.tick()
    return daemon


def test_a_backfill_publishes_at_most_once_per_run(daemon: Daemon) -> None:
    assert not daemon.requests(), "there is no data yet"
    runs, days = 2, 2
    for run in range(runs):
        start = FIRST + timedelta(days=run * days)
        daemon.backfill_run(start, start + timedelta(days=days - 1))
        daemon.tick()
    for _ in range(2):
        daemon.tick()
    # A real daemon also waits until no run of the backfill is in progress.
    assert 1 <= daemon.published <= runs


def test_data_from_before_the_sensor_was_switched_on_is_published(
    landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day(FIRST.isoformat(), 3)
    daemon = Daemon(build_defs(pipeline), instance)
    daemon.backfill_run(FIRST, FIRST)
    assert daemon.requests()


def test_a_run_that_publishes_is_not_published_again_but_what_comes_after_it_is(daemon: Daemon) -> None:
    daemon.run_all(FIRST)
    daemon.backfill_run(NEXT, NEXT)
    assert Daemon(daemon.definitions, daemon.instance).requests(), "a sensor that is switched on now"
    assert daemon.requests(), "a day that arrived between the same ticks as the publication"
    daemon.run_all(NEXT)
    assert not any(daemon.requests() for _ in range(3))


def test_days_that_arrive_during_a_publication_are_published(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They arrive when the build has read the lake, and the daemon sees them before the build ends."""
    daemon.backfill_run(FIRST, FIRST)
    during: list[bool] = []

    def more() -> None:
        daemon.backfill_run(NEXT, NEXT)
        during.append(daemon.requests())

    def check_after_more(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
        monkeypatch.undo()
        with ThreadPoolExecutor(1) as thread:  # a run in a step of another run has no context of its own
            thread.submit(more).result()
        return check_build(connection)

    monkeypatch.setattr(assets, "check_build", check_after_more)
    daemon.tick()
    assert (daemon.published, during) == (1, [False])
    assert [daemon.requests() for _ in range(3)].count(True) == 1


def test_nothing_is_published_while_a_run_waits_for_its_calls(
    landing: Landing, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    """Once its days are ingested, tables that depend on `submissions` alone could be built."""
    first, *_ = landing.day(FIRST.isoformat(), 3)
    daemon: Daemon
    during: list[bool] = []

    def look_in_a_thread() -> None:
        with ThreadPoolExecutor(1) as thread:  # the simulator's own has an event loop
            during.append(thread.submit(daemon.requests).result())

    with running_simulator(token=TOKEN, faults={first: [Meanwhile(look_in_a_thread)]}) as simulator:
        daemon = Daemon(build_defs(Pipeline(make_settings(tmp_path, simulator.url))), instance)
        daemon.tick()
        daemon.backfill_run(FIRST, FIRST)
    assert during == [False]
    assert daemon.requests()


def test_a_later_run_that_fails_before_its_checks_blocks_nothing(landing: Landing, daemon: Daemon) -> None:
    daemon.backfill_run(FIRST, FIRST)
    folder = landing.root / "manifests" / NEXT.isoformat()
    folder.mkdir(parents=True)
    (folder / "bad.csv").write_text("not,a,manifest\n1,2,3\n")
    failed = daemon.job.execute_in_process(
        instance=daemon.instance,
        asset_selection=daemon.daily,
        partition_key=NEXT.isoformat(),
        raise_on_error=False,
    )
    assert not failed.success
    assert daemon.requests()
