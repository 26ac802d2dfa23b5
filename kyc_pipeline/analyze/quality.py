"""The warehouse's checks: each file in `sql/checks/` is a query that returns the violations.

The header has the severity, and what the check counts: the rows of the query (`counts: days`) or, if the
query groups, the sum of a column (`counts: sum of verifications`).
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import duckdb

from kyc_pipeline.analyze.sql_models import parse_header, sql_folder
from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity

ASSET: Final = "warehouse"
SAMPLE_ROWS: Final = 5
_SUM: Final = "sum of "


@dataclass(frozen=True, slots=True)
class SqlCheck:
    """A check in SQL: `unit` is what a row of the query is, or the column to sum."""

    definition: CheckDefinition
    unit: str
    is_summed: bool
    sql: str


@lru_cache(maxsize=1)
def load_checks() -> tuple[SqlCheck, ...]:
    """Every check, by name."""
    checks: list[SqlCheck] = []
    for path in sorted((sql_folder() / "checks").glob("*.sql")):
        description, fields, sql = parse_header(f"checks/{path.stem}", path.read_text(encoding="utf-8"))
        header = dict(fields)
        unit = header["counts"].removeprefix(_SUM)
        definition = CheckDefinition(ASSET, path.stem, Severity(header["severity"]), description)
        checks.append(SqlCheck(definition, unit, unit != header["counts"], sql))
    return tuple(checks)


def check_build(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """Runs every check on the build that is open in `connection`.

    A result's metadata are the `count` of the violations and its `unit`.
    """
    results: list[CheckResult] = []
    for check in load_checks():
        violations = connection.sql(check.sql)
        counted = f"sum({check.unit})::BIGINT" if check.is_summed else "count(*)"
        (count,) = violations.aggregate(f"coalesce({counted}, 0)").fetchall()[0]
        sample = tuple(
            dict(zip(violations.columns, map(str, row), strict=True))
            for row in (violations.order("ALL").limit(SAMPLE_ROWS).fetchall() if count else [])
        )
        metadata = {"count": int(count), "unit": check.unit}
        definition = check.definition
        results.append(CheckResult(definition, count == 0, definition.description, metadata, sample))
    return results


def recorded_checks(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """The results that the open build has in `build_checks`, as :func:`check_build` gave them."""
    definitions = {check.definition.name: check.definition for check in load_checks()}
    rows = connection.execute(
        "SELECT check_name, passed, description, count, unit, sample FROM build_checks ORDER BY check_name"
    ).fetchall()
    return [
        CheckResult(
            definitions[name], passed, description, {"count": count, "unit": unit}, tuple(json.loads(sample))
        )
        for name, passed, description, count, unit, sample in rows
    ]
