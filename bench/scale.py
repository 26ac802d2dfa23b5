"""What grows how: calls, ledger, ingest and builds by processes and by history, and the model from them.

`python -m bench.scale [--quick] [--only PART ...]` prints Markdown. Parts:

- `calls`: each process verifies a day of its own, all share one ledger; the server has no latency.
- `ledger`: each process commits groups of 64 claims and results; then the bytes of a verification.
- `ingest`: each process ingests a day of its own; one day over a growing history; a submission's documents.
- `day`: time and memory of what one process does of a day: ingest, plan, reconciliation, flatten, checks.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bench import analyze, flatten, verify  # noqa: E402
from bench.peak_memory import peak_bytes  # noqa: E402
from bench.verify import Cost  # noqa: E402
from kyc_pipeline.analyze.build import build  # noqa: E402
from kyc_pipeline.document_store import DocumentFolder  # noqa: E402
from kyc_pipeline.flatten.partition import FlattenSummary, flatten_partition  # noqa: E402
from kyc_pipeline.ingest.documents import Documents  # noqa: E402
from kyc_pipeline.ingest.manifests import ingest_partition  # noqa: E402
from kyc_pipeline.ingest.owners import Owners  # noqa: E402
from kyc_pipeline.lake.storage import PART_FILE, Lake  # noqa: E402
from kyc_pipeline.lake.tables import (  # noqa: E402
    SUBMISSIONS,
    TABLES,
    VERIFICATION_RESPONSES,
    ResponsesState,
)
from kyc_pipeline.ledger.audit import AuditTrail, Author  # noqa: E402
from kyc_pipeline.ledger.claims import commit  # noqa: E402
from kyc_pipeline.ledger.database import Ledger  # noqa: E402
from kyc_pipeline.ledger.leases import hold  # noqa: E402
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, Lease, State  # noqa: E402
from kyc_pipeline.ledger.offload import offload  # noqa: E402
from kyc_pipeline.ledger.upkeep import vacuum  # noqa: E402
from kyc_pipeline.orchestration.checks.flatten import check_partition  # noqa: E402
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer  # noqa: E402
from kyc_pipeline.verify.engine import verify_partition  # noqa: E402
from kyc_pipeline.verify.partition import scan, write_responses  # noqa: E402
from kyc_pipeline.verify.reconcile import reconcile  # noqa: E402
from kyc_pipeline.verify.signals import StopFlag  # noqa: E402
from tests.unit.postgres import PostgresServer, running_postgres  # noqa: E402
from tests.unit.seaweed import running_seaweed, seaweed_program  # noqa: E402
from tests.unit.verify.world import is_complete  # noqa: E402

PROCESSES = (1, 2, 4)
GROUP = 64
"""Claims and results of one commit: as many as the engine waits for."""
FIRST = date(2024, 9, 1)
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
    barrier, used, peaks = (
        context.Barrier(processes + 1),
        context.Array("d", processes),
        context.Array("q", processes),
    )
    started = [
        context.Process(target=_measured, args=(barrier, used, peaks, number, work, *arguments), daemon=True)
        for number in range(processes)
    ]
    for process in started:
        process.start()
    barrier.wait(timeout=300)
    begin = time.perf_counter()
    for process in started:
        process.join()
    assert not any(process.exitcode for process in started)
    return Cost(time.perf_counter() - begin, sum(used[:]), max(peaks[:]))


def _measured(
    barrier: Barrier, used: Any, peaks: Any, number: int, work: Callable[..., None], *arguments: object
) -> None:
    """Runs in one of the processes."""
    begin = 0.0

    def ready() -> None:
        nonlocal begin
        barrier.wait()
        begin = time.process_time()

    work(ready, number, *arguments)
    used[number] = time.process_time() - begin
    peaks[number] = peak_bytes()


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
    assert is_complete(summary)


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
            pay(ledger, held.lease, claims, [text_of(claim.submission_id) for claim in claims])


def pay(ledger: Ledger, lease: Lease, claims: Sequence[Claim], responses: Sequence[str]) -> None:
    """Commits the claims, then their responses."""
    commit(ledger, lease, claims, [])
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
            response=text,
        )
        for claim, text in zip(claims, responses, strict=True)
    ]
    commit(ledger, lease, [], results)


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

    From the second day on, since PostgreSQL's files grow by a whole day before the first one leaves. Between
    a day and its offload is a checkpoint, after which the first change of a page writes all of it to the log.
    """
    rows: list[list[str]] = []
    with server.admin() as admin:
        for is_offloaded, compression in ((False, "off"), (True, "off"), (True, "on")):
            admin.execute(f"ALTER SYSTEM SET wal_compression = {compression}")
            admin.execute("SELECT pg_reload_conf()")
            with ledger_urls(folder, server, f"bytes{len(rows)}") as urls:
                if compression == "on":
                    del urls["SQLite"]
                for name, url in urls.items():
                    lake = Lake(str(folder / f"lake-{name}-{len(rows)}"))
                    sizes = []
                    with Ledger(url) as ledger:
                        for number in range(days):
                            fill_a_day(lambda: None, number, url, count)
                            admin.execute("CHECKPOINT")
                            if is_offloaded:
                                offload_day(lake, ledger, day(number), count)
                            sizes.append(size_of(ledger))
                    (first, log), (last, log_at_end) = sizes[1], sizes[-1]
                    divisor = count * (days - 2)
                    wal = f"{(log_at_end - log) / divisor:,.0f}" if ledger.file is None else "–"
                    what = "only in the lake" if is_offloaded else "in the ledger"
                    rows.append([name, what, compression, f"{(last - first) / divisor:,.0f}", wal])
    columns = ["ledger", "responses of finished days", "wal_compression", "bytes"]
    table("Bytes of a verification, with a response of 1.3 KB", [*columns, "bytes of PostgreSQL's log"], rows)


