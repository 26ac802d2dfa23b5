"""Declarative automation of the warehouse: when it is asked for, and how often."""

from datetime import date, timedelta

import dagster as dg
import pytest

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline

WAREHOUSE = dg.AssetKey("warehouse")
ALL = dg.AssetSelection.groups("analyze")
REPORT = dg.AssetSelection.assets("report")
"""It comes with the warehouse, and is left out here: drawing it takes longer than all the rest."""
FIRST = date(2024, 9, 1)


class Daemon:
    """Looks at the conditions as the daemon does, and runs what they ask for."""

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

    def tick(self) -> None:
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=ALL - REPORT,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        keys = [
            spec.key
            for spec in self.definitions.resolve_all_asset_specs()
            if result.get_num_requested(spec.key)
        ]
        if keys:
            assert WAREHOUSE in keys
            assert not set(keys) & set(self.daily)
            assert self.job.execute_in_process(instance=self.instance, asset_selection=keys).success
            self.published += 1

    def backfill_run(self, first: date, last: date) -> None:
        tags = range_tags(first.isoformat(), last.isoformat())
        assert self.job.execute_in_process(
            instance=self.instance, asset_selection=self.daily, tags=tags
        ).success


@pytest.fixture
def daemon(landing, pipeline: Pipeline, instance: dg.DagsterInstance) -> Daemon:
    landing.day(FIRST.isoformat(), 3)
    daemon = Daemon(build_defs(pipeline), instance)
    daemon.tick()
    return daemon


def test_nothing_is_published_before_there_is_something_to_publish(daemon: Daemon) -> None:
    daemon.tick()
    assert daemon.published == 0


def test_a_backfill_publishes_by_the_run_and_not_by_the_day(daemon: Daemon) -> None:
    runs, days = 2, 3
    for run in range(runs):
        start = FIRST + timedelta(days=run * days)
        daemon.backfill_run(start, start + timedelta(days=days - 1))
        daemon.tick()
    for _ in range(2):
        daemon.tick()
    # The daemon of a real instance also waits until no run of the backfill is at work.
    assert 1 <= daemon.published <= runs


def test_what_was_made_before_the_sensor_was_switched_on_is_published(
    landing, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day(FIRST.isoformat(), 3)
    daemon = Daemon(build_defs(pipeline), instance)
    daemon.backfill_run(FIRST, FIRST)
    for _ in range(3):
        daemon.tick()
    assert daemon.published == 1


def test_days_that_come_between_the_same_ticks_as_a_publication_are_published(
    landing, daemon: Daemon
) -> None:
    keys = [*daemon.daily, *daemon.tables]
    assert daemon.job.execute_in_process(
        instance=daemon.instance, partition_key=FIRST.isoformat(), asset_selection=keys
    ).success
    daemon.backfill_run(FIRST + timedelta(days=1), FIRST + timedelta(days=1))
    for _ in range(3):
        daemon.tick()
    assert daemon.published == 1


def test_a_run_that_publishes_by_itself_is_not_published_again(daemon: Daemon) -> None:
    keys = [*daemon.daily, *daemon.tables]
    assert daemon.job.execute_in_process(
        instance=daemon.instance, partition_key=FIRST.isoformat(), asset_selection=keys
    ).success
    for _ in range(3):
        daemon.tick()
    assert daemon.published == 0
