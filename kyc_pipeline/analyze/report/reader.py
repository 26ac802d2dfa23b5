"""Reads the published warehouse for all sections of the report: rows, periods, checks, descriptions.

DuckDB computes the figures of a period from counts over its days, never from averages of rates.
"""

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from kyc_pipeline.analyze.report.page import Definition, View
from kyc_pipeline.analyze.report.periods import Period, choose_periods, epoch_ms

NOTHING: Final = "Nothing in this period."
NONE_COMPLETED: Final = "No verification is completed yet."
MAX_CHECKS: Final = 12

Rows = list[dict[str, Any]]


def rows_of(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: list[object] | dict[str, object] | None = None,
) -> Rows:
    """The rows of a query, each by column name."""
    found = connection.execute(sql, parameters or [])
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@dataclass(frozen=True, slots=True)
class ChartedCheck:
    """A check that has charts; `label` is its type, with the group if several groups have that type."""

    group: str
    type: str
    label: str


class WarehouseReader:
    """An open warehouse. Creates temporary tables in its connection: `report_days`, `report_units`.

    Rows over time have a `unit` (day or week) and its first day `start`; all others have a `period`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        span = self.rows(
            "SELECT min(date) AS first, max(date) AS last, coalesce(sum(received), 0)::BIGINT AS received,"
            " coalesce(sum(completed), 0)::BIGINT AS completed FROM submission_funnel"
        )[0]
        self.currency: str = self.rows("SELECT currency FROM build_info")[0]["currency"]
        self.received: int = span["received"]
        self.completed: int = span["completed"]
        nowhere = datetime.date(1970, 1, 1)
        self.first: datetime.date = span["first"] or nowhere
        self.last: datetime.date = span["last"] or nowhere
        self.periods = choose_periods(self.first, self.last)
        self.shown = self.periods[0].shown
        self._calendar()
        self._undecided: dict[tuple[str, datetime.date | None], int] = {
            (row["unit"], row["start"]): row["n"]
            for row in self.rows(
                "SELECT unit, start, sum(undecided)::BIGINT AS n FROM days JOIN report_units USING (date)"
                " GROUP BY ALL UNION ALL SELECT period, NULL, sum(undecided)::BIGINT FROM days"
                " JOIN report_days USING (date) GROUP BY ALL"
            )
        }
        self._comments = {
            str(row["name"]): str(row["comment"] or "")
            for row in self.rows(
                "SELECT table_name AS name, comment FROM duckdb_tables()"
                " UNION ALL SELECT view_name, comment FROM duckdb_views()"
                " UNION ALL SELECT table_name || '.' || column_name, comment FROM duckdb_columns()"
            )
        }
        self.checks = self._choose_checks()

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """The rows of a query, each by column name."""
        return rows_of(self._connection, sql, list(parameters))

    def by_check(self, rows: Rows) -> Mapping[tuple[str, str], Rows]:
        """The rows by check_group and check_type."""
        found: dict[tuple[str, str], Rows] = defaultdict(list)
        for row in rows:
            found[row["check_group"], row["check_type"]].append(row)
        return found

    def define(self, *names: str) -> list[Definition]:
        """The warehouse's descriptions of tables and columns."""
        return [Definition(name, self._comments[name]) for name in names]

    def views(self, view: Callable[[Period], View]) -> dict[str, View]:
        """The texts of a chart by period."""
        return {period.key: view(period) for period in self.periods}

    def undecided(self, row: Mapping[str, Any]) -> int:
        """Submissions of a row's day, week or period that may still get a verdict."""
        return self._undecided.get((row.get("unit") or row["period"], row.get("start")), 0)

    def shown_in(self, row: Mapping[str, Any]) -> list[str]:
        """The keys of the periods that show a row over time."""
        return [
            period.key
            for period in self.periods
            if period.unit == row["unit"] and row["start"] >= period.first_start
        ]

    def in_period(self, rows: Rows, period: Period) -> Rows:
        """The rows over time that a period shows."""
        first = period.first_start
        return [row for row in rows if row["unit"] == period.unit and row["start"] >= first]

    def filled(self, rows: Rows, columns: Sequence[str]) -> Rows:
        """The rows for a chart, with a row of NULLs for each day or week without data, which breaks lines.

        A row without neighbours is marked `alone`, because no line reaches it.
        """
        filled: Rows = []
        for unit in ("day", "week"):
            own = {row["start"]: row for row in rows if row["unit"] == unit}
            if not own:
                continue
            step = datetime.timedelta(days=7 if unit == "week" else 1)
            start = min(own)
            while start <= max(own):
                row = own.get(start)
                filled.append(
                    {
                        "unit": unit,
                        "date": epoch_ms(start),
                        **{name: rounded(row[name]) if row else None for name in columns},
                    }
                )
                if row and not {start - step, start + step} & own.keys():
                    filled[-1]["alone"] = True
                start += step
        return filled

    def _calendar(self) -> None:
        """Creates `report_days`, the days of each period, and `report_units`, the point of each date."""
        choices = [{"period": p.key, "since": p.since.isoformat()} for p in self.periods]
        self._connection.execute(
            """
            CREATE OR REPLACE TEMP TABLE report_days AS
            SELECT f.date, p.period
            FROM submission_funnel AS f
            JOIN (SELECT unnest($1::STRUCT(period VARCHAR, since DATE)[], recursive := true)) AS p
                ON f.date >= p.since
            """,
            [choices],
        )
        daily_from = min((p.since for p in self.periods if p.unit == "day"), default=None)
        weekly = any(period.unit == "week" for period in self.periods)
        self._connection.execute(
            """
            CREATE OR REPLACE TEMP TABLE report_units AS
            SELECT date, 'day' AS unit, date AS start FROM submission_funnel WHERE date >= $1
            UNION ALL
            SELECT date, 'week', date_trunc('week', date)::DATE FROM submission_funnel WHERE $2
            """,
            [daily_from, weekly],
        )

    def _choose_checks(self) -> list[ChartedCheck]:
        rows = self.rows(
            """
            SELECT check_group, check_type, count(*) OVER (PARTITION BY check_type) AS groups
            FROM (SELECT check_group, check_type, sum(checks) AS n FROM pass_rates GROUP BY ALL)
            ORDER BY n DESC, check_type, check_group
            """
        )
        self.all_checks = len(rows)
        return [
            ChartedCheck(
                row["check_group"],
                row["check_type"],
                row["check_type"] if row["groups"] == 1 else f"{row['check_type']} ({row['check_group']})",
            )
            for row in rows[:MAX_CHECKS]
        ]


def grouped(rows: Rows, name: str) -> dict[str, Rows]:
    """The rows by the value of a column."""
    found: dict[str, Rows] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return dict(found)


def rounded(value: Any) -> Any:
    """Rounds a float to what a chart can show."""
    return round(value, 5) if isinstance(value, float) else value
