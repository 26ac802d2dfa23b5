"""Speed and memory of the engine, compared with a bare loop without a ledger.

`python -m bench.verify [--rounds 3] [--quick] [--submissions 100000]` prints Markdown; it takes about twelve
minutes on an idle machine. One server process serves all variants of a setting. The variants run in turn,
`--rounds` times, every other round in reverse order. They send the same documents, read from disk for each
call. Ratios compare variants of the same round, and the median is reported, since the machine's load varies.
CPU time is that of the client process with all its threads, ledger and lake included. A second table shows
the engine with httpx's own body, or with its client, relative to the engine (ADR 0009). A third one has the
engine in several processes (ADR 0014), with small documents; the server needs a core of its own.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import aiohttp
import httpx
import pyarrow as pa
from aiohttp import web
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from bench.peak_memory import peak_bytes
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest
from kyc_pipeline.deepxl.multipart import CONTENT_TYPE, Confirm, DocumentPart, MultipartBody, no_objection
from kyc_pipeline.document_store import AcceptedDocument, DocumentFolder
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from tests.unit.verify.world import is_complete


class Cost(NamedTuple):
    """Wall and CPU time of some calls, and the peak of memory where it was measured."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0


Way = Callable[[str, Path, int, int], Cost]
"""Takes the server's URL, the folder of documents, the number of calls, and the number in flight."""

DATE = "2024-09-01"
ID_BYTES, SELFIE_BYTES = 250_000, 110_000
CHECKS = ",".join(
    f'{{"type":"{name}","status":"PASS","confidence":0.97,"details":"{"as the vendor says " * 8}"}}'
    for name in ("FACE_MATCH", "LIVENESS", "ID_QUALITY", "DOCUMENT", "TAMPERING")
)
RESPONSE = (
    f'{{"result":{{"verificationId":1,"verified":true,"modelResults":{{"technicalChecks":[{CHECKS}]}},"tags":'
)
TAGS = re.compile(rb'name="tags"[^{]*({[^}]*})')


def serve(latency: float, parent: Connection) -> None:
    """A server that reads the whole request, waits, and gives the same response with the request's tags."""

    async def verify(request: web.Request) -> web.Response:
        found, head = None, b""
        async for chunk in request.content.iter_any():
            if found is None:  # a client may write the field in several pieces
                head += chunk
                found = TAGS.search(head)
        if latency:
            await asyncio.sleep(latency)
        sent = json.loads(found[1]) if found else {}
        tags = json.dumps([{"name": name, "value": value} for name, value in sent.items()])
        return web.Response(text=f"{RESPONSE}{tags}}}}}", content_type="application/json")

    async def history(_request: web.Request) -> web.Response:
        return web.json_response({"totalCount": 0, "count": 0, "data": []})

    async def run() -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/verification", verify)
        app.router.add_get("/v1/verification", history)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        parent.send(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def measured() -> Iterator[Callable[[], Cost]]:
    """Measures a block; the yielded function returns the cost once the block has ended."""

    def now() -> Cost:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return Cost(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages))

    before = now()
    after = before
    yield lambda: Cost(after.seconds - before.seconds, after.cpu_seconds - before.cpu_seconds)
    after = now()


async def in_flight(calls: int, concurrency: int, call: Callable[[], Awaitable[object]]) -> None:
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            await call()

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def bare_aiohttp(url: str, documents: Path, calls: int, concurrency: int) -> Cost:
    """A plain loop: open the files, post, read the response."""

    async def run() -> Cost:
        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def call() -> None:
                with (
                    (documents / "id.jpg").open("rb") as id_file,
                    (documents / "selfie.jpg").open("rb") as selfie,
                ):
                    form = aiohttp.FormData()
                    form.add_field("idFile", id_file, filename="id.jpg", content_type="image/jpeg")
                    form.add_field("selfieFile", selfie, filename="selfie.jpg", content_type="image/jpeg")
                    form.add_field("tags", "{}")
                    async with session.post(f"{url}/v1/verification", data=form) as response:
                        await response.read()

            with measured() as cost:
                await in_flight(calls, concurrency, call)
            return cost()

    return asyncio.run(run())


