"""Sections of operations: outcomes of the submissions, returning people, the API and its cost."""

import datetime
from collections.abc import Mapping
from typing import Any, Final

from kyc_pipeline.analyze.report import charts
from kyc_pipeline.analyze.report.page import (
    DataTable,
    Figure,
    Row,
    Section,
    View,
    day,
    interval,
    money,
    number,
    percent,
    sample_size,
    share,
    some,
)
from kyc_pipeline.analyze.report.periods import Period, epoch_ms
from kyc_pipeline.analyze.report.reader import NONE_COMPLETED, Rows, WarehouseReader
from kyc_pipeline.rules import SQL_PARAMETERS

_STAGES: Final = (
    ("received", "received", "kept"),
    ("rejected", "– rejected", "lost"),
    ("accepted", "accepted", "kept"),
    ("refused", "– refused", "lost"),
    ("quarantined", "– quarantined", "lost"),
    ("uncertain", "– uncertain", "lost"),
    ("abandoned", "– abandoned", "lost"),
    ("failed", "– failed", "lost"),
    ("not_attempted", "– not attempted", "lost"),
    ("completed", "completed", "kept"),
    ("declined", "– not verified", "lost"),
    ("unflattened", "– not in the tables yet", "lost"),
    ("verified", "verified", "kept"),
)
"""Column of the funnel, its label, and whether its submissions continue (`kept`) or not (`lost`)."""


def funnel(reader: WarehouseReader) -> Section:
    """Outcomes of the submissions, and the reasons for rejected rows."""
    made = {"declined": "not_verified", "unflattened": "completed - verified - not_verified"}
    columns = ", ".join(f"sum({made.get(stage, stage)})::BIGINT AS {stage}" for stage, _, _ in _STAGES)
    totals = {
        row["period"]: row
        for row in reader.rows(
            f"SELECT period, {columns} FROM submission_funnel JOIN report_days USING (date) GROUP BY period"
        )
    }
    series = reader.rows(
        f"SELECT unit, start, {columns} FROM submission_funnel"
        " JOIN report_units USING (date) GROUP BY ALL ORDER BY ALL"
    )

    def view(period: Period) -> View:
        row = totals.get(period.key)
        if row is None or not row["received"]:
            return View("", "", "Nothing was received in this period.")
        return View(
            f"{number(row['received'])} received",
            f"Bar chart: {number(row['received'])} received, {number(row['rejected'])} rejected,"
            f" {number(row['accepted'])} accepted, {number(row['completed'])} completed,"
            f" {number(row['verified'])} verified.",
        )

    def over_time(period: Period) -> View:
        rows = [row for row in reader.in_period(series, period) if row["received"]]
        if not rows:
            return View("", "", "Nothing was received in this period.")
        most = max(rows, key=lambda row: row["received"])
        return View(
            f"{number(most['received'])} at most, {day(most['start'])}",
            f"Stacked bars of the submissions received by {period.unit}, {day(rows[0]['start'])} to"
            f" {day(rows[-1]['start'])}, by outcome; at most {number(most['received'])}"
            f" ({day(most['start'])}).",
        )

    figures = []
    if reader.received:
        figures = [
            Figure(
                "funnel",
                "From manifest row to verified",
                charts.funnel(_funnel_bars(totals), reader.shown),
                reader.views(view),
                DataTable(
                    ("Stage", "Submissions", "Of received"),
                    [
                        Row(
                            (label, number(row[stage]), percent(share(row[stage], row["received"]))),
                            [key],
                        )
                        for key, row in totals.items()
                        for stage, label, _ in _STAGES
                    ],
                ),
            ),
            Figure(
                "volume",
                "Submissions received over time",
                charts.volume(_volume_bars(reader, series), reader.shown),
                reader.views(over_time),
                DataTable(
                    (
                        "Day or week from",
                        "Received",
                        "Rejected",
                        "Verified",
                        "Not verified",
                        "Without verdict",
                    ),
                    [
                        Row(
                            (
                                day(row["start"]),
                                *(
                                    number(count)
                                    for count in (
                                        row["received"],
                                        row["rejected"],
                                        row["verified"],
                                        row["declined"],
                                        _without_verdict(row),
                                    )
                                ),
                            ),
                            reader.shown_in(row),
                        )
                        for row in series
                    ],
                ),
            ),
        ]
    reasons = reader.rows(
        """
        SELECT period, reason, sum(rejected)::BIGINT AS n, max(date) AS last
        FROM rejected_by_reason JOIN report_days USING (date)
        GROUP BY ALL ORDER BY n DESC, reason
        """
    )
    return Section(
        "funnel",
        "Outcomes of the submissions",
        "Received = rejected + accepted. Accepted = completed + refused + quarantined + uncertain +"
        " abandoned + failed + not attempted. Completed = verified + not verified, once the day is"
        " flattened.",
        "No submission was received yet.",
        figures,
        DataTable(
            ("Reason", "Rows", "Last seen"),
            [
                Row((row["reason"].replace("_", " "), number(row["n"]), day(row["last"])), [row["period"]])
                for row in reasons
            ],
            empty="No row was rejected in this period.",
        )
        if reader.received
        else None,
        "Rejected rows by reason",
        reader.define(
            "submission_funnel",
            "submission_funnel.refused",
            "submission_funnel.quarantined",
            "submission_funnel.uncertain",
            "submission_funnel.abandoned",
            "submission_funnel.failed",
            "submission_funnel.not_attempted",
        ),
    )


