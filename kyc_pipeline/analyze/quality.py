"""The warehouse's checks: one query a file in `sql/checks/`, each returns the rows that are wrong.

The file's header says the severity and what it `counts`: its rows, by what they are (`counts: days`), or
where the query groups, the sum of a column (`counts: sum of verifications`).

An error stops publication; a warning does not. Checks read the finished build only, so anyone can run them.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

import duckdb

from kyc_pipeline.analyze.models import parse_header, sql_folder

SAMPLE_ROWS: Final = 5
_SUM: Final = "sum of "


class Severity(StrEnum):
    """What a failed check means for publication."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `sql` returns the rows that are wrong; `unit` is what they are, or the column to sum."""

    name: str
    severity: Severity
    unit: str
    is_summed: bool
    description: str
    sql: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How a check came out: `count` of `unit` are wrong; `sample` are the first rows (ids, counts)."""

    name: str
    severity: Severity
    passed: bool
    description: str
    unit: str
    count: int
    sample: tuple[dict[str, str], ...]


@lru_cache(maxsize=1)
def load_checks() -> tuple[Check, ...]:
    """Every check by name."""
    checks: list[Check] = []
    for path in sorted((sql_folder() / "checks").glob("*.sql")):
        description, fields, sql = parse_header(path.stem, path.read_text(encoding="utf-8"))
        words = dict(fields)
        unit = words["counts"].removeprefix(_SUM)
        is_summed = unit != words["counts"]
        checks.append(Check(path.stem, Severity(words["severity"]), unit, is_summed, description, sql))
    return tuple(checks)


def check_build(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """Runs every check on the build that `connection` has open."""
    results: list[CheckResult] = []
    for check in load_checks():
        wrong = connection.sql(check.sql)
        counted = f"sum({check.unit})::BIGINT" if check.is_summed else "count(*)"
        (count,) = wrong.aggregate(f"coalesce({counted}, 0)").fetchall()[0]
        sample = tuple(
            dict(zip(wrong.columns, map(str, row), strict=True))
            for row in (wrong.order("ALL").limit(SAMPLE_ROWS).fetchall() if count else [])
        )
        results.append(
            CheckResult(
                check.name, check.severity, count == 0, check.description, check.unit, int(count), sample
            )
        )
    return results
