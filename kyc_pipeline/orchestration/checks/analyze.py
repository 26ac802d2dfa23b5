"""The warehouse's checks as Dagster shows them; what they look at is in `sql/checks/`."""

from typing import Any

import dagster as dg

from kyc_pipeline.analyze.quality import Check, CheckResult, Severity, load_checks

SEVERITIES = {
    Severity.ERROR: dg.AssetCheckSeverity.ERROR,
    Severity.WARNING: dg.AssetCheckSeverity.WARN,
}


def check_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """One spec a check, all on `asset`."""
    return [
        dg.AssetCheckSpec(check.name, asset=asset, description=_description(check)) for check in load_checks()
    ]


def check_result(asset: dg.AssetKey, result: CheckResult) -> dg.AssetCheckResult:
    """Dagster's form of one result, with the first rows that are wrong."""
    columns = list(result.sample[0]) if result.sample else []
    metadata: dict[str, Any] = {"count": result.count, "unit": result.unit}
    if result.sample:
        metadata["first_rows"] = dg.MetadataValue.table(
            records=[dg.TableRecord(row) for row in result.sample],
            schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in columns]),
        )
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=result.name,
        passed=result.passed,
        severity=SEVERITIES[result.severity],
        description=result.description,
        metadata=metadata,
    )


def _description(check: Check) -> str:
    return f"{check.description} ({check.severity.value})"
