"""The simulator's HTTP server (aiohttp)."""

import asyncio
import hmac
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypedDict, Unpack

import msgspec
from aiohttp import web

from kyc_pipeline.deepxl.contract import Envelope, File, ModelResults, Result, Tag
from kyc_pipeline.deepxl.simulator.faults import Fault
from kyc_pipeline.deepxl.simulator.form import MAX_PART_HEAD_BYTES, BadForm, FormReader, Part
from kyc_pipeline.deepxl.simulator.history import History
from kyc_pipeline.deepxl.simulator.scores import invent_verdict, latency_seconds
from kyc_pipeline.media_types import media_type
from kyc_pipeline.vocabulary import COMPANY_TAG, SUBMISSION_TAG

MAX_BODY_BYTES: Final = 50 * 1024 * 1024
_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/webp"})
_ACCEPTED: Final = {
    "idFile": _IMAGES | {"application/pdf"},
    "selfieFile": _IMAGES | {"video/mp4", "video/quicktime", "video/webm"},
}
_SORT_KEYS: Final = {"timestamp": "timestamp", "verificationId": "verification_id"}


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Options(TypedDict, total=False):
    """The arguments of :class:`Simulator`, for :func:`running_simulator`."""

    token: str | None
    seed: int
    latency_ms: float
    store: Path | None
    odd_share: float
    faults: Mapping[str, Sequence[Fault]] | None
    lookup: Fault | None
    lookup_lag_looks: int
    lookup_lag_seconds: float
    ignore_tag_filter: bool
    keepalive_seconds: float