def _without_verdict(row: Mapping[str, Any]) -> int:
    return int(row["accepted"] - row["verified"] - row["declined"])


def _volume_bars(reader: WarehouseReader, series: Rows) -> Rows:
    verified, declined, rejected, open_ = charts.OUTCOMES
    return [
        {
            "unit": row["unit"],
            "date": epoch_ms(row["start"]),
            "kind": kind,
            "position": position,
            "submissions": count,
        }
        for row in series
        for position, (kind, count) in enumerate(
            (
                (verified, row["verified"]),
                (declined, row["declined"]),
                (rejected, row["rejected"]),
                (open_, _without_verdict(row)),
            )
        )
        if count
    ]


def subjects(reader: WarehouseReader) -> Section:
    """Returning people."""
    table: list[Row] = []
    for row in reader.rows(
        """
        SELECT period, sum(subjects)::BIGINT AS n, sum(repeat_subjects)::BIGINT AS repeated,
            sum(first_attempt_passed)::BIGINT AS first, sum(passed_within_3)::BIGINT AS third,
            sum(subjects) FILTER (WHERE mature)::BIGINT AS mature,
            sum(passed_within_7_days) FILTER (WHERE mature)::BIGINT AS within_7,
            sum(shared_documents)::BIGINT AS shared,
            wilson_low(first, n) AS low, wilson_high(first, n) AS high
        FROM repeat_subjects JOIN report_days USING (date) GROUP BY period HAVING n > 0
        """
    ):
        n, keys = row["n"], [row["period"]]
        table += [
            Row(("People first seen", sample_size(n), ""), keys),
            Row(
                ("with two submissions or more", number(row["repeated"]), percent(row["repeated"] / n)),
                keys,
            ),
            Row(
                (
                    "verified at the first",
                    number(row["first"]),
                    f"{percent(row['first'] / n)} ({interval(row['low'], row['high'])})",
                ),
                keys,
            ),
            Row(("verified within three", number(row["third"]), percent(row["third"] / n)), keys),
            Row(
                (
                    "verified within 7 days, of those first seen 7 days ago or more",
                    number(row["within_7"]),
                    percent(share(row["within_7"] or 0, row["mature"])),
                ),
                keys,
            ),
            Row(("Documents presented by a second person", number(row["shared"]), ""), keys),
        ]
    return Section(
        "subjects",
        "Returning people",
        "People are identified by the pseudonyms of their tags (KYC_SUBJECT_TAGS). Counted: those first seen"
        " in the period.",
        "No response has the tags of KYC_SUBJECT_TAGS." if reader.completed else NONE_COMPLETED,
        table=DataTable(("What", "Count", "Share"), table) if table else None,
        table_title="People and their attempts",
        definitions=reader.define(
            "repeat_subjects",
            "repeat_subjects.passed_within_7_days",
            "repeat_subjects.shared_documents",
        ),
    )


