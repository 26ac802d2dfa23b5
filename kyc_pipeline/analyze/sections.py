"""What the report shows: its sections, read from an open warehouse.

Aggregates only, so no person is on the page. How charts look is in :mod:`charts`, the page in a template.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import duckdb

from kyc_pipeline.analyze import charts
from kyc_pipeline.analyze.quality import CheckResult, check_build

_DAILY_UP_TO: Final = 120
"""Days that time charts show one by one; longer spans are shown by week."""
_TYPES: Final = 12
_COMPANIES: Final = 20
_EMPTY: Final = "–"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart with the table behind it. `check` is the check type it shows, for the page's filter."""

    id: str
    title: str
    alt: str
    spec: dict[str, Any]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    check: str = ""
    dates: Sequence[str] = ()
    """The day of each table row, where the chart is over time."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its heading."""

    id: str
    title: str
    intro: str
    figures: Sequence[Figure] = ()
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    empty: str = "There are no data yet."
    numeric_from: int = 1
    """Table columns from this one on are aligned as numbers."""


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows."""

    build: dict[str, str]
    tiles: Sequence[tuple[str, str, str]]
    sections: Sequence[Section]
    checks: Sequence[str]
    periods: Sequence[tuple[str, int]]
    explorer: Rows
    findings: Sequence[CheckResult]


def read_page(connection: duckdb.DuckDBPyConnection) -> Page:
    """Everything on the page, from an open warehouse."""
    reader = _Reader(connection)
    sections = [
        reader.verdicts(),
        reader.pass_rates(),
        reader.changes(),
        reader.failures(),
        reader.confidences(),
        reader.drift(),
        reader.thresholds(),
        reader.funnel(),
        reader.rejections(),
        reader.companies(),
        reader.subjects(),
        reader.api(),
    ]
    return Page(
        build=reader.build(),
        tiles=reader.tiles(),
        sections=sections,
        checks=reader.types,
        periods=reader.periods(),
        explorer=reader.explorer,
        findings=[result for result in check_build(connection) if not result.passed],
    )


class _Reader:
    """Reads the warehouse section by section."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        span = "SELECT coalesce(max(date) - min(date) + 1, 0) AS days FROM submission_funnel"
        self._days = int(self._rows(span)[0]["days"])
        self._unit = "day" if self._days <= _DAILY_UP_TO else "week"
        self._period = "date" if self._unit == "day" else "date_trunc('week', date)::DATE"
        self.types = [
            str(row["check_type"])
            for row in self._rows(
                "SELECT check_type FROM pass_rates GROUP BY check_type"
                f" ORDER BY sum(checks) DESC, check_type LIMIT {_TYPES}"
            )
        ]
        self.explorer: Rows = []

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        found = self._connection.execute(sql, list(parameters))
        names = [column[0] for column in found.description or []]
        return [dict(zip(names, map(_plain, row), strict=True)) for row in found.fetchall()]

    def build(self) -> dict[str, str]:
        """When, from what and by what the warehouse was built."""
        row = self._rows(
            "SELECT strftime(built_at AT TIME ZONE 'UTC', '%Y-%m-%d %H:%M UTC') AS built_at, run_id,"
            " code_version, partitions, first_date, last_date FROM build_info"
        )[0]
        return {name: _EMPTY if value is None else str(value) for name, value in row.items()}

    def periods(self) -> list[tuple[str, int]]:
        """Choices of the period filter: label and the first day shown, in epoch milliseconds."""
        last = self._rows("SELECT max(date) AS last FROM submission_funnel")[0]["last"]
        if last is None:
            return [("All days", 0)]
        end = datetime.datetime.fromisoformat(str(last)).replace(tzinfo=datetime.UTC)
        choices = [("All days", 0)]
        for days in (7, 28, 90):
            if days < self._days:
                start = end - datetime.timedelta(days=days - 1)
                choices.append((f"Last {days} days", int(start.timestamp() * 1000)))
        return choices

    def tiles(self) -> list[tuple[str, str, str]]:
        """The main figures: label, value, and what it is of."""
        row = self._rows(
            """
            SELECT f.*, wilson_low(verified, completed) AS low, wilson_high(verified, completed) AS high,
                ratio(verified, completed) AS rate, a.cost, a.calls
            FROM (
                SELECT sum(received)::BIGINT AS received, sum(rejected)::BIGINT AS rejected,
                    sum(completed)::BIGINT AS completed, sum(verified)::BIGINT AS verified,
                    sum(uncertain)::BIGINT AS uncertain, sum(quarantined)::BIGINT AS quarantined,
                    sum(failed + not_attempted)::BIGINT AS open
                FROM submission_funnel
            ) AS f
            CROSS JOIN (
                SELECT sum(estimated_cost) AS cost, sum(calls)::BIGINT AS calls FROM api_performance
            ) AS a
            """
        )[0]
        per_verified = (
            _money(row["cost"] / row["verified"]) if row["cost"] is not None and row["verified"] else _EMPTY
        )
        return [
            ("Received", _number(row["received"]), f"{_number(row['rejected'])} rejected"),
            ("Completed", _number(row["completed"]), f"{_number(row['calls'])} calls"),
            ("Verified", _percent(row["rate"]), f"95 %: {_percent(row['low'])} to {_percent(row['high'])}"),
            (
                "Held",
                _number((row["uncertain"] or 0) + (row["quarantined"] or 0)),
                f"{_number(row['open'])} still to be attempted",
            ),
            ("Estimated cost", _money(row["cost"]), f"{per_verified} for each verified"),
        ]

    def verdicts(self) -> Section:
        """Verified rate over time."""
        rows = self._rows(
            f"""
            SELECT {self._period} AS date, sum(verified)::BIGINT AS k, sum(verifications)::BIGINT AS n
            FROM verified_rates GROUP BY 1 ORDER BY 1
            """
        )
        figures = [self._rate_figure("verified", "Verified rate", rows, "verifications", "")] if rows else []
        return Section(
            "verdicts",
            "Verified rate over time",
            f"Share of completed verifications that DeepXL decided as verified, by {self._unit}."
            " The band is the 95 % Wilson interval.",
            figures,
        )

    def pass_rates(self) -> Section:
        """Pass rate of each check over time."""
        figures: list[Figure] = []
        for index, check in enumerate(self.types):
            rows = self._rows(
                f"""
                SELECT {self._period} AS date, sum(passed)::BIGINT AS k, sum(passed + failed)::BIGINT AS n
                FROM pass_rates WHERE check_type = $1 GROUP BY 1 HAVING sum(passed + failed) > 0 ORDER BY 1
                """,
                [check],
            )
            if rows:
                figures.append(self._rate_figure(f"pass-{index}", check, rows, "decided checks", check))
        return Section(
            "pass-rates",
            "Pass rates of the checks",
            f"PASS / (PASS + FAIL) by {self._unit}, with the 95 % Wilson interval. Other statuses are outside"
            " the rate.",
            figures,
        )

    def _rate_figure(self, name: str, title: str, counts: Rows, n: str, check: str) -> Figure:
        rows = self._rows(
            """
            SELECT date, date AS day, k, n, ratio(k, n) AS rate, wilson_low(k, n) AS low,
                wilson_high(k, n) AS high
            FROM (SELECT unnest($1::STRUCT(date VARCHAR, k BIGINT, n BIGINT)[], recursive := true))
            """,
            [counts],
        )
        passed, total = sum(row["k"] for row in rows), sum(row["n"] for row in rows)
        lowest, highest = (pick(rows, key=lambda row: row["rate"]) for pick in (min, max))
        return Figure(
            name,
            title,
            f"Line chart of {title} by {self._unit}, {rows[0]['day']} to {rows[-1]['day']}:"
            f" {_percent(passed / total)} of {_number(total)} {n} over all, lowest"
            f" {_percent(lowest['rate'])} ({lowest['day']}), highest {_percent(highest['rate'])}"
            f" ({highest['day']}).",
            charts.rate_over_time(rows, n),
            (self._unit.capitalize(), "Passed", n.capitalize(), "Rate", "95 % from", "to"),
            [
                (
                    row["day"],
                    _number(row["k"]),
                    _number(row["n"]),
                    _percent(row["rate"]),
                    _percent(row["low"]),
                    _percent(row["high"]),
                )
                for row in rows
            ],
            note=f"{_percent(passed / total)} of {_number(total)}",
            check=check,
            dates=[row["day"] for row in rows],
        )

    def changes(self) -> Section:
        """Significant changes from week to week."""
        rows = self._rows(
            """
            SELECT * FROM pass_rate_changes WHERE significant ORDER BY week DESC, check_group, check_type
            LIMIT 20
            """
        )
        return Section(
            "changes",
            "Significant changes from week to week",
            "Pass rates whose difference from the week before has a 95 % Newcombe interval without 0, with at"
            " least 30 decided checks in both weeks. The latest 20.",
            headings=("Week from", "Check", "Rate", "Before", "Change", "95 % from", "to"),
            rows=[
                (
                    row["week"],
                    row["check_type"],
                    _percent(row["pass_rate"]),
                    _percent(row["previous_pass_rate"]),
                    _points(row["change"]),
                    _points(row["change_low"]),
                    _points(row["change_high"]),
                )
                for row in rows
            ],
            empty="No week differs significantly from the one before.",
            numeric_from=2,
        )

    def failures(self) -> Section:
        """Failure attribution and combinations."""
        rows = self._rows(
            """
            SELECT check_group, check_type, sum(failing)::BIGINT AS failing,
                sum(sole_blocker)::BIGINT AS sole, sum(failing_verified)::BIGINT AS overridden
            FROM failure_attribution GROUP BY ALL
            ORDER BY min(check_group = 'verdict'), failing DESC, check_type
            """
        )
        declined = self._rows(
            "SELECT coalesce(sum(verifications - verified), 0)::BIGINT AS n FROM verified_rates"
        )[0]["n"]
        alone, with_others, disagrees = charts.FAILURE_KINDS
        bars: Rows = []
        for row in rows:
            reason = _reason(row)
            if row["check_group"] == "verdict":
                parts = [(disagrees, row["failing"])]
            else:
                parts = [
                    (alone, row["sole"]),
                    (with_others, row["failing"] - row["sole"]),
                ]
            bars += [
                {"reason": reason, "kind": kind, "verifications": count, "position": position}
                for position, (kind, count) in enumerate(parts)
            ]
        figures: list[Figure] = []
        if bars:
            worst = rows[0]
            figures.append(
                Figure(
                    "attribution",
                    "What failed where a verification was declined",
                    f"Bar chart of declined verifications by failed check: of {_number(declined)} declined,"
                    f" {_reason(worst)} failed in {_number(worst['failing'])} and was the only failure in"
                    f" {_number(worst['sole'])}.",
                    charts.attribution(bars),
                    ("Check", "Declined with it", "Share of declined", "It alone", "Verified nonetheless"),
                    [
                        (
                            _reason(row),
                            _number(row["failing"]),
                            _percent(row["failing"] / declined if declined else None),
                            _number(row["sole"]),
                            _number(row["overridden"]),
                        )
                        for row in rows
                    ],
                    note=f"{_number(declined)} declined, over all days",
                )
            )
        combinations = self._rows(
            """
            SELECT failed_checks, sum(verifications)::BIGINT AS n, sum(verified)::BIGINT AS verified
            FROM failure_combinations WHERE failed_checks <> 'none'
            GROUP BY 1 ORDER BY n DESC, 1 LIMIT 10
            """
        )
        return Section(
            "failures",
            "Why verifications fail",
            "A verification with two failed checks counts in both, so shares may add up to more than 100 %."
            " The table lists the most frequent combinations.",
            figures,
            ("Failed together", "Verifications", "Verified nonetheless"),
            [
                (row["failed_checks"].replace("+", " + "), _number(row["n"]), _number(row["verified"]))
                for row in combinations
            ],
            empty="No check has failed.",
        )

    def confidences(self) -> Section:
        """Distribution of the confidences by check."""
        figures: list[Figure] = []
        for index, check in enumerate(self.types):
            bins = self._rows(
                """
                SELECT bin_low, bin_high, normalized_status AS status, sum(checks)::BIGINT AS checks
                FROM confidence_histogram WHERE check_type = $1
                GROUP BY ALL HAVING sum(checks) > 0 ORDER BY bin_low, status
                """,
                [check],
            )
            if not bins:
                continue
            figure = self._rows(
                """
                SELECT sum(checks)::BIGINT AS checks, sum(with_confidence)::BIGINT AS scored,
                    sum(mean * with_confidence) / sum(with_confidence) AS mean,
                    min(min) AS lowest, max(max) AS highest
                FROM confidence_summary WHERE check_type = $1
                """,
                [check],
            )[0]
            figures.append(
                Figure(
                    f"confidence-{index}",
                    check,
                    f"Histogram of {_number(figure['scored'])} confidences of {check} by status, from"
                    f" {figure['lowest']:.2f} to {figure['highest']:.2f}, mean {figure['mean']:.3f};"
                    f" {_number(figure['checks'] - figure['scored'])} checks have none.",
                    charts.histogram(bins),
                    ("From", "To", "Status", "Checks"),
                    [
                        (
                            f"{row['bin_low']:.2f}",
                            f"{row['bin_high']:.2f}",
                            row["status"],
                            _number(row["checks"]),
                        )
                        for row in bins
                    ],
                    note=f"mean {figure['mean']:.3f}, {_number(figure['checks'] - figure['scored'])} without",
                    check=check,
                )
            )
        return Section(
            "confidences",
            "Confidences by check",
            "Bins of 0.01 over all days. Whether a confidence scores the check or the certainty of its status"
            " is not documented by the vendor: compare the two colours before you trust a threshold.",
            figures,
        )

    def drift(self) -> Section:
        """Drift of the confidences over time."""
        figures: list[Figure] = []
        for index, check in enumerate(self.types):
            rows = self._rows(
                """
                SELECT date, date AS day, max(psi) AS psi, max(psi_noise_floor) AS floor, max(ks) AS ks,
                    arg_max(level, psi) AS level, sum(checks)::BIGINT AS checks
                FROM confidence_drift WHERE check_type = $1 AND level <> 'insufficient'
                GROUP BY date ORDER BY date
                """,
                [check],
            )
            if not rows:
                continue
            worst = max(rows, key=lambda row: row["psi"])
            figures.append(
                Figure(
                    f"drift-{index}",
                    check,
                    f"Line chart of the drift of {check} by day: largest PSI {worst['psi']:.3f} on"
                    f" {worst['day']} ({worst['level']}).",
                    charts.drift(rows),
                    ("Day", "PSI", "Noise floor", "KS", "Level", "Checks"),
                    [
                        (
                            row["day"],
                            f"{row['psi']:.3f}",
                            f"{row['floor']:.3f}",
                            f"{row['ks']:.3f}",
                            row["level"],
                            _number(row["checks"]),
                        )
                        for row in rows
                    ],
                    note=f"largest PSI {worst['psi']:.3f} ({worst['day']})",
                    check=check,
                    dates=[row["day"] for row in rows],
                )
            )
        return Section(
            "drift",
            "Drift of the confidences",
            "Population stability index of each day against the 28 days before. Below the grey area it is"
            " noise; the dashed lines are the limits of moderate (0.1) and large (0.25) drift.",
            figures,
            empty="No day has 200 checks of one type with 200 in the 28 days before, so drift cannot be told"
            " from noise.",
        )

    def thresholds(self) -> Section:
        """The threshold explorer."""
        self.explorer = self._rows(
            """
            SELECT check_group || '.' || check_type AS check, threshold, scored, at_or_above, rate,
                rate_null_as_fail, flips_to_fail, flips_to_pass, orientation_verified
            FROM threshold_sensitivity WHERE scored > 0 ORDER BY check_group, check_type, threshold
            """
        )
        figures: list[Figure] = []
        if self.explorer:
            tenths = [row for row in self.explorer if round(row["threshold"] * 100) % 10 == 0]
            figures.append(
                Figure(
                    "thresholds",
                    "Simulated pass rate",
                    "Line chart of the pass rate that a check would have if a confidence at or above the"
                    " threshold were the rule; the figures for the chosen threshold are in the text below.",
                    charts.thresholds(self.explorer, 0.9),
                    ("Check", "Threshold", "Scored", "Rate", "Without score as fail", "To fail", "To pass"),
                    [
                        (
                            row["check"],
                            f"{row['threshold']:.2f}",
                            _number(row["scored"]),
                            _percent(row["rate"]),
                            _percent(row["rate_null_as_fail"]),
                            _number(row["flips_to_fail"]),
                            _number(row["flips_to_pass"]),
                        )
                        for row in tenths
                    ],
                )
            )
        return Section(
            "threshold-explorer",
            "Threshold explorer",
            "A simulation of the rule “pass at or above the threshold”, over all days. It does not predict"
            " what the vendor would decide.",
            figures,
        )

    def funnel(self) -> Section:
        """What became of the submissions."""
        stages = (
            "received",
            "rejected",
            "accepted",
            "completed",
            "refused",
            "quarantined",
            "uncertain",
            "failed",
            "not_attempted",
            "verified",
        )
        row = self._rows(
            "SELECT "
            + ", ".join(f"sum({stage})::BIGINT AS {stage}" for stage in stages)
            + " FROM submission_funnel"
        )[0]
        kept = {"received", "accepted", "completed", "verified"}
        shown = [
            {
                "stage": stage.replace("_", " "),
                "submissions": row[stage],
                "kind": "kept" if stage in kept else "lost",
            }
            for stage in stages
            if stage in kept or row[stage]
        ]
        figures: list[Figure] = []
        if row["received"]:
            figures.append(
                Figure(
                    "funnel",
                    "From manifest row to verified",
                    f"Bar chart: {_number(row['received'])} received, {_number(row['rejected'])} rejected,"
                    f" {_number(row['accepted'])} accepted, {_number(row['completed'])} completed,"
                    f" {_number(row['verified'])} verified.",
                    charts.funnel(shown),
                    ("Stage", "Submissions", "Of received"),
                    [
                        (
                            stage.replace("_", " "),
                            _number(row[stage]),
                            _percent(row[stage] / row["received"]),
                        )
                        for stage in stages
                    ],
                    note="over all days",
                )
            )
        return Section(
            "funnel",
            "What became of the submissions",
            "received = rejected + accepted; accepted = completed, refused, quarantined, uncertain, failed"
            " and not attempted together.",
            figures,
        )

    def rejections(self) -> Section:
        """Rejected rows by reason."""
        rows = self._rows(
            """
            SELECT reason, sum(rejected)::BIGINT AS n, max(date) AS last
            FROM rejected_by_reason GROUP BY reason ORDER BY n DESC, reason
            """
        )
        return Section(
            "rejections",
            "Rejected rows",
            "Manifest rows that could not be submitted, over all days.",
            headings=("Reason", "Rows", "Last seen"),
            rows=[(row["reason"].replace("_", " "), _number(row["n"]), row["last"]) for row in rows],
            empty="No row was rejected.",
        )

    def companies(self) -> Section:
        """Verified rate by company."""
        rows = self._rows(
            f"""
            SELECT company_id AS company, sum(verifications)::BIGINT AS n, sum(verified)::BIGINT AS k,
                ratio(k, n) AS rate, wilson_low(k, n) AS low, wilson_high(k, n) AS high
            FROM verified_rates_by_company GROUP BY company_id ORDER BY n DESC, company LIMIT {_COMPANIES}
            """
        )
        figures: list[Figure] = []
        if rows:
            best, worst = (pick(rows, key=lambda row: row["rate"]) for pick in (max, min))
            figures.append(
                Figure(
                    "companies",
                    "Verified rate by company",
                    f"Dot chart of the verified rate of {len(rows)} companies with 95 % intervals: highest"
                    f" {_percent(best['rate'])} ({best['company']}), lowest {_percent(worst['rate'])}"
                    f" ({worst['company']}).",
                    charts.companies(rows),
                    ("Company", "Verifications", "Verified", "Rate", "95 % from", "to"),
                    [
                        (
                            row["company"],
                            _number(row["n"]),
                            _number(row["k"]),
                            _percent(row["rate"]),
                            _percent(row["low"]),
                            _percent(row["high"]),
                        )
                        for row in rows
                    ],
                    note="over all days",
                )
            )
        return Section(
            "companies",
            "Companies",
            f"By the tag companyId, the {_COMPANIES} with most verifications. Intervals that overlap are no"
            " ranking.",
            figures,
        )

    def subjects(self) -> Section:
        """People who come again."""
        row = self._rows(
            """
            SELECT sum(subjects)::BIGINT AS subjects, sum(repeat_subjects)::BIGINT AS repeated,
                sum(first_attempt_passed)::BIGINT AS first, sum(passed_within_3)::BIGINT AS third,
                sum(subjects) FILTER (WHERE mature)::BIGINT AS mature,
                sum(passed_within_7_days) FILTER (WHERE mature)::BIGINT AS within_7,
                sum(shared_documents)::BIGINT AS shared
            FROM repeat_subjects
            """
        )[0]
        n = row["subjects"] or 0
        table: list[tuple[str, str, str]] = []
        if n:
            table = [
                ("People seen", _number(n), ""),
                ("with two submissions or more", _number(row["repeated"]), _percent(row["repeated"] / n)),
                ("verified at the first", _number(row["first"]), _percent(row["first"] / n)),
                ("verified within three", _number(row["third"]), _percent(row["third"] / n)),
                (
                    "verified within 7 days, of those first seen 7 days ago or more",
                    _number(row["within_7"]),
                    _percent(row["within_7"] / row["mature"] if row["mature"] else None),
                ),
                ("ID documents presented by several people", _number(row["shared"]), ""),
            ]
        return Section(
            "subjects",
            "People who come again",
            "By the pseudonym of the tag customerId, over all days.",
            headings=("", "Count", "Share"),
            rows=table,
            empty="No answer carries the tag customerId.",
        )

    def api(self) -> Section:
        """Answer times, calls and cost."""
        rows = self._rows(
            f"""
            SELECT {self._period} AS date, sum(calls)::BIGINT AS calls, sum(retries)::BIGINT AS retries,
                median(p50_ms) AS p50, median(p95_ms) AS p95, median(p99_ms) AS p99, max(max_ms) AS slowest,
                sum(billable_calls)::BIGINT AS billable, sum(estimated_cost) AS cost
            FROM api_performance GROUP BY 1 ORDER BY 1
            """
        )
        if not rows:
            return Section("api", "API performance and cost", "")
        days = [row["date"] for row in rows]
        total, retried = sum(row["calls"] for row in rows), sum(row["retries"] for row in rows)
        slowest = max((row["p95"] for row in rows if row["p95"] is not None), default=None)
        headings = (
            self._unit.capitalize(),
            "Calls",
            "Retries",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "Max ms",
            "Cost",
        )
        table = [
            (
                row["date"],
                _number(row["calls"]),
                _number(row["retries"]),
                _number(row["p50"]),
                _number(row["p95"]),
                _number(row["p99"]),
                _number(row["slowest"]),
                _money(row["cost"]),
            )
            for row in rows
        ]
        figures = [
            Figure(
                "latency",
                "Answer time",
                f"Line chart of the answer time by {self._unit}: median, 95th and 99th percentile; the"
                f" highest 95th percentile is {_number(slowest)} ms.",
                charts.latency(
                    [
                        {"date": row["date"], "day": row["date"], "quantile": name, "ms": row[name]}
                        for row in rows
                        for name in ("p50", "p95", "p99")
                    ]
                ),
                headings,
                table,
                dates=days,
            ),
            Figure(
                "calls",
                "Calls",
                f"Area chart of calls by {self._unit}: {_number(total)} calls, of which {_number(retried)}"
                " were retries.",
                charts.calls(
                    [
                        {"date": row["date"], "day": row["date"], "kind": kind, "calls": count}
                        for row in rows
                        for kind, count in (
                            ("first calls", row["calls"] - row["retries"]),
                            ("retries", row["retries"]),
                        )
                    ]
                ),
                (headings[0], "Calls", "Retries", "Billable", "Cost"),
                [
                    (
                        row["date"],
                        _number(row["calls"]),
                        _number(row["retries"]),
                        _number(row["billable"]),
                        _money(row["cost"]),
                    )
                    for row in rows
                ],
                dates=days,
            ),
        ]
        return Section(
            "api",
            "API performance and cost",
            f"Answer times of the last call of each submission"
            f"{'' if self._unit == 'day' else ', medians of the days of a week'}. Cost is an estimate:"
            " billable calls times DEEPXL_PRICE_PER_CALL.",
            figures,
        )


def _plain(value: object) -> object:
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value


def _number(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.1%}".replace("%", " %")


def _points(value: float | None) -> str:
    return _EMPTY if value is None else f"{value * 100:+.1f} pts"


def _money(value: Decimal | None) -> str:
    return _EMPTY if value is None else f"{value:,.2f}"


def _reason(row: dict[str, Any]) -> str:
    special = {"UNEXPLAINED_DECLINE": "declined, no check failed", "OVERRIDE": "verified, a check failed"}
    if row["check_group"] == "verdict":
        return special[row["check_type"]]
    return str(row["check_type"])