def aiohttp_with_our_body(url: str, documents: Path, calls: int, concurrency: int) -> Cost:
    """The same loop, with the body built as the engine's client does, not by aiohttp's FormData."""
    boundary = "0" * 32
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    image = "\r\nContent-Type: image/jpeg\r\n\r\n"
    heads = (
        f'{part}"tags"\r\n\r\n{{}}\r\n{part}"idFile"; filename="id.jpg"{image}'.encode(),
        f'\r\n{part}"selfieFile"; filename="selfie.jpg"{image}'.encode(),
    )
    end = f"\r\n--{boundary}--\r\n".encode()
    length = sum(map(len, heads)) + len(end) + ID_BYTES + SELFIE_BYTES
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(length),
    }

    async def body() -> AsyncIterator[bytes]:
        for head, name in zip(heads, ("id.jpg", "selfie.jpg"), strict=True):
            chunk = head
            with FileIO(documents / name) as file:
                while data := file.read(64 * 1024):
                    if len(chunk) >= 64 * 1024:
                        yield chunk
                        chunk = b""
                    chunk += data
            yield chunk
        yield end

    async def run() -> Cost:
        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def call() -> None:
                async with session.post(f"{url}/v1/verification", data=body(), headers=headers) as response:
                    await response.read()

            with measured() as cost:
                await in_flight(calls, concurrency, call)
            return cost()

    return asyncio.run(run())


def bare_client(url: str, documents: Path, calls: int, concurrency: int) -> Cost:
    """The engine's client, without engine and ledger."""

    async def run() -> Cost:
        async with DeepXLClient(url, SecretStr("t"), max_connections=concurrency) as client:
            folder = DocumentFolder(documents)
            id_file, selfie_file = (
                AcceptedDocument(folder, path.name, path.stat().st_size, digest(path), "image/jpeg")
                for path in (documents / "id.jpg", documents / "selfie.jpg")
            )
            request = VerificationRequest("s", id_file, selfie_file, {})
            with measured() as cost:
                await in_flight(calls, concurrency, lambda: client.verify(request))
            return cost()

    return asyncio.run(run())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings_for(url: str, root: Path, documents: Path, concurrency: int) -> Settings:
    return Settings(
        _env_file=None,
        deepxl_base_url=url,
        deepxl_api_token=SecretStr("t"),
        deepxl_requests_per_second=0,
        deepxl_max_concurrency=concurrency,
        kyc_landing=documents.parent,
        kyc_lake=str(root / "lake"),
        kyc_ledger_url=f"sqlite:///{root / 'ledger.sqlite'}",
    )


def submit(lake: Lake, submissions: int, documents: Path, date: str = DATE) -> None:
    """Writes the partition of accepted submissions in slices."""
    id_size, selfie_size = ((documents / name).stat().st_size for name in ("id.jpg", "selfie.jpg"))
    with lake.writer(SUBMISSIONS, date) as writer:
        for start in range(0, submissions, 10_000):
            rows = range(start, min(start + 10_000, submissions))
            n = len(rows)
            columns: dict[str, Any] = {
                "submission_id": [f"{date}-{row:08}" for row in rows],
                "id_file": ["id.jpg"] * n,
                "selfie_file": ["selfie.jpg"] * n,
                "id_sha256": [digest(documents / "id.jpg")] * n,
                "selfie_sha256": [digest(documents / "selfie.jpg")] * n,
                "id_size": [id_size] * n,
                "selfie_size": [selfie_size] * n,
                "id_content_type": ["image/jpeg"] * n,
                "selfie_content_type": ["image/jpeg"] * n,
                "tags": pa.array([[("companyId", "COMP-001")]] * n, pa.map_(pa.string(), pa.string())),
                "content_sha256": [f"{row:064}" for row in rows],
                "manifest": ["m.csv"] * n,
                "manifest_row": list(rows),
            }
            absent = {f.name: pa.nulls(n, f.type) for f in SUBMISSIONS.schema if f.name not in columns}
            writer.write(pa.table(columns | absent))


