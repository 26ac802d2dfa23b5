"""The warehouse's checks: each file in `sql/checks/` is a query that returns the violations.

The header has the severity (`severity: error` or `warning`), what to do about a violation (`todo`), and what
the check counts: the rows of the query (`counts: days`) or, if the query groups, the sum of a column
(`counts: sum of verifications`). It may name columns whose values the message shows (`shows: setting, tag`):
nothing that may be personal.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import duckdb

from kyc_pipeline.analyze.build import open_day
from kyc_pipeline.analyze.sql_models import parse_header, sql_folder
from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.wording import counted

ASSET: Final = "warehouse"
SAMPLE_ROWS: Final = 5
_FIELDS: Final = ("severity", "counts", "todo")
_SUM: Final = "sum of "


@dataclass(frozen=True, slots=True)
class SqlCheck:
    """A check in SQL: `unit` is what a row of the query is, or the column to sum."""

    definition: CheckDefinition
    unit: str
    is_summed: bool
    todo: str
    sql: str
    shows: tuple[str, ...]
    """Columns whose values, of the first rows, are in the message."""


@lru_cache(maxsize=1)
def load_checks() -> tuple[SqlCheck, ...]:
    """Every check, by name. Raises :class:`KycError` for a malformed header."""
    return tuple(_read_check(path) for path in sorted((sql_folder() / "checks").glob("*.sql")))


def _read_check(path: Path) -> SqlCheck:
    name = f"checks/{path.stem}"
    description, fields, sql = parse_header(name, path.read_text(encoding="utf-8"))
    header = dict(fields)
    if missing := [f"{field}:" for field in _FIELDS if field not in header]:
        raise KycError(f"sql/{name}.sql: the header has no {', '.join(missing)}")
    severity, counts, todo = (header[field] for field in _FIELDS)
    if severity not in set(Severity):
        raise KycError(f"sql/{name}.sql: severity must be {' or '.join(Severity)}, not {severity!r}")
    unit = counts.removeprefix(_SUM)
    definition = CheckDefinition(ASSET, path.stem, Severity(severity), description)
    shows = tuple(header["shows"].split(", ")) if "shows" in header else ()
    return SqlCheck(definition, unit, unit != counts, todo, sql, shows)


def check_build(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """Runs every check on the build that is open in `connection`.

    A result's metadata are the `count` of the violations and its `unit`.
    """
    return [_run(connection, check) for check in load_checks()]


def violations_of_day(lake: Lake, date: str, names: Collection[str]) -> dict[str, int]:
    """The number of violations of the checks called `names`, in the curated tables of `date` alone."""
    checks = [check for check in load_checks() if check.definition.name in names]
    with open_day(lake, date, {f"checks/{each.definition.name}": each.sql for each in checks}) as connection:
        return {check.definition.name: _run(connection, check).metadata["count"] for check in checks}


def _run(connection: duckdb.DuckDBPyConnection, check: SqlCheck) -> CheckResult:
    violations = connection.sql(check.sql)
    for column in (*check.shows, *([check.unit] if check.is_summed else [])):
        if column not in violations.columns:
            file = f"sql/checks/{check.definition.name}.sql"
            raise KycError(f"{file}: the query returns no column {column!r}, which the header names")
    amount = f"sum({check.unit})::BIGINT" if check.is_summed else "count(*)"
    days = "min(date)::VARCHAR, max(date)::VARCHAR" if "date" in violations.columns else "NULL, NULL"
    count, *range_ = violations.aggregate(f"coalesce({amount}, 0), {days}").fetchall()[0]
    sample = tuple(
        dict(zip(violations.columns, map(str, row), strict=True))
        for row in (violations.order("ALL").limit(SAMPLE_ROWS).fetchall() if count else [])
    )
    metadata = {"count": int(count), "unit": check.unit}
    definition = check.definition
    if check.shows:
        shown = [": ".join(row[column] for column in check.shows) for row in sample]
        which = ", ".join([*shown, "…"] if count > len(shown) else shown)
    else:
        which = " to ".join(dict.fromkeys(filter(None, range_)))
    at = f" ({which})" if which else ""
    text = f"{counted(count, check.unit)}{at}: {check.todo}" if count else definition.description
    return CheckResult(definition, count == 0, text, metadata, sample)


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
