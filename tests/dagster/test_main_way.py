"""The main path: whole runs through Dagster, against the simulator over HTTP."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from aiohttp import web

from kyc_pipeline.analyze.build import build
from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
)
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests.conftest import Landing
from tests.dagster.conftest import DAILY

FIXTURES = Path(__file__).parents[1] / "fixtures"
DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
TAGS = {"customerId": "9999", "customerName": "Jane Roe", "companyId": "COMP-001"}


def materialized(instance: dg.DagsterInstance, asset: str) -> set[str]:
    return instance.get_materialized_partitions(dg.AssetKey(asset))


def test_a_day_becomes_a_warehouse_and_a_second_run_makes_no_call(
    landing: Landing,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    settings: Settings,
    simulator: Simulator,
) -> None:
    ids = landing.day(DAY, 12, lambda n: TAGS | {"customerId": str(n)})
    config = {"ops": {"verify": {"config": {"price_per_call": 0.25}}}}
    assert job.execute_in_process(instance=instance, partition_key=DAY, run_config=config).success
    assert simulator.received == Counter(ids)
    lake = Lake(settings.kyc_lake)
    table = lake.read(VERIFICATION_RESPONSES, DAY)
    responses = table.to_pylist()
    assert [row["submission_id"] for row in responses] == ids
    assert {row["outcome"] for row in responses} == {"completed"}
    assert lake.row_count(VERIFICATIONS, DAY) == 12
    with duckdb.connect(str(settings.kyc_warehouse), read_only=True) as warehouse:
        funnel = warehouse.sql(
            "SELECT received, rejected, accepted, completed FROM submission_funnel"
        ).fetchall()
        assert funnel == [(12, 0, 12, 12)]
        rates = warehouse.sql("SELECT checks, passed + failed + other, pass_rate FROM pass_rates").fetchall()
        assert rates
        assert all(checks == total for checks, total, _ in rates)
    assert Path(settings.kyc_report).read_text(encoding="utf-8").startswith("<!")
    for asset in DAILY:
        assert materialized(instance, asset.to_user_string()) == {DAY}
    assert instance.get_latest_materialization_event(dg.AssetKey("warehouse")) is not None

    paid = figures_of_calls(instance)
    assert job.execute_in_process(
        instance=instance, partition_key=DAY, asset_selection=DAILY, run_config=config
    ).success
    assert simulator.received == Counter(ids)
    assert lake.read(VERIFICATION_RESPONSES, DAY).equals(table)
    assert figures_of_calls(instance) == paid == (12, 0, 12, 3.0)
    assert plotted(instance, "submissions", DAY)["received"] == 12
    assert 0 <= plotted(instance, "verifications", DAY)["verified_rate %"] <= 100
    checks = plotted(instance, "model_checks", DAY)
    plotted_rates = [value for name, value in checks.items() if name.endswith("pass_rate %")]
    assert {"pass_rate %", "LIVENESS pass_rate %", "FACE_MATCH pass_rate %"} <= set(checks)
    assert all(1 < rate <= 100 for rate in plotted_rates)
    assert min(plotted_rates) <= checks["pass_rate %"] <= max(plotted_rates)
    for asset in DAILY:
        assert Path(plotted(instance, asset.to_user_string(), DAY)["path"]).is_file()


def plotted(instance: dg.DagsterInstance, asset: str, day: str) -> dict[str, Any]:
    """The day's latest metadata, which Dagster plots."""
    records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[day])
    [event] = instance.fetch_materializations(records, limit=1).records
    assert event.asset_materialization
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def figures_of_calls(instance: dg.DagsterInstance) -> tuple[Any, ...]:
    """What is plotted of the day's calls: completed, held, calls, cost."""
    figures = plotted(instance, "verification_responses", DAY)
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"]
    return tuple(figures[name] for name in ("completed", "held", "calls", "estimated_cost EUR"))


