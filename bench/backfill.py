"""The cost of a backfill by days per run, with days already paid, so that it makes no call.

In one process: wall and CPU seconds of `kyc-pipeline backfill`, publication included.
Through the daemon: a backfill and one run of the same range. Both use the webserver, queue and daemon of a
real instance with this project's `dagster.yaml`. The figures are the seconds from the request to the end,
and those from the creation of the first run to the end of the last; the difference includes Dagster's fixed
30 s interval between looking for backfills.
Finally: the time to load the code location beyond `import dagster`.
Run: `python -m bench.backfill [--days N] [--sizes N ...] [--no-daemon]`. A size is `max_partitions_per_run`.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import dagster as dg  # noqa: E402

from kyc_pipeline.orchestration import partitions  # noqa: E402
from kyc_pipeline.orchestration.jobs import range_tags  # noqa: E402

SIZE = "BENCH_DAYS_PER_RUN"
TOKEN = "bench-token"
FIRST = date(2024, 9, 1)
PATIENCE = 1800.0
FINISHED = {"SUCCESS", "FAILURE", "CANCELED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED"}
IN_PROCESS = (
    "import sys; from kyc_pipeline.cli import main; from kyc_pipeline.orchestration import partitions; "
    "partitions.BACKFILL_DAYS_PER_RUN = int(sys.argv.pop(1)); main()"
)
RUNS = """query ($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results
  { status creationTime startTime endTime tags { key value } } } } }"""


@dg.definitions
def location() -> dg.Definitions:
    """The project's definitions with the benchmark's days per run."""
    if size := os.environ.get(SIZE):
        # The assets read it when their modules are imported by `definitions`.
        partitions.BACKFILL_POLICY = dg.BackfillPolicy.multi_run(int(size))
    from kyc_pipeline.definitions import build_defs

    return build_defs()


def load_seconds(rounds: int = 5) -> tuple[float, float]:
    """Median seconds of `import dagster`, and of loading the code location after it, in fresh processes."""
    code = (
        "import time; a = time.perf_counter(); import dagster; b = time.perf_counter()\n"
        "from kyc_pipeline.definitions import build_defs; build_defs().get_repository_def()\n"
        "print(b - a, time.perf_counter() - b)"
    )
    times = [
        [float(part) for part in subprocess.check_output([sys.executable, "-c", code], text=True).split()]
        for _ in range(rounds)
    ]
    dagster, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return dagster, ours


def in_process(days: Sequence[str], size: int, folder: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """(wall, CPU) seconds of `kyc-pipeline backfill` with `size` days per run."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", IN_PROCESS, str(size), "backfill", "--from", days[0], "--to", days[-1]]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu


