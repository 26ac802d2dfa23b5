"""Runs every benchmark and writes `bench/results.md`: `python bench/run.py [--quick] [NAME ...]`.

Each benchmark compares variants side by side in one run. Look at the ratios: absolute figures hold for one
machine only.
"""

import argparse
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

BENCH = Path(__file__).parent
QUICK = {
    "verify": ["--quick"],
    "flatten": ["--rows", "50000", "--days", "5", "--rounds", "1"],
    "ingest": ["--rows", "100000", "--rounds", "1"],
    "analyze": ["--millions", "0.1", "1"],
    "backfill": ["--days", "6", "--sizes", "3", "--submissions", "2"],
}


def main() -> int:
    """Runs the selected benchmarks; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(QUICK)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small inputs and one round, as a smoke test")
    arguments = parser.parse_args()
    scale = ", small inputs (--quick)" if arguments.quick else ""
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}{scale}"
    sections = [f"# Benchmark results\n\nMeasured on {datetime.now(UTC):%Y-%m-%d} with {where}."]
    failed = False
    for name in arguments.names or QUICK:
        print(f"bench/{name}.py …", file=sys.stderr, flush=True)
        command = [sys.executable, str(BENCH / f"{name}.py"), *(QUICK[name] if arguments.quick else [])]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        failed |= ended.returncode != 0
        outcome = ended.stdout.strip() or "no output"
        sections.append(f"## {name}\n\n{outcome}" + ("\n\nfailed" if ended.returncode else ""))
    (BENCH / "results.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
