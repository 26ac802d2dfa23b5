"""The resources that Dagster shows: what the pipeline is connected to, with which settings.

They are made from the settings and their descriptions; each setting is in one of them. A run's config cannot
change them: two runs with different ledgers could pay twice for one submission. What a run may change is in
the config of its steps. Of a secret, or a name or address of your staff, they show only the environment
variable's name, and nothing if it is set in `.env`.

The resource `pipeline` does not nest the others: Dagster 1.13 warns of its own code for each nested resource.
"""

import os
import typing
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import dagster as dg
from pydantic import Field, SecretStr, create_model
from pydantic.fields import FieldInfo

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings

_DESCRIPTIONS: Final = {
    "api": "DeepXL's API, the only place where calls cost money, what is sent, and the limits of every run.",
    "landing": "Where manifests and documents are delivered, and which are accepted.",
    "ledger": "The ledger: the record of every paid call, which makes repeats free.",
    "lake": "The lake: the tables of every stage, one Parquet file per table and day (labels: one in all).",
    "warehouse": "The warehouse and the report, which are replaced whole.",
    "retention": "When data is removed, and who acts.",
    "alerts": "Where alerts go, and their limits.",
    "pipeline": "What the steps use: the stores and limits that the other resources show.",
}
_PREFIXES: Final = {
    "deepxl_": "api",
    "kyc_send_tags": "api",
    "kyc_strip_metadata": "api",
    "kyc_landing": "landing",
    "kyc_csv_encoding": "landing",
    "kyc_duplicate_documents": "landing",
    "kyc_require_consent": "landing",
    "kyc_ledger_": "ledger",
    "kyc_lake": "lake",
    "kyc_pseudonym_": "lake",
    "kyc_clear_tags": "lake",
    "kyc_warehouse": "warehouse",
    "kyc_report": "warehouse",
    "kyc_dimensions": "warehouse",
    "kyc_subject_tags": "warehouse",
    "kyc_min_cell": "warehouse",
    "kyc_verdict_target": "warehouse",
    "kyc_retain_": "retention",
    "kyc_retention_": "retention",
    "kyc_operator": "retention",
    "kyc_alert_": "alerts",
}
"""Resource of the settings whose names begin so; all others are in `pipeline`."""
_OF_STAFF: Final = frozenset({"kyc_operator", "kyc_alert_email_from", "kyc_alert_email_to"})


def resources_of(pipeline: Pipeline) -> dict[str, Any]:
    """The resource `pipeline`, which the steps use, and those that show what it consists of."""

    class Used(dg.ConfigurableResource[Pipeline]):
        def create_resource(self, context: dg.InitResourceContext) -> Pipeline:
            return pipeline

    shown: dict[str, dict[str, FieldInfo]] = {name: {} for name in _DESCRIPTIONS}
    for setting, field in Settings.model_fields.items():
        shown[_resource_of(setting)][setting] = field
    return {
        name: _resource(
            name, fields, Used if name == "pipeline" else dg.ConfigurableResource, pipeline.settings
        )
        for name, fields in shown.items()
    }


def _resource_of(setting: str) -> str:
    return next((name for prefix, name in _PREFIXES.items() if setting.startswith(prefix)), "pipeline")


def _resource(
    name: str, fields: Mapping[str, FieldInfo], base: type[dg.ConfigurableResource[Any]], settings: Settings
) -> dg.ConfigurableResource[Any]:
    types: dict[str, Any] = {
        _short(setting): (_type(setting, field), Field(description=f"{setting.upper()}: {field.description}"))
        for setting, field in fields.items()
    }
    model = create_model(name.capitalize(), __base__=base, __module__=__name__, **types)
    model.__doc__ = _DESCRIPTIONS[name]
    return model(**{_short(setting): _value(setting, settings) for setting in fields})


def _short(setting: str) -> str:
    return setting.partition("_")[2]


def _type(setting: str, field: FieldInfo) -> Any:
    """The type by which Dagster shows a setting."""
    text = str(field.annotation)
    if setting in _OF_STAFF or "SecretStr" in text:
        return str | None
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    is_list = typing.get_origin(field.annotation) in (frozenset, tuple) or "frozenset" in text
    plain = next((kind for kind in (bool, int, float) if kind in kinds), str)
    shown: Any = list[str] if is_list else float if Decimal in kinds else plain
    return shown | None if type(None) in kinds else shown


def _value(setting: str, settings: Settings) -> Any:
    if setting == "kyc_ledger_url":
        return Ledger(settings.kyc_ledger_url).name  # without user and password
    value = getattr(settings, setting)
    if isinstance(value, SecretStr) or setting in _OF_STAFF:
        variable = setting.upper()
        return dg.EnvVar(variable) if variable in os.environ else None
    match value:
        case Path() | date():
            return str(value)
        case Decimal():
            return float(value)
        case frozenset():
            return sorted(value)
        case tuple():
            return list(value)
        case _:
            return value