def engine(url: str, documents: Path, calls: int, concurrency: int, shards: int = 1) -> Cost:
    """The engine, from reading the lake to writing it, with an existing ledger."""
    with tempfile.TemporaryDirectory(dir=documents.parent) as folder:
        settings = settings_for(url, Path(folder), documents, concurrency)
        settings = settings.model_copy(update={"kyc_shards": shards})
        lake = Lake(settings.kyc_lake)
        submit(lake, calls, documents)
        with Ledger(settings.kyc_ledger_url) as ledger:
            release_lease(ledger, acquire_lease(ledger, "2000-01-01", "open"))
            with measured() as cost:
                summary = verify_partition(
                    settings=settings, lake=lake, ledger=ledger, date=DATE, run_id="bench", stop=StopFlag()
                )
        assert summary.error is None
        assert is_complete(summary)
        assert summary.calls == calls
        return cost()


class HttpxBody(MultipartBody):
    """The body that httpx builds from `files=`, with the same comparison of documents in a thread."""

    _request: httpx.Request

    async def prepare(self) -> None:
        self._request = await asyncio.to_thread(self._build)
        assert int(self._request.headers["Content-Length"]) == self.length

    def _build(self) -> httpx.Request:
        contents = [bytearray(document.file.size) for _, document in self._parts]
        for content, (_, document) in zip(contents, self._parts, strict=True):
            document.file.read(memoryview(content))
        return httpx.Request(
            "POST",
            "http://127.0.0.1",
            data={"tags": self.tags},
            files={
                document.field: (f"{document.stem}.jpg", bytes(content), document.file.content_type)
                for content, (_, document) in zip(contents, self._parts, strict=True)
            },
            headers={"Content-Type": CONTENT_TYPE},
        )

    def __init__(
        self, tags: Mapping[str, str], documents: tuple[DocumentPart, ...], confirm: Confirm = no_objection
    ) -> None:
        super().__init__(tags, documents, confirm)
        self.tags = json.dumps(tags)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._request.stream, httpx.AsyncByteStream)
        last = b""
        async for chunk in self._request.stream:  # one chunk behind, to recognise the last one
            if last:
                self.begun = True
                yield last
            last = chunk
        await self._confirm()
        self.begun = self.handed_over = True
        self.on_end()
        yield last


class ThroughClient(httpx.AsyncBaseTransport):
    """The aiohttp transport behind `httpx.AsyncClient`."""

    def __init__(self, **options: Any) -> None:
        self._client = httpx.AsyncClient(transport=AiohttpTransport(**options), trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, stream=True)

    async def aclose(self) -> None:
        await self._client.aclose()


def engine_with_httpx_body(url: str, documents: Path, calls: int, concurrency: int) -> Cost:
    """Without `deepxl/multipart.py`."""
    with patch("kyc_pipeline.deepxl.client.MultipartBody", HttpxBody):
        return engine(url, documents, calls, concurrency)


def engine_with_httpx_client(url: str, documents: Path, calls: int, concurrency: int) -> Cost:
    """With `httpx.AsyncClient` between `deepxl/transport.py` and the transport."""
    with patch("kyc_pipeline.deepxl.transport.AiohttpTransport", ThroughClient):
        return engine(url, documents, calls, concurrency)


TRICKS = (engine, engine_with_httpx_body, engine_with_httpx_client)