def api(reader: WarehouseReader) -> Section:
    """Response times, calls and cost."""
    calls = reader.rows(
        """
        SELECT unit, start, sum(calls)::BIGINT AS calls, sum(retries)::BIGINT AS retries,
            sum(billable_calls)::BIGINT AS billable, sum(timeouts)::BIGINT AS timeouts,
            max(max_ms) AS slowest, sum(estimated_cost) AS cost,
            sum(estimated_cost) FILTER (api_performance.is_complete) AS complete_cost,
            sum(verified) FILTER (api_performance.is_complete)::BIGINT AS verified
        FROM api_performance JOIN report_units USING (date)
        LEFT JOIN verified_rates USING (date) GROUP BY ALL ORDER BY ALL
        """
    )
    times = reader.rows(
        f"""
        SELECT unit, start, count(latency_ms) AS n,
            unnest(['p50', 'p95', 'p99']) AS quantile,
            unnest(quantile_cont(latency_ms, [0.5, 0.95, 0.99])) AS ms, max(latency_ms) AS slowest
        FROM submissions JOIN report_units USING (date)
        WHERE latency_ms IS NOT NULL AND outcome NOT IN ({SQL_PARAMETERS["outcomes_without_response"]})
        GROUP BY unit, start ORDER BY unit, start, quantile
        """
    )
    figures = [_latency_figure(reader, times)] if times else []
    called = [row for row in calls if row["calls"]]
    if called:
        figures.append(_calls_figure(reader, called))
    priced = [row for row in called if row["cost"] is not None]
    if priced:
        figures.append(_cost_figure(reader, priced))
    return Section(
        "api",
        "API performance and cost",
        "Response times are those of each submission's last call that got a sound response. Cost is an"
        " estimate: calls that were or may have been billed, times DEEPXL_PRICE_PER_CALL."
        + ("" if priced or not called else " That setting has no value, so no cost is shown."),
        "No call was made yet.",
        figures,
        definitions=reader.define(
            "api_performance",
            "api_performance.retries",
            "api_performance.billable_calls",
            "api_performance.estimated_cost",
            "api_performance.cost_per_verified",
            "api_performance.timeouts",
        ),
    )


def _latency_figure(reader: WarehouseReader, rows: Rows) -> Figure:
    by_start: dict[tuple[str, datetime.date], dict[str, Any]] = {}
    for row in rows:
        merged = by_start.setdefault((row["unit"], row["start"]), {**row})
        merged[row["quantile"]] = row["ms"]
    merged_rows = list(by_start.values())

    def view(period: Period) -> View:
        own = reader.in_period(merged_rows, period)
        if not own:
            return View("", "", "No call got a response in this period.")
        worst = max(own, key=lambda row: row["p95"])
        return View(
            f"95th percentile {number(worst['p95'])} ms at most, {day(worst['start'])}",
            f"Line chart of the response time by {period.unit}: median, 95th and 99th percentile; the"
            f" median was {number(own[0]['p50'])} ms and is {number(own[-1]['p50'])} ms, the highest 95th"
            f" percentile is {number(worst['p95'])} ms ({day(worst['start'])}).",
        )

    drawn: Rows = []
    for quantile in charts.QUANTILES:
        own = reader.filled([{**row, "ms": row[quantile]} for row in merged_rows], ("ms",))
        drawn += [{**row, "quantile": quantile} for row in own]
    return Figure(
        "latency",
        "Response time in milliseconds",
        charts.latency(drawn, reader.shown),
        reader.views(view),
        DataTable(
            ("Day or week from", "Responses", "p50 ms", "p95 ms", "p99 ms", "Max ms"),
            [
                Row(
                    (
                        day(row["start"]),
                        sample_size(row["n"]),
                        *(number(row[name]) for name in (*charts.QUANTILES, "slowest")),
                    ),
                    reader.shown_in(row),
                )
                for row in merged_rows
            ],
        ),
        wide=True,
    )


