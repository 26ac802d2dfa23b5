"""`kyc-pipeline demo`: the whole pipeline with synthetic submissions, against the simulator.

It writes to one folder only, and ignores your settings (environment, `.env`).
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import duckdb

from kyc_pipeline.analyze.publish import is_published, open_warehouse
from kyc_pipeline.analyze.sample import draw
from kyc_pipeline.cli.backfill import output_paths, run_backfill
from kyc_pipeline.cli.dagster_home import make_home, open_instance
from kyc_pipeline.cli.free_port import require_free
from kyc_pipeline.cli.local_run import run_partitions
from kyc_pipeline.cli.options import display_path, format_table, is_verbose
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.demo.labels import write_labels
from kyc_pipeline.demo.landing import DemoLanding, write_landing
from kyc_pipeline.errors import KycError, UsageError, in_one_line
from kyc_pipeline.ingest.manifests import manifest_dates
from kyc_pipeline.landing.zone import LABELS_FOLDER
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.wording import plural

DAYS = 14
PER_DAY = 60
REVIEWED = 240
SEED = 2024
LATENCY_MS = 40.0
TOKEN = "demo"
SIGNALLED = 128

PASS_RATES = """
SELECT check_type, sum(checks), sum(passed), sum(failed), sum(other),
    ratio(sum(passed), sum(passed) + sum(failed)),
    wilson_low(sum(passed), sum(passed) + sum(failed)),
    wilson_high(sum(passed), sum(passed) + sum(failed))
