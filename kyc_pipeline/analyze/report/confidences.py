"""Sections of confidences: the threshold explorer, distributions by check, and their drift."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

from kyc_pipeline.analyze.report import charts
from kyc_pipeline.analyze.report.page import (
    DataTable,
    Figure,
    Row,
    Section,
    View,
    day,
    decimals,
    number,
    percent,
    sample_size,
    share,
    some,
)
from kyc_pipeline.analyze.report.periods import Period
from kyc_pipeline.analyze.report.reader import (
    NONE_COMPLETED,
    ChartedCheck,
    Rows,
    WarehouseReader,
    grouped,
    rounded,
)
from kyc_pipeline.rules import BASELINE_DAYS, DRIFT_MIN_CHECKS, LOW_N

_STEPS: Final = 100
"""Bins of a confidence, and thresholds of the explorer: 0.00 to 0.99."""
_TABLE_STEPS: Final = (*range(0, 90, 10), 90, 95, 99)


def thresholds(reader: WarehouseReader) -> tuple[Section, Rows]:
    """The threshold explorer, and the bins that the page's script computes its figures from."""
    bins, summaries = _confidences(reader), _summaries(reader)
    oriented = {
        (row["check_group"], row["check_type"]): row
        for row in reader.rows(
            "SELECT check_group, check_type, any_value(orientation_verified) AS verified,"
            " any_value(auc) AS auc FROM threshold_sensitivity GROUP BY ALL"
        )
    }
    recorded = {
        (row["check_group"], row["check_type"], row["period"]): row["rate"]
        for row in reader.rows(
            "SELECT check_group, check_type, period, ratio(sum(passed), sum(passed + failed)) AS rate"
            " FROM pass_rates JOIN report_days USING (date) GROUP BY ALL"
        )
    }
    errors = _errors(reader)
    explorer: Rows = []
    rates: list[Row] = []
    flips: list[Row] = []
    for check in reader.checks:
        of_period = grouped(bins.get((check.group, check.type), []), "period")
        if not of_period:
            continue
        orientation = oriented.get((check.group, check.type), {"verified": False, "auc": None})
        choice: dict[str, Any] = {
            "check": check.label,
            "oriented": orientation["verified"],
            "auc": rounded(orientation["auc"]),
            "errors": errors.get((check.group, check.type)),
            "periods": {},
        }
        explorer.append(choice)
        for period, rows in of_period.items():
            key = check.group, check.type, period
            sides = {side: [0] * _STEPS for side in ("PASS", "FAIL", "other")}
            for row in rows:
                sides[row["side"]][row["bin"]] = row["checks"]
            checks = summaries[key]["checks"]
            choice["periods"][period] = {
                "checks": checks,
                "recorded": rounded(recorded.get(key)),
                **{side.lower(): counts for side, counts in sides.items()},
            }
            for step in _TABLE_STEPS:
                at = check.label, f"{step / _STEPS:.2f}"
                above = sum(sum(counts[step:]) for counts in sides.values())
                scored = sum(map(sum, sides.values()))
                rates.append(
                    Row((*at, percent(share(above, scored)), percent(share(above, checks))), [period])
                )
                changed = number(sum(sides["PASS"][:step])), number(sum(sides["FAIL"][step:]))
                flips.append(Row((*at, *changed), [period]))
    empty = "No check has a confidence in this period."

    def view(what: str) -> Callable[[Period], View]:
        def of(period: Period) -> View:
            known = any(period.key in choice["periods"] for choice in explorer)
            return View("", what, "" if known else empty)

        return of

    figures = []
    if explorer:
        figures = [
            Figure(
                "threshold-rate",
                "Share that would pass",
                charts.threshold_rate(),
                reader.views(
                    view(
                        "Line chart with 95% intervals of the share of checks that would pass, over the"
                        " threshold; the figures at the chosen threshold are in the text above."
                    )
                ),
                DataTable(("Check", "Threshold", "Of those with a confidence", "Of all"), rates),
            ),
            Figure(
                "threshold-flips",
                "Checks that would change",
                charts.threshold_flips(),
                reader.views(
                    view(
                        "Line chart of the number of checks that would change, over the threshold;"
                        " the figures at the chosen threshold are in the text above."
                    )
                ),
                DataTable(("Check", "Threshold", "Passed, would fail", "Failed, would pass"), flips),
            ),
        ]
    section = Section(
        "threshold-explorer",
        "Threshold explorer",
        "What if a check passed exactly when its confidence reaches a threshold? Move the threshold to see."
        " This simulates on recorded confidences; it does not predict what the vendor would decide. The"
        " dashed line is the recorded pass rate.",
        "No check has a confidence yet." if reader.completed else NONE_COMPLETED,
        figures,
        definitions=reader.define(
            "threshold_sensitivity",
            "threshold_sensitivity.rate",
            "threshold_sensitivity.rate_null_as_fail",
            "threshold_sensitivity.flips_to_fail",
            "threshold_sensitivity.flips_to_pass",
            "threshold_sensitivity.auc",
            "error_rates.frr",
            "error_rates.far",
        ),
    )
    return section, explorer


