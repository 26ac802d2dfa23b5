"""Catalog entries of the assets: owner, links to code and documents, freshness."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg

from kyc_pipeline.analyze.sql_models import load_models
from kyc_pipeline.orchestration.automation import PUBLISH_WHEN_NEW
from kyc_pipeline.orchestration.checks.analyze import DEADLINE_HOUR
from kyc_pipeline.orchestration.specs import ANALYZE, FLATTEN, INGEST, VERIFY

ROOT: Final = Path(__file__).resolve().parents[2]
DICTIONARY: Final = "docs/data-dictionary.md"
OPERATIONS: Final = "docs/operations.md"

OWNERS: Final = {
    INGEST: "team:data-engineering",
    VERIFY: "team:data-engineering",
    FLATTEN: "team:data-engineering",
    ANALYZE: "team:analytics",
}

FRESHNESS: Final = dg.FreshnessPolicy.cron(
    deadline_cron=f"0 {DEADLINE_HOUR} * * *",
    lower_bound_delta=timedelta(hours=DEADLINE_HOUR),
    timezone="UTC",
)
"""For the tables that analysts read: by 07:00 UTC, each must have been built since midnight.

A policy looks only at the latest materialization. So the daily tables have none: a backfill of an old day
would hide that yesterday is missing. The check `yesterday_is_included` shows whether a publication has it.
"""


@dataclass(frozen=True)
class Reference:
    """A file of the repository that builds or documents an asset."""

    path: str
    label: str
    anchor: str = ""


def add_catalog_entry(source_url: str | None) -> Callable[[dg.AssetSpec], dg.AssetSpec]:
    """A function that adds the entry to a spec; links go to `source_url` or to files of this checkout."""

    def add(spec: dg.AssetSpec) -> dg.AssetSpec:
        references = [one for one in _references(spec) if source_url or (ROOT / one.path).is_file()]
        metadata: dict[str, Any] = {**spec.metadata, **_code_references(references, source_url)}
        changes: dict[str, Any] = {
            "owners": [OWNERS[str(spec.group_name)]],
            "description": "\n\n".join(filter(None, [spec.description, _see_also(references, source_url)])),
        }
        if spec.group_name == ANALYZE:
            changes |= {"freshness_policy": FRESHNESS, "automation_condition": PUBLISH_WHEN_NEW}
        return spec.replace_attributes(metadata=metadata, **changes)

    return add


def _references(spec: dg.AssetSpec) -> list[Reference]:
    name, group = spec.key.path[-1], str(spec.group_name)
    references = [Reference(f"kyc_pipeline/orchestration/assets/{group}.py", "source")]
    queries = {model.name: model.path for model in load_models()} if group == ANALYZE else {}
    if name in queries:
        references.insert(0, Reference(queries[name], "query"))
    if "dagster/column_schema" in spec.metadata:
        references.append(Reference(DICTIONARY, "data dictionary", f"#{name}"))
    return [*references, Reference(OPERATIONS, "what to do when it fails")]


def _see_also(references: list[Reference], source_url: str | None) -> str:
    """A sentence with links to the documents among `references`; empty if there are none."""
    links = [
        f"[{reference.label}]({source_url}/{reference.path}{reference.anchor})"
        if source_url
        else f"{reference.label}: `{reference.path}`"
        for reference in references
        if reference.path.startswith("docs/")
    ]
    return f"See {'; '.join(links)}." if links else ""


def _code_references(references: list[Reference], source_url: str | None) -> dict[str, Any]:
    with warnings.catch_warnings():
        # Code references are beta in Dagster; the pinned version has them.
        warnings.simplefilter("ignore", dg.BetaWarning)
        links = [
            dg.UrlCodeReference(url=f"{source_url}/{reference.path}{reference.anchor}", label=reference.label)
            if source_url
            else dg.LocalFileCodeReference(file_path=str(ROOT / reference.path), label=reference.label)
            for reference in references
        ]
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=links)}
