"""Section of failures: the checks that fail in declined verifications, alone and together."""

from collections.abc import Mapping
from typing import Any, Final

from kyc_pipeline.analyze.report import charts
from kyc_pipeline.analyze.report.page import (
    DataTable,
    Figure,
    Row,
    Section,
    View,
    number,
    percent,
    share,
    some,
)
from kyc_pipeline.analyze.report.periods import Period
from kyc_pipeline.analyze.report.reader import NONE_COMPLETED, Rows, WarehouseReader, grouped

_COMBINATIONS: Final = 10
_OVERRIDE: Final = "OVERRIDE"


def failures(reader: WarehouseReader) -> Section:
    """Failure attribution and combinations."""
    rows = reader.rows(
        """
        SELECT * FROM (
            SELECT period, check_group, check_type, sum(failing)::BIGINT AS failing,
                sum(sole_blocker)::BIGINT AS alone, sum(failing_verified)::BIGINT AS overridden
            FROM failure_attribution JOIN report_days USING (date) GROUP BY ALL
        )
        WHERE failing > 0 OR overridden > 0
        ORDER BY check_group = 'verdict', failing DESC, check_type, check_group
        """
    )
    declined = {
        row["period"]: row["n"]
        for row in reader.rows(
            "SELECT period, sum(verifications - verified)::BIGINT AS n"
            " FROM verified_rates JOIN report_days USING (date) GROUP BY ALL"
        )
    }
    by_period = grouped(rows, "period")

    def view(period: Period) -> View:
        own, n = by_period.get(period.key, []), declined.get(period.key, 0)
        failing = [row for row in own if row["failing"] and row["check_type"] != _OVERRIDE]
        if not n or not failing:
            return View("", "", "Nothing was declined in this period.")
        worst = failing[0]
        return View(
            f"{some(n, 'declined verification')}",
            f"Bar chart of declined verifications by failed check: of {number(n)} declined,"
            f" {_reason(worst)} failed in {number(worst['failing'])} and was the only failed check in"
            f" {number(worst['alone'])}.",
        )

    alone, with_others, disagrees = charts.FAILURE_KINDS
    bars: Rows = []
    for period_rows in by_period.values():
        for rank, row in enumerate(period_rows):
            parts = (
                [(disagrees, row["failing"])]
                if row["check_group"] == "verdict"
                else [(alone, row["alone"]), (with_others, row["failing"] - row["alone"])]
            )
            bars += [
                {
                    "period": row["period"],
                    "rank": rank,
                    "reason": _reason(row),
                    "kind": kind,
                    "verifications": count,
                    "position": position,
                }
                for position, (kind, count) in enumerate(parts)
                if row["failing"] and row["check_type"] != _OVERRIDE
            ]
    figures = []
    if bars:
        figures.append(
            Figure(
                "attribution",
                "Failed checks of declined verifications",
                charts.attribution(bars, reader.shown),
                reader.views(view),
                DataTable(
                    (
                        "Check",
                        "Declined",
                        "Share of declined",
                        "Only this check",
                        "Verified anyway",
                    ),
                    [
                        Row(
                            (
                                _reason(row),
                                number(row["failing"]),
                                percent(share(row["failing"], declined.get(row["period"]))),
                                number(row["alone"]),
                                number(row["overridden"]),
                            ),
                            [row["period"]],
                        )
                        for row in rows
                    ],
                ),
                wide=True,
            )
        )
    combinations = reader.rows(
        f"""
        SELECT period, failed_checks, sum(verifications)::BIGINT AS n, sum(verified)::BIGINT AS verified
        FROM failure_combinations JOIN report_days USING (date) WHERE failed_checks <> 'none'
        GROUP BY period, failed_checks
        QUALIFY row_number() OVER (PARTITION BY period ORDER BY n DESC, failed_checks) <= {_COMBINATIONS}
        ORDER BY n DESC, failed_checks
        """
    )
    return Section(
        "failures",
        "Why verifications fail",
        "A verification with two failed checks counts for both, so the bars add up to more than all"
        " declined. “Only this check” counts verifications that failed no other check: the most that a"
        " change to this check could gain.",
        "No check failed, and nothing was declined." if reader.completed else NONE_COMPLETED,
        figures,
        DataTable(
            ("Failed together", "Verifications", "Verified anyway"),
            [
                Row(
                    (row["failed_checks"].replace("+", " + "), number(row["n"]), number(row["verified"])),
                    [row["period"]],
                )
                for row in combinations
            ],
        )
        if combinations
        else None,
        f"The {_COMBINATIONS} most frequent combinations",
        reader.define(
            "failure_attribution",
            "failure_attribution.failing",
            "failure_attribution.sole_blocker",
            "failure_combinations.failed_checks",
        ),
    )


def _reason(row: Mapping[str, Any]) -> str:
    special = {"UNEXPLAINED_DECLINE": "declined, no check failed", _OVERRIDE: "verified, a check failed"}
    if row["check_group"] == "verdict":
        return special[row["check_type"]]
    return str(row["check_type"])