class _Refusal(Exception):
    """A non-2xx response: its `status` and JSON `body`."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Simulator:
    """A DeepXL-compatible server.

    `token=None` accepts every credential. `latency_ms` is the median latency. `store` keeps the records for
    the next start. `odd_share` of the checks lack a confidence or need a review. `keepalive_seconds` limits
    idle connections. For tests: `faults` by submission id; `lookup` is a fault of the history, which shows
    new records only after `lookup_lag_looks` look-ups and `lookup_lag_seconds`, and may ignore `tagFilter`.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        seed: int = 0,
        latency_ms: float = 0,
        store: Path | None = None,
        odd_share: float = 0.01,
        faults: Mapping[str, Sequence[Fault]] | None = None,
        lookup: Fault | None = None,
        lookup_lag_looks: int = 0,
        lookup_lag_seconds: float = 0,
        ignore_tag_filter: bool = False,
        keepalive_seconds: float = 75,
    ) -> None:
        self.url = ""
        self.received: Counter[str] = Counter()
        """POSTs received by submission id, including those with faults."""
        self.lookup = lookup
        self._token = token
        self._seed = seed
        self._latency_ms = latency_ms
        self._store = store
        self._odd_share = odd_share
        self._faults = {key: list(sequence) for key, sequence in (faults or {}).items()}
        self._lag_looks = lookup_lag_looks
        self._lag_seconds = lookup_lag_seconds
        self._ignore_tag_filter = ignore_tag_filter
        self._keepalive_seconds = keepalive_seconds
        self._records = History()
        self._looks: Counter[int] = Counter()
        self._recorded_at: dict[int, float] = {}
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def records(self) -> list[Result]:
        """All records in order of arrival."""
        return self._records.all()

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> str:
        """Listens on `host` (port 0: any free one); returns the base URL. OSError if it cannot."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/verification", self._handled(self._post))
        app.router.add_get("/v1/verification", self._handled(self._list))
        app.router.add_get("/v1/verification/{verification_id}", self._handled(self._get))
        app.router.add_get("/v1/files/{name}", self._handled(self._file))
        self._records = History(self._store)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1, keepalive_timeout=self._keepalive_seconds
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError:
            await self.stop()
            raise
        address = self._runner.addresses[0]
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{address[1]}"
        return self.url

    async def stop(self) -> None:
        """Closes the connections and the store."""
        self._stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()
        self._records.close()

    def _handled(self, handler: _Handler) -> _Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            try:
                self._authenticate(request)
                return await handler(request)
            except _Refusal as refusal:
                return _json(refusal.body, refusal.status)

        return respond

    def _authenticate(self, request: web.Request) -> None:
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not given or (
            self._token is not None and not hmac.compare_digest(given.encode(), self._token.encode())
        ):
            raise _Refusal(401, _error(401, "Unauthorized", "Invalid or missing credential"))

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise _Refusal(413, _error(413, "Payload Too Large", "The request is larger than 50 MB"))
        try:
            reader = FormReader(request.headers.get("Content-Type", ""))
            progress = reader.read(request.content.iter_any())
            submission_id = await self._read_until_tags(reader, progress)
            fault = self._next_fault(submission_id)
            if fault is not None and fault.early:
                return await fault.play(request, b"", self._stopping)
            async for _ in progress:
                pass
        except BadForm as problem:
            raise _Refusal(400, _error(400, "Bad Request", str(problem))) from None
        documents = _documents(reader)
        tags = _tags(reader)
        delay = latency_seconds(self._seed, submission_id, self._latency_ms)
        if delay:
            await asyncio.sleep(delay)
        record = self._verify(submission_id, documents, tags)
        body = msgspec.json.encode(Envelope(record))
        if fault is None or fault.record:
            self._records.add(record)
            self._recorded_at[record.verification_id] = asyncio.get_running_loop().time()
        if fault is not None:
            return await fault.play(request, body, self._stopping)
        return web.Response(body=body, content_type="application/json")

    async def _read_until_tags(self, reader: FormReader, progress: AsyncIterator[None]) -> str:
        """The submission's id as soon as its tags have arrived; empty without one."""
        async for _ in progress:
            if "tags" in reader.parts:
                break
        submission_id = _tags(reader).get(SUBMISSION_TAG, "")
        self.received[submission_id] += 1
        return submission_id

    def _next_fault(self, submission_id: str) -> Fault | None:
        waiting = self._faults.get(submission_id)
        return waiting.pop(0) if waiting else None

    def _verify(
        self, submission_id: str, documents: Mapping[str, "_Document"], tags: Mapping[str, str]
    ) -> Result:
        verdict = invent_verdict(self._seed, submission_id, tags.get(COMPANY_TAG, ""), self._odd_share)
        identifier = self._records.new_id(self._seed, submission_id)
        timestamp = int(verdict.at.timestamp())
        identity, selfie = documents["idFile"], documents["selfieFile"]
        return Result(
            verification_id=identifier,
            id_file_type=identity.type,
            id_file_name=identity.name,
            id_file_size=identity.size,
            selfie_file_type=selfie.type,
            selfie_file_name=selfie.name,
            selfie_file_size=selfie.size,
            model="verification",
            verified=verdict.verified,
            model_results=ModelResults(verdict.checks),
            timestamp=timestamp,
            timestamp_iso=verdict.iso_text,
            tags=[Tag(name, value) for name, value in tags.items()],
            files=[
                File(
                    category=category,
                    file_name=document.name,
                    file_size=document.size,
                    content_type=document.content_type,
                    timestamp=timestamp,
                    timestamp_iso=verdict.iso_text,
                    url=f"{self.url}/v1/files/v_{category}_{identifier}_{document.name}",
                )
                for category, document in (("id", identity), ("face", selfie))
            ],
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if self.lookup is not None:
            return await self.lookup.play(request, b"{}", self._stopping)
        limit = _integer(request, "limit", 25, 1, 100)
        offset = _integer(request, "offset", 0, 0, None)
        sort_key = _choice(request, "sortBy", "timestamp", _SORT_KEYS)
        descending = _choice(request, "direction", "desc", {"asc": "", "desc": "yes"}) == "yes"
        name, equals, value = request.query.get("tagFilter", "").partition("=")
        filtered = bool(equals) and not self._ignore_tag_filter
        records = self._records.tagged(name, value) if filtered else self._records.all()
        records = [record for record in records if self._visible(record, bool(equals))]
        records.sort(key=lambda record: int(getattr(record, sort_key)), reverse=descending)
        page = records[offset : offset + limit]
        return _json({"totalCount": len(records), "count": len(page), "data": page})

    def _visible(self, record: Result, asked_by_tag: bool) -> bool:
        """Whether the history shows the record yet. Counts look-ups by tag."""
        identifier = record.verification_id
        looks = self._looks[identifier]
        if asked_by_tag:
            self._looks[identifier] += 1
        age = asyncio.get_running_loop().time() - self._recorded_at.get(identifier, float("-inf"))
        return looks >= self._lag_looks and age >= self._lag_seconds

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if self.lookup is not None:
            return await self.lookup.play(request, b"{}", self._stopping)
        text = request.match_info["verification_id"]
        record = self._records.get(int(text)) if text.isascii() and text.isdigit() else None
        if record is None:
            raise _Refusal(404, _error(404, "Not Found", "Verification not found"))
        return _json(Envelope(record))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = self._records.file(request.match_info["name"])
        if file is None:
            raise _Refusal(404, _error(404, "Not Found", "File not found"))
        return web.Response(body=b"", content_type=file.content_type)


class _Document(msgspec.Struct):
    """An uploaded document; its type is detected by content."""

    name: str
    size: int
    content_type: str

    @property
    def type(self) -> str:
        return self.content_type.rpartition("/")[2]


def _documents(reader: FormReader) -> dict[str, _Document]:
    missing = [name for name in _ACCEPTED if name not in reader.parts or not reader.parts[name].file_name]
    if missing:
        detail = [{"loc": ["body", name], "msg": "field required", "type": "missing"} for name in missing]
        raise _Refusal(422, {"detail": detail})
    return {name: _document(name, reader.parts[name]) for name in _ACCEPTED}


def _document(name: str, part: Part) -> _Document:
    content_type = media_type(bytes(part.head))
    if content_type not in _ACCEPTED[name]:
        raise _Refusal(415, {"detail": f"{name}: unsupported file type"})
    return _Document(part.file_name or name, part.size, content_type)


def _tags(reader: FormReader) -> dict[str, str]:
    part = reader.parts.get("tags")
    if part is None or part.size == 0:
        return {}
    try:
        tags = json.loads(part.head) if part.size <= MAX_PART_HEAD_BYTES else None
    except ValueError:
        tags = None
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise _Refusal(400, _error(400, "Bad Request", "tags must be a JSON object of strings"))
    return tags


def _integer(request: web.Request, name: str, default: int, low: int, high: int | None) -> int:
    text = request.query.get(name, str(default))
    if text.isascii() and text.isdigit() and int(text) >= low and (high is None or int(text) <= high):
        return int(text)
    raise _bad_query(name)


def _choice(request: web.Request, name: str, default: str, choices: Mapping[str, str]) -> str:
    chosen = request.query.get(name, default)
    if chosen not in choices:
        raise _bad_query(name)
    return choices[chosen]


def _bad_query(name: str) -> _Refusal:
    return _Refusal(422, {"detail": [{"loc": ["query", name], "msg": "not valid", "type": "value_error"}]})


def _error(status: int, error: str, message: str) -> dict[str, object]:
    return {"statusCode": status, "error": error, "message": message}


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


@contextmanager
def running_simulator(port: int = 0, **options: Unpack[Options]) -> Iterator[Simulator]:
    """Runs a simulator in its own thread and event loop until the block ends; its `url` is set."""
    server = Simulator(**options)
    started = threading.Event()
    ended: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        await server.start(port)
        started.set()
        await stop.wait()
        await server.stop()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        except BaseException as error:  # raised in the caller's thread
            ended.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="deepxl-simulator", daemon=True)
    thread.start()
    started.wait()
    try:
        if ended:
            raise ended[0]
        yield server
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
