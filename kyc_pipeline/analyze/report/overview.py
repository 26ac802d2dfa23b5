"""The top of the report: its build, the key figures of each period, and notable findings."""

import datetime
from collections.abc import Mapping
from typing import Any, Final

from kyc_pipeline.analyze.report.page import (
    Remark,
    Tile,
    amount,
    bounds,
    day,
    decimals,
    interval,
    money,
    number,
    percent,
    points,
    sample_size,
    share,
    some,
)
from kyc_pipeline.analyze.report.periods import Period
from kyc_pipeline.analyze.report.reader import WarehouseReader
from kyc_pipeline.rules import LOW_N

_RECENT_DAYS: Final = 7
_REMARKS: Final = 3


def build(reader: WarehouseReader) -> dict[str, str]:
    """Facts about the build of the warehouse."""
    row = reader.rows(
        "SELECT strftime(built_at, '%-d %b %Y, %H:%M UTC') AS built_at, run_id,"
        " code_version, duckdb_version, partitions, rows, first_date, last_date, price_per_call"
        " FROM build_info"
    )[0]
    covered = "no day yet"
    if row["first_date"] is not None:
        covered = f"{day(row['first_date'])} to {day(row['last_date'])}"
    price = row["price_per_call"]
    return {
        "built_at": str(row["built_at"]),
        "run_id": str(row["run_id"]),
        "code_version": str(row["code_version"]),
        "duckdb_version": str(row["duckdb_version"]),
        "covered": covered,
        "days": some(row["partitions"], "day"),
        "rows": number(row["rows"]),
        "price": "not set (DEEPXL_PRICE_PER_CALL)"
        if price is None
        else f"{price.normalize():f} {reader.currency} a call",
    }


def tiles(reader: WarehouseReader, period: Period) -> list[Tile]:
    """The key figures of a period."""
    before = period.since - datetime.timedelta(days=period.days)
    row = reader.rows(
        """
        WITH f AS (
            SELECT sum(received)::BIGINT AS received, sum(rejected)::BIGINT AS rejected,
                sum(accepted)::BIGINT AS accepted, sum(completed)::BIGINT AS completed,
                sum(uncertain + quarantined)::BIGINT AS held,
                sum(failed + not_attempted)::BIGINT AS open
            FROM submission_funnel WHERE date BETWEEN $1 AND $2
        ),
        v AS (
            SELECT sum(verifications)::BIGINT AS verifications, sum(verified)::BIGINT AS verified
            FROM verified_rates WHERE date BETWEEN $1 AND $2
        ),
        b AS (
            SELECT sum(verifications)::BIGINT AS verifications_before,
                sum(verified)::BIGINT AS verified_before
            FROM verified_rates WHERE date >= $3 AND date < $1 AND $3 >= $4
        ),
        a AS (
            SELECT sum(estimated_cost) AS cost,
                sum(estimated_cost) FILTER (api_performance.is_complete) AS complete_cost,
                sum(verified) FILTER (api_performance.is_complete)::BIGINT AS verified_on_complete_days
            FROM api_performance LEFT JOIN verified_rates USING (date) WHERE date BETWEEN $1 AND $2
        ),
        d AS (
            SELECT sum(undecided)::BIGINT AS undecided FROM days WHERE date BETWEEN $1 AND $2
        ),
        l AS (
            SELECT quantile_cont(latency_ms, 0.5) AS p50, quantile_cont(latency_ms, 0.95) AS p95
            FROM submissions WHERE date BETWEEN $1 AND $2
        )
        SELECT *, ratio(verified, verifications) AS rate,
            wilson_low(verified, verifications) AS low, wilson_high(verified, verifications) AS high,
            rate - ratio(verified_before, verifications_before) AS change,
            newcombe_low(verified, verifications, verified_before, verifications_before) AS change_low,
            newcombe_high(verified, verifications, verified_before, verifications_before) AS change_high
        FROM f, v, b, a, d, l
        """,
        [period.since, period.until, before, reader.first],
    )[0]
    completed, accepted = row["completed"] or 0, row["accepted"] or 0
    change = ""
    if row["change"] is not None:
        change = (
            f"{points(row['change'])} against the {period.days} days before"
            f" (95%: {points(row['change_low'])} to {points(row['change_high'])})"
        )
    verified = "nothing completed"
    if row["verifications"]:
        verified = f"95%: {interval(row['low'], row['high'])}, of {sample_size(row['verifications'])}"
    if row["verifications"] and row["undecided"]:
        rates = bounds(row["verified"], row["verifications"], row["undecided"])
        verified += f"; {rates} with {number(row['undecided'])} undecided"
    per_verified = "no price is set"
    if row["cost"] is not None:
        per_verified = "none verified"
        if row["verified_on_complete_days"]:
            each = money(row["complete_cost"] / row["verified_on_complete_days"], reader.currency)
            per_verified = f"{each} for each verified"
            if row["complete_cost"] != row["cost"]:
                per_verified += " on complete days"
    held = row["held"] or 0
    return [
        Tile("Verified", percent(row["rate"]), verified, change),
        Tile("Received", number(row["received"] or 0), f"{number(row['rejected'] or 0)} rejected"),
        Tile(
            "Completed",
            number(completed),
            f"{percent(share(completed, accepted))} of {number(accepted)} accepted",
        ),
        Tile("Held or quarantined", number(held), f"{number(row['open'] or 0)} failed or not attempted"),
        Tile(
            "Response time (p95)",
            "–" if row["p95"] is None else f"{number(row['p95'])} ms",
            "no call" if row["p50"] is None else f"median {number(row['p50'])} ms",
        ),
        Tile(f"Estimated cost ({reader.currency})", amount(row["cost"]), per_verified),
    ]


