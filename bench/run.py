"""Runs every benchmark: `python -m bench.run [--scale quick|usual|full] [NAME ...]`.

Writes `bench/results.md` with pictures in `bench/images`; a usual or full run of all also writes the README's
table of figures. Each benchmark compares variants side by side in one run. Look at the ratios: absolute
figures hold for one machine only.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from bench.pictures import draw, number, table_with

BENCH = Path(__file__).parent
README = BENCH.parent / "README.md"
START, END = "<!-- made by bench.run -->\n", "<!-- end -->"
PACKAGES = ("aiohttp", "dagster", "duckdb", "httpx", "msgspec", "pandas", "pyarrow", "sqlalchemy")
SCALES: dict[str, dict[str, list[str]]] = {
    "quick": {  # a smoke test, in two minutes
        "verify": ["--quick", "--rounds", "1", "--submissions", "10000"],
        "flatten": ["--rows", "50000", "--days", "5", "--rounds", "1"],
        "ingest": ["--rows", "100000", "--rounds", "1"],
        "analyze": ["--millions", "0.1", "1"],
        "backfill": ["--days", "6", "--sizes", "3", "--submissions", "2"],
        "alarms": ["--years", "10"],
        "scale": ["--quick"],
    },
    "usual": {  # in about 20 minutes on two cores
        "verify": ["--rounds", "1", "--submissions", "20000"],
        "flatten": ["--rows", "100000", "--days", "10", "--rounds", "2"],
        "ingest": ["--rows", "500000", "--rounds", "2"],
        "analyze": ["--millions", "0.5", "5"],
        "backfill": ["--days", "20", "--sizes", "1", "10", "--submissions", "5"],
        "alarms": ["--years", "100"],
        "scale": ["--only", "calls", "ledger", "ingest"],
    },
    "full": {
        "verify": [],
        "flatten": [],
        "ingest": [],
        "analyze": ["--millions", "0.5", "5", "10"],
        "backfill": [],
        "alarms": [],
        "scale": ["--only", "calls", "ledger", "ingest", "day"],
    },
}


class Cell(NamedTuple):
    """A cell of a benchmark's table: its column, and what other cells of its row say."""

    column: str
    row: tuple[str, ...]

    def find(self, output: str) -> float:
        """Its number in the benchmark's output. Raises ValueError if it is not there."""
        for row in table_with(self.column, output):
            if set(self.row) <= set(row.values()):
                return number(row[self.column])
        raise ValueError(f"no row {self.row} with {self.column!r}")


class Figure(NamedTuple):
    """A line of the README's table."""

    benchmark: str
    title: str
    unit: str
    ours: Cell
    beside: str
    theirs: Cell


FIGURES = (
    Figure(
        "ingest",
        "check the rows of a manifest",
        "s",
        Cell("wall s", ("kyc-pipeline",)),
        "vectorised checks after `pandas.read_csv`",
        Cell("wall s", ("pandas, whole file",)),
    ),
    Figure(
        "verify",
        "calls at 300 ms latency, 256 in flight",
        "calls/s",
        Cell("calls/s", ("300 ms", "256", "engine")),
        "an aiohttp loop that keeps no ledger",
        Cell("calls/s", ("300 ms", "256", "bare aiohttp")),
    ),
    Figure(
        "flatten",
        "flatten a response",
        "µs",
        Cell("µs per response", ("kyc-pipeline",)),
        "dlt",
        Cell("µs per response", ("dlt",)),
    ),
    Figure(
        "analyze",
        "build a warehouse of 5 million verifications",
        "s",
        Cell("build s", ("5 M",)),
        "the same queries in DuckDB over views, without tables of facts",
        Cell("DuckDB alone s", ("5 M",)),
    ),
)


def main() -> int:
    """Runs the selected benchmarks; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCALES['full'])}; all by default")
    parser.add_argument("--scale", choices=list(SCALES), default="usual", help="how large the inputs are")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    outputs: dict[str, str] = {}
    sections: list[str] = []
    failed = False
    for name in options.names or scale:
        print(f"bench/{name}.py …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *scale[name]]
        started = time.monotonic()
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        minutes = (time.monotonic() - started) / 60
        failed |= ended.returncode != 0
        outputs[name] = ended.stdout
        picture = draw(name, ended.stdout)
        parts = [f"## {name}", f"{minutes:.1f} minutes"]
        if picture:
            (BENCH / "images").mkdir(exist_ok=True)
            (BENCH / "images" / f"{name}.svg").write_text(picture, encoding="utf-8")
            parts.append(f"![{name}](images/{name}.svg)")
        parts.append(ended.stdout.strip() or "no output")
        sections.append("\n\n".join([*parts, *(["failed"] if ended.returncode else [])]))
    results = "\n\n".join(["# Benchmark results", machine(options.scale), *sections])
    (BENCH / "results.md").write_text(results + "\n", encoding="utf-8")
    if not failed and options.scale != "quick" and not options.names:
        write_figures(outputs)
    return int(failed)


def machine(scale: str) -> str:
    """When, on what and with which scale of inputs the figures were measured."""
    processors = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    lines = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} by `python -m bench.run --scale {scale}`.",
        "",
        f"- Processor: {os.cpu_count()} cores, {processors[1] if processors else platform.machine()}",
        f"- Memory: {memory:.0f} GB",
        f"- System: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"- Packages: {', '.join(f'{package} {version(package)}' for package in PACKAGES)}",
        f"- Average load at the end: {load:.1f}",
    ]
    return "\n".join(lines)


def write_figures(outputs: Mapping[str, str]) -> None:
    """Replaces the README's table of figures."""
    lines = ["| what | kyc_pipeline | beside it | ratio |", "|---|---|---|---|"]
    for figure in FIGURES:
        ours = figure.ours.find(outputs[figure.benchmark])
        theirs = figure.theirs.find(outputs[figure.benchmark])
        lines.append(
            f"| {figure.title} | {ours:,g} {figure.unit} "
            f"| {figure.beside}: {theirs:,g} {figure.unit} | {ours / theirs:.2f} |"
        )
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest[rest.index(END) :]
    README.write_text(before + START + "\n".join(lines) + "\n" + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
