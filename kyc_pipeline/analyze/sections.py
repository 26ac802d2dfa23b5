"""What the report shows: its sections, read from an open warehouse.

Aggregates only, so no person is on the page. What is shown of a period is counted over its days by DuckDB,
never averaged from rates. How charts look is in :mod:`charts`, what a page is made of in :mod:`page`.
"""

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from kyc_pipeline.analyze import charts
from kyc_pipeline.analyze.page import (
    LOW_N,
    Definition,
    Figure,
    Page,
    Remark,
    Row,
    Section,
    Table,
    Tile,
    View,
    counted,
    day,
    decimals,
    interval,
    money,
    number,
    percent,
    points,
    share,
    some,
)
from kyc_pipeline.analyze.periods import Period, choose_periods, epoch_ms
from kyc_pipeline.analyze.quality import Severity, check_build

_CHECKS: Final = 12
_COMPANIES: Final = 20
_COMBINATIONS: Final = 10
_CHANGES: Final = 20
_RECENT_DAYS: Final = 7
_REMARKS: Final = 3
_STEPS: Final = 100
"""Bins of a confidence, and thresholds of the explorer: 0.00 to 0.99."""
_TABLE_STEPS: Final = (*range(0, 90, 10), 90, 95, 99)
_OVERRIDE: Final = "OVERRIDE"
_NOTHING: Final = "Nothing in this period."
_NO_ANSWER: Final = "No verification is completed yet."

Rows = list[dict[str, Any]]


def read_page(connection: duckdb.DuckDBPyConnection) -> Page:
    """Everything on the page, from an open warehouse; makes temporary tables in `connection`."""
    reader = _Reader(connection)
    sections = [
        reader.verdicts(),
        reader.pass_rates(),
        reader.changes(),
        reader.failures(),
        reader.thresholds(),
        reader.confidences(),
        reader.drift(),
        reader.funnel(),
        reader.companies(),
        reader.subjects(),
        reader.api(),
    ]
    findings = [result for result in check_build(connection) if not result.passed]
    return Page(
        build=reader.build(),
        periods=reader.periods,
        checks=[check.label for check in reader.checks],
        tiles={period.key: reader.tiles(period) for period in reader.periods},
        remarks=reader.remarks(),
        sections=sections,
        explorer=reader.explorer,
        findings=sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR),
    )


@dataclass(frozen=True, slots=True)
class _Check:
    """A check that has charts; `label` is its type, with the group where two groups have the type."""

    group: str
    type: str
    label: str


