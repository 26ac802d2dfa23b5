"""The definitions as a snapshot: what Dagster shows does not change unseen.

After a change that is meant: `pytest tests/dagster/test_definitions.py --snapshot-update`.
"""

from pathlib import Path

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.tables import TABLES
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
            for schedule in (
                definitions.resolve_schedule_def("daily_verification"),
                definitions.resolve_schedule_def("catch_up"),
            )
        },
        "sensors": [definitions.resolve_sensor_def("new_manifests").name],
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


def test_the_ui_shows_the_data_dictionarys_words(definitions: dg.Definitions) -> None:
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    for table in TABLES:
        assert table.description in (specs[table.name].description or "")
        columns = specs[table.name].metadata["dagster/column_schema"].columns
        assert [(column.name, column.description) for column in columns] == [
            (column.name, column.description) for column in table.columns
        ]


def test_every_asset_says_what_it_is(definitions: dg.Definitions) -> None:
    assert not [spec.key for spec in definitions.resolve_all_asset_specs() if not spec.description]


def test_a_wrong_setting_is_one_clear_line_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_START_DATE", "yesterday")
    with pytest.raises(UsageError, match="KYC_START_DATE"):
        build_defs()
