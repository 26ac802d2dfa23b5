"""The regulator's pack: metrics that NIST SP 800-63-4 recommends, as far as the warehouse can measure them.

The list is table 4 of SP 800-63-4, "Performance Metrics", in its order. Its users are unique people: the rows
of `subjects`. What the pipeline cannot see is listed with the reason, so that nobody takes the pack for
complete.
"""

import csv
import datetime
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import duckdb

from kyc_pipeline.analyze.publish import Place, has_restricted, open_warehouse
from kyc_pipeline.analyze.report import own_text, template
from kyc_pipeline.analyze.report.reader import Rows, rows_of
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.atomic import make_folder, replacing
from kyc_pipeline.rules import LOW_N, Z_95

Unit = Literal["share of people", "share of submissions", "seconds"]
SOURCE: Final = "NIST SP 800-63-4, table 4"
PAGE, METRICS_FILE, BUILD_FILE = "evidence.html", "metrics.csv", "build.csv"

_PEOPLE: Final = (
    "People are those whose first submission is in the period; all their attempts count, later ones too."
)
_NO_TYPE: Final = (
    "A submission does not say how the person was proofed (remote or on site, attended or not). If all were"
    " proofed the same way, the overall figure is the figure of that type."
)
_STARTED: Final = (
    "A submission arrives complete; the pipeline does not see people who start and do not submit."
)
_ELSEWHERE: Final = "This happens outside identity proofing; the pipeline has no data about it."
_NO_FRAUD: Final = "DeepXL says which checks fail, not whether it suspects a fraud."
_NO_REPORTS: Final = "Reports of users reach the help desk, not the pipeline."


@dataclass(frozen=True, slots=True)
class Metric:
    """A recommended metric. `sql` measures it. If it returns no row, `reason` says why it is not observable.

    `sql` has the parameters `$first` and `$last`, and the columns `step`, `value`, `n`, `of`, `low`, `high`,
    `worst` and `best`.
    """

    title: str
    kind: str
    definition: str = ""
    unit: Unit = "share of people"
    sql: str = ""
    reason: str = ""


def _share(table: str, n: str, of: str, worst: str, best: str, step: str = "''") -> str:
    """SQL of a share over a period, with its Wilson interval. It adds up counts, never rates."""
    return f"""
        SELECT
            step, ratio(n, of) AS value, n, of, wilson_low(n, of) AS low, wilson_high(n, of) AS high,
            ratio(worst, of) AS worst, ratio(best, of) AS best
        FROM (
            SELECT
                {step} AS step, sum({n})::BIGINT AS n, sum({of})::BIGINT AS of,
                sum({worst})::BIGINT AS worst, sum({best})::BIGINT AS best
            FROM {table} WHERE date BETWEEN $first AND $last GROUP BY step
        )
        WHERE of > 0 ORDER BY step
    """


