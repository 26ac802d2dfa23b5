"""The checks of the daily stages, one module per stage, and the translation of all checks to Dagster.

The checks of a day belong to its partition, as the tables do. So the result of one day never replaces that of
another, even if one run checks several days.

The warehouse's checks are SQL: see `analyze.quality` and `sql/checks/`.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import Any, Final

import dagster as dg

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity

_REFERENCE: Final = "AssetCheckEvaluationTargetMaterializationData"
_SEVERITIES: Final = {
    Severity.ERROR: dg.AssetCheckSeverity.ERROR,
    Severity.WARNING: dg.AssetCheckSeverity.WARN,
}


def check_specs(
    checks: Iterable[CheckDefinition], partitions: dg.PartitionsDefinition[str] | None = None
) -> list[dg.AssetCheckSpec]:
    """Dagster's specs. With `partitions`, a failed check of severity ERROR blocks downstream assets.

    Without, no check blocks: the warehouse's step ends by itself before it publishes, and labels never stop a
    publication.
    """
    with warnings.catch_warnings():
        # Partitions of checks are a preview in Dagster; the pinned version has them.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                check.name,
                asset=dg.AssetKey(check.asset),
                description=f"{check.description} ({check.severity})",
                blocking=partitions is not None and check.severity is Severity.ERROR,
                partitions_def=partitions,
            )
            for check in checks
        ]


def check_result(result: CheckResult) -> dg.AssetCheckResult:
    """The result that a step without partitions yields."""
    return dg.AssetCheckResult(check_name=result.name, **_arguments(result))


def check_evaluation(
    result: CheckResult, day: str, materialization: dg.EventLogRecord | None
) -> dg.AssetCheckEvaluation:
    """The event of one day's check, which refers to the day's `materialization`.

    An `AssetCheckResult` refers to a materialization only in a run of one day.
    """
    return dg.AssetCheckEvaluation(
        check_name=result.name,
        partition=day,
        blocking=result.severity is Severity.ERROR,
        target_materialization_data=_reference(materialization),
        **_arguments(result),
    )


def check_events(
    instance: dg.DagsterInstance,
    specs: Iterable[dg.AssetCheckSpec],
    results: Iterable[tuple[str, CheckResult]],
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """What a step yields for the checks `specs`: an event per day, and the outputs that Dagster expects."""
    outputs = {(spec.asset_key.to_user_string(), spec.name): spec.get_python_identifier() for spec in specs}
    latest = cache(partial(latest_materialization, instance))
    for day, result in results:
        if (result.definition.asset, result.name) in outputs:
            yield check_evaluation(result, day, latest(result.definition.asset, day))
    for name in outputs.values():
        yield dg.Output(None, output_name=name)


def latest_materialization(instance: dg.DagsterInstance, asset: str, day: str) -> dg.EventLogRecord | None:
    """The day's latest materialization."""
    records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[day])
    return next(iter(instance.fetch_materializations(records, limit=1).records), None)


def _reference(record: dg.EventLogRecord | None) -> Any:
    if record is None:
        return None
    reference = {"storage_id": record.storage_id, "run_id": record.run_id, "timestamp": record.timestamp}
    # Dagster makes this type public only by its name in stored events.
    return dg.deserialize_value(json.dumps({"__class__": _REFERENCE, **reference}))


def _arguments(result: CheckResult) -> dict[str, Any]:
    metadata = dict(result.metadata)
    if result.sample:
        metadata["first_rows"] = dg.MetadataValue.table(
            records=[dg.TableRecord(row) for row in result.sample],
            schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in result.sample[0]]),
        )
    return {
        "asset_key": dg.AssetKey(result.definition.asset),
        "passed": result.passed,
        "severity": _SEVERITIES[result.severity],
        "description": result.description,
        "metadata": metadata,
    }