def offload_day(lake: Lake, ledger: Ledger, date: str, count: int) -> None:
    """Moves the responses of a day of `count` verifications to the lake."""
    make_responses(lake, date, count)
    trail = AuditTrail(ledger, lake, Author("bench"), lambda: Pseudonymizer("k" * 32))
    with hold(ledger, date, "bench") as held:
        assert offload(lake, ledger, held.lease, trail).moved == count
    vacuum(ledger)


def make_responses(lake: Lake, date: str, count: int) -> None:
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
    measure_history(folder, server, history)
    documents = measure_documents(folder / "documents", max(rows // 100, 20))
    return {"ingest, rows": cpu["CSV"], "ingest, documents": documents}


def measure_history(folder: Path, server: PostgresServer, history: Sequence[int]) -> None:
    """Ingest of a day over a history: the first one, which reads its ids, and the next one."""
    landing = folder / "landing-last"
    make_day(landing, day(0), 1000)
    rows = []
    for days in history:
        lake, url = Lake(str(folder / f"history{days}")), server.create_database(f"history{days}")
        make_history(lake, folder, days)
        costs = [together(1, ingest_a_day, str(landing), lake.root, url) for _ in range(2)]
        first, next_one = (f"{cost.cpu_seconds:.2f}" for cost in costs)
        rows.append([days, next_one, first])
    columns = ["days of history", "CPU s", "CPU s of the first ingest, which reads the history's ids"]
    table("Ingest of a day of 1,000 rows over a history of 200 rows a day", columns, rows)


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


def make_history(lake: Lake, folder: Path, days: int) -> None:
    """Writes `days` days of 200 accepted submissions, each with an id and documents of its own."""
    made, small = Lake(str(folder / "one-day")), folder / "landing-small"
    if not made.exists(SUBMISSIONS, day(-1)):
        make_day(small, day(-1), 200)
        ingest_partition(landing=small, lake=made, date=day(-1))
    rows, metadata = made.read(SUBMISSIONS, day(-1)), made.metadata(SUBMISSIONS, day(-1))
    for number in range(days):
        date = day(-1 - number)
        new = {"submission_id": [f"{date}-{row:08}" for row in range(rows.num_rows)]}
        new["id_sha256"] = [hashlib.sha256(key.encode()).hexdigest() for key in new["submission_id"]]
        for name, values in new.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))
        lake.write(SUBMISSIONS, date, rows, metadata)


# --- day --------------------------------------------------------------------------------------------------


def plan_day(lake: Lake, ledger: Ledger, date: str) -> None:
    """Compares the submissions with the ledger."""
    scan(lake, ledger, date, "hold")


def write_day(lake: Lake, ledger: Ledger, date: str) -> None:
    """Writes the table of responses from the ledger."""
    write_responses(lake, ledger, date, ResponsesState.COMPLETE, "hold")