class _Reader:
    """Reads the warehouse section by section."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        span = self._rows(
            "SELECT min(date) AS first, max(date) AS last, coalesce(sum(received), 0)::BIGINT AS received,"
            " coalesce(sum(completed), 0)::BIGINT AS completed FROM submission_funnel"
        )[0]
        self._received: int = span["received"]
        self._completed: int = span["completed"]
        nowhere = datetime.date(1970, 1, 1)
        self._first: datetime.date = span["first"] or nowhere
        self._last: datetime.date = span["last"] or nowhere
        self.periods = choose_periods(self._first, self._last)
        self._shown = self.periods[0].shown
        self._calendar()
        self._comments = {
            str(row["name"]): str(row["comment"] or "")
            for row in self._rows(
                "SELECT table_name AS name, comment FROM duckdb_tables()"
                " UNION ALL SELECT view_name, comment FROM duckdb_views()"
                " UNION ALL SELECT table_name || '.' || column_name, comment FROM duckdb_columns()"
            )
        }
        self.checks = self._choose_checks()
        self.explorer: Rows = []

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        found = self._connection.execute(sql, list(parameters))
        names = [column[0] for column in found.description or []]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def _calendar(self) -> None:
        """Two temporary tables: `report_days` has the days of each period, `report_units` the bars' days."""
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

    def _choose_checks(self) -> list[_Check]:
        rows = self._rows(
            """
            SELECT check_group, check_type, count(*) OVER (PARTITION BY check_type) AS groups
            FROM (SELECT check_group, check_type, sum(checks) AS n FROM pass_rates GROUP BY ALL)
            ORDER BY n DESC, check_type, check_group
            """
        )
        self._all_checks = len(rows)
        return [
            _Check(
                row["check_group"],
                row["check_type"],
                row["check_type"] if row["groups"] == 1 else f"{row['check_type']} ({row['check_group']})",
            )
            for row in rows[:_CHECKS]
        ]

    def _by_check(self, rows: Rows) -> Mapping[tuple[str, str], Rows]:
        found: dict[tuple[str, str], Rows] = defaultdict(list)
        for row in rows:
            found[row["check_group"], row["check_type"]].append(row)
        return found

    def _define(self, *names: str) -> list[Definition]:
        """The warehouse's own words for tables and columns."""
        return [Definition(name, self._comments[name]) for name in names]

    def _views(self, view: Callable[[Period], View]) -> dict[str, View]:
        return {period.key: view(period) for period in self.periods}

    def _shown_in(self, row: Mapping[str, Any]) -> list[str]:
        """The periods that show a row over time."""
        return [
            period.key
            for period in self.periods
            if period.unit == row["unit"] and row["start"] >= period.first_start
        ]

    def _in_period(self, rows: Rows, period: Period) -> Rows:
        """The rows over time that a period shows."""
        first = period.first_start
        return [row for row in rows if row["unit"] == period.unit and row["start"] >= first]

    def _filled(self, rows: Rows, columns: Sequence[str]) -> Rows:
        """The rows for a chart, with a row of NULLs for each day or week without data, which breaks lines."""
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
                        **{name: _short(row[name]) if row else None for name in columns},
                    }
                )
                if row and "alone" not in columns and not {start - step, start + step} & own.keys():
                    filled[-1]["alone"] = True
                start += step
        return filled

    def build(self) -> dict[str, str]:
        """When, from what and by what the warehouse was built."""
        row = self._rows(
            "SELECT strftime(built_at AT TIME ZONE 'UTC', '%-d %b %Y, %H:%M UTC') AS built_at, run_id,"
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
            "price": "not set (DEEPXL_PRICE_PER_CALL)" if price is None else f"{price.normalize():f} a call",
        }

    def tiles(self, period: Period) -> list[Tile]:
        """The key figures of a period."""
        before = period.since - datetime.timedelta(days=period.days)
        row = self._rows(
            """
            WITH f AS (
                SELECT sum(received)::BIGINT AS received, sum(rejected)::BIGINT AS rejected,
                    sum(accepted)::BIGINT AS accepted, sum(completed)::BIGINT AS completed,
                    sum(verified)::BIGINT AS verified,
                    sum(uncertain + quarantined)::BIGINT AS held,
                    sum(failed + not_attempted)::BIGINT AS open
                FROM submission_funnel WHERE date BETWEEN $1 AND $2
            ),
            b AS (
                SELECT sum(completed)::BIGINT AS completed_before, sum(verified)::BIGINT AS verified_before
                FROM submission_funnel WHERE date >= $3 AND date < $1 AND $3 >= $4
            ),
            a AS (
                SELECT sum(estimated_cost) AS cost FROM api_performance WHERE date BETWEEN $1 AND $2
            ),
            l AS (
                SELECT quantile_cont(latency_ms, 0.5) AS p50, quantile_cont(latency_ms, 0.95) AS p95
                FROM submissions WHERE date BETWEEN $1 AND $2
            )
            SELECT *, ratio(verified, completed) AS rate, wilson_low(verified, completed) AS low,
                wilson_high(verified, completed) AS high,
                rate - ratio(verified_before, completed_before) AS change,
                newcombe_low(verified, completed, verified_before, completed_before) AS change_low,
                newcombe_high(verified, completed, verified_before, completed_before) AS change_high
            FROM f, b, a, l
            """,
            [period.since, period.until, before, self._first],
        )[0]
        completed, accepted = row["completed"] or 0, row["accepted"] or 0
        change = ""
        if row["change"] is not None:
            change = (
                f"{points(row['change'])} against the {period.days} days before"
                f" (95%: {points(row['change_low'])} to {points(row['change_high'])})"
            )
        verified = "nothing completed"
        if completed:
            verified = f"95%: {interval(row['low'], row['high'])}, of {counted(completed)}"
        per_verified = "no price is set"
        if row["cost"] is not None:
            each = money(row["cost"] / row["verified"]) if row["verified"] else "none verified:"
            per_verified = f"{each} for each verified" if row["verified"] else "nobody was verified"
        held = row["held"] or 0
        return [
            Tile("Verified", percent(row["rate"]), verified, change),
            Tile("Received", number(row["received"] or 0), f"{number(row['rejected'] or 0)} rejected"),
            Tile(
                "Completed",
                number(completed),
                f"{percent(share(completed, accepted))} of {number(accepted)} accepted",
            ),
            Tile("Held for a decision", number(held), f"{number(row['open'] or 0)} still to be attempted"),
            Tile(
                "Answer time (p95)",
                "–" if row["p95"] is None else f"{number(row['p95'])} ms",
                "no call" if row["p50"] is None else f"median {number(row['p50'])} ms",
            ),
            Tile("Estimated cost", money(row["cost"]), per_verified),
        ]

    def remarks(self) -> list[Remark]:
        """What stands out, the most pressing first."""
        if not self._completed:
            return []
        few = f"Only {some(self._completed, 'verification')} completed: no rate on this page is reliable yet."
        return [
            *([Remark(few, "verdicts")] if self._completed < LOW_N else []),
            *self._held(),
            *self._recent_changes(),
            *self._recent_drift(),
            *self._main_obstacle(),
            *self._disagreements(),
        ]

    def _held(self) -> list[Remark]:
        held = self._rows("SELECT sum(uncertain)::BIGINT AS n FROM submission_funnel")[0]["n"]
        text = f"{some(held, 'submission')} held for a decision: the outcome of the call is not known."
        return [Remark(text, "funnel")] if held else []

    @property
    def _recent(self) -> datetime.date:
        return self._last - datetime.timedelta(days=_RECENT_DAYS - 1)

    def _recent_changes(self) -> list[Remark]:
        rows = self._rows(
            f"""
            SELECT * FROM pass_rate_changes
            WHERE significant AND week = date_trunc('week', $1::DATE)::DATE
            ORDER BY abs(change) DESC, check_type LIMIT {_REMARKS}
            """,
            [self._recent],
        )
        return [
            Remark(
                f"{'The verified rate' if row['check_type'] == 'VERIFIED' else row['check_type']}"
                f" {'rose' if row['change'] > 0 else 'fell'} from {percent(row['previous_pass_rate'])} to"
                f" {percent(row['pass_rate'])} in the week from {day(row['week'])}: {points(row['change'])}"
                f" (95%: {points(row['change_low'])} to {points(row['change_high'])}).",
                "changes",
            )
            for row in rows
        ]

    def _recent_drift(self) -> list[Remark]:
        rows = self._rows(
            f"""
            SELECT check_type, arg_max(level, psi) AS level, max(psi) AS psi, arg_max(date, psi) AS date
            FROM confidence_drift WHERE date >= $1 AND level IN ('moderate', 'large')
            GROUP BY check_group, check_type ORDER BY max(psi) DESC LIMIT {_REMARKS}
            """,
            [self._recent],
        )
        return [
            Remark(
                f"{row['check_type']}: confidences drifted, {row['level']} (PSI {decimals(row['psi'], 2)} on"
                f" {day(row['date'])}).",
                "drift",
            )
            for row in rows
        ]

    def _main_obstacle(self) -> list[Remark]:
        rows = self._rows(
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
                f"{row['check_type']} stops most: it failed in"
                f" {percent(share(row['failing'], row['declined']))} of the {number(row['declined'])}"
                f" declined, and was the only failure in {number(row['alone'])}.",
                "failures",
            )
            for row in rows
        ]

    def _disagreements(self) -> list[Remark]:
        rows = self._rows(
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

    def verdicts(self) -> Section:
        """Verified rate over time."""
        series = self._rows(
            """
            SELECT unit, start, sum(verified)::BIGINT AS k, sum(verifications)::BIGINT AS n,
                ratio(k, n) AS rate, wilson_low(k, n) AS low, wilson_high(k, n) AS high
            FROM verified_rates JOIN report_units USING (date) GROUP BY ALL HAVING n > 0 ORDER BY ALL
            """
        )
        totals = self._rows(
            """
            SELECT period, sum(verified)::BIGINT AS k, sum(verifications)::BIGINT AS n,
                ratio(k, n) AS rate, wilson_low(k, n) AS low, wilson_high(k, n) AS high
            FROM verified_rates JOIN report_days USING (date) GROUP BY ALL HAVING n > 0
            """
        )
        figures = []
        if series:
            figures.append(self._rate_figure("verified", "Verified rate", series, totals, "verifications"))
        return Section(
            "verdicts",
            "Verified rate over time",
            "Of the completed verifications, the share that DeepXL decided as verified.",
            _NO_ANSWER,
            figures,
            definitions=self._define(
                "verified_rates",
                "verified_rates.verified_rate",
                "verified_rates.verified_rate_low",
                "verified_rates.low_n",
            ),
        )

    def pass_rates(self) -> Section:
        """Pass rate of each check over time."""
        series = self._by_check(
            self._rows(
                """
                SELECT check_group, check_type, unit, start, sum(passed)::BIGINT AS k,
                    sum(passed + failed)::BIGINT AS n, ratio(k, n) AS rate, wilson_low(k, n) AS low,
                    wilson_high(k, n) AS high
                FROM pass_rates JOIN report_units USING (date) GROUP BY ALL HAVING n > 0 ORDER BY ALL
                """
            )
        )
        totals = self._by_check(
            self._rows(
                """
                SELECT check_group, check_type, period, sum(passed)::BIGINT AS k,
                    sum(passed + failed)::BIGINT AS n, ratio(k, n) AS rate, wilson_low(k, n) AS low,
                    wilson_high(k, n) AS high
                FROM pass_rates JOIN report_days USING (date) GROUP BY ALL HAVING n > 0
                """
            )
        )
        decided = [check for check in self.checks if series.get((check.group, check.type))]
        lowest = min(
            (_lowest(series[check.group, check.type]) for check in decided),
            default=0.0,
        )
        figures = [
            self._rate_figure(
                f"pass-{index}",
                check.label,
                series[check.group, check.type],
                totals[check.group, check.type],
                "decided checks",
                check.label,
                lowest,
            )
            for index, check in enumerate(decided)
        ]
        return Section(
            "pass-rates",
            "Pass rates of the checks",
            "Of the checks that passed or failed, the share that passed. All axes are the same."
            + self._left_out(),
            "No check has passed or failed yet.",
            figures,
            definitions=self._define(
                "pass_rates", "pass_rates.other", "pass_rates.pass_rate", "pass_rates.pass_rate_low"
            ),
        )

    def _left_out(self) -> str:
        if self._all_checks <= _CHECKS:
            return ""
        return f" The {_CHECKS} most frequent of {number(self._all_checks)} checks are shown."

    def _rate_figure(
        self,
        name: str,
        title: str,
        series: Rows,
        totals: Rows,
        n: str,
        check: str = "",
        lowest: float | None = None,
    ) -> Figure:
        of_period = {row["period"]: row for row in totals}

        def view(period: Period) -> View:
            total, rows = of_period.get(period.key), self._in_period(series, period)
            if total is None or not rows:
                return View("", "", _NOTHING)
            least, most = (pick(rows, key=lambda row: row["rate"]) for pick in (min, max))
            few = sum(1 for row in rows if row["n"] < LOW_N)
            return View(
                f"{percent(total['rate'])} ({interval(total['low'], total['high'])})"
                f" of {counted(total['n'])}",
                f"Line chart with 95% intervals of {title} by {period.unit}, {day(rows[0]['start'])} to"
                f" {day(rows[-1]['start'])}: {percent(total['rate'])} of {number(total['n'])} {n} over all,"
                f" lowest {percent(least['rate'])} ({day(least['start'])}), highest {percent(most['rate'])}"
                f" ({day(most['start'])}). {some(few, 'point')} of {len(rows)} with fewer than {LOW_N}.",
            )

        chart = self._filled(
            [{**row, "few": row["n"] < LOW_N} for row in series], ("rate", "low", "high", "n", "few")
        )
        return Figure(
            name,
            title,
            charts.rate_over_time(chart, self._shown, n, _lowest(series) if lowest is None else lowest),
            self._views(view),
            Table(
                (
                    "Day or week from",
                    "Passed" if check else "Verified",
                    n.capitalize(),
                    "Rate",
                    "95% from",
                    "to",
                ),
                [
                    Row(
                        (
                            day(row["start"]),
                            number(row["k"]),
                            counted(row["n"]),
                            percent(row["rate"]),
                            percent(row["low"]),
                            percent(row["high"]),
                        ),
                        self._shown_in(row),
                    )
                    for row in series
                ],
            ),
            check,
            wide=not check,
        )

    def changes(self) -> Section:
        """Significant changes from week to week."""
        rows = self._rows(
            f"""
            SELECT * FROM pass_rate_changes WHERE significant ORDER BY week DESC, check_group, check_type
            LIMIT {_CHANGES}
            """
        )
        weeks = self._rows(
            "SELECT count(*) FILTER (WHERE NOT low_n) AS n FROM pass_rate_changes WHERE change IS NOT NULL"
        )[0]["n"]
        return Section(
            "changes",
            "Changes from week to week",
            "Rates that differ from the week before by more than chance explains: the 95% interval of the"
            f" difference is without 0, and both weeks have {LOW_N} or more. The latest {_CHANGES}, of all"
            " days. With many checks, one in twenty such intervals excludes 0 by chance.",
            "No week differs significantly from the one before."
            if weeks
            else f"There are no two weeks in a row with {LOW_N} decided checks each to compare yet.",
            table=Table(
                ("Week from", "Check", "Rate", "Before", "Change", "95% from", "to"),
                [
                    Row(
                        (
                            day(row["week"]),
                            row["check_type"],
                            percent(row["pass_rate"]),
                            percent(row["previous_pass_rate"]),
                            points(row["change"]),
                            points(row["change_low"]),
                            points(row["change_high"]),
                        ),
                        [period.key for period in self.periods],
                    )
                    for row in rows
                ],
                numeric_from=2,
            )
            if rows
            else None,
            table_title="Significant changes",
            definitions=self._define(
                "pass_rate_changes", "pass_rate_changes.change_low", "pass_rate_changes.significant"
            ),
        )

    def failures(self) -> Section:
        """Failure attribution and combinations."""
        rows = self._rows(
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
            for row in self._rows(
                "SELECT period, sum(verifications - verified)::BIGINT AS n"
                " FROM verified_rates JOIN report_days USING (date) GROUP BY ALL"
            )
        }
        by_period = _by(rows, "period")

        def view(period: Period) -> View:
            own, n = by_period.get(period.key, []), declined.get(period.key, 0)
            failing = [row for row in own if row["failing"] and row["check_type"] != _OVERRIDE]
            if not n or not failing:
                return View("", "", "Nothing was declined in this period.")
            worst = failing[0]
            return View(
                f"{some(n, 'declined verification')}",
                f"Bar chart of declined verifications by failed check: of {number(n)} declined,"
                f" {_reason(worst)} failed in {number(worst['failing'])} and was the only failure in"
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
                    "What failed where a verification was declined",
                    charts.attribution(bars, self._shown),
                    self._views(view),
                    Table(
                        (
                            "Check",
                            "Declined with it",
                            "Share of declined",
                            "It alone",
                            "Verified nonetheless",
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
        combinations = self._rows(
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
            "A verification with two failed checks counts in both, so the bars add up to more than all"
            " declined. What is left of a check when all others pass is “it alone”: that is what a change"
            " of this check could win at most.",
            "No check has failed and nothing was declined." if self._completed else _NO_ANSWER,
            figures,
            Table(
                ("Failed together", "Verifications", "Verified nonetheless"),
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
            self._define(
                "failure_attribution",
                "failure_attribution.failing",
                "failure_attribution.sole_blocker",
                "failure_combinations.failed_checks",
            ),
        )

    def _confidences(self) -> Mapping[tuple[str, str], Rows]:
        """For each check: rows of period, side, bin and checks, bins without checks left out."""
        return self._by_check(
            self._rows(
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

    def _summaries(self) -> Mapping[tuple[str, str, str], dict[str, Any]]:
        return {
            (row["check_group"], row["check_type"], row["period"]): row
            for row in self._rows(
                """
                SELECT check_group, check_type, period, sum(checks)::BIGINT AS checks,
                    sum(with_confidence)::BIGINT AS scored,
                    sum(mean * with_confidence) / nullif(sum(with_confidence), 0) AS mean,
                    min(min) AS least, max(max) AS most, sum(saturated)::BIGINT AS saturated
                FROM confidence_summary JOIN report_days USING (date) GROUP BY ALL
                """
            )
        }

    def confidences(self) -> Section:
        """Distribution of the confidences by check."""
        bins, summaries = self._confidences(), self._summaries()
        figures = []
        for index, check in enumerate(self.checks):
            rows = bins.get((check.group, check.type))
            if rows:
                figures.append(self._histogram(f"confidence-{index}", check, rows, summaries))
        return Section(
            "confidences",
            "Confidences by check",
            "Passed checks upwards, failed ones downwards, each as a share of its own status, in bins of"
            " 0.01; any other status is in the tables only. Where the two lie apart, the confidence tells"
            " good from bad; where they overlap, no threshold can. The vendor does not say whether a"
            " confidence scores the check or the certainty of its status.",
            "No check has a confidence yet." if self._completed else _NO_ANSWER,
            figures,
            definitions=self._define("confidence_histogram", "confidence_summary"),
            key=[("pass", "PASS"), ("fail", "FAIL")],
        )

    def _histogram(
        self,
        name: str,
        check: _Check,
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
                f"{counted(sides['PASS'])} PASS, {counted(sides['FAIL'])} FAIL,"
                f" mean {decimals(total['mean'])}",
                f"Histogram of {number(total['scored'])} confidences of {check.label} by status, from"
                f" {decimals(total['least'], 2)} to {decimals(total['most'], 2)}, mean"
                f" {decimals(total['mean'])}: {number(sides['PASS'])} of passed, {number(sides['FAIL'])} of"
                f" failed checks, {number(sides['other'])} of others; {number(missing)} checks have none.",
            )

        drawn = [
            {
                "period": row["period"],
                "side": row["side"],
                "bin_low": row["bin"] / _STEPS,
                "bin_high": (row["bin"] + 1) / _STEPS,
                "checks": row["checks"],
                "share": _short(part := row["checks"] / totals[row["period"], row["side"]]),
                "signed": _short(part if row["side"] == "PASS" else -part),
            }
            for row in rows
            if row["side"] != "other"
        ]
        return Figure(
            name,
            check.label,
            charts.histogram(drawn, self._shown),
            self._views(view),
            Table(
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

    def drift(self) -> Section:
        """How the confidences move: their quantiles and their drift over time."""
        quantiles, drifts = self._by_check(self._quantiles()), self._by_check(self._drifts())
        lowest = min(
            (row["p05"] for rows in quantiles.values() for row in rows if row["n"] >= LOW_N), default=0.0
        )
        figures = []
        for index, check in enumerate(self.checks):
            if moved := quantiles.get((check.group, check.type)):
                figures.append(self._quantile_figure(f"quantiles-{index}", check, moved, lowest))
            if drifted := drifts.get((check.group, check.type)):
                figures.append(self._drift_figure(f"drift-{index}", check, drifted))
        none = (
            ""
            if drifts or not quantiles
            else " No day has 200 checks of one type with 200 in the 28 days before it, so drift cannot be"
            " told from noise yet: the population stability index is not drawn."
        )
        weekly = any(period.unit == "week" for period in self.periods)
        return Section(
            "drift",
            "Drift of the confidences",
            "First how the confidences move: the line is the median, the dark band the middle half, the light"
            " one the middle nine tenths. Then the population stability index (PSI) of each day against the"
            " 28 days before: what lies in the grey area is noise, the dashed lines are the customary limits."
            + (
                " By week, quantiles are to the hundredth, and the PSI is that of the week's largest day."
                if weekly
                else ""
            )
            + none,
            "No check has a confidence yet." if self._completed else _NO_ANSWER,
            figures,
            definitions=self._define(
                "confidence_drift",
                "confidence_drift.psi",
                "confidence_drift.psi_noise_floor",
                "confidence_drift.ks",
                "confidence_drift.level",
            ),
        )

    def _quantiles(self) -> Rows:
        """Quantiles by day as the warehouse has them; by week from the bins, to the hundredth."""
        return self._rows(
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

    def _quantile_figure(self, name: str, check: _Check, rows: Rows, lowest: float) -> Figure:
        def view(period: Period) -> View:
            own = self._in_period(rows, period)
            if not own:
                return View("", "", "No check has a confidence in this period.")
            first, last = own[0], own[-1]
            return View(
                f"median {decimals(first['p50'], 2)} → {decimals(last['p50'], 2)}",
                f"Line chart of the quantiles of {check.label}'s confidence by {period.unit}: the median was"
                f" {decimals(first['p50'])} ({day(first['start'])}) and is {decimals(last['p50'])}"
                f" ({day(last['start'])}), the middle nine tenths went from"
                f" {decimals(first['p05'], 2)}–{decimals(first['p95'], 2)} to"
                f" {decimals(last['p05'], 2)}–{decimals(last['p95'], 2)}.",
            )

        names = ("p05", "p25", "p50", "p75", "p95")
        chart = self._filled([{**row, "few": row["n"] < LOW_N} for row in rows], (*names, "n", "few"))
        return Figure(
            name,
            f"{check.label}: quantiles",
            charts.quantiles_over_time(chart, self._shown, lowest),
            self._views(view),
            Table(
                ("Day or week from", "Checks", "5th", "25th", "Median", "75th", "95th percentile"),
                [
                    Row(
                        (day(row["start"]), counted(row["n"]), *(decimals(row[q]) for q in names)),
                        self._shown_in(row),
                    )
                    for row in rows
                ],
            ),
            check.label,
        )

    def _drifts(self) -> Rows:
        return self._rows(
            """
            SELECT check_group, check_type, unit, start, max(psi) AS psi,
                arg_max(psi_noise_floor, psi) AS floor, arg_max(ks, psi) AS ks, arg_max(level, psi) AS level,
                arg_max(checks, psi) AS n, arg_max(date, psi) AS date
            FROM confidence_drift JOIN report_units USING (date)
            WHERE level <> 'insufficient' AND psi IS NOT NULL
            GROUP BY ALL ORDER BY ALL
            """
        )

    def _drift_figure(self, name: str, check: _Check, rows: Rows) -> Figure:
        def view(period: Period) -> View:
            own = self._in_period(rows, period)
            if not own:
                return View("", "", "No day of this period has enough checks to tell drift from noise.")
            worst = max(own, key=lambda row: row["psi"])
            marked = sum(1 for row in own if row["level"] != "none")
            return View(
                f"largest PSI {decimals(worst['psi'])}, {day(worst['date'])}",
                f"Line chart of the drift of {check.label} by {period.unit}: largest PSI"
                f" {decimals(worst['psi'])} on {day(worst['date'])} ({worst['level']}, noise floor"
                f" {decimals(worst['floor'])}); {marked} of {some(len(own), period.unit)} at or above 0.1.",
            )

        return Figure(
            name,
            f"{check.label}: PSI",
            charts.drift(self._filled(rows, ("psi", "floor", "ks", "level")), self._shown),
            self._views(view),
            Table(
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
                        self._shown_in(row),
                    )
                    for row in rows
                ],
                numeric_from=2,
            ),
            check.label,
        )

    def thresholds(self) -> Section:
        """The threshold explorer: its figures come from the bins, so it follows the period too."""
        bins, summaries = self._confidences(), self._summaries()
        oriented = {
            (row["check_group"], row["check_type"]): row
            for row in self._rows(
                "SELECT check_group, check_type, any_value(orientation_verified) AS verified,"
                " any_value(auc) AS auc FROM threshold_sensitivity GROUP BY ALL"
            )
        }
        recorded = {
            (row["check_group"], row["check_type"], row["period"]): row["rate"]
            for row in self._rows(
                "SELECT check_group, check_type, period, ratio(sum(passed), sum(passed + failed)) AS rate"
                " FROM pass_rates JOIN report_days USING (date) GROUP BY ALL"
            )
        }
        rates: list[Row] = []
        flips: list[Row] = []
        for check in self.checks:
            of_period = _by(bins.get((check.group, check.type), []), "period")
            if not of_period:
                continue
            orientation = oriented.get((check.group, check.type), {"verified": False, "auc": None})
            choice: dict[str, Any] = {
                "check": check.label,
                "oriented": orientation["verified"],
                "auc": _short(orientation["auc"]),
                "periods": {},
            }
            self.explorer.append(choice)
            for period, rows in of_period.items():
                key = check.group, check.type, period
                sides = {side: [0] * _STEPS for side in ("PASS", "FAIL", "other")}
                for row in rows:
                    sides[row["side"]][row["bin"]] = row["checks"]
                checks = summaries[key]["checks"]
                choice["periods"][period] = {
                    "checks": checks,
                    "recorded": _short(recorded.get(key)),
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
                known = any(period.key in choice["periods"] for choice in self.explorer)
                return View("", what, "" if known else empty)

            return of

        figures = []
        if self.explorer:
            figures = [
                Figure(
                    "threshold-rate",
                    "Share that would pass",
                    charts.threshold_rate(),
                    self._views(
                        view(
                            "Line chart with 95% intervals of the share of checks that would pass, over the"
                            " threshold; the figures at the chosen threshold are in the text above."
                        )
                    ),
                    Table(("Check", "Threshold", "Of those with a confidence", "Of all"), rates),
                    explorer="rate",
                ),
                Figure(
                    "threshold-flips",
                    "Checks that would change",
                    charts.threshold_flips(),
                    self._views(
                        view(
                            "Line chart of the number of checks that would change, over the threshold;"
                            " the figures at the chosen threshold are in the text above."
                        )
                    ),
                    Table(("Check", "Threshold", "Passed, would fail", "Failed, would pass"), flips),
                    explorer="flips",
                ),
            ]
        return Section(
            "threshold-explorer",
            "Threshold explorer",
            "What if a check passed exactly when its confidence is at or above a threshold? Move it and see."
            " A simulation on recorded confidences: it does not predict what the vendor would decide. The"
            " dashed line is the pass rate as it was recorded.",
            "No check has a confidence yet." if self._completed else _NO_ANSWER,
            figures,
            definitions=self._define(
                "threshold_sensitivity",
                "threshold_sensitivity.rate",
                "threshold_sensitivity.rate_null_as_fail",
                "threshold_sensitivity.flips_to_fail",
                "threshold_sensitivity.flips_to_pass",
                "threshold_sensitivity.auc",
            ),
        )

    def funnel(self) -> Section:
        """What became of the submissions, and why rows were rejected."""
        columns = ", ".join(
            f"sum({stage})::BIGINT AS {stage}" for stage, _, _ in _STAGES if stage != "declined"
        )
        declined = "(sum(completed) - sum(verified))::BIGINT AS declined"
        totals = {
            row["period"]: row
            for row in self._rows(
                f"SELECT period, {columns}, {declined} FROM submission_funnel JOIN report_days USING (date)"
                " GROUP BY period"
            )
        }
        series = self._rows(
            f"SELECT unit, start, {columns}, {declined} FROM submission_funnel"
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
            rows = [row for row in self._in_period(series, period) if row["received"]]
            if not rows:
                return View("", "", "Nothing was received in this period.")
            most = max(rows, key=lambda row: row["received"])
            return View(
                f"{number(most['received'])} at most, {day(most['start'])}",
                f"Stacked bars of the submissions received by {period.unit}, {day(rows[0]['start'])} to"
                f" {day(rows[-1]['start'])}, by what became of them; at most {number(most['received'])}"
                f" ({day(most['start'])}).",
            )

        figures = []
        if self._received:
            figures = [
                Figure(
                    "funnel",
                    "From manifest row to verified",
                    charts.funnel(_funnel_bars(totals), self._shown),
                    self._views(view),
                    Table(
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
                    "What was received, over time",
                    charts.volume(self._volume_bars(series), self._shown),
                    self._views(over_time),
                    Table(
                        (
                            "Day or week from",
                            "Received",
                            "Rejected",
                            "Verified",
                            "Not verified",
                            "No answer yet",
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
                                            row["accepted"] - row["completed"],
                                        )
                                    ),
                                ),
                                self._shown_in(row),
                            )
                            for row in series
                        ],
                    ),
                ),
            ]
        reasons = self._rows(
            """
            SELECT period, reason, sum(rejected)::BIGINT AS n, max(date) AS last
            FROM rejected_by_reason JOIN report_days USING (date)
            GROUP BY ALL ORDER BY n DESC, reason
            """
        )
        return Section(
            "funnel",
            "What became of the submissions",
            "Received = rejected + accepted. Accepted = completed + refused + quarantined + uncertain +"
            " failed + not attempted. Completed = verified + not verified.",
            "No submission was received yet.",
            figures,
            Table(
                ("Rejected because", "Rows", "Last seen"),
                [
                    Row(
                        (row["reason"].replace("_", " "), number(row["n"]), day(row["last"])), [row["period"]]
                    )
                    for row in reasons
                ],
                empty="No row was rejected in this period.",
            )
            if self._received
            else None,
            "Rejected rows by reason",
            self._define(
                "submission_funnel",
                "submission_funnel.refused",
                "submission_funnel.quarantined",
                "submission_funnel.uncertain",
                "submission_funnel.failed",
                "submission_funnel.not_attempted",
            ),
        )

    def _volume_bars(self, series: Rows) -> Rows:
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
                    (open_, row["accepted"] - row["completed"]),
                )
            )
            if count
        ]

    def companies(self) -> Section:
        """Verified rate by company."""
        rows = self._rows(
            f"""
            WITH counts AS (
                SELECT period, company_id, sum(verifications)::BIGINT AS n, sum(verified)::BIGINT AS k
                FROM verified_rates_by_company JOIN report_days USING (date) GROUP BY ALL HAVING n > 0
            ),
            ranked AS (
                SELECT *, row_number() OVER (PARTITION BY period ORDER BY n DESC, company_id) AS place,
                    count(*) OVER (PARTITION BY period) AS companies,
                    sum(k) OVER (PARTITION BY period) / sum(n) OVER (PARTITION BY period) AS overall
                FROM counts
            )
            SELECT period, least(place, {_COMPANIES + 1}) - 1 AS rank, any_value(companies) AS companies,
                any_value(overall)::DOUBLE AS overall,
                CASE WHEN rank < {_COMPANIES} THEN any_value(company_id) END AS company,
                sum(n)::BIGINT AS n, sum(k)::BIGINT AS k, ratio(sum(k), sum(n)) AS rate,
                wilson_low(sum(k), sum(n)) AS low, wilson_high(sum(k), sum(n)) AS high
            FROM ranked GROUP BY period, least(place, {_COMPANIES + 1}) ORDER BY period, rank
            """
        )
        names = self._company_names([row["company"] for row in rows if row["company"] is not None])
        for row in rows:
            others = row["companies"] - _COMPANIES
            row["company"] = (
                f"{some(others, 'other')} together"
                if row["company"] is None
                else names.get(row["company"], row["company"])
            )
        by_period = _by(rows, "period")

        def view(period: Period) -> View:
            own = by_period.get(period.key, [])
            if not own:
                return View("", "", _NOTHING)
            named = own[:_COMPANIES]
            best, worst = (pick(named, key=lambda row: row["rate"]) for pick in (max, min))
            of = own[0]["companies"]
            return View(
                f"{some(of, 'company', 'companies')}"
                + (f", the {_COMPANIES} largest shown" if of > _COMPANIES else ""),
                f"Dot chart of the verified rate of {len(named)} of {some(of, 'company', 'companies')}"
                f" with 95% intervals: highest {percent(best['rate'])} ({best['company']}), lowest"
                f" {percent(worst['rate'])} ({worst['company']}), all together {percent(own[0]['overall'])}.",
            )

        figures = []
        if rows:
            drawn = [
                {
                    name: _short(row[name])
                    for name in ("period", "rank", "company", "rate", "low", "high", "n", "overall")
                }
                | {"few": row["n"] < LOW_N}
                for row in rows
            ]
            figures.append(
                Figure(
                    "companies",
                    "Verified rate by company",
                    charts.companies(drawn, self._shown),
                    self._views(view),
                    Table(
                        ("Company", "Verifications", "Verified", "Rate", "95% from", "to"),
                        [
                            Row(
                                (
                                    row["company"],
                                    counted(row["n"]),
                                    number(row["k"]),
                                    percent(row["rate"]),
                                    percent(row["low"]),
                                    percent(row["high"]),
                                ),
                                [row["period"]],
                            )
                            for row in rows
                        ],
                    ),
                    wide=True,
                )
            )
        return Section(
            "companies",
            "Companies",
            f"By the tag companyId, the {_COMPANIES} with most verifications, largest first. Intervals that"
            " overlap are no ranking. The dashed line is the rate of all companies together.",
            _NO_ANSWER,
            figures,
            definitions=self._define(
                "verified_rates_by_company",
                "verified_rates_by_company.company_id",
                "verified_rates_by_company.verified_rate",
                "verified_rates_by_company.low_n",
            ),
        )

    def _company_names(self, ids: Sequence[str]) -> dict[str, str]:
        """`name (id)` for each id whose answers carry a companyName in the clear, the latest day's."""
        if not ids:
            return {}
        kind = self._rows(
            "SELECT count(*) AS n FROM duckdb_tables()"
            " WHERE database_name = current_database() AND table_name = 'verification_tags'"
        )[0]["n"]
        if not kind:  # a view over the lake, which may not be in reach from here
            return {}
        rows = self._rows(
            """
            SELECT i.value AS id, arg_max(n.value, i.date) AS name
            FROM verification_tags AS i
            JOIN verification_tags AS n
                ON n.date = i.date AND n.verification_id = i.verification_id AND n.name = 'companyName'
            WHERE i.name = 'companyId' AND list_contains($1::VARCHAR[], i.value) AND n.value <> ''
                AND n.value <> i.value
            GROUP BY i.value
            """,
            [sorted(set(ids))],
        )
        return {row["id"]: f"{row['name']} ({row['id']})" for row in rows}

    def subjects(self) -> Section:
        """People who come again."""
        table: list[Row] = []
        for row in self._rows(
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
                Row(("People first seen", counted(n), ""), keys),
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
                Row(("Documents shown by a second person", number(row["shared"]), ""), keys),
            ]
        return Section(
            "subjects",
            "People who come again",
            "By the pseudonym of the tag customerId, of those first seen in the period.",
            "No answer carries the tag customerId." if self._completed else _NO_ANSWER,
            table=Table(("What", "Count", "Share"), table) if table else None,
            table_title="People and their attempts",
            definitions=self._define(
                "repeat_subjects",
                "repeat_subjects.passed_within_7_days",
                "repeat_subjects.shared_documents",
            ),
        )

    def api(self) -> Section:
        """Answer times, calls and cost."""
        calls = self._rows(
            """
            SELECT unit, start, sum(calls)::BIGINT AS calls, sum(retries)::BIGINT AS retries,
                sum(billable_calls)::BIGINT AS billable, sum(timeouts)::BIGINT AS timeouts,
                max(max_ms) AS slowest, sum(estimated_cost) AS cost, sum(verified)::BIGINT AS verified
            FROM api_performance JOIN report_units USING (date)
            LEFT JOIN verified_rates USING (date) GROUP BY ALL ORDER BY ALL
            """
        )
        times = self._rows(
            """
            SELECT unit, start, count(latency_ms) AS n,
                unnest(['p50', 'p95', 'p99']) AS quantile,
                unnest(quantile_cont(latency_ms, [0.5, 0.95, 0.99])) AS ms, max(latency_ms) AS slowest
            FROM submissions JOIN report_units USING (date)
            WHERE latency_ms IS NOT NULL GROUP BY unit, start ORDER BY unit, start, quantile
            """
        )
        figures = [self._latency_figure(times)] if times else []
        called = [row for row in calls if row["calls"]]
        if called:
            figures.append(self._calls_figure(called))
        priced = [row for row in called if row["cost"] is not None]
        if priced:
            figures.append(self._cost_figure(priced))
        return Section(
            "api",
            "API performance and cost",
            "Answer times are of the last call of each submission that received an answer. Cost is an"
            " estimate: calls that were or may have been billed, times DEEPXL_PRICE_PER_CALL."
            + ("" if priced or not called else " That setting has no value, so no cost is shown."),
            "No call was made yet.",
            figures,
            definitions=self._define(
                "api_performance",
                "api_performance.retries",
                "api_performance.billable_calls",
                "api_performance.estimated_cost",
                "api_performance.cost_per_verified",
                "api_performance.timeouts",
            ),
        )

    def _latency_figure(self, rows: Rows) -> Figure:
        by_start: dict[tuple[str, datetime.date], dict[str, Any]] = {}
        for row in rows:
            merged = by_start.setdefault((row["unit"], row["start"]), {**row})
            merged[row["quantile"]] = row["ms"]
        merged_rows = list(by_start.values())

        def view(period: Period) -> View:
            own = self._in_period(merged_rows, period)
            if not own:
                return View("", "", "No call was answered in this period.")
            worst = max(own, key=lambda row: row["p95"])
            return View(
                f"95th percentile {number(worst['p95'])} ms at most, {day(worst['start'])}",
                f"Line chart of the answer time by {period.unit}: median, 95th and 99th percentile; the"
                f" median was {number(own[0]['p50'])} ms and is {number(own[-1]['p50'])} ms, the highest 95th"
                f" percentile is {number(worst['p95'])} ms ({day(worst['start'])}).",
            )

        drawn: Rows = []
        for quantile in charts.QUANTILES:
            own = self._filled([{**row, "ms": row[quantile]} for row in merged_rows], ("ms",))
            drawn += [{**row, "quantile": quantile} for row in own]
        return Figure(
            "latency",
            "Answer time in milliseconds",
            charts.latency(drawn, self._shown),
            self._views(view),
            Table(
                ("Day or week from", "Answers", "p50 ms", "p95 ms", "p99 ms", "Max ms"),
                [
                    Row(
                        (
                            day(row["start"]),
                            counted(row["n"]),
                            *(number(row[name]) for name in (*charts.QUANTILES, "slowest")),
                        ),
                        self._shown_in(row),
                    )
                    for row in merged_rows
                ],
            ),
            wide=True,
        )

    def _calls_figure(self, rows: Rows) -> Figure:
        def view(period: Period) -> View:
            own = self._in_period(rows, period)
            if not own:
                return View("", "", "No call was made in this period.")
            total, retries, lost = (
                sum(row[name] for row in own) for name in ("calls", "retries", "timeouts")
            )
            return View(
                f"{number(total)}, of which {some(retries, 'retry', 'retries')}",
                f"Stacked bars of the calls by {period.unit}: {number(total)} calls, of which"
                f" {number(retries)} were retries; {some(lost, 'submission was', 'submissions were')} sent"
                " without an answer.",
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
                self._shown,
            ),
            self._views(view),
            Table(
                ("Day or week from", "Calls", "Retries", "Sent without answer", "Billable"),
                [
                    Row(
                        (
                            day(row["start"]),
                            *(number(row[name]) for name in ("calls", "retries", "timeouts", "billable")),
                        ),
                        self._shown_in(row),
                    )
                    for row in rows
                ],
            ),
        )

    def _cost_figure(self, rows: Rows) -> Figure:
        def view(period: Period) -> View:
            own = self._in_period(rows, period)
            if not own:
                return View("", "", "No call was made in this period.")
            total, verified = sum(row["cost"] for row in own), sum(row["verified"] or 0 for row in own)
            each = f"{money(total / verified)} for each verified" if verified else "nobody verified"
            return View(
                f"{money(total)}, {each}",
                f"Bars of the estimated cost by {period.unit}: {money(total)} over all, {each}.",
            )

        return Figure(
            "cost",
            "Estimated cost",
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
                self._shown,
            ),
            self._views(view),
            Table(
                ("Day or week from", "Billable calls", "Estimated cost", "Verified", "For each verified"),
                [
                    Row(
                        (
                            day(row["start"]),
                            number(row["billable"]),
                            money(row["cost"]),
                            number(row["verified"] or 0),
                            money(row["cost"] / row["verified"] if row["verified"] else None),
                        ),
                        self._shown_in(row),
                    )
                    for row in rows
                ],
            ),
        )


_STAGES: Final = (
    ("received", "received", "kept"),
    ("rejected", "– rejected", "lost"),
    ("accepted", "accepted", "kept"),
    ("refused", "– refused", "lost"),
    ("quarantined", "– quarantined", "lost"),
    ("uncertain", "– uncertain", "lost"),
    ("failed", "– failed", "lost"),
    ("not_attempted", "– not attempted", "lost"),
    ("completed", "completed", "kept"),
    ("declined", "– not verified", "lost"),
    ("verified", "verified", "kept"),
)
"""Column of the funnel, its label, and whether it goes on from there."""


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


def _by(rows: Rows, name: str) -> dict[str, Rows]:
    found: dict[str, Rows] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return dict(found)


def _lowest(rows: Rows) -> float:
    """Where a rate's axis may begin: below every point, and below the intervals that are worth something."""
    lows = [row["low"] for row in rows if row["n"] >= LOW_N] or [row["low"] for row in rows]
    return float(min(*lows, *(row["rate"] for row in rows)))


def _short(value: Any) -> Any:
    """A float with the digits that a chart can show."""
    return round(value, 5) if isinstance(value, float) else value


def _reason(row: Mapping[str, Any]) -> str:
    special = {"UNEXPLAINED_DECLINE": "declined, no check failed", _OVERRIDE: "verified, a check failed"}
    if row["check_group"] == "verdict":
        return special[row["check_type"]]
    return str(row["check_type"])
