"""A snapshot of the definitions, so that no change of them goes unnoticed.

After an intended change: `pytest tests/dagster/test_definitions.py --snapshot-update`.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration import catalog
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings

PROMISED = {
    "ingest": {"submissions", "rejected_submissions"},
    "verify": {"verification_responses"},
    "flatten": {
        "verifications",
        "model_checks",
        "verification_tags",
        "verification_files",
        "contract_drift",
    },
    "analyze": {
        "warehouse",
        "report",
        "pass_rates",
        "verified_rates",
        "verified_rates_by_company",
        "confidence_histogram",
        "confidence_summary",
        "threshold_sensitivity",
        "confidence_drift",
        "failure_combinations",
        "failure_attribution",
        "submission_funnel",
        "api_performance",
        "repeat_subjects",
    },
}


@pytest.fixture
def definitions(tmp_path: Path) -> dg.Definitions:
    return build_defs(Pipeline(Settings(_env_file=None, kyc_landing=tmp_path / "landing")))


def test_definitions_are_as_recorded(definitions: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    graph = definitions.resolve_asset_graph()
    specs = sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key.to_user_string())
    recorded = {
        "assets": {
            spec.key.to_user_string(): {
                "group": spec.group_name,
                "kinds": sorted(spec.kinds),
                "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
                "partitioned": spec.partitions_def is not None,
                "owners": list(spec.owners),
                "freshness": type(spec.freshness_policy).__name__ if spec.freshness_policy else None,
                "automation": spec.automation_condition.get_label() if spec.automation_condition else None,
                "columns": [column.name for column in spec.metadata["dagster/column_schema"].columns]
                if "dagster/column_schema" in spec.metadata
                else [],
            }
            for spec in specs
        },
        "checks": sorted(key.to_user_string() for key in graph.asset_check_keys),
        "jobs": sorted(
            job.name for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")
        ),
        "schedules": {
            schedule.name: schedule.cron_schedule
            for schedule in definitions.get_repository_def().schedule_defs
        },
        "sensors": {
            sensor.name: sensor.default_status.value
            for sensor in sorted(definitions.get_repository_def().sensor_defs, key=lambda one: one.name)
        },
    }
    assert recorded == snapshot(extension_class=JSONSnapshotExtension)


@pytest.mark.parametrize("group", PROMISED)
def test_every_promised_asset_is_in_its_group(definitions: dg.Definitions, group: str) -> None:
    names = {
        spec.key.to_user_string()
        for spec in definitions.resolve_all_asset_specs()
        if spec.group_name == group
    }
    assert names >= PROMISED[group]


def test_the_ui_shows_the_descriptions_of_the_data_dictionary(definitions: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    for table in TABLES:
        description = specs[table.name].description or ""
        assert (table.description in description, description.count(catalog.DICTIONARY)) == (True, 1)
        columns = specs[table.name].metadata["dagster/column_schema"].columns
        assert [(column.name, column.description) for column in columns] == [
            (column.name, column.description) for column in table.columns
        ]


def test_every_asset_has_a_description(definitions: dg.Definitions) -> None:
    assert not [spec.key for spec in definitions.resolve_all_asset_specs() if not spec.description]


def code_references(definitions: dg.Definitions, asset: str) -> list[Any]:
    [spec] = [spec for spec in definitions.resolve_all_asset_specs() if spec.key.to_user_string() == asset]
    return list(spec.metadata["dagster/code_references"].code_references)


def test_code_references_are_files_of_this_checkout(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        for reference in code_references(definitions, spec.key.to_user_string()):
            assert Path(reference.file_path).is_file(), reference


def test_only_files_that_exist_are_referenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed package, which has neither `docs/` nor `sql/` beside it."""
    source = tmp_path / "kyc_pipeline" / "orchestration" / "assets" / "analyze.py"
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    installed = build_defs(Pipeline(Settings(_env_file=None, kyc_landing=tmp_path / "landing")))
    assert [reference.file_path for reference in code_references(installed, "pass_rates")] == [str(source)]
    assert not [s.key for s in installed.resolve_all_asset_specs() if "docs/" in (s.description or "")]


def test_code_references_are_links_if_a_source_url_is_set(tmp_path: Path) -> None:
    settings = Settings(
        _env_file=None, kyc_landing=tmp_path / "landing", kyc_source_url="https://git.example/kyc/main"
    )
    definitions = build_defs(Pipeline(settings))
    urls = [reference.url for reference in code_references(definitions, "pass_rates")]
    assert urls == [
        "https://git.example/kyc/main/sql/marts/pass_rates.sql",
        "https://git.example/kyc/main/kyc_pipeline/orchestration/assets/analyze.py",
        "https://git.example/kyc/main/docs/data-dictionary.md#pass_rates",
        "https://git.example/kyc/main/docs/operations.md",
    ]
    [spec] = [s for s in definitions.resolve_all_asset_specs() if s.key == dg.AssetKey("pass_rates")]
    assert f"[data dictionary]({urls[2]})" in (spec.description or "")


@pytest.mark.parametrize(
    ("job", "step", "fields"),
    [
        (
            "verify_and_publish",
            "verify",
            {"max_calls", "max_concurrency", "price_per_call", "look_up_first", "dry_run"},
        ),
        ("resolve_held_submission", "record_decision", {"submission_id", "decision"}),
        ("maintenance", "prune_runs", {"keep_runs_days"}),
        ("maintenance", "remove_stale_files", {"keep_files_hours"}),
    ],
)
def test_every_field_of_the_launchpad_has_a_description(
    definitions: dg.Definitions, job: str, step: str, fields: set[str]
) -> None:
    schema: Any = definitions.resolve_job_def(job).run_config_schema
    steps = schema.config_type.fields["ops"].config_type.fields
    config = steps[step].config_type.fields["config"].config_type.fields
    assert set(config) == fields
    assert not [name for name, field in config.items() if not field.description]


def test_flatten_and_publish_has_no_paid_step(definitions: dg.Definitions) -> None:
    job = definitions.resolve_job_def("flatten_and_publish")
    assert {node.name for node in job.nodes} == {"flatten", "build_warehouse", "report"}


def test_the_code_location_loads_without_heavy_libraries() -> None:
    """Every run's process loads the code location; a step imports what it needs."""
    heavy = {"altair", "aiohttp", "alembic", "httpx", "pandas", "scipy", "sqlglot", "vl_convert"}
    code = "import sys; from kyc_pipeline.definitions import build_defs; build_defs(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(loaded.stdout.split())


def test_an_invalid_setting_is_one_clear_line_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_START_DATE", "yesterday")
    with pytest.raises(UsageError, match="KYC_START_DATE"):
        build_defs()