def reconcile_day(lake: Lake, ledger: Ledger, date: str) -> None:
    """Compares submissions, responses and ledger."""
    assert not reconcile(lake, ledger, date).differences


def flatten_day(lake: Lake, _: Ledger, date: str) -> None:
    """Writes the five curated tables."""
    flatten_partition(lake, date, flatten.PSEUDONYMS, flatten.CLEAR)


def check_day(lake: Lake, _: Ledger, date: str) -> None:
    """Checks the curated tables."""
    check_partition(lake, date, FlattenSummary())


STEPS: Mapping[str, Callable[[Lake, Ledger, str], None]] = {
    "plan": plan_day,
    "table of responses": write_day,
    "reconciliation": reconcile_day,
    "flatten": flatten_day,
    "checks of the tables": check_day,
}


def do_step(ready: Ready, number: int, root: str, ledger_url: str, step: str) -> None:
    """One step of a day."""
    with Ledger(ledger_url) as ledger:
        with ledger.read():
            pass
        ready()
        STEPS[step](Lake(root), ledger, day(number))


def pay_day(lake: Lake, ledger: Ledger, date: str) -> None:
    """Brings the day's responses into the ledger, as its calls would."""
    columns = ["submission_id", "content_sha256", "response"]
    with hold(ledger, date, "bench") as held:
        for batch in lake.batches(VERIFICATION_RESPONSES, date, columns, 1000):
            keys, contents, texts = (list(map(str, batch[name].to_pylist())) for name in columns)
            pay(ledger, held.lease, [*map(Claim, keys, contents)], texts)


def measure_day(folder: Path, server: PostgresServer, sizes: Sequence[int]) -> Costs:
    """What one process does for each submission of a day beside the calls, and the documents in ingest.

    Responses with something to report take the exact path of flatten: one in a hundred, or all of them.
    """
    found: dict[str, list[Cost]] = {}
    for size in sizes:
        lake, odd = (Lake(str(folder / f"{name}{size}")) for name in ("lake", "odd"))
        landing, url = folder / f"landing{size}", server.create_database(f"day{size}")
        make_day(landing, day(0), size)
        new = server.create_database(f"new{size}")
        ingested = together(1, ingest_a_day, str(landing), str(folder / f"ingested{size}"), new)
        found.setdefault("ingest, rows", []).append(ingested)
        flatten.make_day(lake.root, 0, day(0), 0, size, 0.01)
        flatten.make_day(odd.root, 0, day(0), 0, size, 1.0)
        with Ledger(url) as ledger:
            pay_day(lake, ledger, day(0))
        for step in STEPS:
            found.setdefault(step, []).append(together(1, do_step, lake.root, url, step))
        found.setdefault("flatten, exact path", []).append(together(1, do_step, odd.root, url, "flatten"))
    cpu = {name: costs[-1].cpu_seconds / sizes[-1] * 1000 for name, costs in found.items()}
    rows = [
        [
            name,
            f"{cpu[name]:.3f}",
            f"{cpu[name] * 10e6 / 1000 / 60:,.0f}",
            *(f"{cost.peak_bytes / 2**20:,.0f}" for cost in costs),
        ]
        for name, costs in found.items()
    ]
    columns = ["step", "CPU ms each", "minutes for 10 million", *(f"peak MB, {size:,}" for size in sizes)]
    table("What one process does of a day", columns, rows)
    del cpu["flatten, exact path"]  # of a bad day
    return cpu


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
        for name, cpu in costs.items()
    ]
    columns = ["part", "CPU ms each", *(f"{n} million a day" for n in MILLIONS)]
    table(f"The model: cores, if a day's work is to be done in {HOURS} hours", columns, rows)


def main() -> None:
    """Runs the parts."""
    parts = ("calls", "ledger", "ingest", "day", "build")
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
            history = (1, 20) if is_quick else (1, 100, 1000)
            costs |= measure_ingest(folder / "ingest", server, 2000 if is_quick else 20_000, history)
        if "day" in options.only:
            (folder / "day").mkdir()
            costs |= measure_day(folder / "day", server, (1000, 2000) if is_quick else (20_000, 80_000))
        if "build" in options.only:
            (folder / "build").mkdir()
            days = (5, 20) if is_quick else (100, 400, 1095)
            measure_build(folder / "build", days, 20 if is_quick else 100)
    if costs:
        model(costs)
    print(f"\nAverage load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