def tricks(documents: Path, rounds: int, calls: int) -> None:
    """CPU time of a whole paid call with httpx's body or client, interleaved, at no latency."""
    url, server = in_process(serve, 0.0)
    engine(str(url), documents, 50, 64)  # imports of the first call must not count
    costs: dict[Way, list[Cost]] = {way: [] for way in TRICKS}
    for number in range(rounds):
        for way in TRICKS if number % 2 == 0 else reversed(TRICKS):
            costs[way].append(way(str(url), documents, calls, 64))
    server.terminate()
    server.join()
    print("\n| variant | CPU ms per call | relative to the engine | lowest and highest round |")
    print("|---|---|---|---|")
    for way in TRICKS:
        cpu = statistics.median(cost.cpu_seconds / calls * 1000 for cost in costs[way])
        ratios = [
            mine.cpu_seconds / base.cpu_seconds for mine, base in zip(costs[way], costs[engine], strict=True)
        ]
        print(
            f"| {way.__name__.replace('_', ' ')} | {cpu:.2f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f}-{max(ratios):.2f} |",
            flush=True,
        )


def small_documents(folder: Path) -> Path:
    documents = folder / "small" / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    for name in ("id.jpg", "selfie.jpg"):
        (documents / name).write_bytes(b"\xff\xd8\xff" + bytes(500))
    return documents


def in_shards(documents: Path, rounds: int, calls: int) -> None:
    """The engine in 1, 2 and 4 processes, interleaved, at no latency, with 1,024 calls in flight."""
    url, server = in_process(serve, 0.0)
    costs: dict[int, list[Cost]] = {count: [] for count in (1, 2, 4)}
    for number in range(rounds):
        for count in costs if number % 2 == 0 else reversed(costs):
            costs[count].append(engine(str(url), documents, calls, 1024, count))
    server.terminate()
    server.join()
    print("\n| processes | calls/s | CPU ms per call | relative to one | lowest and highest round |")
    print("|---|---|---|---|---|")
    for count, mine in costs.items():
        rate = statistics.median(calls / cost.seconds for cost in mine)
        cpu = statistics.median(cost.cpu_seconds / calls * 1000 for cost in mine)
        ratios = [one.seconds / cost.seconds for one, cost in zip(costs[1], mine, strict=True)]
        print(
            f"| {count} | {rate:.0f} | {cpu:.2f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f}-{max(ratios):.2f} |",
            flush=True,
        )


def peak_memory(url: str, root: Path, documents: Path, submissions: int, parent: Connection) -> None:
    """Runs a whole partition twice; sends the peak megabytes and the seconds of both runs."""
    settings = settings_for(url, root, documents, 64)
    lake = Lake(settings.kyc_lake)
    with Ledger(settings.kyc_ledger_url) as ledger:
        seconds = []
        for run_id in ("first", "again"):
            started = time.perf_counter()
            summary = verify_partition(
                settings=settings, lake=lake, ledger=ledger, date=DATE, run_id=run_id, stop=StopFlag()
            )
            seconds.append(time.perf_counter() - started)
            assert summary.error is None
            assert is_complete(summary)
    parent.send((peak_bytes() / 2**20, *seconds))


def in_process(target: Callable[..., None], *arguments: object) -> tuple[object, BaseProcess]:
    """Starts `target` in a new process; returns its first message and the process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, send), daemon=True)
    process.start()
    send.close()
    return receive.recv(), process


@dataclass(frozen=True)
class Setting:
    """A comparison: the first of `ways` is the base, the engine comes last."""

    latency: float
    concurrency: int
    calls: int
    ways: tuple[Way, ...]
    target: float
    """Share of the base's rate that the engine must reach."""


SETTINGS = (
    Setting(0.3, 64, 1920, (bare_aiohttp, aiohttp_with_our_body, bare_client, engine), 0.95),
    Setting(0.3, 256, 6400, (bare_aiohttp, aiohttp_with_our_body, bare_client, engine), 0.95),
    Setting(0.0, 64, 10_000, (bare_client, engine), 0.7),
)
MEMORY_TARGET_MB = 50
PAID_TARGET_SECONDS = 3


