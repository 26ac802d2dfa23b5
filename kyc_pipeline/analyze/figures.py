"""Figures that Dagster plots for each materialization of a table, and a small histogram.

They are counts, rates and costs of the table's newest day, unless the name says otherwise. None shows a
single person.
"""

import base64
from collections.abc import Mapping
from html import escape
from typing import Final

import duckdb

_NEWEST_DAY: Final = {
    "pass_rates": "check_type, sum(passed) / nullif(sum(passed + failed), 0) AS pass_rate",
    "verified_rates": "any_value(verified_rate) AS verified_rate, sum(verifications) AS verifications",
    "verified_rates_by_company": "count(*) AS companies,"
    " min(verified_rate) FILTER (NOT low_n) AS lowest_verified_rate",
    "confidence_summary": "check_type, any_value(p50) AS median_confidence",
    "confidence_histogram": "sum(checks) AS with_confidence",
    "confidence_drift": "check_type, max(psi) AS psi, max(ks) AS ks",
    "failure_attribution": "any_value(not_verified) AS not_verified,"
    " sum(failing) FILTER (check_type = 'UNEXPLAINED_DECLINE') AS unexplained_declines,"
    " sum(failing) FILTER (check_type = 'OVERRIDE') AS overrides",
    "failure_combinations": "count(*) FILTER (failed_checks <> 'none') AS combinations",
    "submission_funnel": "sum(received) AS received, sum(rejected) AS rejected, sum(completed) AS completed,"
    " sum(failed) AS failed, sum(quarantined) AS quarantined, sum(not_attempted) AS not_attempted",
    "api_performance": "sum(calls) AS calls, sum(retries) AS retries, any_value(p50_ms) AS p50_ms,"
    " any_value(p95_ms) AS p95_ms, sum(estimated_cost) AS estimated_cost,"
    " any_value(cost_per_verified) AS cost_per_verified",
    "repeat_subjects": "sum(subjects) AS subjects, sum(shared_documents) AS shared_documents",
    "rejected_by_reason": "sum(rejected) AS rejected",
    "contract_drift": "sum(occurrences) AS occurrences",
}
"""Table → figures of its newest day, by check type if they begin with `check_type`."""
_WITH_VERDICT: Final = {
    "pass_rates": "checks > 0",
    "verified_rates": "verifications > 0",
    "verified_rates_by_company": "verifications > 0",
}
"""Table of rates → its rows with a verdict. The others only say what is undecided, and have no figures."""
_ALL_DAYS: Final = {
    "submission_funnel": "sum(uncertain) AS held_all_days",
    "api_performance": "sum(estimated_cost) AS estimated_cost_all_days",
    "threshold_sensitivity": "check_type, any_value(auc) AS auc_all_days",
    "alarms": "count(*) FILTER (explained_by IS NULL AND is_recent(to_date, (SELECT max(date) FROM days)))"
    " AS recent_alarms",
}
"""Table → figures of all its days."""
_WAREHOUSE: Final = {
    "verified_rates": ("verified_rate", "verifications"),
    "submission_funnel": ("held_all_days", "rejected"),
    "api_performance": ("calls", "estimated_cost"),
}
"""Figures that are also shown for the published file."""

_TYPES_SHOWN: Final = 12
_PICTURE_TYPES: Final = 4
_BINS, _BIN_WIDTH, _BAR_HEIGHT, _ROW_HEIGHT = 20, 10, 24, 36


def read_figures(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, float]]:
    """Table → name → figure, without NULLs, of the build that is open in `connection`."""
    found: dict[str, dict[str, float]] = {}
    for queries, where in ((_NEWEST_DAY, "WHERE date = (SELECT max(date) FROM {rows})"), (_ALL_DAYS, "")):
        for table, figures in queries.items():
            counted = f"(FROM {table} WHERE {_WITH_VERDICT.get(table, 'TRUE')})"
            grouped = "GROUP BY check_type ORDER BY count(*) DESC, check_type LIMIT $1"
            by_type = figures.startswith("check_type")
            rows = connection.execute(
                f"SELECT {figures} FROM {counted} {where.format(rows=counted)} {grouped if by_type else ''}",
                [_TYPES_SHOWN] if by_type else [],
            )
            names = [column[0] for column in rows.description or []]
            for row in rows.fetchall():
                values = dict(zip(names, row, strict=True))
                prefix = f"{values.pop('check_type')} " if by_type else ""
                found.setdefault(table, {}).update(
                    {f"{prefix}{name}": _number(value) for name, value in values.items() if value is not None}
                )
    return found


