"""Sections of rates: verified, pass rates by check, week-to-week changes, companies."""

from collections.abc import Sequence
from typing import Final

from kyc_pipeline.analyze.report import charts
from kyc_pipeline.analyze.report.page import (
    DataTable,
    Figure,
    Row,
    Section,
    View,
    bounds,
    day,
    interval,
    number,
    percent,
    points,
    sample_size,
    some,
)
from kyc_pipeline.analyze.report.periods import Period
from kyc_pipeline.analyze.report.reader import (
    MAX_CHECKS,
    NONE_COMPLETED,
    NOTHING,
    Rows,
    WarehouseReader,
    grouped,
    rounded,
)
from kyc_pipeline.rules import (
    ALARM_BASELINE_WEEKS,
    ALARM_MIN_WEEKS,
    ALARM_WINDOWS_TEXT,
    LOW_N,
    SUPPRESSED,
)
from kyc_pipeline.vocabulary import COMPANY_NAME_TAG, COMPANY_TAG

_COMPANIES: Final = 20
_CHANGES: Final = 20
_SMALL: Final = "small ones together"
_HOLLOW: Final = (
    " Submissions without a verdict are not in the rate; its bounds say what it becomes if none or all of"
    " them pass."
    f" Bars and bands show 95% intervals. Hollow points: fewer than {LOW_N} (their interval may extend below"
    " the axis)."
)


def verdicts(reader: WarehouseReader) -> Section:
    """Verified rate over time."""
    series = reader.rows(
        """
        SELECT unit, start, sum(verified)::BIGINT AS k, sum(verifications)::BIGINT AS n,
            ratio(k, n) AS rate, wilson_low(k, n) AS low, wilson_high(k, n) AS high
        FROM verified_rates JOIN report_units USING (date) GROUP BY ALL HAVING n > 0 ORDER BY ALL
        """
    )
    totals = reader.rows(
        """
        SELECT period, sum(verified)::BIGINT AS k, sum(verifications)::BIGINT AS n,
            ratio(k, n) AS rate, wilson_low(k, n) AS low, wilson_high(k, n) AS high
        FROM verified_rates JOIN report_days USING (date) GROUP BY ALL HAVING n > 0
        """
    )
    figures = []
    if series:
        figures.append(_rate_figure(reader, "verified", "Verified rate", series, totals, "verifications"))
    return Section(
        "verdicts",
        "Verified rate over time",
        "The share of completed verifications that DeepXL verified." + _HOLLOW,
        NONE_COMPLETED,
        figures,
        definitions=reader.define(
            "verified_rates",
            "verified_rates.verified_rate",
            "verified_rates.verified_rate_low",
            "verified_rates.low_n",
        ),
    )


