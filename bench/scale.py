"""What grows how: calls, ledger, ingest and builds by processes and by history, and the model from them.

`python -m bench.scale [--quick] [--only PART ...]` prints Markdown. Parts:

- `calls`: each process verifies a day of its own, all share one ledger; the server has no latency.
- `ledger`: each process commits groups of 64 claims and results; then the bytes of a verification.
- `ingest`: each process ingests a day of its own; one day beside a growing history; a submission's documents.
- `build`: a warehouse over a growing history, in a folder and in S3 (SeaweedFS), with the requests.
- `model`: the cores that 1, 10 and 100 million submissions a day keep busy.

PostgreSQL, SeaweedFS and the simulated API run on the same machine and share its cores, so with more cores
the rates grow further. CPU times are those of our processes alone, and hardly depend on the machine's load.
"""

import argparse
import csv
import hashlib
import importlib
import logging
import multiprocessing
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bench import analyze, verify  # noqa: E402
from bench.verify import Cost  # noqa: E402
from kyc_pipeline.analyze.build import build  # noqa: E402
from kyc_pipeline.document_store import DocumentFolder  # noqa: E402
from kyc_pipeline.ingest.documents import Documents  # noqa: E402
from kyc_pipeline.ingest.manifests import ingest_partition  # noqa: E402
from kyc_pipeline.ingest.owners import Owners  # noqa: E402
from kyc_pipeline.lake.storage import PART_FILE, Lake  # noqa: E402
from kyc_pipeline.lake.tables import SUBMISSIONS, TABLES, VERIFICATION_RESPONSES  # noqa: E402
from kyc_pipeline.ledger.audit import AuditTrail, Author  # noqa: E402
from kyc_pipeline.ledger.claims import commit  # noqa: E402
from kyc_pipeline.ledger.database import Ledger  # noqa: E402
from kyc_pipeline.ledger.leases import hold  # noqa: E402
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State  # noqa: E402
from kyc_pipeline.ledger.offload import offload  # noqa: E402
from kyc_pipeline.ledger.upkeep import vacuum  # noqa: E402
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer  # noqa: E402
from kyc_pipeline.verify.engine import verify_partition  # noqa: E402
from kyc_pipeline.verify.signals import StopFlag  # noqa: E402
from tests.unit.postgres import PostgresServer, running_postgres  # noqa: E402
from tests.unit.seaweed import running_seaweed, seaweed_program  # noqa: E402

PROCESSES = (1, 2, 4)
GROUP = 64
"""Claims and results of one commit: as many as the engine waits for."""
FIRST = date(2024, 9, 1)
FLATTEN_MS = 0.044
"""CPU milliseconds of a response: `bench/flatten.py`."""
MILLIONS = (1, 10, 100)
HOURS = 6
"""The time in which a day should be done."""
Ready = Callable[[], None]
Costs = dict[str, float]
"""By part: CPU milliseconds of one submission."""


def day(number: int) -> str:
    """The day with this number, as an ISO date."""
    return (FIRST + timedelta(days=number)).isoformat()


def text_of(submission_id: str) -> str:
    """A response of 1.3 KB."""
    tags = f'{{"name":"submissionId","value":"{submission_id}"}},{{"name":"companyId","value":"COMP-001"}}'
    return f"{verify.RESPONSE}[{tags}]}}}}"


def together(processes: int, work: Callable[..., None], *arguments: object) -> Cost:
    """What it takes as many processes to do `work` at the same time, each with its own number.

    `work` gets a function to call when it is ready; the time before that does not count.
    """
    context = multiprocessing.get_context("spawn")
    barrier, used = context.Barrier(processes + 1), context.Array("d", processes)
    started = [
        context.Process(target=_measured, args=(barrier, used, number, work, *arguments), daemon=True)
        for number in range(processes)
    ]
    for process in started:
        process.start()
    barrier.wait(timeout=300)
    begin = time.perf_counter()
    for process in started:
        process.join()
    assert not any(process.exitcode for process in started)
    return Cost(time.perf_counter() - begin, sum(used[:]))