def _calls_figure(reader: WarehouseReader, rows: Rows) -> Figure:
    def view(period: Period) -> View:
        own = reader.in_period(rows, period)
        if not own:
            return View("", "", "No call was made in this period.")
        total, retries, lost = (sum(row[name] for row in own) for name in ("calls", "retries", "timeouts"))
        return View(
            f"{number(total)}, including {some(retries, 'retry', 'retries')}",
            f"Stacked bars of the calls by {period.unit}: {number(total)} calls, including"
            f" {some(retries, 'retry', 'retries')}; {some(lost, 'submission')} sent without a response.",
        )

    return Figure(
        "calls",
        "Calls",
        charts.calls(
            [
                {
                    "unit": row["unit"],
                    "date": epoch_ms(row["start"]),
                    "kind": kind,
                    "position": position,
                    "calls": count,
                }
                for row in rows
                for position, (kind, count) in enumerate(
                    (("first calls", row["calls"] - row["retries"]), ("retries", row["retries"]))
                )
                if count
            ],
            reader.shown,
        ),
        reader.views(view),
        DataTable(
            ("Day or week from", "Calls", "Retries", "Sent without response", "Billable"),
            [
                Row(
                    (
                        day(row["start"]),
                        *(number(row[name]) for name in ("calls", "retries", "timeouts", "billable")),
                    ),
                    reader.shown_in(row),
                )
                for row in rows
            ],
        ),
    )


def _cost_figure(reader: WarehouseReader, rows: Rows) -> Figure:
    currency = reader.currency

    def view(period: Period) -> View:
        own = reader.in_period(rows, period)
        if not own:
            return View("", "", "No call was made in this period.")
        total, verified = sum(row["cost"] for row in own), sum(row["verified"] or 0 for row in own)
        complete = sum(row["complete_cost"] or 0 for row in own)
        each = f"{money(complete / verified, currency)} for each verified" if verified else "nobody verified"
        if complete != total:
            each += " on complete days"
        return View(
            f"{money(total, currency)}, {each}",
            f"Bars of the estimated cost by {period.unit}: {money(total, currency)} over all, {each}.",
        )

    return Figure(
        "cost",
        f"Estimated cost ({currency})",
        charts.cost(
            [
                {
                    "unit": row["unit"],
                    "date": epoch_ms(row["start"]),
                    "kind": "estimated cost",
                    "position": 0,
                    "cost": float(row["cost"]),
                }
                for row in rows
            ],
            reader.shown,
        ),
        reader.views(view),
        DataTable(
            (
                "Day or week from",
                "Billable calls",
                "Estimated cost",
                "Verified on complete days",
                "For each of them",
            ),
            [
                Row(
                    (
                        day(row["start"]),
                        number(row["billable"]),
                        money(row["cost"], currency),
                        number(row["verified"] or 0),
                        money(row["complete_cost"] / row["verified"] if row["verified"] else None, currency),
                    ),
                    reader.shown_in(row),
                )
                for row in rows
            ],
        ),
    )


def _funnel_bars(totals: Mapping[str, Mapping[str, Any]]) -> Rows:
    bars: Rows = []
    for key, row in totals.items():
        drawn = [stage for stage in _STAGES if stage[2] == "kept" or row[stage[0]]]
        bars += [
            {
                "period": key,
                "stage": label,
                "rank": rank,
                "kind": kind,
                "submissions": row[stage],
                "label": f"{number(row[stage])} ({percent(share(row[stage], row['received']))})",
            }
            for rank, (stage, label, kind) in enumerate(drawn)
            if row["received"]
        ]
    return bars
