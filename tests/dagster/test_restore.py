"""The operations guide: its commands back up and restore, and it covers every check, sensor and job."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests.conftest import Landing

GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
DAY = "2024-09-08"


def commands(name: str) -> str:
    """The commands of a block of the guide, as a script."""
    [block] = re.findall(rf"<!-- test: {name} -->\n```console\n(.*?)```", GUIDE, re.DOTALL)
    return "\n".join(line.removeprefix("$ ") for line in block.splitlines())


def run_commands(folder: Path, name: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", "-euo", "pipefail", "-c", commands(name)]
    subprocess.run(script, cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=300)


def settings_of(folder: Path, simulator: Simulator) -> Settings:
    """The default paths below `folder`, with the pseudonym key in its file."""
    return Settings(
        _env_file=None,
        deepxl_base_url=simulator.url,
        deepxl_api_token="test-token",
        deepxl_requests_per_second=0,
        kyc_landing=folder / "data" / "landing",
        kyc_lake=str(folder / "data" / "lake"),
        kyc_ledger_url=f"sqlite:///{folder / 'data' / 'ledger.sqlite'}",
        kyc_warehouse=folder / "data" / "warehouse" / "kyc.duckdb",
        kyc_report=folder / "data" / "report" / "index.html",
    )


def run(settings: Settings, instance: dg.DagsterInstance) -> None:
    job = build_defs(Pipeline(settings)).resolve_job_def("verify_and_publish")
    daily = [dg.AssetKey(table.name) for table in TABLES]
    assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=daily).success


def test_a_restored_pipeline_makes_no_call_and_has_the_same_rows(
    tmp_path: Path, simulator: Simulator, instance: dg.DagsterInstance
) -> None:
    here = tmp_path / "here"
    landing = Landing(here / "data" / "landing")
    ids = landing.day(DAY, 3, lambda n: {"customerId": str(n), "companyId": "COMP-001"})
    landing.manifest(DAY, [landing.submission("more", 50), {"submission_id": "no-files"}], name="b.jsonl")
    settings = settings_of(here, simulator)
    run(settings, instance)
    run_commands(here, "backup")
    assert (here / "backup" / "ledger.sqlite").stat().st_mode & 0o077 == 0
    for copied in ("everything", "all but the lake"):
        elsewhere = tmp_path / copied
        shutil.copytree(here / "backup", elsewhere / "backup")
        if copied != "everything":
            shutil.rmtree(elsewhere / "backup" / "lake")
        run_commands(elsewhere, "restore")
        shutil.copytree(here / "data" / "landing", elsewhere / "data" / "landing")
        with dg.DagsterInstance.ephemeral() as fresh:
            run(settings_of(elsewhere, simulator), fresh)
        assert simulator.received.total() == len(ids) + 1
        before, after = Lake(settings.kyc_lake), Lake(str(elsewhere / "data" / "lake"))
        for table in TABLES:
            assert after.read(table, DAY).equals(before.read(table, DAY)), (copied, table.name)


def test_the_guide_covers_every_check(tmp_path: Path) -> None:
    definitions = build_defs(Pipeline(Settings(_env_file=None, kyc_landing=tmp_path / "landing")))
    checks = {key.name for key in definitions.resolve_asset_graph().asset_check_keys}
    assert not [name for name in sorted(checks) if f"`{name}`" not in GUIDE]


def test_the_guide_covers_every_sensor_schedule_and_job(tmp_path: Path) -> None:
    repository = build_defs(
        Pipeline(Settings(_env_file=None, kyc_landing=tmp_path / "landing"))
    ).get_repository_def()
    automations: list[Any] = [*repository.sensor_defs, *repository.schedule_defs]
    names = [one.name for one in automations]
    names += [job.name for job in repository.get_all_jobs() if not job.name.startswith("__")]
    assert not [name for name in names if f"`{name}`" not in GUIDE and name != "verify_and_publish"]
