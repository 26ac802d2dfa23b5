"""The checks of the daily stages, one module per stage, and the translation of all checks to Dagster.

The warehouse's checks are SQL: see `analyze.quality` and `sql/checks/`.
"""

from collections.abc import Iterable
from typing import Any, Final

import dagster as dg

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity

_SEVERITIES: Final = {
    Severity.ERROR: dg.AssetCheckSeverity.ERROR,
    Severity.WARNING: dg.AssetCheckSeverity.WARN,
}


def check_specs(checks: Iterable[CheckDefinition], *, errors_block: bool = True) -> list[dg.AssetCheckSpec]:
    """Dagster's specs; with `errors_block`, a failed check of severity ERROR blocks downstream assets."""
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=dg.AssetKey(check.asset),
            description=f"{check.description} ({check.severity})",
            blocking=errors_block and check.severity is Severity.ERROR,
        )
        for check in checks
    ]


def check_result(result: CheckResult, **metadata: Any) -> dg.AssetCheckResult:
    """The result that a step yields, with additional `metadata`."""
    return dg.AssetCheckResult(check_name=result.name, **_arguments(result, metadata))


def check_evaluation(result: CheckResult, day: str) -> dg.AssetCheckEvaluation:
    """The event that a run over several days logs for one of them."""
    return dg.AssetCheckEvaluation(check_name=result.name, partition=day, **_arguments(result, {}))


def _arguments(result: CheckResult, extra: dict[str, Any]) -> dict[str, Any]:
    metadata = {**result.metadata, **extra}
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