_FAILED: Final = "subjects - verified - undecided"
METRICS: Final = (
    Metric(
        "Pass rate (overall)",
        "Proofing",
        f"People whom DeepXL verified at any attempt, of all people. {_PEOPLE}",
        sql=_share("verified_rates_by_subject", "verified", "subjects", "verified", "verified + undecided"),
    ),
    Metric("Pass rate (per proofing type)", "Proofing", reason=_NO_TYPE),
    Metric(
        "Fail rate (overall)",
        "Proofing",
        f"People who were verified at no attempt and have no open submission, of all people. {_PEOPLE}",
        sql=_share("verified_rates_by_subject", _FAILED, "subjects", f"{_FAILED} + undecided", _FAILED),
    ),
    Metric("Estimated adjusted fail rate", "Proofing", reason=_NO_FRAUD),
    Metric("Fail rate (per proofing type)", "Proofing", reason=_NO_TYPE),
    Metric("Abandonment rate (overall)", "Proofing", reason=_STARTED),
    Metric("Abandonment rate (per proofing type)", "Proofing", reason=f"{_STARTED} {_NO_TYPE}"),
    Metric(
        "Failure rates (per proofing process step)",
        "Proofing",
        f"A step is a check of DeepXL. People who passed it at no attempt, of those who had it. {_PEOPLE}",
        sql=_share(
            "failed_steps_by_subject",
            "never_passed",
            "subjects",
            "never_passed",
            "never_passed - undecided",
            "check_group || '.' || check_type",
        ),
    ),
    Metric(
        "Completion times (per proofing type)",
        "Proofing",
        "Mean time from `submitted_at` in the manifest to the complete response, over submissions with a"
        " verdict on the days of the period. How long a person needs for pictures and forms before that is"
        f" not observable here. {_NO_TYPE}",
        unit="seconds",
        sql="""
            SELECT '' AS step, sum(mean_seconds * verdicts) / sum(verdicts) AS value, NULL AS n,
                   sum(verdicts)::BIGINT AS of, NULL AS low, NULL AS high, NULL AS worst, NULL AS best
            FROM verdict_times WHERE date BETWEEN $first AND $last HAVING sum(verdicts) > 0
        """,
    ),
    Metric("Authenticator type usage", "Authentication", reason=_ELSEWHERE),
    Metric("Authentication failures", "Authentication", reason=_ELSEWHERE),
    Metric("Account recovery attempts", "Authentication", reason=_ELSEWHERE),
    Metric(
        "Confirmed fraud",
        "Fraud",
        "Submissions that the labels call a fraud, of all submissions on the days of the period. Those"
        " without a conclusive label are open: nobody looked, or could tell.",
        unit="share of submissions",
        sql="""
            SELECT
                '' AS step, ratio(n, of) AS value, n, of, wilson_low(n, of) AS low,
                wilson_high(n, of) AS high, ratio(n + open, of) AS worst, ratio(n, of) AS best
            FROM (
                SELECT
                    count(*) FILTER (WHERE l.label = 'fraud') AS n, count(*) AS of,
                    count(*) FILTER (WHERE coalesce(l.label, '') NOT IN ('fraud', 'genuine')) AS open
                FROM submissions AS s LEFT JOIN submission_labels AS l USING (submission_id)
                WHERE s.date BETWEEN $first AND $last
            ) WHERE of > open
        """,
        reason="No submission of the period has a conclusive label: deliver labels (see the README).",
    ),
    Metric("Suspected fraud", "Fraud", reason=_NO_FRAUD),
    Metric("Reported fraud", "Fraud", reason=_NO_REPORTS),
    Metric("Fraud (per proofing type)", "Fraud", reason=f"{_NO_FRAUD} {_NO_TYPE}"),
    Metric("Fraud (per authentication type)", "Fraud", reason=_ELSEWHERE),
    Metric("Help desk calls", "Customer support", reason=_ELSEWHERE),
    Metric("Help desk calls (per type)", "Customer support", reason=_ELSEWHERE),
    Metric("Help desk resolution times", "Customer support", reason=_ELSEWHERE),
    Metric("Customer satisfaction surveys", "User experience", reason=_ELSEWHERE),
    Metric("Redress requests", "User experience", reason=_ELSEWHERE),
    Metric("Redress resolution times", "User experience", reason=_ELSEWHERE),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured value. The bounds are NULL where the unit has none; see the columns of `metrics.csv`."""

    metric: Metric
    step: str
    value: float | None
    n: int | None
    of: int
    low: float | None
    high: float | None
    worst: float | None
    best: float | None

    @property
    def low_n(self) -> bool:
        """Whether it rests on too few people or verdicts to decide by."""
        return self.of < LOW_N


@dataclass(frozen=True, slots=True)
class Evidence:
    """The content of the pack."""

    first: datetime.date
    last: datetime.date
    figures: tuple[Measurement, ...]
    unnamed: int
    """Submissions, on all days, whose person no response names: they count for nobody."""
    build: tuple[tuple[str, str], ...]
    """Name and value of all that identifies data and code."""

    @property
    def measured(self) -> list[Metric]:
        """The metrics with at least one figure, in order."""
        return [metric for metric in METRICS if any(figure.metric is metric for figure in self.figures)]

    @property
    def missing(self) -> list[tuple[Metric, str]]:
        """The other metrics, each with the reason."""
        measured = self.measured
        return [
            (metric, metric.reason or "The period has no data for it.")
            for metric in METRICS
            if metric not in measured
        ]


def write_evidence(
    warehouse: Place, folder: Path, first: datetime.date | None, last: datetime.date | None
) -> Evidence:
    """Writes page and CSV files of a period, both days included, from the published build into `folder`.

    The period is by default all days of the data. Raises :class:`KycError` without a warehouse, and
    :class:`UsageError` if the data have no day in the period.
    """
    evidence = read_evidence(warehouse, first, last)
    files = {METRICS_FILE: _metrics_csv(evidence), BUILD_FILE: _csv(("name", "value"), evidence.build)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    page = template("evidence.html").render(
        evidence=evidence, source=SOURCE, style=own_text("report.css"), digests=digests, low_n=LOW_N, z=Z_95
    )
    make_folder(folder)
    for name, content in {**files, PAGE: page.encode()}.items():
        with replacing(folder / name) as file:
            file.write(content)
    return evidence


def read_evidence(warehouse: Place, first: datetime.date | None, last: datetime.date | None) -> Evidence:
    """The figures of a period from the published build; see `write_evidence`.

    Only the restricted file, if there is one, has the labels of the confirmed frauds.
    """
    with open_warehouse(warehouse, exact=has_restricted(warehouse)) as connection:
        (info,) = rows_of(connection, "FROM build_info")
        covered = info["first_date"], info["last_date"]
        if covered[0] is None:
            raise UsageError("the warehouse has no day yet: run `kyc-pipeline backfill`")
        since, until = first or covered[0], last or covered[1]
        if since > until:
            raise UsageError(f"--from {since} is after --to {until}")
        if until < covered[0] or since > covered[1]:
            raise UsageError(
                f"the warehouse has no day from {since} to {until}, only {covered[0]} to {covered[1]}"
            )
        period = {"first": since, "last": until}
        try:
            figures = [
                Measurement(metric, **row)
                for metric in METRICS
                if metric.sql
                for row in rows_of(connection, metric.sql, period)
            ]
        except duckdb.CatalogException as error:
            raise KycError(
                "the restricted file beside the warehouse is gone, or an older version built the warehouse: "
                "build it again with `kyc-pipeline publish`"
            ) from error
        (named,) = rows_of(
            connection,
            "SELECT (SELECT count(*) FROM submissions)"
            " - coalesce((SELECT sum(attempts) FROM subjects), 0) AS unnamed",
        )
        inputs = rows_of(connection, "SELECT name, value FROM build_inputs ORDER BY name")
        partitions = rows_of(connection, "FROM build_partitions ORDER BY date, table_name")
    build = [
        *((name, info[name]) for name in ("built_at", "run_id", "code_version", "duckdb_version")),
        ("partitions", len(partitions)),
        ("partitions_sha256", _digest(partitions)),
        *((row["name"], row["value"]) for row in inputs),
    ]
    return Evidence(
        since,
        until,
        tuple(figures),
        int(named["unnamed"]),
        tuple((name, "" if value is None else str(value)) for name, value in build),
    )


def _digest(rows: Rows) -> str:
    """SHA-256 of rows (at least one) as lines of CSV: anybody can compute it from `build_partitions`."""
    return hashlib.sha256(_csv(list(rows[0]), [list(row.values()) for row in rows])).hexdigest()


_COLUMNS: Final = (
    *("metric", "type", "step", "status", "unit", "value", "n", "of", "low", "high", "worst", "best"),
    *("low_n", "from", "to", "definition", "reason"),
)


def _metrics_csv(evidence: Evidence) -> bytes:
    missing = dict(evidence.missing)
    rows: list[dict[str, object]] = []
    for metric in METRICS:
        common = {"metric": metric.title, "type": metric.kind, "from": evidence.first, "to": evidence.last}
        if metric in missing:
            rows.append(common | {"status": "not observable here", "reason": missing[metric]})
        for f in evidence.figures:
            if f.metric is metric:
                measured = {"status": "measured", "unit": metric.unit, "definition": metric.definition}
                values = {"step": f.step, "value": f.value, "n": f.n, "of": f.of, "low_n": f.low_n}
                bounds = {"low": f.low, "high": f.high, "worst": f.worst, "best": f.best}
                rows.append(common | measured | values | bounds)
    return _csv(_COLUMNS, [[row.get(name, "") for name in _COLUMNS] for row in rows])


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerows([columns, *rows])
    return target.getvalue().encode()
