"""The resources that Dagster shows: what the pipeline is connected to, with which limits.

They show settings, which a process reads once. A run's config cannot change them: two runs with different
ledgers could pay twice for one submission. What a run may change is in the config of its steps. Of a secret,
they show the name of its variable, if the environment has it; if it is in `.env`, they show nothing.

The resource `pipeline` does not nest the others: Dagster 1.13 warns of its own code for each nested resource.
"""

import os
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, SecretStr

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings


def _shows(setting: str) -> Any:
    """A field that shows a setting, with its description."""
    description = f"{setting.upper()}: {Settings.model_fields[setting].description}"
    return Field(description=description, json_schema_extra={"setting": setting})


def _of(resource: type[dg.ConfigurableResource[Any]], settings: Settings) -> dg.ConfigurableResource[Any]:
    """The resource with its settings."""
    values = {}
    for name, field in resource.model_fields.items():
        if isinstance(extra := field.json_schema_extra, dict):
            values[name] = _value(str(extra["setting"]), settings)
    return resource(**values)


def _value(setting: str, settings: Settings) -> Any:
    if setting == "kyc_ledger_url":
        return Ledger(settings.kyc_ledger_url).name  # without user and password
    match getattr(settings, setting):
        case SecretStr():
            variable = setting.upper()
            return dg.EnvVar(variable) if variable in os.environ else None
        case Path() | date() as value:
            return str(value)
        case Decimal() as value:
            return float(value)
        case frozenset() as value:
            return sorted(value)
        case tuple() as value:
            return list(value)
        case value:
            return value


class DeepxlApi(dg.ConfigurableResource[Any]):
    """DeepXL's API, the only place where calls cost money, and the limits of every run."""

    base_url: str = _shows("deepxl_base_url")
    api_token: str | None = _shows("deepxl_api_token")
    auth_scheme: str = _shows("deepxl_auth_scheme")
    proxy: str | None = _shows("deepxl_proxy")
    ca_file: str | None = _shows("deepxl_ca_file")
    max_concurrency: int = _shows("deepxl_max_concurrency")
    requests_per_second: float = _shows("deepxl_requests_per_second")
    timeout_seconds: float = _shows("deepxl_timeout_seconds")
    max_attempts: int = _shows("deepxl_max_attempts")
    max_calls_per_run: int | None = _shows("deepxl_max_calls_per_run")
    max_calls_per_day: int | None = _shows("deepxl_max_calls_per_day")
    price_per_call: float | None = _shows("deepxl_price_per_call")
    currency: str = _shows("deepxl_currency")
    uncertain: str = _shows("deepxl_uncertain")
    document_types: list[str] = _shows("deepxl_document_types")


class LandingZone(dg.ConfigurableResource[Any]):
    """Where manifests and documents are delivered."""

    location: str = _shows("kyc_landing")
    csv_encoding: str | None = _shows("kyc_csv_encoding")
    duplicate_documents: str = _shows("kyc_duplicate_documents")


class PaidCalls(dg.ConfigurableResource[Any]):
    """The ledger: the record of every paid call, which makes repeats free."""

    url: str = _shows("kyc_ledger_url")


class ParquetLake(dg.ConfigurableResource[Any]):
    """The lake: the tables of every stage, one Parquet file per table and day."""

    location: str = _shows("kyc_lake")
    pseudonym_key: str | None = _shows("kyc_pseudonym_key")
    clear_tags: list[str] = _shows("kyc_clear_tags")


class Published(dg.ConfigurableResource[Any]):
    """The warehouse and the report, which are replaced whole."""

    file: str = _shows("kyc_warehouse")
    report: str = _shows("kyc_report")
    memory: str = _shows("kyc_warehouse_memory")
    max_fact_rows: int = _shows("kyc_warehouse_max_fact_rows")
    dimensions: list[str] = _shows("kyc_dimensions")
    subject_tags: list[str] = _shows("kyc_subject_tags")


def resources_of(pipeline: Pipeline) -> dict[str, Any]:
    """The resource `pipeline`, which the steps use, and those that show what it consists of."""

    class KycPipeline(dg.ConfigurableResource[Pipeline]):
        """What the steps use: the stores and limits that the other resources show."""

        home: str = _shows("kyc_home")
        start_date: str = _shows("kyc_start_date")

        def create_resource(self, context: dg.InitResourceContext) -> Pipeline:
            return pipeline

    shown: dict[str, type[dg.ConfigurableResource[Any]]] = {
        "pipeline": KycPipeline,
        "api": DeepxlApi,
        "landing": LandingZone,
        "ledger": PaidCalls,
        "lake": ParquetLake,
        "warehouse": Published,
    }
    return {name: _of(resource, pipeline.settings) for name, resource in shown.items()}