def remarks(reader: WarehouseReader) -> list[Remark]:
    """Notable findings, the most urgent first."""
    if not reader.completed:
        return []
    few = f"Only {some(reader.completed, 'verification')} completed: no rate on this page is reliable yet."
    return [
        *([Remark(few, "verdicts")] if reader.completed < LOW_N else []),
        *_held(reader),
        *_recent_alarms(reader),
        *_recent_drift(reader),
        *_main_obstacle(reader),
        *_disagreements(reader),
    ]


def _held(reader: WarehouseReader) -> list[Remark]:
    held = reader.rows("SELECT sum(uncertain)::BIGINT AS n FROM submission_funnel")[0]["n"]
    text = f"{some(held, 'submission')} held for a decision: the outcome of the call is unknown."
    return [Remark(text, "funnel")] if held else []


def _recent(reader: WarehouseReader) -> datetime.date:
    return reader.last - datetime.timedelta(days=_RECENT_DAYS - 1)


def _recent_alarms(reader: WarehouseReader) -> list[Remark]:
    rows = reader.rows(
        f"""
        SELECT * FROM alarms WHERE to_date >= $1::DATE - 7 ORDER BY abs(effect) DESC, series LIMIT {_REMARKS}
        """,
        [_recent(reader)],
    )
    return [
        Remark(
            f"{_rate_of(row)} {'rose' if row['effect'] > 0 else 'fell'} by {points(abs(row['effect']))[1:]}"
            f" (95%: {points(row['effect_low'])} to {points(row['effect_high'])}), {day(row['from_date'])} to"
            f" {day(row['to_date'])}{_explanation(row)}.",
            "changes",
        )
        for row in rows
    ]


def _explanation(alarm: Mapping[str, Any]) -> str:
    """The end of an alarm's sentence, such as `; at the same time: outage`; empty without an explanation."""
    return f"; at the same time: {alarm['explained_by']}" if alarm["explained_by"] else ""


def _rate_of(alarm: Mapping[str, Any]) -> str:
    if alarm["check_group"] != "verdict":
        return f"The pass rate of {alarm['check_type']}"
    if alarm["value"] is not None:
        return f"The verified rate of {alarm['dimension']} {alarm['value']}"
    return "The verified rate"


def _recent_drift(reader: WarehouseReader) -> list[Remark]:
    rows = reader.rows(
        f"""
        SELECT check_type, arg_max(level, psi) AS level, max(psi) AS psi, arg_max(date, psi) AS date
        FROM confidence_drift WHERE date >= $1 AND level IN ('moderate', 'large')
        GROUP BY check_group, check_type ORDER BY max(psi) DESC LIMIT {_REMARKS}
        """,
        [_recent(reader)],
    )
    return [
        Remark(
            f"{row['check_type']}: {row['level']} drift of the confidences (PSI {decimals(row['psi'], 2)} on"
            f" {day(row['date'])}).",
            "drift",
        )
        for row in rows
    ]


def _main_obstacle(reader: WarehouseReader) -> list[Remark]:
    rows = reader.rows(
        """
        SELECT check_type, sum(failing)::BIGINT AS failing, sum(sole_blocker)::BIGINT AS alone,
            (SELECT sum(verifications - verified)::BIGINT FROM verified_rates) AS declined
        FROM failure_attribution WHERE check_group <> 'verdict'
        GROUP BY check_group, check_type HAVING sum(failing) > 0
        ORDER BY failing DESC, check_type LIMIT 1
        """
    )
    return [
        Remark(
            f"{row['check_type']} is the most frequent reason for declines: it failed in"
            f" {percent(share(row['failing'], row['declined']))} of {number(row['declined'])} declined"
            f" verifications, and was the only failed check in {number(row['alone'])}.",
            "failures",
        )
        for row in rows
    ]


def _disagreements(reader: WarehouseReader) -> list[Remark]:
    rows = reader.rows(
        """
        SELECT
            coalesce(sum(failing) FILTER (WHERE check_type = 'UNEXPLAINED_DECLINE'), 0)::BIGINT
                AS declines,
            coalesce(sum(failing_verified) FILTER (WHERE check_type = 'OVERRIDE'), 0)::BIGINT AS overrides
        FROM failure_attribution WHERE check_group = 'verdict'
        """
    )
    return [
        Remark(
            f"Verdict and checks disagree: {number(row['declines'])} declined without a failed check,"
            f" {number(row['overrides'])} verified with one.",
            "failures",
        )
        for row in rows
        if row["declines"] or row["overrides"]
    ]