def test_a_range_is_one_run_that_reports_every_day(
    landing: Landing, job: dg.JobDefinition, instance: dg.DagsterInstance, simulator: Simulator
) -> None:
    landing.day(DAY, 3)
    landing.day(NEXT_DAY, 2)
    result = job.execute_in_process(instance=instance, tags=range_tags(DAY, NEXT_DAY), asset_selection=DAILY)
    assert result.success
    assert simulator.received.total() == 5
    assert materialized(instance, "verification_responses") == {DAY, NEXT_DAY}
    events = instance.fetch_materializations(dg.AssetKey("verification_responses"), limit=10).records
    completed = {
        event.partition_key: event.asset_materialization.metadata["completed"].value
        for event in events
        if event.asset_materialization
    }
    assert completed == {DAY: 3, NEXT_DAY: 2}


def test_a_failed_day_leaves_the_good_one_green_and_gives_the_reason(
    landing: Landing, job: dg.JobDefinition, instance: dg.DagsterInstance, settings: Settings
) -> None:
    landing.day(DAY, 3)
    bad = landing.root / "manifests" / NEXT_DAY / "bad.csv"
    bad.parent.mkdir()
    bad.write_text("name,photo\nx,y\n")
    result = job.execute_in_process(instance=instance, tags=range_tags(DAY, NEXT_DAY), raise_on_error=False)
    assert not result.success
    assert materialized(instance, "submissions") == {DAY}
    failure: Any = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert "bad.csv" in failure.user_failure_data.description
    assert NEXT_DAY in failure.user_failure_data.description


def test_rejected_rows_do_not_stop_the_others(
    landing: Landing,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    settings: Settings,
    simulator: Simulator,
) -> None:
    good = landing.submission("good", 1)
    landing.manifest(DAY, [good, {"submission_id": "no-files"}, good | {"submission_id": "a b"}])
    assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
    assert list(simulator.received) == ["good"]
    rejected = Lake(settings.kyc_lake).read(REJECTED_SUBMISSIONS, DAY).to_pylist()
    assert {row["reason"] for row in rejected} == {"missing_field", "invalid_submission_id"}


def test_a_day_without_manifests_is_empty_and_green(
    landing: Landing,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    settings: Settings,
    simulator: Simulator,
) -> None:
    assert job.execute_in_process(instance=instance, partition_key=DAY).success
    lake = Lake(settings.kyc_lake)
    assert lake.row_count(SUBMISSIONS, DAY) == lake.row_count(VERIFICATIONS, DAY) == 0
    assert not simulator.received


def test_the_launchpad_does_not_raise_the_budget_of_the_day(
    landing: Landing, instance: dg.DagsterInstance, settings: Settings, simulator: Simulator
) -> None:
    landing.day(DAY, 5)
    pipeline = Pipeline(settings.model_copy(update={"deepxl_max_calls_per_day": 2}))
    result = (
        build_defs(pipeline)
        .resolve_job_def("verify_and_publish")
        .execute_in_process(
            instance=instance,
            partition_key=DAY,
            asset_selection=DAILY,
            run_config={"ops": {"verify": {"config": {"max_calls": 100}}}},
        )
    )
    assert result.success
    assert simulator.received.total() == 2
    (left,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "all_attempted"]
    assert not left.passed
    assert "it begins again at" in str(left.description)


def test_a_dry_run_makes_no_call_and_a_budget_leaves_the_rest_to_the_next_run(
    landing: Landing,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    settings: Settings,
    simulator: Simulator,
) -> None:
    ids = landing.day(DAY, 9)
    lake = Lake(settings.kyc_lake)

    def run(**config: object) -> None:
        verify = {"ops": {"verify": {"config": config}}}
        assert job.execute_in_process(
            instance=instance, partition_key=DAY, asset_selection=DAILY, run_config=verify
        ).success

    run(dry_run=True)
    assert not simulator.received
    assert not lake.exists(VERIFICATION_RESPONSES, DAY)
    assert materialized(instance, "verification_responses") == set()
    run(max_calls=4)
    outcomes = Counter(lake.read(VERIFICATION_RESPONSES, DAY)["outcome"].to_pylist())
    assert outcomes == {"completed": 4, "not_attempted": 5}
    run()
    assert simulator.received == Counter(ids)


