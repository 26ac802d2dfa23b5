"""The resources that the UI shows: every store and limit, and no secret."""

from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings

# Dagster warns of its own code.
pytestmark = pytest.mark.filterwarnings("ignore:Property `ScheduleDefinition:DeprecationWarning")
SECRETS = {
    "DEEPXL_API_TOKEN": "a-very-secret-credential",
    "DEEPXL_PROXY": "http://user:a-very-secret-word@proxy.example:3128",
    "KYC_LEDGER_URL": "postgresql+psycopg://kyc:a-very-secret-word@db.example/kyc",
    "KYC_PSEUDONYM_KEY": "a-very-secret-key-0123456789abcdef",
}


def snapshot(settings: Settings) -> RepositorySnap:
    """What the webserver gets of the code location."""
    return RepositorySnap.from_def(build_defs(Pipeline(settings), publication=False).get_repository_def())


def shown(settings: Settings) -> dict[str, dict[str, Any]]:
    """The configured values by resource."""
    return {
        resource.name: {
            key: value if isinstance(value, str) else f"variable {value.name}"
            for key, value in resource.configured_values.items()
        }
        for resource in snapshot(settings).resources or []
    }


def test_each_store_and_limit_is_shown(tmp_path: Path) -> None:
    settings = Settings(
        _env_file=None,
        kyc_home=tmp_path,
        deepxl_max_concurrency=4,
        deepxl_max_calls_per_day=100,
        deepxl_price_per_call=Decimal("0.25"),
    )
    found = shown(settings)
    assert set(found) == {
        "pipeline",
        "api",
        "landing",
        "ledger",
        "lake",
        "warehouse",
        "retention",
        "alerts",
    }
    assert (
        found["api"].items()
        >= {
            "base_url": '"https://api.deepxl.ai"',
            "max_concurrency": "4",
            "max_calls_per_day": "100",
            "price_per_call": "0.25",
            "currency": '"EUR"',
        }.items()
    )
    assert found["ledger"] == {"ledger_url": f'"sqlite:///{tmp_path}/data/ledger.sqlite"'}
    assert found["lake"]["lake"] == f'"{tmp_path}/data/lake"'
    assert found["warehouse"]["warehouse"] == f'"{tmp_path}/data/warehouse/kyc.duckdb"'


def test_each_setting_is_shown_once_with_its_description(tmp_path: Path) -> None:
    shown = Counter[str]()
    for resource in snapshot(Settings(_env_file=None, kyc_home=tmp_path)).resources or []:
        assert resource.resource_snapshot.description, resource.name
        for field in resource.config_field_snaps:
            variable, _, meaning = (field.description or "").partition(": ")
            assert meaning.endswith("."), field.name
            shown[variable.lower()] += 1
    assert shown == Counter(Settings.model_fields.keys())


def test_values_keep_their_types(tmp_path: Path) -> None:
    found = shown(
        Settings(
            _env_file=None,
            kyc_home=tmp_path,
            kyc_send_tags=frozenset({"b", "a"}),
            kyc_strip_metadata=True,
            kyc_require_consent=frozenset({"yes"}),
            kyc_dimensions=("country",),
            kyc_min_cell=7,
            kyc_verdict_target_seconds=60,
            deepxl_requests_per_second=0.5,
        )
    )
    assert (
        found["api"].items()
        >= {
            "send_tags": '["a", "b"]',
            "strip_metadata": "true",
            "requests_per_second": "0.5",
        }.items()
    )
    assert found["landing"]["require_consent"] == '["yes"]'
    assert (
        found["warehouse"].items()
        >= {
            "dimensions": '["country"]',
            "min_cell": "7",
            "verdict_target_seconds": "60",
        }.items()
    )


def test_names_and_addresses_of_staff_are_not_shown(tmp_path: Path) -> None:
    settings = Settings(
        _env_file=None,
        kyc_home=tmp_path,
        kyc_operator="Erika",
        kyc_alert_email_from="erika@team.example",
        kyc_alert_email_to=frozenset({"erika@team.example"}),
    )
    assert "erika" not in dg.serialize_value(snapshot(settings)).lower()


def test_secrets_are_the_names_of_their_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None, kyc_home=tmp_path)
    found = shown(settings)
    assert found["api"]["api_token"] == "variable DEEPXL_API_TOKEN"
    assert found["api"]["proxy"] == "variable DEEPXL_PROXY"
    assert found["lake"]["pseudonym_key"] == "variable KYC_PSEUDONYM_KEY"
    assert found["ledger"] == {"ledger_url": '"postgresql+psycopg://kyc:***@db.example/kyc"'}
    assert "a-very-secret" not in dg.serialize_value(snapshot(settings))


def test_a_secret_of_a_file_is_not_shown_and_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEEPXL_API_TOKEN", raising=False)
    settings = Settings(_env_file=None, kyc_home=tmp_path, deepxl_api_token="a-very-secret-credential")
    assert "a-very-secret" not in dg.serialize_value(snapshot(settings))
    assert shown(settings)["api"].get("api_token") in (None, "null")