def warehouse_figures(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of the published file."""
    return {
        name: figures[table][name]
        for table, names in _WAREHOUSE.items()
        for name in names
        if name in figures.get(table, {})
    }


def newest_day(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The newest day with a submission in the build."""
    ((day,),) = connection.execute("SELECT max(date)::VARCHAR FROM submission_funnel").fetchall()
    return None if day is None else str(day)


def column_types(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """Table → column → DuckDB type."""
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns()"
        " WHERE NOT internal AND database_name = current_database() ORDER BY table_name, column_index"
    ).fetchall():
        found.setdefault(table, {})[column] = kind
    return found


def pass_rates_preview(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Markdown with the pass rates of the newest day with a check by check type; None without any."""
    rows = connection.execute(
        f"""
        WITH with_verdict AS (FROM pass_rates WHERE {_WITH_VERDICT["pass_rates"]})
        SELECT date::VARCHAR, check_type, checks, passed, failed, other,
            pass_rate, pass_rate_low, pass_rate_high
        FROM with_verdict
        WHERE date = (SELECT max(date) FROM with_verdict)
        ORDER BY checks DESC, check_type
        LIMIT $1
        """,
        [_TYPES_SHOWN],
    ).fetchall()
    if not rows:
        return None
    heads = ("date", "check", "checks", "passed", "failed", "other", "pass rate", "95 % interval")
    lines = [heads, ("---",) * len(heads)]
    for *counts, rate, low, high in rows:
        interval = ("–", "–") if rate is None else (f"{rate:.2%}", f"{low:.2%} – {high:.2%}")
        lines.append((*(str(value).replace("|", "/") for value in counts), *interval))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def confidence_picture(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Markdown with a histogram of all confidences by check type; None without confidences.

    It is small enough for Dagster to show it inline: below 1000 characters for three types.
    """
    rows = connection.execute(
        f"""
        SELECT check_type, list(checks ORDER BY bin)
        FROM (
            SELECT check_type, bin // {100 // _BINS} AS bin, sum(checks)::BIGINT AS checks
            FROM confidence_histogram
            GROUP BY ALL
        )
        GROUP BY check_type
        HAVING sum(checks) > 0
        ORDER BY sum(checks) DESC, check_type
        LIMIT {_PICTURE_TYPES}
        """
    ).fetchall()
    if not rows:
        return None
    bars = "".join(_bars(number, check_type, counts) for number, (check_type, counts) in enumerate(rows))
    box = f"0 0 {_BINS * _BIN_WIDTH} {len(rows) * _ROW_HEIGHT}"
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='400' viewBox='{box}' "
        f"style='font:8px sans-serif' fill='#58c'>{bars}</svg>"
    )
    image = base64.b64encode(svg.encode()).decode()
    return f"![Confidences 0 to 1 by check type](data:image/svg+xml;base64,{image})"


def _bars(row: int, check_type: str, counts: list[int]) -> str:
    """The name of a check type and its bars; the tallest bar has full height."""
    bottom = (row + 1) * _ROW_HEIGHT - 2
    # Round up, so that a bin with few checks is still visible.
    tops = (bottom - -(-count * _BAR_HEIGHT // max(counts)) for count in counts)
    path = "".join(f"V{top}h{_BIN_WIDTH}" for top in tops)
    name = escape(check_type[:40])
    return f"<text y='{bottom - _BAR_HEIGHT - 2}'>{name}</text><path d='M0 {bottom}{path}V{bottom}'/>"


def _number(value: object) -> float:
    """A number that Dagster can plot; integers stay integers."""
    return value if isinstance(value, int) else float(str(value))
