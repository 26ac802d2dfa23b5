"""What a run reports about its spending: before and during its calls, and on a terminal."""

import io
import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest
from rich.console import Console

import kyc_pipeline.cli.progress
import kyc_pipeline.orchestration.paid_calls
from kyc_pipeline.cli.progress import progress_bar
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.summary import Progress
from kyc_pipeline.wording import Money
from tests.conftest import Landing
from tests.dagster.conftest import DAILY

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
PRICE = {"ops": {"verify": {"config": {"price_per_call": 0.50, "max_calls": 9}}}}
Logged = tuple[list[str], list[tuple[str, dict[str, object]]]]


@pytest.fixture
def logged(instance: dg.DagsterInstance) -> Callable[[dg.ExecuteInProcessResult], Logged]:
    """The log lines of a run's paid step, and its observations as (day, metadata)."""

    def read(result: dg.ExecuteInProcessResult) -> Logged:
        entries = [entry for entry in instance.all_logs(result.run_id) if entry.step_key == "verify"]
        lines = [
            entry.user_message
            for entry in entries
            if entry.dagster_event is None and int(entry.level) >= logging.INFO
        ]
        events: list[Any] = [entry.dagster_event for entry in entries]
        observations = [
            event.event_specific_data.asset_observation
            for event in events
            if event is not None and event.event_type is dg.DagsterEventType.ASSET_OBSERVATION
        ]
        return lines, [
            (seen.partition, {key: value.value for key, value in seen.metadata.items()})
            for seen in observations
            if seen.asset_key == dg.AssetKey(VERIFICATION_RESPONSES.name)
        ]

    return read


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_run_first_logs_what_it_is_about_to_spend(
    landing: Landing,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    logged: Callable[[dg.ExecuteInProcessResult], Logged],
    dry_run: bool,
) -> None:
    landing.day(DAY, 3)
    landing.day(NEXT_DAY, 2)
    config = {"ops": {"verify": {"config": PRICE["ops"]["verify"]["config"] | {"dry_run": dry_run}}}}
    result = job.execute_in_process(
        instance=instance, tags=range_tags(DAY, NEXT_DAY), run_config=config, asset_selection=DAILY
    )
    assert result.success
    lines, observations = logged(result)
    paid = "0 already paid, 0 held"
    assert lines[:3] == [
        f"plan: 5 submissions, {paid}, 5 calls to make, estimated cost 2.50 EUR; the budget is 9 calls",
        f"plan of {DAY}: 3 submissions, {paid}, 3 calls to make, estimated cost 1.50 EUR",
        f"plan of {NEXT_DAY}: 2 submissions, {paid}, 2 calls to make, estimated cost 1.00 EUR",
    ]
    both = {"already_paid": 0, "held": 0}
    assert observations == [
        (DAY, {**both, "submissions": 3, "calls_to_make": 3, "estimated_cost EUR": 1.5}),
        (NEXT_DAY, {**both, "submissions": 2, "calls_to_make": 2, "estimated_cost EUR": 1.0}),
    ]


def test_a_long_partition_logs_its_progress_by_time(
    landing: Landing,
    settings: Settings,
    instance: dg.DagsterInstance,
    logged: Callable[[dg.ExecuteInProcessResult], Logged],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kyc_pipeline.orchestration.paid_calls, "LOG_EVERY_SECONDS", 0.0)
    landing.day(DAY, 8)
    with running_simulator(token="test-token", latency_ms=250) as simulator:
        changes = {"deepxl_base_url": simulator.url, "deepxl_max_concurrency": 1}
        job = build_defs(Pipeline(settings.model_copy(update=changes))).resolve_job_def("verify_and_publish")
        result = job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY)
    lines, observations = logged(result)
    progress = [line for line in lines if " of 8 settled" in line]
    assert len(progress) == len(observations[1:]) >= 2
    assert all("a second" in line and "retries" in line for line in progress)
    day, figures = observations[-1]
    assert day == DAY
    assert figures == {"settled": 8, "to_settle": 8, "calls": 8, "retries": 0, "uncertain": 0}


def progress_of(date: str, done: int, total: int) -> Progress:
    return Progress(date, total, done, done, 2, 0, done, Money(Decimal("0.5") * done, "EUR"), seconds=2.0)


def test_a_terminal_shows_a_bar_with_rate_retries_spending_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()

    def terminal(**_: object) -> Console:
        return Console(file=screen, force_terminal=True, width=150, color_system=None)

    monkeypatch.setattr(kyc_pipeline.cli.progress, "Console", terminal)
    with progress_bar(2) as update:
        update(progress_of(DAY, 10, 40))
        update(progress_of(DAY, 40, 40))
    shown = screen.getvalue()
    assert "━" in shown
    assert "40/40" in shown
    assert "20/s, 2 retries, 20" in shown
    assert "0:00:0" in shown


def test_without_a_terminal_each_day_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2) as update:
        for done in (10, 40, 40):
            update(progress_of(DAY, done, 40))
        update(progress_of(NEXT_DAY, 0, 0))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{DAY}: 40 of 40 settled, 20.0 a second, 2 retries")
    assert "20.0" in first
    assert second == f"{NEXT_DAY}: nothing to send"
