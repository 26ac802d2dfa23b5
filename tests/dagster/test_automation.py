"""Schedules and sensors: which runs they request, and when they request none."""

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502, Responds
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import UsageError
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.ingest.manifests import ingest_partition, stray_line
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.ledger.decisions import resolve_held
from kyc_pipeline.orchestration.catch_up import contiguous_ranges, due_days, ingested_by
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.partition import write_responses
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.vocabulary import RANGE_END_TAG, RANGE_START_TAG
from tests.conftest import Landing
from tests.dagster.conftest import DAILY

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"


@pytest.fixture
def definitions(pipeline: Pipeline) -> dg.Definitions:
    return build_defs(pipeline, publication=False)


# What is due depends on the stores only. The stages write them in a fraction of the time of a run of Dagster.


def ingest(pipeline: Pipeline, day: str) -> None:
    with pipeline.day_lease(day, "run") as held:
        owners = Owners(pipeline.lake, held.ledger, held)
        ingest_partition(landing=pipeline.settings.kyc_landing, lake=pipeline.lake, date=day, owners=owners)


def verify(pipeline: Pipeline, day: str) -> None:
    with pipeline.open_ledger() as ledger:
        verify_partition(
            settings=pipeline.settings,
            lake=pipeline.lake,
            ledger=ledger,
            date=day,
            run_id="run",
            stop=StopFlag(),
            timing=Timing(look_ups=(0.0,)),
        )


def flatten(pipeline: Pipeline, day: str) -> None:
    flatten_partition(pipeline.lake, day, pipeline.pseudonymizer, pipeline.settings.kyc_clear_tags)


def run_days(pipeline: Pipeline, *days: str) -> None:
    for stage in (ingest, verify, flatten):
        for day in days:
            stage(pipeline, day)


def tick(definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    sensor = definitions.resolve_sensor_def("new_manifests")
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        repository_def=definitions.get_repository_def(),
        resources=definitions.resources,
    )
    return sensor.evaluate_tick(context)