def _errors(reader: WarehouseReader) -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """By check: the error rates at each threshold over all days, if the truth of any submission is known.

    A drawn sample is used if there is one, because it speaks for all submissions.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    rows = reader.rows(
        """
        SELECT check_group, check_type, weighted, genuine, fraud, frr, frr_low, frr_high, far, far_low,
            far_high
        FROM error_rates WHERE threshold < 1
        ORDER BY check_group, check_type, weighted DESC, threshold
        """
    )
    for row in rows:
        check = found.setdefault(
            (row["check_group"], row["check_type"]),
            {"weighted": row["weighted"], "genuine": row["genuine"], "fraud": row["fraud"], "rates": []},
        )
        if check["weighted"] == row["weighted"]:
            names = ("frr", "frr_low", "frr_high", "far", "far_low", "far_high")
            check["rates"].append([rounded(row[name]) for name in names])
    return found


def _confidences(reader: WarehouseReader) -> Mapping[tuple[str, str], Rows]:
    """By check: rows of period, side, bin and checks, without empty bins."""
    return reader.by_check(
        reader.rows(
            """
            SELECT check_group, check_type, period, bin,
                CASE WHEN normalized_status IN ('PASS', 'FAIL') THEN normalized_status ELSE 'other' END
                    AS side,
                sum(checks)::BIGINT AS checks
            FROM confidence_histogram JOIN report_days USING (date)
            GROUP BY ALL HAVING sum(checks) > 0 ORDER BY ALL
            """
        )
    )


def _summaries(reader: WarehouseReader) -> Mapping[tuple[str, str, str], dict[str, Any]]:
    return {
        (row["check_group"], row["check_type"], row["period"]): row
        for row in reader.rows(
            """
            SELECT check_group, check_type, period, sum(checks)::BIGINT AS checks,
                sum(with_confidence)::BIGINT AS scored,
                sum(mean * with_confidence) / nullif(sum(with_confidence), 0) AS mean,
                min(min) AS least, max(max) AS most, sum(saturated)::BIGINT AS saturated
            FROM confidence_summary JOIN report_days USING (date) GROUP BY ALL
            """
        )
    }


def confidences(reader: WarehouseReader) -> Section:
    """Distribution of the confidences by check."""
    bins, summaries = _confidences(reader), _summaries(reader)
    figures = []
    for index, check in enumerate(reader.checks):
        rows = bins.get((check.group, check.type))
        if rows:
            figures.append(_histogram(reader, f"confidence-{index}", check, rows, summaries))
    return Section(
        "confidences",
        "Confidences by check",
        "Passed checks point up, failed checks down, each as a share of its own status, in bins of 0.01."
        " Other statuses are only in the tables. Where the two distributions lie apart, the confidence"
        " separates good from bad; where they overlap, no threshold can. The vendor does not document"
        " whether a confidence scores the check or the certainty of its status.",
        "No check has a confidence yet." if reader.completed else NONE_COMPLETED,
        figures,
        definitions=reader.define("confidence_histogram", "confidence_summary"),
        key=[("pass", "PASS"), ("fail", "FAIL")],
    )


def _histogram(
    reader: WarehouseReader,
    name: str,
    check: ChartedCheck,
    rows: Rows,
    summaries: Mapping[tuple[str, str, str], dict[str, Any]],
) -> Figure:
    totals: dict[tuple[str, str], int] = defaultdict(int)
    cells: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for row in rows:
        totals[row["period"], row["side"]] += row["checks"]
        cells[row["period"], row["bin"]][row["side"]] = row["checks"]

    def view(period: Period) -> View:
        total = summaries.get((check.group, check.type, period.key))
        if total is None or not any(totals.get((period.key, side)) for side in ("PASS", "FAIL")):
            return View("", "", "No passed or failed check has a confidence in this period.")
        missing = total["checks"] - total["scored"]
        sides = {side: totals.get((period.key, side), 0) for side in ("PASS", "FAIL", "other")}
        return View(
            f"{sample_size(sides['PASS'])} PASS, {sample_size(sides['FAIL'])} FAIL,"
            f" mean {decimals(total['mean'])}",
            f"Histogram of {number(total['scored'])} confidences of {check.label} by status, from"
            f" {decimals(total['least'], 2)} to {decimals(total['most'], 2)}, mean"
            f" {decimals(total['mean'])}: {number(sides['PASS'])} of passed, {number(sides['FAIL'])} of"
            f" failed checks, {number(sides['other'])} of others; {number(missing)} have no confidence.",
        )

    drawn = [
        {
            "period": row["period"],
            "side": row["side"],
            "bin_low": row["bin"] / _STEPS,
            "bin_high": (row["bin"] + 1) / _STEPS,
            "checks": row["checks"],
            "share": rounded(part := row["checks"] / totals[row["period"], row["side"]]),
            "signed": rounded(part if row["side"] == "PASS" else -part),
        }
        for row in rows
        if row["side"] != "other"
    ]
    return Figure(
        name,
        check.label,
        charts.histogram(drawn, reader.shown),
        reader.views(view),
        DataTable(
            ("Confidence from", "to", "PASS", "FAIL", "Other"),
            [
                Row(
                    (
                        f"{step / _STEPS:.2f}",
                        f"{(step + 1) / _STEPS:.2f}",
                        *(number(sides.get(side, 0)) for side in ("PASS", "FAIL", "other")),
                    ),
                    [period],
                )
                for (period, step), sides in sorted(cells.items())
            ],
        ),
        check.label,
    )


def drift(reader: WarehouseReader) -> Section:
    """Quantiles and drift of the confidences over time."""
    quantiles, drifts = reader.by_check(_quantiles(reader)), reader.by_check(_drifts(reader))
    moves = [row for rows in quantiles.values() for row in rows]
    # Below every median, and below the tails of large samples.
    lowest = min((row["p05"] if row["n"] >= LOW_N else row["p50"] for row in moves), default=0.0)
    figures = []
    for index, check in enumerate(reader.checks):
        if moved := quantiles.get((check.group, check.type)):
            figures.append(_quantile_figure(reader, f"quantiles-{index}", check, moved, lowest))
        if drifted := drifts.get((check.group, check.type)):
            figures.append(_drift_figure(reader, f"drift-{index}", check, drifted))
    weekly = any(period.unit == "week" for period in reader.periods)
    intro = (
        "The line is the median; the dark band holds the middle 50% of the confidences, the light band the"
        " middle 90%."
    )
    if weekly:
        intro += " Weekly quantiles are accurate to 0.01."
    if drifts:
        intro += (
            f" The population stability index (PSI) compares each day with the {BASELINE_DAYS} days before."
            f" For a type with few checks a day, it compares the last 7 or {BASELINE_DAYS} days instead of"
            " one. Values in the grey area are noise; the dashed lines mark moderate and large drift."
        )
        if weekly:
            intro += " Weekly charts show the largest day of each week."
    elif quantiles:
        intro += (
            f" Drift needs {DRIFT_MIN_CHECKS} checks of one type within {BASELINE_DAYS} days and"
            f" {DRIFT_MIN_CHECKS} in the {BASELINE_DAYS} days before; no day has them yet."
        )
    return Section(
        "drift",
        "Drift of the confidences",
        intro,
        "No check has a confidence yet." if reader.completed else NONE_COMPLETED,
        figures,
        definitions=reader.define(
            "confidence_drift",
            "confidence_drift.psi",
            "confidence_drift.psi_noise_floor",
            "confidence_drift.ks",
            "confidence_drift.level",
        ),
    )


def _quantiles(reader: WarehouseReader) -> Rows:
    """Quantiles: daily ones from the warehouse, weekly ones from the bins, accurate to 0.01."""
    return reader.rows(
        """
        WITH daily AS (
            SELECT check_group, check_type, unit, start, with_confidence AS n, p05, p25, p50, p75, p95
            FROM confidence_summary JOIN report_units USING (date)
            WHERE unit = 'day' AND with_confidence > 0
        ),
        bins AS (
            SELECT check_group, check_type, start, bin, sum(checks) AS checks
            FROM confidence_histogram JOIN report_units USING (date)
            WHERE unit = 'week' AND checks > 0 GROUP BY ALL
        ),
        ranked AS (
            SELECT *, sum(checks) OVER every_bin AS n,
                sum(checks) OVER (every_bin ORDER BY bin) AS reached
            FROM bins WINDOW every_bin AS (PARTITION BY check_group, check_type, start)
        ),
        weekly AS (
            SELECT check_group, check_type, 'week' AS unit, start, any_value(n)::BIGINT AS n,
                min(bin) FILTER (WHERE reached >= 0.05 * n) / 100 AS p05,
                min(bin) FILTER (WHERE reached >= 0.25 * n) / 100 AS p25,
                min(bin) FILTER (WHERE reached >= 0.50 * n) / 100 AS p50,
                min(bin) FILTER (WHERE reached >= 0.75 * n) / 100 AS p75,
                min(bin) FILTER (WHERE reached >= 0.95 * n) / 100 AS p95
            FROM ranked GROUP BY check_group, check_type, start
        )
        FROM daily UNION ALL BY NAME FROM weekly ORDER BY ALL
        """
    )


def _quantile_figure(
    reader: WarehouseReader, name: str, check: ChartedCheck, rows: Rows, lowest: float
) -> Figure:
    def view(period: Period) -> View:
        own = reader.in_period(rows, period)
        if not own:
            return View("", "", "No check has a confidence in this period.")
        first, last = own[0], own[-1]
        return View(
            f"median {decimals(first['p50'], 2)} → {decimals(last['p50'], 2)}",
            f"Line chart of the quantiles of {check.label}'s confidence by {period.unit}: the median was"
            f" {decimals(first['p50'])} ({day(first['start'])}) and is {decimals(last['p50'])}"
            f" ({day(last['start'])}), the middle 90% went from"
            f" {decimals(first['p05'], 2)}–{decimals(first['p95'], 2)} to"
            f" {decimals(last['p05'], 2)}–{decimals(last['p95'], 2)}.",
        )

    names = ("p05", "p25", "p50", "p75", "p95")
    chart = reader.filled([{**row, "few": row["n"] < LOW_N} for row in rows], (*names, "n", "few"))
    return Figure(
        name,
        f"{check.label}: quantiles",
        charts.quantiles_over_time(chart, reader.shown, lowest),
        reader.views(view),
        DataTable(
            ("Day or week from", "Checks", "5th", "25th", "Median", "75th", "95th percentile"),
            [
                Row(
                    (day(row["start"]), sample_size(row["n"]), *(decimals(row[q]) for q in names)),
                    reader.shown_in(row),
                )
                for row in rows
            ],
        ),
        check.label,
    )


def _drifts(reader: WarehouseReader) -> Rows:
    return reader.rows(
        """
        SELECT check_group, check_type, unit, start, max(psi) AS psi,
            arg_max(psi_noise_floor, psi) AS floor, arg_max(ks, psi) AS ks, arg_max(level, psi) AS level,
            arg_max(checks, psi) AS n, arg_max(date, psi) AS date
        FROM confidence_drift JOIN report_units USING (date)
        WHERE level <> 'insufficient' AND psi IS NOT NULL
        GROUP BY ALL ORDER BY ALL
        """
    )


def _drift_figure(reader: WarehouseReader, name: str, check: ChartedCheck, rows: Rows) -> Figure:
    def view(period: Period) -> View:
        own = reader.in_period(rows, period)
        if not own:
            return View("", "", "No day of this period has enough checks to measure drift.")
        worst = max(own, key=lambda row: row["psi"])
        marked = sum(1 for row in own if row["level"] != "none")
        return View(
            f"largest PSI {decimals(worst['psi'])}, {day(worst['date'])}",
            f"Line chart of the drift of {check.label} by {period.unit}: largest PSI"
            f" {decimals(worst['psi'])} on {day(worst['date'])} ({worst['level']}, noise floor"
            f" {decimals(worst['floor'])}); {marked} of {some(len(own), period.unit)} with moderate or"
            " large drift.",
        )

    return Figure(
        name,
        f"{check.label}: PSI",
        charts.drift(reader.filled(rows, ("psi", "floor", "ks", "level")), reader.shown),
        reader.views(view),
        DataTable(
            ("Day", "Level", "PSI", "Noise floor", "KS", "Checks"),
            [
                Row(
                    (
                        day(row["date"]),
                        row["level"],
                        decimals(row["psi"]),
                        decimals(row["floor"]),
                        decimals(row["ks"]),
                        number(row["n"]),
                    ),
                    reader.shown_in(row),
                )
                for row in rows
            ],
            numeric_from=2,
        ),
        check.label,
    )
