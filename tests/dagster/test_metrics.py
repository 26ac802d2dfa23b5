"""The metrics, scraped from the real server over a real ledger and instance; and the board."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.orchestration.metrics import PipelineCollector
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.publication import WAREHOUSE
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from tests.conftest import Landing
from tests.dagster.conftest import DAILY, Run

DAY = "2024-09-08"
BOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "kyc-pipeline.json"


def parsed(text: str) -> dict[str, float]:
    """Value by name and labels, such as `kyc_calls_total{result=answered}`."""
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(pipeline: Pipeline, instance: dg.DagsterInstance) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(PipelineCollector(pipeline, instance))
    return parsed(generate_latest(registry).decode())


def test_before_the_first_run_there_is_no_ledger_and_a_scrape_creates_none(
    pipeline: Pipeline, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    assert scrape(pipeline, instance) == {
        "kyc_oldest_queued_run_seconds": 0,
        "kyc_queued_runs": 0,
        "kyc_runs_under_way": 0,
        "kyc_ledger_up": 1,
    }
    assert not (tmp_path / "ledger.sqlite").exists()


def test_every_figure_of_a_day_and_the_board_that_shows_them(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 4)
    with running_simulator(token="test-token", faults={ids[0]: [HTML_502]}) as simulator:
        changes = {
            "deepxl_base_url": simulator.url,
            "deepxl_price_per_call": Decimal(2),
            "deepxl_max_calls_per_run": 10,
        }
        pipeline = Pipeline(settings.model_copy(update=changes))
        job = build_defs(pipeline, CallControls(timing=Timing(look_ups=(0.0,)))).resolve_job_def(
            "verify_and_publish"
        )
        run = job.execute_in_process(
            instance=instance, partition_key=DAY, asset_selection=DAILY, raise_on_error=False
        )
    instance.create_run_for_job(job)
    instance.report_runless_asset_event(dg.AssetMaterialization(WAREHOUSE))
    with pipeline.day_lease(DAY, run.run_id):
        found = scrape(pipeline, instance)
        limited = Pipeline(pipeline.settings.model_copy(update={"deepxl_max_calls_per_day": 9}))
        assert scrape(limited, instance)["kyc_budget_left_calls"] == 5
    assert scrape(limited, instance)["kyc_budget_left_calls"] == 5, "the day's budget needs no run"
    ages = ("kyc_oldest_queued_run_seconds", "kyc_oldest_held_seconds", "kyc_pace_calls_per_second")
    assert all(found.pop(name) >= 0 for name in ages)
    assert found.pop("kyc_last_publication_timestamp_seconds") > 1_700_000_000
    assert {name: value for name, value in found.items() if value} == {
        "kyc_queued_runs": 1,
        "kyc_ledger_up": 1,
        "kyc_calls_total{result=answered}": 3,
        "kyc_calls_total{result=maybe_processed}": 1,
        "kyc_submissions{outcome=completed}": 3,
        "kyc_submissions{outcome=uncertain}": 1,
        "kyc_held_submissions": 1,
        "kyc_budget_left_calls": 6,
        "kyc_calls_today": 4,
        "kyc_billable_calls_today": 4,
        "kyc_spend_today{currency=EUR}": 8,
    } | ({"kyc_failures_in_a_row": 1} if found["kyc_failures_in_a_row"] else {})
    # The board shows each exported metric, and nothing else.
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"kyc_\w+", query)}
    assert shown == {name.split("{")[0] for name in found} | {*ages, "kyc_last_publication_timestamp_seconds"}
    assert not any(id_ in json.dumps(sorted(found)) for id_ in (*ids, run.run_id))
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    broken = scrape(pipeline, instance)
    assert broken["kyc_ledger_up"] == 0
    assert broken["kyc_queued_runs"] == 1
    assert "kyc_held_submissions" not in broken


def test_the_breaker_is_open_while_every_call_of_a_run_fails(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance
) -> None:
    ids = landing.day(DAY, 12)
    with running_simulator(token="test-token", faults={id_: [HTML_502] for id_ in ids}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        controls = CallControls(timing=Timing(look_ups=(0.0,), breaker_waits=(0.0,)))
        job = build_defs(pipeline, controls).resolve_job_def("verify_and_publish")
        run = job.execute_in_process(
            instance=instance, partition_key=DAY, asset_selection=DAILY, raise_on_error=False
        )
    with pipeline.day_lease(DAY, run.run_id):
        assert scrape(pipeline, instance)["kyc_breaker_open"] == 1
    with pipeline.day_lease(DAY, "a run that only ingests"):
        assert scrape(pipeline, instance)["kyc_breaker_open"] == 0
    assert scrape(pipeline, instance)["kyc_breaker_open"] == 0


def test_the_command_serves_until_it_is_stopped(run: Run, simulator: Simulator) -> None:
    code = "import sys; from kyc_pipeline.cli import main; sys.argv[0] = 'kyc-pipeline'; main()"
    command = [sys.executable, "-c", code, "metrics", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.removeprefix("metrics on ").strip()
        with urllib.request.urlopen(url) as response:
            assert parsed(response.read().decode())["kyc_ledger_up"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_metrics_are_off_without_a_port(run: Run) -> None:
    code, _, err = run("metrics")
    assert (code, err) == (2, "kyc-pipeline: give --port, or set KYC_METRICS_PORT\n")


@pytest.mark.parametrize("port", ["70000", "x"])
def test_a_wrong_port_is_one_line(run: Run, port: str) -> None:
    code, _, err = run("metrics", KYC_METRICS_PORT=port)
    assert code == 2
    assert "KYC_METRICS_PORT" in err