def test_a_manifest_starts_one_run_when_it_is_stable(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    first = tick(definitions, instance)
    assert not first.run_requests
    second = tick(definitions, instance, first.cursor)
    assert [request.partition_key for request in second.run_requests or []] == [DAY]
    assert not tick(definitions, instance, second.cursor).run_requests


def tick_twice(
    definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None = None
) -> tuple[list[str], str]:
    """Two ticks: the requested run keys, and the cursor."""
    first = tick(definitions, instance, cursor)
    second = tick(definitions, instance, first.cursor)
    requests = [*(first.run_requests or []), *(second.run_requests or [])]
    return [str(request.run_key) for request in requests], str(second.cursor)


def test_a_changed_manifest_starts_a_run_with_another_key(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    [before], cursor = tick_twice(definitions, instance)
    landing.day(DAY, 2)
    [after], _ = tick_twice(definitions, instance, cursor)
    assert before != after
    assert after.startswith(DAY)


def test_an_identical_redelivery_has_the_run_key_of_the_first(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    [before], cursor = tick_twice(definitions, instance)
    manifest = landing.root / "manifests" / DAY / "m.jsonl"
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(content)
    # Dagster ignores a run key that it has seen.
    assert set(tick_twice(definitions, instance, cursor)[0]) <= {before}


def test_a_future_day_waits_and_blocks_no_other(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    landing.day("2999-01-01", 1)
    [key], cursor = tick_twice(definitions, instance)
    assert key.startswith(DAY)
    assert set(json.loads(cursor)) == {DAY}


def unreadable_manifest(landing: Landing, day: str, name: str = "m.jsonl") -> Path:
    """A manifest that exists but fails every read with an I/O error."""
    manifest = landing.root / "manifests" / day / name
    manifest.parent.mkdir(exist_ok=True)
    manifest.symlink_to("/proc/self/mem")
    return manifest


def test_an_unreadable_manifest_fails_its_run_and_blocks_no_other(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(NEXT_DAY, 1)
    manifest = unreadable_manifest(landing, DAY)
    keys, cursor = tick_twice(definitions, instance)
    assert {key.partition(":")[0] for key in keys} == {DAY, NEXT_DAY}
    # Dagster starts one run for the broken day: the key changes only when the files change.
    [broken] = {key for key in keys if key.startswith(DAY)}
    again, cursor = tick_twice(definitions, instance, cursor)
    assert set(again) == {broken}
    job = definitions.resolve_job_def("verify_and_publish")
    failed = job.execute_in_process(instance=instance, partition_key=DAY, raise_on_error=False)
    assert not failed.success
    manifest.unlink()
    landing.day(DAY, 1)
    assert broken not in tick_twice(definitions, instance, cursor)[0]


def test_the_skip_message_counts_folders_that_are_never_read(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    for name in ("Jane Doe", "2204-09-01"):
        (landing.root / "manifests" / name).mkdir()
    message = tick(definitions, instance).skip_message or ""
    assert stray_line(2) in message
    assert "Jane" not in message


def test_a_missing_landing_zone_requests_nothing_and_keeps_the_cursor(
    landing: Landing, definitions: dg.Definitions, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    _, cursor = tick_twice(definitions, instance)
    away = landing.root.rename(landing.root.with_name("not-mounted"))
    missing = tick(definitions, instance, cursor)
    assert "KYC_LANDING" in (missing.skip_message or "")
    assert missing.cursor == cursor
    with pytest.raises(UsageError, match="KYC_LANDING"):
        due_days(pipeline, until=date(2024, 9, 9))
    away.rename(landing.root)
    assert not tick_twice(definitions, instance, missing.cursor)[0]


def test_runs_for_new_manifests_have_priority_over_a_backfill(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    cursor = tick(definitions, instance).cursor
    [request] = tick(definitions, instance, cursor).run_requests or []
    assert int(request.tags["dagster/priority"]) > 0


def test_the_cursor_is_short_and_contains_no_file_names(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    _, cursor = tick_twice(definitions, instance)
    assert set(json.loads(cursor)) == {DAY}
    assert "m.jsonl" not in cursor


def test_the_daily_schedule_requests_yesterday(
    definitions: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    schedule = definitions.resolve_schedule_def("daily_verification")
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2024, 9, 9, 1, 15, tzinfo=UTC),
        repository_def=definitions.get_repository_def(),
    )
    [request] = schedule.evaluate_tick(context).run_requests or []
    assert request.partition_key == DAY


def test_missing_changed_and_incomplete_days_are_due(
    landing: Landing, definitions: dg.Definitions, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 4)
    landing.day(NEXT_DAY, 1)
    until = datetime(2024, 9, 9, tzinfo=UTC).date()

    def due() -> list[str]:
        return due_days(pipeline, until=until).days

    assert due() == [DAY, NEXT_DAY]
    job = definitions.resolve_job_def("verify_and_publish")
    job.execute_in_process(instance=instance, tags=range_tags(DAY, NEXT_DAY), asset_selection=DAILY)
    assert due() == []
    landing.manifest(NEXT_DAY, [landing.submission("later", 5)], name="more.jsonl")
    assert due() == [NEXT_DAY]
    landing.day("2024-09-07", 2)
    job.execute_in_process(
        instance=instance,
        partition_key="2024-09-07",
        asset_selection=DAILY,
        run_config={"ops": {"verify": {"config": {"max_calls": 1}}}},
    )
    assert due() == ["2024-09-07", NEXT_DAY]


def test_days_whose_files_were_missing_are_due(landing: Landing, pipeline: Pipeline) -> None:
    row = landing.submission("late", 1)
    selfie = landing.root / "documents" / str(row["selfie_file"])
    content = selfie.read_bytes()
    selfie.unlink()
    landing.manifest(DAY, [row])
    until = date(2024, 9, 9)
    run_days(pipeline, DAY)
    assert due_days(pipeline, until=until).days == [DAY]
    selfie.write_bytes(content)
    run_days(pipeline, DAY)
    assert due_days(pipeline, until=until).days == []


def test_a_decision_makes_its_day_due_whatever_its_age_and_without_its_manifests(
    landing: Landing, settings: Settings
) -> None:
    days = {"2024-09-01": "old", DAY: "archived"}
    for day, key in days.items():
        landing.manifest(day, [landing.submission(key, 1)])
    landing.day(NEXT_DAY, 1)
    faults = {key: [HTML_502] for key in days.values()}
    with running_simulator(token="test-token", faults=faults) as simulator:
        changed = settings.model_copy(update={"deepxl_base_url": simulator.url, "kyc_catch_up_days": 2})
        pipeline = Pipeline(changed)
        run_days(pipeline, *days, NEXT_DAY)
        assert due_days(pipeline, until=date(2024, 9, 9)).days == [], "somebody must decide first"
        shutil.rmtree(landing.root / "manifests" / DAY)
        with pipeline.open_ledger() as ledger:
            for key in days.values():
                resolve_held(ledger, key, "retry", "an engineer")
        # The policy concerns days of the window only.
        for policy in ("hold", "retry"):
            pipeline.settings = changed.model_copy(update={"deepxl_uncertain": policy})
            assert due_days(pipeline, until=date(2024, 9, 9)).days == list(days)
        assert due_days(pipeline, until=date(2024, 9, 7)).days == ["2024-09-01"]
        run_days(pipeline, *days, NEXT_DAY)
        assert simulator.received["archived"] == 2
        assert due_days(pipeline, until=date(2024, 9, 9)).days == []


def test_a_day_with_a_withdrawn_submission_to_look_up_is_due(landing: Landing, settings: Settings) -> None:
    [key] = landing.day(DAY, 1)
    landing.day(NEXT_DAY, 1)
    with running_simulator(token="test-token", faults={key: [Responds(503)]}) as simulator:
        changed = settings.model_copy(update={"deepxl_base_url": simulator.url, "deepxl_max_attempts": 1})
        pipeline = Pipeline(changed)

        def due_after_run() -> list[str]:
            run_days(pipeline, DAY, NEXT_DAY)
            return due_days(pipeline, until=date(2024, 9, 9)).days

        assert due_after_run() == [DAY]
        shutil.rmtree(landing.root / "manifests" / DAY)
        simulator.lookup = Responds(500)
        assert due_after_run() == [DAY]
        simulator.lookup = None
        assert due_after_run() == []
        assert simulator.received[key] == 1


def test_days_with_a_corrupt_table_are_due(landing: Landing, pipeline: Pipeline) -> None:
    landing.day(DAY, 1)
    run_days(pipeline, DAY)
    assert due_days(pipeline, until=date(2024, 9, 9)).days == []
    Path(pipeline.lake.path(VERIFICATION_RESPONSES, DAY)).write_bytes(b"not parquet")
    assert due_days(pipeline, until=date(2024, 9, 9)).days == [DAY]


def test_days_that_a_killed_run_left_between_two_stages_are_due(landing: Landing, pipeline: Pipeline) -> None:
    landing.day(DAY, 2)

    def due() -> list[str]:
        return due_days(pipeline, until=date(2024, 9, 9)).days

    run_days(pipeline, DAY)
    assert due() == []
    landing.manifest(DAY, [landing.submission("later", 50)], name="more.jsonl")
    ingest(pipeline, DAY)
    assert due() == [DAY]  # `later` was not sent
    verify(pipeline, DAY)
    assert due() == [DAY]  # its response is not flattened
    flatten(pipeline, DAY)
    assert due() == []
    with pipeline.open_ledger() as ledger:  # the engine's state before the first call
        write_responses(pipeline.lake, ledger, DAY, ResponsesState.DISPATCHING, "hold")
    assert due() == [DAY]


def catch_up_requests(
    definitions: dg.Definitions, pipeline: Pipeline, instance: dg.DagsterInstance
) -> list[dg.RunRequest]:
    schedule = definitions.resolve_schedule_def("catch_up")
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2024, 9, 9, 3, 45, tzinfo=UTC),
        resources={"pipeline": pipeline},
        repository_def=definitions.get_repository_def(),
    )
    return list(schedule.evaluate_tick(context).run_requests or [])


def test_catch_up_requests_a_run_of_its_own_for_an_unreadable_day_once(
    landing: Landing, definitions: dg.Definitions, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day("2024-09-07", 1)
    unreadable_manifest(landing, DAY)
    good, broken = catch_up_requests(definitions, pipeline, instance)
    assert good.tags[RANGE_START_TAG] == good.tags[RANGE_END_TAG] == "2024-09-07"
    assert broken.partition_key == DAY
    # Dagster ignores a run key that it has seen.
    assert catch_up_requests(definitions, pipeline, instance)[1].run_key == broken.run_key


def test_catch_up_requests_a_run_per_range(
    landing: Landing, definitions: dg.Definitions, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    for day in ("2024-09-05", "2024-09-07", DAY):
        landing.day(day, 1)
    requests = catch_up_requests(definitions, pipeline, instance)
    assert [
        {key: value for key, value in request.tags.items() if key.startswith("dagster/asset_partition")}
        for request in requests
    ] == [range_tags("2024-09-05", "2024-09-05"), range_tags("2024-09-07", DAY)]


@given(st.sets(st.dates(min_value=datetime(2024, 1, 1).date(), max_value=datetime(2024, 3, 1).date())))
def test_ranges_cover_exactly_the_days(days: set[date]) -> None:
    ordered = sorted(day.isoformat() for day in days)
    covered = [
        day.isoformat()
        for first, last in contiguous_ranges(ordered)
        for day in (
            datetime.fromordinal(n).date()
            for n in range(
                datetime.fromisoformat(first).toordinal(), datetime.fromisoformat(last).toordinal() + 1
            )
        )
    ]
    assert covered == ordered


def test_a_day_with_a_bad_manifest_does_not_block_the_others_of_its_run(
    landing: Landing,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    simulator: Simulator,
    pipeline: Pipeline,
) -> None:
    landing.day(DAY, 2)
    landing.manifest("2024-09-10", [landing.submission("third", 90)])
    bad = landing.root / "manifests" / NEXT_DAY / "bad.csv"
    bad.parent.mkdir()
    bad.write_text("name,photo\nx,y\n")
    job = definitions.resolve_job_def("verify_and_publish")
    failed = job.execute_in_process(
        instance=instance, tags=range_tags(DAY, "2024-09-10"), raise_on_error=False
    )
    assert not failed.success
    assert not simulator.received

    def requests(run: dg.ExecuteInProcessResult) -> list[dg.RunRequest]:
        context = dg.build_run_status_sensor_context(
            sensor_name="run_left_behind",
            dagster_event=run.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=run.dagster_run,
            resources={"pipeline": pipeline},
        ).for_run_failure()
        sensor = definitions.resolve_sensor_def("run_left_behind")
        return [request for request in cast(Any, sensor(context)) if isinstance(request, dg.RunRequest)]

    requested = requests(failed)
    assert [(request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) for request in requested] == [
        (DAY, DAY),
        ("2024-09-10", "2024-09-10"),
    ]
    for request in requested:
        assert job.execute_in_process(instance=instance, tags=request.tags, asset_selection=DAILY).success
    assert simulator.received.total() == 3
    assert not requests(failed)


def test_a_run_that_ingested_nothing_leaves_no_days_behind(
    landing: Landing, definitions: dg.Definitions, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    landing.day(NEXT_DAY, 1)
    job = definitions.resolve_job_def("verify_and_publish")
    with pipeline.day_lease(DAY, "another run"), pipeline.day_lease(NEXT_DAY, "another run"):
        failed = job.execute_in_process(
            instance=instance, tags=range_tags(DAY, NEXT_DAY), raise_on_error=False
        )
    assert not failed.success
    assert ingested_by(instance, failed.run_id) == []
