"""The warehouse build at several sizes, compared with plain DuckDB for the same queries and files.

For each size (verifications over three years, three checks each) it makes a lake. Then, each in its own
process, the build writes a complete warehouse, and plain DuckDB runs the same models over views of the same
files into temporary tables: without materialised facts, comments or a durable file. Targets: at most three
times DuckDB's own time, no faster growth than the data, and memory within the setting.
Run: `python -m bench.analyze [--large] [--millions N ...] [--memory 2GB] [--max-fact-rows N] [--folder F]`.
It prints a table and the missed targets (exit code 1). `--large` adds 30 million verifications, which need
about 15 GB of disk. The defaults for memory and for the rows beyond which facts are views come from the
settings.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from bench.peak_memory import peak_bytes
from kyc_pipeline.analyze.build import PREVIOUS_TABLES, build, open_draft
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.analyze.sql_models import LAKE, PREVIOUS, load_steps, macros_sql
from kyc_pipeline.lake.storage import PART_FILE, Lake
from kyc_pipeline.lake.tables import LABELS, SUBMISSIONS, TABLES
from kyc_pipeline.settings import Settings

MAX_RATIO = 3.0
MAX_GROWTH = 1.0
"""Exponent of the build time over the number of verifications; 1 is linear."""
BESIDE_DUCKDB_MB = 600
"""Memory beyond DuckDB's limit: Python, Arrow and the libraries (235 MB before the first query), and what
DuckDB does not count, such as the footers of 8,760 files."""
UNLIMITED = "80%"
DAYS = 1095
START = date(2022, 1, 1)
CHOICES = Choices(Decimal("0.35"), min_cell=5)
"""Small cells are hidden, as by default; plain DuckDB hides nothing."""


def make_lake(root: Path, verifications: int) -> None:
    """Writes every partition with DuckDB, which is faster than running the pipeline."""
    per_day = verifications // DAYS
    with duckdb.connect() as connection:
        connection.execute("SELECT setseed(0.5)")
        for number in range(DAYS):
            day = (START + timedelta(days=number)).isoformat()
            connection.execute(
                f"""
                CREATE OR REPLACE TEMP TABLE v AS
                SELECT
                    {number * per_day} + i AS verification_id,
                    's-' || ({number * per_day} + i) AS submission_id,
                    random() < 0.9 AS ok,
                    TIMESTAMPTZ '{day} 12:00:00Z' AS noon,
                    (random() * 40)::INTEGER AS company,
                    (random() * {verifications // 2})::BIGINT AS customer
                FROM range({per_day}) AS t(i)
                """
            )
            connection.execute(
                """
                CREATE OR REPLACE TEMP TABLE c AS
                SELECT
                    verification_id,
                    submission_id,
                    'technicalChecks' AS check_group,
                    i::INTEGER AS check_index,
                    ['FACE_MATCH', 'LIVENESS', 'ID_QUALITY'][i + 1] AS type,
                    fail,
                    round(CASE WHEN fail THEN random() * 0.7 ELSE 1 - random() ** 2 * 0.3 END, 4)
                        AS confidence
                FROM (
                    SELECT *, NOT ok AND (i = verification_id % 3 OR random() < 0.1) AS fail
                    FROM v, range(3) AS t(i)
                )
                """
            )
            queries = {
                "submissions": "SELECT submission_id, noon AS submitted_at, 100::BIGINT AS id_size,"
                " MAP {'companyId': company::VARCHAR, 'customerId': customer::VARCHAR,"
                " 'country': ['NL', 'DE', 'FR', 'ES'][company % 4 + 1]} AS tags FROM v",
                "rejected_submissions": "SELECT submission_id, 'file_not_found' AS reason FROM v LIMIT 1",
                "verification_responses": "SELECT submission_id, 'completed' AS outcome, 200 AS http_status,"
                " 1 AS attempts, 300 + 200 * random() AS latency_ms, 1 AS billable_calls,"
                " noon + INTERVAL 1 MINUTE AS responded_at FROM v",
                "verifications": "SELECT verification_id, submission_id, ok AS verified, 'kyc-1' AS model,"
                " NULL::VARCHAR AS model_version, 'jpeg' AS id_file_type, 1::BIGINT AS id_file_size,"
                " 'jpeg' AS selfie_file_type, 1::BIGINT AS selfie_file_size,"
                " noon AS verified_at, '2024-09-08T10:00:00' AS timestamp_iso,"
                " 0.0::DOUBLE AS iso_offset_seconds,"
                " 3 AS check_count, md5(customer::VARCHAR) AS id_document_pseudonym,"
                " []::VARCHAR[] AS anomalies FROM v",
                "model_checks": "SELECT verification_id, submission_id, check_group, check_index, type,"
                " CASE WHEN fail THEN 'FAIL' ELSE 'PASS' END AS status, status AS normalized_status,"
                " confidence,"
                " confidence::VARCHAR AS confidence_raw FROM c",
                "verification_tags": "SELECT verification_id, submission_id, 'companyId' AS name,"
                " company::VARCHAR AS value, NULL::VARCHAR AS pseudonym FROM v UNION ALL"
                " SELECT verification_id, submission_id, 'customerId', NULL, md5(customer::VARCHAR) FROM v",
                "verification_files": "SELECT verification_id, submission_id, category, 'image/jpeg' AS"
                " content_type, 100000::BIGINT AS file_size, noon AS uploaded_at"
                " FROM v, (VALUES ('id'), ('face')) AS t(category)",
                "contract_drift": "SELECT '' AS path, '' AS kind, 1::BIGINT AS occurrences,"
                " '' AS example_submission_id WHERE false",
            }
            for table in TABLES:
                folder = root / table.zone / table.name / f"date={day}"
                folder.mkdir(parents=True)
                connection.execute(
                    f"COPY ({queries[table.name]}) TO '{folder / PART_FILE}'"
                    " (FORMAT parquet, COMPRESSION zstd, KV_METADATA {source: 'bench'})"
                )


@dataclass(frozen=True)
class Limits:
    """The resources of a build."""

    memory: str
    threads: int
    max_fact_rows: int


def run_build(root: Path, limits: Limits) -> dict[str, Any]:
    """A full build and its checks."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        draft = Path(folder) / "kyc.duckdb"
        started = time.perf_counter()
        summary = build(
            Lake(str(root)),
            draft,
            run_id="bench",
            choices=CHOICES,
            memory_limit=limits.memory,
            threads=limits.threads,
            max_fact_rows=limits.max_fact_rows,
        )
        seconds = time.perf_counter() - started
        peak = peak_bytes()
        with open_draft(draft, limits.memory) as connection:
            started = time.perf_counter()
            results = check_build(connection)
            checked = time.perf_counter() - started
            views = connection.execute("SELECT count(*) FROM duckdb_views() WHERE NOT internal").fetchall()
        return {
            "seconds": seconds,
            "peak_mb": peak / 2**20,
            "file_mb": draft.stat().st_size / 1e6,
            "views": views[0][0],
            "checks_seconds": checked,
            "errors": [r.name for r in results if r.severity == "error" and not r.passed],
            "models": dict(summary.seconds),
        }


def run_plain(root: Path, limits: Limits) -> dict[str, Any]:
    """The models' queries over views of the same Parquet files, each into a temporary table."""
    models = load_steps()
    facts = {model.name for model in models} & {table.name for table in TABLES}
    spill = tempfile.TemporaryDirectory(dir=root.parent)
    config: dict[str, Any] = {
        "memory_limit": limits.memory,
        "threads": limits.threads,
        "temp_directory": spill.name,
    }
    with spill, duckdb.connect(config=config) as connection:
        connection.execute(f"ATTACH ':memory:' AS {LAKE}")
        connection.execute(macros_sql())
        connection.from_arrow(LABELS.schema.empty_table()).create(f"{LAKE}.main.{LABELS.name}")
        CHOICES.set_variables(connection)
        for table in TABLES:
            files = root / table.zone / table.name / "date=*" / PART_FILE
            added = CHOICES.submission_columns() if table is SUBMISSIONS else {}
            columns = "".join(f", {sql} AS {name}" for name, (sql, _) in added.items())
            connection.execute(
                f"CREATE VIEW {LAKE}.{table.name} AS"
                f" SELECT *{columns} FROM read_parquet('{files}', hive_partitioning = true)"
            )
        connection.execute(
            f"CREATE TABLE {LAKE}.partitions AS SELECT date, table_name, count(*) AS rows, 0 AS changed"
            f" FROM {LAKE}.verification_responses,"
            " (VALUES ('submissions'), ('verification_responses'), ('verifications')) AS t(table_name)"
            " GROUP BY ALL"
        )
        connection.execute(f"ATTACH ':memory:' AS {PREVIOUS}")
        for name, columns in PREVIOUS_TABLES.items():
            connection.execute(f"CREATE TABLE {PREVIOUS}.{name} ({columns})")
        seconds: dict[str, float] = {}
        for model in models:
            started = time.perf_counter()
            name = f"result_of_{model.name}" if model.name in facts else model.name
            connection.execute(f"CREATE TEMP TABLE {name} AS {model.sql}")
            seconds[model.name] = time.perf_counter() - started
            if model.name in facts:  # the other models read the Parquet files, not the copy
                connection.execute(f"DROP TABLE {name}")
                connection.execute(f"CREATE TEMP VIEW {model.name} AS {model.sql}")
        peak = peak_bytes()
        return {"seconds": sum(seconds.values()), "peak_mb": peak / 2**20, "models": seconds}


def in_process(way: str, root: Path, limits: Limits) -> dict[str, Any]:
    """Runs one variant in its own process, to measure its own peak memory."""
    command = [sys.executable, "-m", "bench.analyze", "--way", way, "--folder", str(root)]
    command += ["--memory", limits.memory]
    command += ["--threads", str(limits.threads), "--max-fact-rows", str(limits.max_fact_rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


def alone_in_process(root: Path, limits: Limits) -> dict[str, Any]:
    """Plain DuckDB; with unlimited memory if the limit is too low for it."""
    try:
        return in_process("plain", root, limits)
    except subprocess.CalledProcessError:
        print(
            f"{root.name}: plain DuckDB needs more than {limits.memory}: no limit for it",
            flush=True,
        )
        return in_process("plain", root, replace(limits, memory=UNLIMITED))


def missed(ours: dict[float, dict[str, Any]], plain: dict[float, dict[str, Any]], memory: str) -> list[str]:
    """The targets that these runs missed, by million verifications."""
    found = [
        f"{size:g} M: the build's own checks fail: {run['errors']}"
        for size, run in ours.items()
        if run["errors"]
    ]
    for size, run in ours.items():
        if run["seconds"] > MAX_RATIO * plain[size]["seconds"]:
            found.append(f"{size:g} M: more than {MAX_RATIO:g} times DuckDB's own time")
        if run["peak_mb"] > megabytes(memory) + BESIDE_DUCKDB_MB:
            found.append(f"{size:g} M: a peak of {run['peak_mb']:.0f} MB with a limit of {memory}")
    for smaller, larger in itertools.pairwise(sorted(ours)):
        exponent = growth(ours, smaller, larger)
        print(f"\nFrom {smaller:g} M to {larger:g} M the time grows with exponent {exponent:.2f}.")
        if exponent > MAX_GROWTH:
            found.append(f"{smaller:g} M to {larger:g} M: grows faster than the data")
    return found


def growth(runs: dict[float, dict[str, Any]], smaller: float, larger: float) -> float:
    """The exponent of the time over the number of verifications."""
    return math.log(runs[larger]["seconds"] / runs[smaller]["seconds"]) / math.log(larger / smaller)


def megabytes(memory: str) -> float:
    """DuckDB's limit in MB of 2^20 bytes, the unit of the measured peak."""
    with duckdb.connect(config={"memory_limit": memory}) as connection:
        ((text,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    value, unit = str(text).split()
    return float(value) * {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024, "TiB": 1024**2}[unit]


def main() -> int:
    """Prints the table; returns 1 if a target was missed."""
    defaults = Settings(_env_file=None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--large", action="store_true", help="30 million as well")
    parser.add_argument("--memory", default=defaults.kyc_warehouse_memory)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-fact-rows", type=int, default=defaults.kyc_warehouse_max_fact_rows)
    parser.add_argument("--folder", type=Path, help="where to make the lakes and keep them for the next run")
    parser.add_argument("--models", action="store_true", help="also print the seconds of each model")
    parser.add_argument("--way", choices=["build", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    limits = Limits(options.memory, options.threads, options.max_fact_rows)
    if options.way:
        print(json.dumps({"build": run_build, "plain": run_plain}[options.way](options.folder, limits)))
        return 0
    print(
        f"DuckDB {duckdb.__version__}, {limits.threads} threads, memory limit {limits.memory},"
        f" facts are views beyond {limits.max_fact_rows:,} rows\n"
    )
    print("| verifications | build s | DuckDB alone s | ratio | peak MB | file MB | views | checks s |")
    print("|---|---|---|---|---|---|---|---|")
    ours: dict[float, dict[str, Any]] = {}
    plain: dict[float, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for millions in [*options.millions, *([30.0] if options.large else [])]:
            root = (options.folder or Path(scratch)) / f"{millions:g}m"
            if not root.exists():
                make_lake(root, int(millions * 1_000_000))
            plain[millions] = alone = alone_in_process(root, limits)
            ours[millions] = run = in_process("build", root, limits)
            print(
                f"| {millions:g} M | {run['seconds']:.1f} | {alone['seconds']:.1f} "
                f"| {run['seconds'] / alone['seconds']:.2f} | {run['peak_mb']:.0f} "
                f"| {run['file_mb']:.0f} | {run['views']} | {run['checks_seconds']:.1f} |",
                flush=True,
            )
            if options.models:
                for name, seconds in run["models"].items():
                    print(f"  {name}: {seconds:.2f} (alone {alone['models'][name]:.2f})", file=sys.stderr)
            if options.folder is None:
                shutil.rmtree(root)
    problems = missed(ours, plain, limits.memory)
    print("\nMissed: " + "; ".join(problems) if problems else "\nEvery target is met.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