def measure(days: Sequence[str], size: int, folder: Path, env: Mapping[str, str]) -> dict[str, float]:
    """Seconds of one run of all days, and of a backfill with `size` days per run."""
    from tests.e2e.servers import CODE_LOCATION, free_port, poll, script, webserver

    workspace = folder / f"workspace-{size}.yaml"
    workspace.write_text(
        f"load_from:\n  - python_file:\n      relative_path: {__file__}\n      attribute: location\n"
        "      location_name: kyc_pipeline\n"
    )
    port = free_port()
    command = [script("dagster"), "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)]
    environment = {**env, SIZE: str(size)}
    with webserver(command, cwd=folder, env=environment, log=folder / "dagster.log", port=port) as server:
        graph = server.ask("{ assetNodes { assetKey { path } isPartitioned } }")["assetNodes"]
        daily = [{"path": node["assetKey"]["path"]} for node in graph if node["isPartitioned"]]

        def ended(tags: Mapping[str, str]) -> list[dict[str, Any]]:
            wanted = [{"key": key, "value": value} for key, value in tags.items()]
            return list(server.ask(RUNS, f={"tags": wanted})["runsOrError"]["results"])

        started = time.time()
        tags = {**range_tags(days[0], days[-1]), "bench": f"one-{size}"}
        response = server.ask(
            "mutation ($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename } }",
            p={
                "selector": {**CODE_LOCATION, "jobName": "__ASSET_JOB", "assetSelection": daily},
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
            },
        )["launchRun"]
        assert response["__typename"] == "LaunchRunSuccess", response
        one = poll(
            lambda: _all_ended(ended({"bench": f"one-{size}"})), "the run", seconds=PATIENCE, log=server.log
        )
        figures = {"one run": one[0]["endTime"] - started, "one run, work": _work(one)}
        started = time.time()
        response = server.ask(
            "mutation ($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) "
            "{ __typename ... on LaunchBackfillSuccess { backfillId } } }",
            p={"partitionNames": list(days), "assetSelection": daily, "fromFailure": False},
        )["launchPartitionBackfill"]
        assert response["__typename"] == "LaunchBackfillSuccess", response
        backfill = response["backfillId"]
        query = (
            "query ($id: String!) { partitionBackfillOrError(backfillId: $id) "
            "{ ... on PartitionBackfill { status endTimestamp } } }"
        )

        def finished() -> dict[str, Any] | None:
            found = server.ask(query, id=backfill)["partitionBackfillOrError"]
            return found if found["status"] in FINISHED else None

        end = poll(finished, "the backfill", seconds=PATIENCE, log=server.log)
        assert end["status"] == "COMPLETED_SUCCESS", end
        runs = ended({"dagster/backfill": backfill})
        figures |= {
            "backfill": end["endTimestamp"] - started,
            "backfill, work": _work(runs),
            "runs": len(runs),
        }
        return figures


def _all_ended(runs: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    if not runs or any(run["status"] not in FINISHED for run in runs):
        return None
    assert all(run["status"] == "SUCCESS" for run in runs), runs
    return runs


def _work(runs: Sequence[Mapping[str, float]]) -> float:
    """Seconds from the creation of the first run to the end of the last one."""
    return max(run["endTime"] for run in runs) - min(run["creationTime"] for run in runs)


def main() -> None:
    from kyc_pipeline.deepxl.simulator import running_simulator
    from tests.conftest import Landing
    from tests.e2e.servers import clean_environment

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--submissions", type=int, default=20, help="per day")
    parser.add_argument("--no-daemon", action="store_true", help="measure in one process only")
    options = parser.parse_args()
    days = [(FIRST + timedelta(days=n)).isoformat() for n in range(options.days)]
    with (
        tempfile.TemporaryDirectory(prefix="kyc-bench-") as name,
        running_simulator(token=TOKEN, seed=1) as simulator,
    ):
        folder = Path(name)
        landing = Landing(folder / "landing")
        for n, day in enumerate(days):
            rows = [
                landing.submission(f"{day}-{m:04}", 2 * (n * options.submissions + m))
                for m in range(options.submissions)
            ]
            landing.manifest(day, rows)
        home = folder / "dagster_home"
        home.mkdir()
        shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
        env = clean_environment(
            folder,
            DAGSTER_HOME=str(home),
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_API_TOKEN=TOKEN,
            DEEPXL_REQUESTS_PER_SECOND="0",
            KYC_LANDING=str(folder / "landing"),
            KYC_LAKE=str(folder / "lake"),
            KYC_LEDGER_URL=f"sqlite:///{folder / 'ledger.sqlite'}",
            KYC_WAREHOUSE=str(folder / "warehouse" / "kyc.duckdb"),
            KYC_REPORT=str(folder / "report" / "index.html"),
        )
        in_process(days, options.days, folder, env)  # pays
        calls = simulator.received.total()
        local = {size: in_process(days, size, folder, env) for size in options.sizes}
        sizes = [] if options.no_daemon else options.sizes
        found = {size: measure(days, size, folder, env) for size in sizes}
        assert simulator.received.total() == calls, "a paid day was paid again"
    print(f"{options.days} paid days of {options.submissions} submissions, no call made; seconds\n")
    print("| days per run | runs | in one process | CPU |\n|---|---|---|---|")
    for size, (wall, cpu) in local.items():
        print(f"| {size} | {-(-options.days // size)} | {wall:.1f} | {cpu:.1f} |")
    print()
    if found:
        print("| days per run | runs | one run of all | backfill | ratio | its runs alone | ratio |")
        print("|---|---|---|---|---|---|---|")
    for size, seconds in found.items():
        one, backfill = seconds["one run"], seconds["backfill"]
        work = seconds["backfill, work"]
        print(
            f"| {size} | {seconds['runs']:.0f} | {one:.1f} | {backfill:.1f} | {backfill / one:.1f} "
            f"| {work:.1f} | {work / seconds['one run, work']:.1f} |"
        )
    dagster, ours = load_seconds()
    print(f"\nLoading the code location: {ours:.2f} s beyond the {dagster:.2f} s of `import dagster`")


if __name__ == "__main__":
    main()