@pytest.fixture
def seed_url() -> Iterator[str]:
    """A server that responds to every POST with the example of the API documentation.

    Only sizes, the submission's tag and the time are those of the request.
    """
    example = json.loads((FIXTURES / "seed_response.json").read_bytes())
    loop = asyncio.new_event_loop()

    async def respond(http: web.Request) -> web.Response:
        if http.method == "GET":
            return web.json_response({"totalCount": 0, "count": 0, "data": []})
        form = await http.post()
        (name, value) = next(iter(json.loads(str(form["tags"])).items()))
        result = example["result"]
        for field in ("idFile", "selfieFile"):
            document = form[field]
            assert isinstance(document, web.FileField)
            result[f"{field}Size"] = len(document.file.read())
        result["tags"].append({"name": name, "value": value})
        seconds = int(time.time())
        result["timestamp"] = seconds
        result["timestampISO"] = f"{datetime.fromtimestamp(seconds - 6000, UTC):%FT%T}.000000"
        return web.Response(text=json.dumps(example), content_type="application/json")

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/v1/verification", respond)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_the_documented_example_passes_through_the_whole_pipeline(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, seed_url: str, tmp_path: Path
) -> None:
    landing.day(DAY, 1)
    settings = settings.model_copy(update={"deepxl_base_url": seed_url})
    job = build_defs(Pipeline(settings)).resolve_job_def("verify_and_publish")
    assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
    lake = Lake(settings.kyc_lake)
    build(lake, tmp_path / "kyc.duckdb", run_id="run")
    [verification] = lake.read(VERIFICATIONS, DAY).to_pylist()
    assert verification["verification_id"] == 457
    assert verification["verified"] is True
    assert verification["iso_offset_seconds"] == -6000
    [sent] = lake.read(SUBMISSIONS, DAY, ["id_size", "selfie_size"]).to_pylist()
    assert (verification["id_file_size"], verification["selfie_file_size"]) == tuple(sent.values())
    checks = lake.read(MODEL_CHECKS, DAY, ["check_group", "type", "status", "confidence"]).to_pylist()
    assert [tuple(check.values()) for check in checks] == [
        ("technicalChecks", "FACE_MATCH", "PASS", 0.97),
        ("technicalChecks", "LIVENESS", "PASS", 0.99),
        ("technicalChecks", "ID_QUALITY", "PASS", 0.92),
    ]
    tags = {row["name"]: row["value"] for row in lake.read(VERIFICATION_TAGS, DAY).to_pylist()}
    assert tags == {
        "OTHER": None,  # customerId, customerName and documentId, which were not sent
        "companyName": "DeepXL",
        "companyId": "COMP-001",
        "submissionId": f"{DAY}-0000",
    }
    assert [row["category"] for row in lake.read(VERIFICATION_FILES, DAY).to_pylist()] == ["id", "face"]
    response: Any
    [response] = lake.read(VERIFICATION_RESPONSES, DAY)["response"].to_pylist()
    seed = json.loads((FIXTURES / "seed_response.json").read_text(encoding="utf-8"))["result"]
    received = json.loads(response)["result"]
    assert verification["verified_at"].timestamp() == received["timestamp"]
    assert {name for name in seed if received[name] != seed[name]} == {
        "idFileSize",
        "selfieFileSize",
        "tags",
        "timestamp",
        "timestampISO",
    }
    assert received["tags"][:-1] == seed["tags"]
    unexpected = {row["kind"] for row in lake.read(CONTRACT_DRIFT, DAY).to_pylist()} - {"missing_field"}
    assert not unexpected
    with duckdb.connect(tmp_path / "kyc.duckdb", read_only=True) as warehouse:
        rows = warehouse.sql(
            "SELECT check_type, passed, pass_rate_low FROM pass_rates ORDER BY check_type"
        ).fetchall()
    # The lower Wilson bound of 1 in 1 is 0.206549.
    assert [(kind, passed, round(low, 6)) for kind, passed, low in rows] == [
        ("FACE_MATCH", 1, 0.206549),
        ("ID_QUALITY", 1, 0.206549),
        ("LIVENESS", 1, 0.206549),
    ]
