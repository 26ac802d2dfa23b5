"""What the command line says after a run that went wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from kyc_pipeline.cli.dagster_home import HomeUnusable, usable_home
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.orchestration.assets import ingest as ingest_assets
from kyc_pipeline.orchestration.checks.ingest import RECONCILES, check_partition
from kyc_pipeline.orchestration.killed_commands import end_killed_commands
from tests.conftest import Landing
from tests.dagster.conftest import TOKEN, Run
from tests.faults import Meanwhile

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
RANGE = ("--from", DAY, "--to", NEXT_DAY)


def breaks_the_lake(table: Path) -> Meanwhile:
    """Makes the run unable to replace the day's table of responses."""

    def damage() -> None:
        table.rename(table.with_suffix(".kept"))
        (table / "in-the-way").mkdir(parents=True)

    return Meanwhile(damage)


def breaks_dagster(home: Path) -> Meanwhile:
    """Makes Dagster unable to write to its home."""

    def damage() -> None:
        home.rename(home.with_name("away"))
        home.touch()

    return Meanwhile(damage)


def test_a_dagster_home_that_fails_in_mid_run_is_named_and_the_calls_are_printed(
    landing: Landing, run_on_disk: Run, tmp_path: Path
) -> None:
    *_, last = landing.day(DAY, 3)
    home = tmp_path / "dagster_home"
    with running_simulator(token=TOKEN, faults={last: [breaks_dagster(home)]}) as simulator:
        settings = {"DEEPXL_BASE_URL": simulator.url, "DEEPXL_MAX_CONCURRENCY": "1"}
        code, out, err = run_on_disk("backfill", "--no-publish", "--from", DAY, "--to", DAY, **settings)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"kyc-pipeline: DAGSTER_HOME: {home} cannot be used (")
    assert "this run   3 calls, 0 retries" in out
    assert "outcomes   3 completed" in out


def test_output_comes_back_from_a_full_disk(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HomeUnusable, match="free disk space there"), usable_home():  # noqa: PT012 - as Dagster does
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1)
        os.close(full)
        os.write(1, b"lost")
    os.write(1, b"shown")
    assert capfd.readouterr().out == "shown"


def test_a_failed_run_prints_the_calls_that_it_made(landing: Landing, run: Run) -> None:
    first, second, *_ = landing.day(DAY, 6)
    landing.day(NEXT_DAY, 1)
    with running_simulator(token=TOKEN, faults={second: [Responds(307, {"Location": "/"})]}) as simulator:
        settings = {"DEEPXL_BASE_URL": simulator.url, "DEEPXL_MAX_CONCURRENCY": "1"}
        code, out, err = run("backfill", "--no-publish", *RANGE, DEEPXL_PRICE_PER_CALL="0.50", **settings)
        assert simulator.received == {first: 1, second: 1}
    assert code == 1
    assert "307" in err
    assert "this run   2 calls, 0 retries, estimated cost 1.00" in out
    assert "outcomes   1 completed, 1 uncertain, 5 not_attempted" in out


def test_a_run_that_could_not_write_the_lake_prints_the_outcomes_of_the_ledger(
    landing: Landing, run: Run, tmp_path: Path
) -> None:
    *_, last = landing.day(DAY, 3)
    table = Path(Lake(str(tmp_path / "lake")).path(VERIFICATION_RESPONSES, DAY))
    with running_simulator(token=TOKEN, faults={last: [breaks_the_lake(table)]}) as simulator:
        settings = {"DEEPXL_BASE_URL": simulator.url, "DEEPXL_MAX_CONCURRENCY": "1"}
        code, out, err = run("backfill", "--no-publish", "--from", DAY, "--to", DAY, **settings)
        assert code == 1
        assert "every response is in the ledger" in err
        assert "this run   3 calls, 0 retries" in out
        assert "outcomes   3 completed" in out
        assert "not_attempted" not in out
        shutil.rmtree(table)
        code, out, err = run("backfill", "--no-publish", "--from", DAY, "--to", DAY, **settings)
        assert (code, simulator.received.total()) == (0, 3), err
        assert "this run   0 calls, 0 retries" in out


def test_a_failed_check_says_what_is_wrong(
    landing: Landing, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 1)
    real = check_partition
    monkeypatch.setattr(
        ingest_assets,
        "check_partition",
        lambda summary: [
            RECONCILES.result(
                summary.date == DAY, "fine", f"{summary.date}: 3 rows are unaccounted for: ingest again"
            ),
            *real(summary)[1:],
        ],
    )
    code, _, err = run("backfill", "--no-publish", *RANGE)
    assert code == 1
    line = f"kyc-pipeline: check received_reconciles: {NEXT_DAY}: 3 rows are unaccounted for: ingest again"
    assert err.splitlines()[-1] == line


TAGS_OF_A_COMMAND = """
import json, sys
from kyc_pipeline.orchestration.killed_commands import command_tags
print(json.dumps(command_tags(sys.argv[1])))
"""


@dg.job
def nothing() -> None:
    """Has no steps."""


def test_a_command_that_ends_while_somebody_looks_for_killed_ones_has_not_been_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = dg.DagsterRun(job_name="nothing").run_id
    tags = subprocess.run(
        [sys.executable, "-c", TAGS_OF_A_COMMAND, run_id], check=True, capture_output=True, text=True
    ).stdout
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(
            nothing, run_id=run_id, tags=json.loads(tags), status=dg.DagsterRunStatus.STARTED
        )
        get_runs = instance.get_runs

        def and_then_it_ends(filters: dg.RunsFilter) -> Sequence[dg.DagsterRun]:
            found = get_runs(filters)
            instance.report_run_canceled(run)
            return found

        monkeypatch.setattr(instance, "get_runs", and_then_it_ends)
        assert end_killed_commands(instance) == []
        assert [each.status for each in get_runs()] == [dg.DagsterRunStatus.CANCELED]


def test_another_lake_does_not_replace_the_warehouse(landing: Landing, run: Run, tmp_path: Path) -> None:
    landing.day(DAY, 2)
    assert run("backfill", *RANGE)[0] == 0
    warehouse = tmp_path / "warehouse" / "kyc.duckdb"
    published = warehouse.read_bytes()
    for command in (["plan", *RANGE], ["publish"], ["publish", "--force"], ["backfill", *RANGE]):
        code, _, err = run(*command, KYC_LAKE="lak")
        assert (code, "belongs to another lake than" in err) == (1, True), (command, err)
    assert not (tmp_path / "lak").exists()
    # A host without the ledger knows only what it has published.
    elsewhere = {"KYC_LAKE": "empty", "KYC_LEDGER_URL": "sqlite:///none.sqlite"}
    code, _, err = run("publish", **elsewhere)
    assert (code, "has no partition of contract_drift, model_checks, " in err) == (1, True), err
    assert warehouse.read_bytes() == published
    assert run("publish", "--force", **elsewhere)[0] == 0
    assert warehouse.read_bytes() != published