FROM pass_rates GROUP BY check_type ORDER BY check_type
"""
REJECTED = "SELECT reason, sum(rejected) FROM rejected_by_reason GROUP BY reason ORDER BY 2 DESC, 1"
ON_PURPOSE = (
    "Rejected rows, shared documents and warnings are there on purpose: the demo has the kinds of bad row\n"
    "that ingest rejects by default, and some of the simulator's responses are odd, as DeepXL's may be."
)
FUNNEL = (
    "SELECT sum(received), sum(rejected), sum(accepted), sum(completed), coalesce(sum(verified), 0)"
    " FROM submission_funnel"
)


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for all data of the demo.",
)
@click.option("--ui", is_flag=True, help="Start the Dagster UI with the data of a finished demo.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="The UI's port.")
@click.pass_context
def demo(context: click.Context, folder: Path, ui: bool, port: int) -> None:
    """Run two weeks of synthetic submissions through the whole pipeline, or show them in the UI."""
    folder = folder.resolve()
    if ui:
        context.exit(_run_ui(folder, port))
    first = first_day(folder)
    click.echo(f"writing {DAYS} days of synthetic submissions to {display_path(folder / 'landing')}")
    landing = write_landing(folder / "landing", days=DAYS, per_day=PER_DAY, start=first, seed=SEED)
    with _simulator(folder) as url:
        settings = demo_settings(folder, first, url)
        _prepare_instance(folder)
        is_first = not is_published(settings.kyc_warehouse)
        code = run_backfill(settings, landing.dates, verbose=is_verbose(context), show_paths=False)
        if is_first and code == 0:
            _deliver_labels(settings, landing)
            click.echo("\nthe same days again: every submission is paid for, so this makes no call")
            code = run_backfill(settings, landing.dates, verbose=is_verbose(context), show_paths=False)
    _print_results(settings)
    context.exit(code)


def demo_settings(folder: Path, first: date, url: str) -> Settings:
    """The default settings with paths in `folder`. Ignores the environment."""
    defaults: dict[str, Any] = {name: field.default for name, field in Settings.model_fields.items()}
    return Settings(
        _env_file=None,
        **defaults
        | {
            "deepxl_base_url": url,
            "deepxl_api_token": TOKEN,
            "deepxl_requests_per_second": 100,
            "deepxl_price_per_call": "0.50",
            "kyc_landing": folder / "landing",
            "kyc_lake": str(folder / "lake"),
            "kyc_ledger_url": f"sqlite:///{folder / 'ledger.sqlite'}",
            "kyc_warehouse": folder / "warehouse" / "kyc.duckdb",
            "kyc_report": folder / "report" / "index.html",
            "kyc_start_date": first,
        },
    )


def first_day(folder: Path) -> date:
    """The first day of the demo in this folder, so that another run pays nothing; if none, two weeks ago."""
    if days := manifest_dates(folder / "landing"):
        return date.fromisoformat(days[0])
    return datetime.now(UTC).date() - timedelta(days=DAYS)


@contextmanager
def _simulator(folder: Path) -> Iterator[str]:
    store = folder / "simulator.jsonl"
    with running_simulator(token=TOKEN, seed=SEED, latency_ms=LATENCY_MS, store=store) as simulator:
        yield simulator.url


def _deliver_labels(settings: Settings, landing: DemoLanding) -> None:
    """Lets made-up people review a sample, as `kyc-pipeline sample` draws it, and publishes their labels."""
    drawn = draw(settings.kyc_warehouse, REVIEWED, SEED).rows
    with open_warehouse(settings.kyc_warehouse) as warehouse:
        verified = dict(warehouse.execute("SELECT submission_id, verified FROM submissions").fetchall())
    write_labels(
        landing.folder / LABELS_FOLDER / "reviewed.csv",
        [(row.submission_id, row.weight, row.stratum, verified[row.submission_id]) for row in drawn],
        decided_on=date.fromisoformat(landing.dates[-1]) + timedelta(days=1),
        seed=SEED,
    )
    click.echo(f"labels     of {plural(len(drawn), 'submission')}, a random sample that reviewers looked at")
    # Silent: the first publication has printed its warnings.
    failures = run_partitions(Pipeline(settings), [], open_instance())
    if failures:
        raise KycError(in_one_line(failures))


def _prepare_instance(folder: Path) -> None:
    home = folder / "dagster_home"
    make_home(home)
    os.environ["DAGSTER_HOME"] = str(home)


def _run_ui(folder: Path, port: int) -> int:
    if not (folder / "warehouse").is_dir():
        raise UsageError(f"there is no demo in {display_path(folder)}: run `make demo` first")
    require_free(port)
    _prepare_instance(folder)
    with _simulator(folder) as url:
        settings = demo_settings(folder, first_day(folder), url)
        command = [sys.executable, "-m", "kyc_pipeline.cli", "ui", "--port", str(port)]
        # In the demo's folder, where there is no `.env`.
        process = subprocess.Popen(command, env=_environment(settings), cwd=folder)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _frame: process.send_signal(received))
        return exit_code(process.wait())


def exit_code(status: int) -> int:
    """The exit code that a shell would give for a process's status, which is negative after a signal."""
    return status if status >= 0 else SIGNALLED - status


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, with `settings` in place of all others."""
    environment = {
        name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields
    }
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            plain = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            environment[name.upper()] = ",".join(plain) if isinstance(plain, frozenset) else str(plain)
    return environment


def _print_results(settings: Settings) -> None:
    with open_warehouse(settings.kyc_warehouse) as warehouse:
        click.echo(f"\n{results(warehouse)}\n\n{ON_PURPOSE}")
    program, path = (shlex.quote(display_path(file)) for file in (Path(sys.argv[0]), settings.kyc_warehouse))
    click.echo(f"\n{output_paths(settings)}")
    click.echo(f"lake       {display_path(Path(settings.kyc_lake))}")
    click.echo(f'query      KYC_WAREHOUSE={path} {program} query "FROM pass_rates"')


def results(warehouse: duckdb.DuckDBPyConnection) -> str:
    """The pass rates and the funnel of all days. A demo that was stopped early may have none."""
    received, rejected, accepted, completed, verified = warehouse.execute(FUNNEL).fetchall()[0]
    if received is None:
        return "no day is finished yet: run the demo again to continue"
    rates = format_table(
        ("check", "checks", "passed", "failed", "other", "pass rate", "95 % interval"),
        [
            (*counts, *(["–", "–"] if rate is None else [f"{rate:.1%}", f"{low:.1%} – {high:.1%}"]))
            for *counts, rate, low, high in warehouse.execute(PASS_RATES).fetchall()
        ],
    )
    reasons = format_table(("rejected because", "rows"), warehouse.execute(REJECTED).fetchall())
    return (
        f"{plural(received, 'row')} received: {rejected} rejected, {accepted} accepted; "
        f"{completed} completed, {verified} of them verified\n\n{rates}\n\n{reasons}"
    )