def pass_rates(reader: WarehouseReader) -> Section:
    """Pass rate of each check over time."""
    series = reader.by_check(
        reader.rows(
            """
            SELECT check_group, check_type, unit, start, sum(passed)::BIGINT AS k,
                sum(passed + failed)::BIGINT AS n, ratio(k, n) AS rate, wilson_low(k, n) AS low,
                wilson_high(k, n) AS high
            FROM pass_rates JOIN report_units USING (date) GROUP BY ALL HAVING n > 0 ORDER BY ALL
            """
        )
    )
    totals = reader.by_check(
        reader.rows(
            """
            SELECT check_group, check_type, period, sum(passed)::BIGINT AS k,
                sum(passed + failed)::BIGINT AS n, ratio(k, n) AS rate, wilson_low(k, n) AS low,
                wilson_high(k, n) AS high
            FROM pass_rates JOIN report_days USING (date) GROUP BY ALL HAVING n > 0
            """
        )
    )
    decided = [check for check in reader.checks if series.get((check.group, check.type))]
    lowest = min(
        (_lowest(series[check.group, check.type]) for check in decided),
        default=0.0,
    )
    figures = [
        _rate_figure(
            reader,
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
        "The share of passed checks among those that passed or failed. All charts have the same axes."
        + _HOLLOW
        + _left_out(reader),
        "No check has passed or failed yet.",
        figures,
        definitions=reader.define(
            "pass_rates", "pass_rates.other", "pass_rates.pass_rate", "pass_rates.pass_rate_low"
        ),
    )


def _left_out(reader: WarehouseReader) -> str:
    if reader.all_checks <= MAX_CHECKS:
        return ""
    return f" Shown: the {MAX_CHECKS} most frequent of {number(reader.all_checks)} checks."


def _rate_figure(
    reader: WarehouseReader,
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
        total, rows = of_period.get(period.key), reader.in_period(series, period)
        if total is None or not rows:
            return View("", "", NOTHING)
        least, most = (pick(rows, key=lambda row: row["rate"]) for pick in (min, max))
        few = sum(1 for row in rows if row["n"] < LOW_N)
        undecided = reader.undecided(total)
        open_ = (
            f"; {number(undecided)} undecided: {bounds(total['k'], total['n'], undecided)}"
            if undecided
            else ""
        )
        return View(
            f"{percent(total['rate'])} ({interval(total['low'], total['high'])}) of {sample_size(total['n'])}"
            f"{open_}",
            f"Line chart with 95% intervals of {title} by {period.unit}, {day(rows[0]['start'])} to"
            f" {day(rows[-1]['start'])}: {percent(total['rate'])} of {number(total['n'])} {n} over all,"
            f" lowest {percent(least['rate'])} ({day(least['start'])}), highest {percent(most['rate'])}"
            f" ({day(most['start'])}). {some(few, 'point')} of {len(rows)} with fewer than {LOW_N}{open_}.",
        )

    chart = reader.filled(
        [{**row, "few": row["n"] < LOW_N} for row in series], ("rate", "low", "high", "n", "few")
    )
    return Figure(
        name,
        title,
        charts.rate_over_time(chart, reader.shown, n, _lowest(series) if lowest is None else lowest),
        reader.views(view),
        DataTable(
            (
                "Day or week from",
                "Passed" if check else "Verified",
                n.capitalize(),
                "Rate",
                "95% from",
                "to",
                "Undecided",
                "Rate with them",
            ),
            [
                Row(
                    (
                        day(row["start"]),
                        number(row["k"]),
                        sample_size(row["n"]),
                        percent(row["rate"]),
                        percent(row["low"]),
                        percent(row["high"]),
                        number(undecided) if (undecided := reader.undecided(row)) else "",
                        bounds(row["k"], row["n"], undecided),
                    ),
                    reader.shown_in(row),
                )
                for row in series
            ],
        ),
        check,
        wide=not check,
    )


def changes(reader: WarehouseReader) -> Section:
    """Changes of rates that raised an alarm."""
    rows = reader.rows(f"SELECT * FROM alarms ORDER BY to_date DESC, series LIMIT {_CHANGES}")
    return Section(
        "changes",
        "Alarms",
        "Rates that changed by more than chance and the usual variation between days: the last"
        f" {ALARM_WINDOWS_TEXT} complete weeks against the {ALARM_BASELINE_WEEKS} before. Over all rates"
        " together, on average at most one such alarm a year is false. Shown: the latest"
        f" {_CHANGES} over all days.",
        f"No rate changed. Alarms need {ALARM_MIN_WEEKS + 1} complete weeks.",
        table=DataTable(
            ("Weeks from", "to", "Rate", "Change", "95% from", "to", "Evidence", "At the same time"),
            [
                Row(
                    (
                        day(row["from_date"]),
                        day(row["to_date"]),
                        row["series"].removesuffix("/VERIFIED"),
                        points(row["effect"]),
                        points(row["effect_low"]),
                        points(row["effect_high"]),
                        row["evidence"],
                        row["explained_by"] or "",
                    ),
                    [period.key for period in reader.periods],
                )
                for row in rows
            ],
            numeric_from=8,
        )
        if rows
        else None,
        table_title="Alarms",
        definitions=reader.define("alarms", "alarms.effect", "alarms.explained_by"),
    )


def companies(reader: WarehouseReader) -> Section:
    """Verified rate by company."""
    rows = reader.rows(
        f"""
        WITH counts AS (
            SELECT period, company_id, sum(verifications)::BIGINT AS n, sum(verified)::BIGINT AS k
            FROM verified_rates_by_company JOIN report_days USING (date) GROUP BY ALL HAVING n > 0
        ),
        ranked AS (
            SELECT *, row_number() OVER (
                    PARTITION BY period ORDER BY company_id = '{SUPPRESSED}', n DESC, company_id
                ) AS place,
                count(*) FILTER (company_id IS DISTINCT FROM '{SUPPRESSED}')
                    OVER (PARTITION BY period) AS companies,
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
    names = _company_names(reader, [row["company"] for row in rows if row["company"] is not None])
    names[SUPPRESSED] = _SMALL
    for row in rows:
        others = row["companies"] - _COMPANIES
        row["company"] = (
            (f"{some(others, 'other')} together" if others > 0 else _SMALL)
            if row["company"] is None
            else names.get(row["company"], row["company"])
        )
    by_period = grouped(rows, "period")

    def view(period: Period) -> View:
        own = by_period.get(period.key, [])
        if not own:
            return View("", "", NOTHING)
        named = [row for row in own[:_COMPANIES] if row["company"] != _SMALL] or own
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
                name: rounded(row[name])
                for name in ("period", "rank", "company", "rate", "low", "high", "n", "overall")
            }
            | {"few": row["n"] < LOW_N}
            for row in rows
        ]
        figures.append(
            Figure(
                "companies",
                "Verified rate by company",
                charts.companies(drawn, reader.shown),
                reader.views(view),
                DataTable(
                    ("Company", "Verifications", "Verified", "Rate", "95% from", "to"),
                    [
                        Row(
                            (
                                row["company"],
                                sample_size(row["n"]),
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
        f"The {_COMPANIES} companies (tag {COMPANY_TAG}) with the most verifications, largest first."
        " Overlapping intervals do not rank companies. The dashed line is the rate of all companies together."
        f" “{_SMALL}”: those with too few people on a day (KYC_MIN_CELL) to be shown on that day.",
        NONE_COMPLETED,
        figures,
        definitions=reader.define(
            "verified_rates_by_company",
            "verified_rates_by_company.company_id",
            "verified_rates_by_company.verified_rate",
            "verified_rates_by_company.low_n",
        ),
    )


def _company_names(reader: WarehouseReader, ids: Sequence[str]) -> dict[str, str]:
    """Id → `id · name`, for ids whose responses have a clear companyName; the latest day's name counts."""
    if not ids:
        return {}
    kind = reader.rows(
        "SELECT count(*) AS n FROM duckdb_tables()"
        " WHERE database_name = current_database() AND table_name = 'verification_tags'"
    )[0]["n"]
    if not kind:  # a view over the lake, which may be out of reach here
        return {}
    rows = reader.rows(
        f"""
        SELECT i.value AS id, arg_max(n.value, i.date) AS name
        FROM verification_tags AS i
        JOIN verification_tags AS n
            ON n.date = i.date AND n.verification_id = i.verification_id AND n.name = '{COMPANY_NAME_TAG}'
        WHERE i.name = '{COMPANY_TAG}' AND list_contains($1::VARCHAR[], i.value) AND n.value <> ''
            AND n.value <> i.value
        GROUP BY i.value
        """,
        [sorted(set(ids))],
    )
    return {row["id"]: f"{row['id']} · {row['name']}" for row in rows}


def _lowest(rows: Rows) -> float:
    """Where a rate's axis may begin: below every point, and below the intervals of large samples."""
    lows = [row["low"] for row in rows if row["n"] >= LOW_N] or [row["low"] for row in rows]
    return float(min(*lows, *(row["rate"] for row in rows)))
