"""The warehouse's checks: one query a file in `sql/checks/`, each returns the rows that are wrong.

An error stops publication; a warning does not. Checks read the finished build only, so anyone can run them.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

import duckdb

from kyc_pipeline.analyze.models import parse_header, sql_folder

SAMPLE_ROWS: Final = 5


class Severity(StrEnum):
    """What a failed check means for publication."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `sql` returns the rows that are wrong."""

    name: str
    severity: Severity
    description: str
    sql: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How a check came out: `rows` are wrong, of which `sample` shows the first few (ids and counts only)."""

    name: str
    severity: Severity
    passed: bool
    description: str
    rows: int
    sample: tuple[dict[str, str], ...]


@lru_cache(maxsize=1)
def load_checks() -> tuple[Check, ...]:
    """Every check by name."""
    checks: list[Check] = []
    for path in sorted((sql_folder() / "checks").glob("*.sql")):
        description, fields, sql = parse_header(path.stem, path.read_text(encoding="utf-8"))
        checks.append(Check(path.stem, Severity(dict(fields)["severity"]), description, sql))
    return tuple(checks)


def check_build(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """Runs every check on the build that `connection` has open."""
    results: list[CheckResult] = []
    for check in load_checks():
        found = connection.execute(
            f"SELECT count(*) OVER () AS found, * FROM ({check.sql}) ORDER BY ALL LIMIT {SAMPLE_ROWS}"
        )
        names = [column[0] for column in found.description or []]
        rows = found.fetchall()
        sample = tuple(dict(zip(names[1:], map(str, row[1:]), strict=True)) for row in rows)
        count = int(rows[0][0]) if rows else 0
        results.append(CheckResult(check.name, check.severity, count == 0, check.description, count, sample))
    return results