def _measured(
    barrier: Barrier, used: Any, number: int, work: Callable[..., None], *arguments: object
) -> None:
    """Runs in one of the processes."""
    begin = 0.0

    def ready() -> None:
        nonlocal begin
        barrier.wait()
        begin = time.process_time()

    work(ready, number, *arguments)
    used[number] = time.process_time() - begin


@contextmanager
def ledger_urls(folder: Path, server: PostgresServer, name: str) -> Iterator[dict[str, str]]:
    """The URL of a new ledger on each database."""
    yield {
        "SQLite": f"sqlite:///{folder / f'{name}.sqlite'}",
        "PostgreSQL": server.create_database(name),
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:,.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
    sys.stdout.flush()


def by_processes(title: str, unit: str, each: int, figures: dict[str, list[Cost]]) -> dict[str, float]:
    """Prints how much processes do that have `each` units to do; returns the CPU milliseconds of one unit.

    That is of one process alone: unlike the rates, it hardly depends on what else the machine does.
    """
    rows, cpu = [], {}
    for name, costs in figures.items():
        rates = [each * processes / cost.seconds for processes, cost in zip(PROCESSES, costs, strict=True)]
        cpu[name] = costs[0].cpu_seconds / each * 1000
        more = [f"{rate / rates[0]:.2f} ×" for rate in rates[1:]]
        rows.append([name, f"{cpu[name]:.3f}", *(f"{rate:,.0f}" for rate in rates), *more])
    columns = ["", "CPU ms each", *(f"{unit}, {n} process{'es' * (n > 1)}" for n in PROCESSES)]
    table(title, [*columns, "2 to 1", "4 to 1"], rows)
    return cpu


# --- calls ------------------------------------------------------------------------------------------------


def verify_a_day(ready: Ready, number: int, url: str, root: str, ledger_url: str, calls: int) -> None:
    """Verifies one day of its own."""
    folder = Path(root)
    settings = verify.settings_for(url, folder, folder / "landing" / "documents", 64)
    lake = Lake(settings.kyc_lake)
    verify.submit(lake, calls, folder / "landing" / "documents", day(number))
    with Ledger(ledger_url) as ledger:
        with ledger.read():
            pass
        ready()
        summary = verify_partition(
            settings=settings, lake=lake, ledger=ledger, date=day(number), run_id="bench", stop=StopFlag()
        )
    assert summary.error is None
    assert summary.held == summary.left == 0


def measure_calls(folder: Path, server: PostgresServer, calls: int) -> Costs:
    """Calls of the engine, with ledger and lake."""
    documents = folder / "landing" / "documents"
    documents.mkdir(parents=True)
    for name, size in (("id.jpg", 25_000), ("selfie.jpg", 11_000)):  # small: the server shares the cores
        (documents / name).write_bytes(b"\xff\xd8\xff\xe0" + os.urandom(size))
    url, process = verify.in_process(verify.serve, 0.0)
    costs: dict[str, list[Cost]] = {"SQLite": [], "PostgreSQL": []}
    for processes in PROCESSES:
        with ledger_urls(folder, server, f"calls{processes}") as urls:
            for name, ledger_url in urls.items():
                root = folder / f"{name}{processes}"
                (root / "landing").mkdir(parents=True)
                (root / "landing" / "documents").symlink_to(documents)
                costs[name].append(together(processes, verify_a_day, url, str(root), ledger_url, calls))
                shutil.rmtree(root)
    process.terminate()
    title = f"Calls without latency, {calls:,} for each process"
    return {"calls": by_processes(title, "calls/s", calls, costs)["PostgreSQL"]}


# --- ledger -----------------------------------------------------------------------------------------------


def fill_a_day(ready: Ready, number: int, ledger_url: str, count: int) -> None:
    """Claims and completes the submissions of one day, in groups."""
    with Ledger(ledger_url) as ledger, hold(ledger, day(number), secrets.token_hex(18)) as held:
        ready()
        for start in range(0, count, GROUP):
            claims = [
                Claim(f"{day(number)}-{each:08}", hashlib.sha256(str(each).encode()).hexdigest())
                for each in range(start, min(start + GROUP, count))
            ]
            commit(ledger, held.lease, claims, [])
            now = datetime.now(UTC)
            results = [
                ClaimResult(
                    claim,
                    State.COMPLETED,
                    AttemptResult.RESPONDED,
                    billable=True,
                    http_status=200,
                    requested_at=now,
                    responded_at=now,
                    latency_ms=312.123456,
                    response=text_of(claim.submission_id),
                )
                for claim in claims
            ]
            commit(ledger, held.lease, [], results)


def measure_ledger(folder: Path, server: PostgresServer, count: int) -> None:
    """Verifications, with two commits for each group."""
    costs: dict[str, list[Cost]] = {"SQLite": [], "PostgreSQL": []}
    for processes in PROCESSES:
        with ledger_urls(folder, server, f"ledger{processes}") as urls:
            for name, ledger_url in urls.items():
                with Ledger(ledger_url) as ledger, ledger.read():
                    pass
                costs[name].append(together(processes, fill_a_day, ledger_url, count))
    title = f"The ledger alone, in commits of {GROUP}, {count:,} verifications for each process"
    by_processes(title, "verifications/s", count, costs)
    measure_bytes(folder, server, days=6, count=max(count // 4, 500))


def measure_bytes(folder: Path, server: PostgresServer, days: int, count: int) -> None:
    """Bytes of a verification in the ledger, with all responses, and with those of the last day only.

    From the second day on, since PostgreSQL's files grow by a whole day before the first one leaves.
    """
    rows = []
    for is_offloaded in (False, True):
        with ledger_urls(folder, server, f"bytes{int(is_offloaded)}") as urls:
            for name, url in urls.items():
                lake = Lake(str(folder / f"bytes-{name}-{is_offloaded}"))
                with Ledger(url) as ledger:
                    trail = AuditTrail(ledger, lake, Author("bench"), lambda: Pseudonymizer("k" * 32))
                    sizes = []
                    for number in range(days):
                        fill_a_day(lambda: None, number, url, count)
                        if is_offloaded:
                            write_responses(lake, day(number), count)
                            with hold(ledger, day(number), "bench") as held:
                                assert offload(lake, ledger, held.lease, trail).moved == count
                            vacuum(ledger)
                        sizes.append(size_of(ledger))
                (first, log), (last, log_at_end) = sizes[1], sizes[-1]
                divisor = count * (days - 2)
                wal = f"{(log_at_end - log) / divisor:,.0f}" if ledger.file is None else "–"
                what = "only in the lake" if is_offloaded else "in the ledger"
                rows.append([name, what, f"{(last - first) / divisor:,.0f}", wal])
    table(
        "Bytes of a verification, with a response of 1.3 KB",
        ["ledger", "responses of finished days", "bytes", "bytes of PostgreSQL's log"],
        sorted(rows, reverse=True),
    )


def write_responses(lake: Lake, date: str, count: int) -> None:
    """The day's partition of responses."""
    keys = [f"{date}-{each:08}" for each in range(count)]
    row = {"outcome": "completed", "attempts": 1, "billable_calls": 1, "content_sha256": "c"}
    rows = [row | {"submission_id": key, "response": text_of(key)} for key in keys]
    lake.write(VERIFICATION_RESPONSES, date, rows)


def size_of(ledger: Ledger) -> tuple[int, int]:
    """Bytes of the ledger's tables and indexes, and of PostgreSQL's write-ahead log so far."""
    if ledger.file is not None:
        return ledger.file.stat().st_size, 0
    query = (
        "SELECT (SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class AS c"
        " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace),"
        " (pg_current_wal_lsn() - '0/0')::bigint"
    )
    with ledger.read() as connection:
        size, log = connection.exec_driver_sql(query).one()
    return int(size), int(log)


# --- ingest -----------------------------------------------------------------------------------------------


def make_day(landing: Path, date: str, rows: int) -> None:
    """A CSV manifest of `rows` good rows, which share a few documents."""
    documents = landing / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        if not (documents / f"{number}.jpg").exists():
            Image.new("RGB", (64, 48), (number, 100, 100)).save(documents / f"{number}.jpg")
    folder = landing / "manifests" / date
    folder.mkdir(parents=True)
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["submission_id", "id_file", "selfie_file", "tags"])
        for number in range(rows):
            tags = f'{{"customerId":"{number}","companyId":"{number % 5}"}}'
            writer.writerow([f"{date}-{number:08}", f"{number % 10}.jpg", f"{(number + 1) % 10}.jpg", tags])


def ingest_a_day(ready: Ready, number: int, landing: str, root: str, ledger_url: str) -> None:
    """Ingests one day."""
    with Ledger(ledger_url) as ledger:
        with ledger.read():
            pass
        ready()
        lake, date = Lake(root), day(number)
        with hold(ledger, date, secrets.token_hex(8)) as held:
            ingest_partition(landing=Path(landing), lake=lake, date=date, owners=Owners(lake, ledger, held))


def measure_ingest(folder: Path, server: PostgresServer, rows: int, history: Sequence[int]) -> Costs:
    """Rows of a manifest."""
    costs: list[Cost] = []
    for processes in PROCESSES:
        landing = folder / f"landing{processes}"
        for number in range(processes):
            make_day(landing, day(number), rows)
        root, url = str(folder / f"ingest{processes}"), server.create_database(f"ingest{processes}")
        costs.append(together(processes, ingest_a_day, str(landing), root, url))
    title = f"Ingest, {rows:,} rows for each process, which share ten documents"
    cpu = by_processes(title, "rows/s", rows, {"CSV": costs})
    landing = folder / "landing-last"
    make_day(landing, day(0), 1000)
    found = []
    for days in history:
        lake = Lake(str(folder / f"history{days}"))
        url = server.create_database(f"history{days}")
        copy_history(Path(lake.root), url, days)
        ingest_a_day(lambda: None, 0, str(landing), lake.root, url)  # the first one reads the history's ids
        started = time.process_time()
        ingest_a_day(lambda: None, 0, str(landing), lake.root, url)
        found.append([days, f"{time.process_time() - started:.2f}"])
    table("Ingest of a day of 1,000 rows beside a history", ["days of history", "CPU s"], found)
    documents = measure_documents(folder / "documents", max(rows // 100, 20))
    return {"ingest, rows": cpu["CSV"], "ingest, documents": documents}


def measure_documents(folder: Path, submissions: int) -> float:
    """CPU milliseconds of the two documents of a submission, which ingest reads and hashes once."""
    folder.mkdir()
    for number in range(submissions):
        for name, width, height in (("id", 1000, 640), ("selfie", 640, 480)):
            image = Image.effect_noise((width, height), 60 + number % 30)
            image.convert("RGB").save(folder / f"{name}-{number}.jpg", quality=60)
    names = {path.name for path in folder.iterdir()}
    size = sum(path.stat().st_size for path in folder.iterdir()) / submissions
    with verify.measured() as cost, Documents(DocumentFolder(folder)) as documents:
        found = documents.examine(names)
    assert not any(each.problem for each in found.values())
    cpu = cost().cpu_seconds / submissions * 1000
    table(
        f"The two documents of a submission, {size / 1000:,.0f} KB",
        ["CPU ms", "a second"],
        [[f"{cpu:.2f}", f"{submissions / cost().seconds:,.0f}"]],
    )
    return cpu


def copy_history(root: Path, ledger_url: str, days: int) -> None:
    """Writes `days` days of accepted submissions, each of 1,000 rows."""
    made = root.parent / "one-day"
    if not made.exists():
        small = root.parent / "landing-small"
        make_day(small, day(-1), 1000)
        ingest_a_day(lambda: None, -1, str(small), str(made), ledger_url)
    source = Path(Lake(str(made)).path(SUBMISSIONS, day(-1)))
    for number in range(days):
        target = Path(Lake(str(root)).path(SUBMISSIONS, day(-2 - number)))
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)


# --- build ------------------------------------------------------------------------------------------------


@contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Counts the requests to S3 by method."""
    session: Any = importlib.import_module("aiobotocore.httpsession").AIOHTTPSession
    found: Counter[str] = Counter()
    send = session.send

    async def counting(self: Any, request: Any) -> Any:
        found[request.method] += 1
        return await send(self, request)

    session.send = counting
    try:
        yield found
    finally:
        session.send = send


def measure_build(folder: Path, history: Sequence[int], per_day: int) -> None:
    """Seconds and requests of a build by days of history."""
    import s3fs

    made = folder / "made"
    analyze.make_lake(made, per_day * analyze.DAYS)
    rows = []
    with running_seaweed(seaweed_program(), folder) as url:
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        s3 = s3fs.S3FileSystem(use_listings_cache=False)
        s3.mkdir("bucket")
        for days in history:
            root = folder / f"lake{days}"
            for each in TABLES:
                for number in range(days):
                    date = (analyze.START + timedelta(days=number)).isoformat()
                    place = Path(each.zone, each.name, f"date={date}")
                    (root / place).mkdir(parents=True)
                    os.link(made / place / PART_FILE, root / place / PART_FILE)
            s3.put(str(root), f"bucket/{days}", recursive=True)
            local = cost_of_build(Lake(str(root)), folder)
            with counted_requests() as requests:
                remote = cost_of_build(Lake(f"s3://bucket/{days}"), folder)
            seconds = (
                f"{local.seconds:.1f}",
                f"{remote.seconds:.1f}",
                f"{remote.seconds / local.seconds:.1f} ×",
            )
            cpu = f"{local.cpu_seconds:.1f}", f"{remote.cpu_seconds:.1f}"
            rows.append([days, *seconds, *cpu, requests["GET"], requests["HEAD"]])
    columns = ["days of history", "folder, s", "S3, s", "S3 to folder", "folder, CPU s", "S3, CPU s"]
    columns += ["GET", "HEAD"]
    table(f"A build, {per_day:,} verifications a day", columns, rows)


def cost_of_build(lake: Lake, folder: Path) -> Cost:
    """A complete build."""
    with tempfile.TemporaryDirectory(dir=folder) as draft, verify.measured() as cost:
        build(lake, Path(draft) / "kyc.duckdb", run_id="bench", choices=analyze.CHOICES)
    return cost()


# --- model ------------------------------------------------------------------------------------------------


def model(costs: Costs) -> None:
    """The cores that each part keeps busy, from the CPU time of one submission."""
    rows = [
        [name, f"{cpu:.3f}", *(f"{cpu / 1000 * n * 1e6 / HOURS / 3600:,.1f}" for n in MILLIONS)]
        for name, cpu in (*costs.items(), ("flatten", FLATTEN_MS))
    ]
    columns = ["part", "CPU ms each", *(f"{n} million a day" for n in MILLIONS)]
    table(f"The model: cores, if a day's work is to be done in {HOURS} hours", columns, rows)


def main() -> None:
    """Runs the parts."""
    parts = ("calls", "ledger", "ingest", "build")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small inputs: a smoke test")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    is_quick = options.quick
    costs: Costs = {}
    print(f"{os.cpu_count()} cores; average load at the start: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary, running_postgres() as server:
        folder = Path(temporary)
        if "calls" in options.only:
            (folder / "calls").mkdir()
            costs |= measure_calls(folder / "calls", server, 500 if is_quick else 2000)
        if "ledger" in options.only:
            (folder / "ledger").mkdir()
            measure_ledger(folder / "ledger", server, 1280 if is_quick else 6400)
        if "ingest" in options.only:
            (folder / "ingest").mkdir()
            history = (1, 20) if is_quick else (1, 100)
            costs |= measure_ingest(folder / "ingest", server, 2000 if is_quick else 20_000, history)
        if "build" in options.only:
            (folder / "build").mkdir()
            days = (5, 20) if is_quick else (100, 400, 1095)
            measure_build(folder / "build", days, 20 if is_quick else 100)
    if costs:
        model(costs)
    print(f"\nAverage load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