def compare(documents: Path, rounds: int, quick: bool) -> None:
    print("| latency | in flight | variant | calls/s | CPU ms per call | relative to the first | target |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        url, server = in_process(serve, setting.latency)
        calls = setting.calls // 4 if quick else setting.calls
        costs: dict[Way, list[Cost]] = {way: [] for way in setting.ways}
        for number in range(rounds):
            for way in setting.ways if number % 2 == 0 else reversed(setting.ways):
                costs[way].append(way(str(url), documents, calls, setting.concurrency))
        server.terminate()
        server.join()
        for way in setting.ways:
            # Ratios within a round, since the machine's load varies between rounds.
            ratio = statistics.median(
                base.seconds / mine.seconds
                for mine, base in zip(costs[way], costs[setting.ways[0]], strict=True)
            )
            target = verdict(f"{setting.target:.0%}", ratio >= setting.target) if way is engine else ""
            rate = statistics.median(calls / cost.seconds for cost in costs[way])
            cpu = statistics.median(cost.cpu_seconds / calls * 1000 for cost in costs[way])
            name = way.__name__.replace("_", " ")
            print(
                f"| {setting.latency * 1000:.0f} ms | {setting.concurrency} | {name} "
                f"| {rate:.0f} | {cpu:.2f} | {ratio:.0%} "
                f"| {target} |",
                flush=True,
            )


def verdict(target: str, met: bool) -> str:
    return f"{target}: {'met' if met else 'missed'}"


def memory(folder: Path, most: int) -> None:
    print("\n| submissions | peak MB | first run s | run when already paid s |")
    print("|---|---|---|---|")
    documents = small_documents(folder)
    url, server = in_process(serve, 0.0)
    peaks = []
    again = 0.0
    for submissions in (1_000, most):
        root = folder / f"memory-{submissions}"
        root.mkdir()
        submit(Lake(str(root / "lake")), submissions, documents)
        figures, process = in_process(peak_memory, str(url), root, documents, submissions)
        process.join()
        assert isinstance(figures, tuple)
        peak, first, again = figures
        peaks.append(peak)
        print(f"| {submissions:,} | {peak:.0f} | {first:.1f} | {again:.2f} |", flush=True)
    server.terminate()
    server.join()
    growth = peaks[1] - peaks[0]
    memory_verdict = verdict(f"{MEMORY_TARGET_MB} MB", growth <= MEMORY_TARGET_MB)
    paid_verdict = verdict(f"{PAID_TARGET_SECONDS} s", again < PAID_TARGET_SECONDS)
    print(f"\nPeak memory grows by {growth:.0f} MB (target {memory_verdict}).")
    print(f"An already paid partition takes {again:.2f} s (target {paid_verdict}).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the calls")
    parser.add_argument("--submissions", type=int, default=100_000, help="of the memory test")
    parser.add_argument("--tricks", action="store_true", help="only the engine with httpx's body or client")
    parser.add_argument("--shards", action="store_true", help="only the engine in several processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kyc-bench-") as folder:
        documents = Path(folder) / "landing" / "documents"
        documents.mkdir(parents=True)
        (documents / "id.jpg").write_bytes(b"\xff\xd8\xff" + bytes(ID_BYTES - 3))
        (documents / "selfie.jpg").write_bytes(b"\xff\xd8\xff" + bytes(SELFIE_BYTES - 3))
        is_whole = not (options.tricks or options.shards)
        if is_whole:
            compare(documents, options.rounds, options.quick)
        if not options.shards:
            tricks(documents, options.rounds, 500 if options.quick else 2000)
        if not options.tricks:
            in_shards(small_documents(Path(folder)), options.rounds, 20_000)
        if is_whole:
            memory(Path(folder), options.submissions)


if __name__ == "__main__":
    main()
