"""What a network fault means, against real sockets with the real transport.

The raw servers count the requests that reach them: a POST must never be sent a second time by itself.
"""

import asyncio
import gzip
import io
import json
import os
import socket
import struct
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kyc_pipeline.deepxl.call_errors import (
    AccessDenied,
    ContractBroken,
    DeepXLError,
    DocumentUnavailable,
    MaybeProcessed,
    NotProcessed,
    Refused,
    Sent,
    UnexpectedRedirect,
    WrongAddress,
)
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest
from kyc_pipeline.deepxl.contract import receive, redact
from kyc_pipeline.deepxl.jsontext import DEEP_MARKER, MAX_DEPTH
from kyc_pipeline.document_store import AcceptedDocument
from kyc_pipeline.errors import KycError
from tests.faults import PatienceOfTests

pytestmark = pytest.mark.anyio

SEED = (Path(__file__).parents[2] / "fixtures" / "seed_response.json").read_bytes()
LARGE = 24 * 1024 * 1024
"""More than the kernel buffers of both sides of a loopback connection hold."""

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]
MakeRequest = Callable[..., VerificationRequest]
Connect = Callable[..., DeepXLClient]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Runs a TCP server on loopback with `handler` for every connection; yields its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_head(reader: Reader) -> tuple[bytes, int]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    return head, int(fields.get(b"content-length", b"0"))


async def read_request(reader: Reader) -> None:
    _, length = await read_head(reader)
    while length:
        length -= len(await reader.read(min(length, 1 << 20)))


def reset(writer: Writer) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def response(body: bytes = SEED, length: int | None = None) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length or len(body)}\r\n\r\n".encode() + body


async def failure(client: DeepXLClient, request: VerificationRequest) -> DeepXLError:
    async with client:
        with pytest.raises(DeepXLError) as caught:
            await client.verify(request)
    error = caught.value
    assert error.requested_at is not None
    assert error.requested_at.utcoffset() is not None
    assert error.latency_ms is not None
    assert error.latency_ms >= 0
    assert "Jane" not in str(error)
    return error


async def test_a_refused_connection(connect: Connect, make_request: MakeRequest) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = await failure(connect(f"http://127.0.0.1:{unused.getsockname()[1]}"), make_request())
    assert (type(error), error.sent) == (NotProcessed, Sent.NOTHING)
    assert error.http_status is None


async def test_tls_to_a_server_without_it(connect: Connect, make_request: MakeRequest) -> None:
    async def plain(reader: Reader, writer: Writer) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(plain) as url:
        error = await failure(connect(url.replace("http:", "https:")), make_request())
    assert type(error) is NotProcessed


async def test_reset_before_the_body_is_sent(connect: Connect, make_request: MakeRequest) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        reset(writer)

    async with serving(handler) as url:
        error = await failure(connect(url), make_request(size=LARGE))
    assert type(error) is NotProcessed


async def test_an_objection_before_the_last_byte(connect: Connect, make_request: MakeRequest) -> None:
    """The upload is under way, then it must not be completed: the server gets no whole request."""
    received: list[int] = []
    ended = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        _, length = await read_head(reader)
        body = await reader.read(-1)
        received[:] = [length, len(body)]
        ended.set()

    async def object_to_it() -> None:
        raise KycError("the run lost its lease")

    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(NotProcessed, match="0001: not sent: the run lost its lease") as caught:
            await client.verify(make_request(size=500_000), object_to_it)
        assert type(caught.value) is NotProcessed
        await ended.wait()
    length, sent = received
    assert 500_000 < sent < length


async def test_an_upload_that_stalls(
    connect: Connect, make_request: MakeRequest, patience: type[PatienceOfTests]
) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        patience.time_is_up()
        await asyncio.Event().wait()

    async with serving(handler) as url:
        error = await failure(connect(url), make_request(size=LARGE))
    assert type(error) is NotProcessed


async def hang_up(reader: Reader, writer: Writer) -> None:
    await read_request(reader)


async def reset_after(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    reset(writer)


async def half_a_head(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")


async def half_a_body(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(response(SEED[:500], len(SEED)))


async def half_a_chunked_body(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"res\r\n')


async def no_http(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def not_gzip(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello")


async def silence(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    PatienceOfTests.time_is_up()
    await asyncio.Event().wait()


async def trickle(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    writer.write(response(b"", 10_000))
    for _ in range(9):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0)
    PatienceOfTests.time_is_up()
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "handler",
    [
        hang_up,
        reset_after,
        half_a_head,
        half_a_body,
        half_a_chunked_body,
        no_http,
        not_gzip,
        silence,
        trickle,
    ],
)
async def test_a_response_lost_after_sending(
    handler: Handler, connect: Connect, make_request: MakeRequest, patience: type[PatienceOfTests]
) -> None:
    requests = 0

    async def counted(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        requests += 1
        await handler(reader, writer)

    async with serving(counted) as url:
        error = await failure(connect(url), make_request())
    assert type(error) is MaybeProcessed
    assert requests == 1
    assert patience.restarts == 2, "when the documents are read and at the body's end: no response does it"


async def test_waiting_for_a_free_connection_sends_nothing(
    connect: Connect, make_request: MakeRequest, patience: type[PatienceOfTests]
) -> None:
    requests = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        await read_request(reader)
        requests += 1
        while patience.restarts < 3:  # noqa: ASYNC110 (until both have read their documents and one is sent)
            await asyncio.sleep(0)
        patience.time_is_up()
        await asyncio.Event().wait()

    async with serving(handler) as url, connect(url, max_connections=1) as client:
        outcomes = await asyncio.gather(
            client.verify(make_request("s-1")), client.verify(make_request("s-2")), return_exceptions=True
        )
    # Which of the two gets the connection is not determined: both read their documents first.
    assert {type(outcome) for outcome in outcomes} == {MaybeProcessed, NotProcessed}
    assert requests == 1


async def test_a_connection_that_the_server_closed_while_idle(
    connect: Connect, make_request: MakeRequest
) -> None:
    requests = 0
    closed = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        await read_request(reader)
        requests += 1
        writer.write(response())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with serving(handler) as url, connect(url) as client:
        await client.verify(make_request())
        await closed.wait()
        for _ in range(20):  # iterations of the loop, for the client to see the end
            await asyncio.sleep(0)
        await client.verify(make_request())
    assert requests == 2


async def test_a_post_is_never_sent_again_on_a_new_connection(
    connect: Connect, make_request: MakeRequest
) -> None:
    """aiohttp repeats idempotent requests on a kept connection that was closed; it must not repeat a POST."""
    requests: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        served = 0
        while True:
            head, length = await read_head(reader)
            await reader.readexactly(length)
            requests.append(head.split()[0])
            served += 1
            if served == 2:
                return
            writer.write(response())

    async with serving(handler) as url, connect(url) as client:
        await client.verify(make_request())
        with pytest.raises(MaybeProcessed):
            await client.verify(make_request())
        assert requests == [b"POST", b"POST"]
        # The same with a GET shows that this server provokes the transport's own repetition.
        await client.check_access()
        await client.check_access()
        assert requests[2:] == [b"GET", b"GET", b"GET"]


EARLY: list[tuple[int, bool, type[DeepXLError]]] = [
    (200, False, MaybeProcessed),
    (200, True, MaybeProcessed),
    *((status, fresh, NotProcessed) for status in (408, 429, 500, 503) for fresh in (False, True)),
    # On a kept connection it may be about an earlier request.
    *((status, False, NotProcessed) for status in (400, 413, 422)),
    *((status, True, Refused) for status in (400, 413, 422)),
    *((status, False, AccessDenied) for status in (401, 402, 403)),
    (404, False, WrongAddress),
    (307, False, UnexpectedRedirect),
]


@pytest.mark.parametrize(("status", "fresh", "meaning"), EARLY)
async def test_a_response_before_the_end_of_the_body(
    status: int, fresh: bool, meaning: type[DeepXLError], connect: Connect, make_request: MakeRequest
) -> None:
    closed = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(response().replace(b"200 OK", b"%d X\r\nRetry-After: 7" % status))
        await closed.wait()

    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(DeepXLError) as caught:
            await client.verify(make_request(size=LARGE), fresh=fresh)
        closed.set()
    error = caught.value
    assert type(error) is meaning
    assert error.sent is (Sent.WHOLE if status == 200 else Sent.PART)
    assert (error.http_status, error.retry_after) == (status, None if status == 200 else 7)
    assert '"verificationId": 457' in (error.body or "")


@pytest.mark.parametrize(("fresh", "meaning"), [(False, MaybeProcessed), (True, Refused)])
async def test_the_body_ends_while_an_early_refusal_is_read(
    fresh: bool, meaning: type[DeepXLError], connect: Connect, make_request: MakeRequest
) -> None:
    """On a kept connection the refusal may be about an earlier request; this one is whole all the same.

    Its own response is still to come, so the connection is not used again.
    """
    connections = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        _, length = await read_head(reader)
        head, end, body = response().replace(b"200 OK", b"422 X").partition(b"\r\n\r\n")
        writer.write(head + end)
        await reader.readexactly(length)
        writer.write(body)
        await read_request(reader)
        writer.write(response())

    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(DeepXLError) as caught:
            await client.verify(make_request(size=LARGE), fresh=fresh)
        with pytest.raises(DeepXLError):
            await client.verify(make_request(size=LARGE))
    assert connections == 2
    assert type(caught.value) is meaning
    assert caught.value.sent is Sent.WHOLE


@pytest.mark.parametrize("when", ["already read", "not read yet"])
async def test_a_surplus_response_on_an_idle_connection_is_nobodys(
    when: str, connect: Connect, make_request: MakeRequest
) -> None:
    writers: list[Writer] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        writers.append(writer)
        while True:
            await read_request(reader)
            writer.write(response(SEED.replace(b"457", b"%d" % len(writers))))

    async with serving(handler) as url, connect(url) as client:
        first = await client.verify(make_request())
        writers[0].write(response(SEED.replace(b"457", b"666")))
        if when == "already read":
            for _ in range(20):  # iterations of the loop
                await asyncio.sleep(0)
        second = await client.verify(make_request())
    assert (first.verification_id, second.verification_id, len(writers)) == (1, 2, 2)


async def test_distrusted_connections_are_not_used_again(connect: Connect, make_request: MakeRequest) -> None:
    connections = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(response())

    async with serving(handler) as url, connect(url) as client:
        await client.verify(make_request())
        client.distrust_connections()
        await client.verify(make_request())
        await client.verify(make_request())
        assert connections == 2
        await client.verify(make_request(), fresh=True)
        await client.verify(make_request(), fresh=True)
    assert connections == 4


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"y" * 9_000,
        b"X: " + b"y" * 100_000,
        b"\r\n".join(b"X-%d: y" % number for number in range(200)),
        b"Set-Cookie: a[b]=1; Path=/; Expires=nonsense\r\nSet-Cookie: =",
        b"Content-Encoding: identity",
        b"Content-Encoding: ",
    ],
    ids=["9 kB", "100 kB", "200", "odd cookies", "identity", "no encoding"],
)
async def test_odd_headers_cost_no_response(
    headers: bytes, connect: Connect, make_request: MakeRequest
) -> None:
    seen: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            head, length = await read_head(reader)
            await reader.readexactly(length)
            seen.append(head)
            writer.write(response().replace(b"\r\n", b"\r\n" + headers + b"\r\n", 1))

    async with serving(handler) as url, connect(url) as client:
        for _ in range(2):
            assert (await client.verify(make_request())).verification_id == 457
    assert not any(b"cookie" in head.lower() for head in seen)


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


def bomb(size: int, layers: int) -> bytes:
    """`size` blanks, compressed again and again."""
    compressor = zlib.compressobj(9, wbits=31)
    body = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()
    for _ in range(layers - 1):
        body = gzip.compress(body)
    return body


def replying(
    body: bytes, *lines: bytes, status: bytes = b"200 OK", asked: list[bytes] | None = None
) -> Handler:
    """A server that replies to every request with `body` and the header `lines`."""

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            head, length = await read_head(reader)
            if asked is not None:
                asked.append(head)
            while length:
                length -= len(await reader.read(min(length, 1 << 20)))
            writer.write(
                b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *lines, b"", body])
            )
            await writer.drain()

    return handler


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(SEED)),
        (b"x-gzip", gzip.compress(SEED)),
        (b"X-GZIP", gzip.compress(SEED)),
        (b"gzip, x-gzip", gzip.compress(gzip.compress(SEED))),
        (b"gzip", gzip.compress(gzip.compress(SEED))),
        (b"gzip", gzip.compress(SEED[:500]) + gzip.compress(SEED[500:])),
        (b"gzip", SEED),
        (b"application/gzip", gzip.compress(SEED)),
        (b"", gzip.compress(SEED)),
        (b"gzip", gzip.compress(SEED + b" " * 1_000_000)),
        (b"deflate", zlib.compress(SEED)),
        (b"deflate", raw_deflate(SEED)),
        (b"deflate, gzip", gzip.compress(zlib.compress(SEED))),
        (b"utf-8", SEED),
        (b"br", SEED),
    ],
)
async def test_a_compressed_response(
    encoding: bytes, body: bytes, connect: Connect, make_request: MakeRequest
) -> None:
    asked: list[bytes] = []
    handler = replying(body, b"Content-Encoding: " + encoding, asked=asked)
    async with serving(handler) as url, connect(url) as client:
        assert (await client.verify(make_request())).verification_id == 457
    assert b"\r\naccept-encoding: gzip, identity\r\n" in asked[0].lower()


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        (b"br", b"\x8b\x03\x80" + SEED, "compressed in a way that was not asked for"),
        (b"zstd", b"\x28\xb5\x2f\xfd" + SEED, "compressed in a way that was not asked for"),
        (b"gzip, br", b"\x8b\x03\x80" + SEED, "compressed in a way that was not asked for"),
        (b"gzip", gzip.compress(SEED)[:-8], "compressed, and cut off"),
        (b"gzip", gzip.compress(SEED)[:200], "compressed, and cut off"),
        (b"gzip", gzip.compress(SEED)[:-8] + bytes(8), "compressed, and damaged"),
        (b"deflate", b"hello", "compressed, and damaged"),
        (b"gzip", bomb(32 << 20, 1), "larger than 4 MiB"),
        (b"gzip, gzip", bomb(64 << 20, 2), "larger than 4 MiB"),
        (b"gzip", bomb(1 << 20, 9), "compressed more than 3 times"),
        (b"gzip", gzip.compress(b"") * 1000, "compressed in too many pieces"),
        (b"identity", SEED + b" " * (4 << 20), "larger than 4 MiB"),
        (b"identity", SEED[:500], "not JSON"),
        (b"identity", b"<html>Jane Doe", "not JSON"),
        (b"identity", b"", "not JSON"),
    ],
)
async def test_a_body_that_cannot_be_read_proves_nothing(
    encoding: bytes, body: bytes, message: str, connect: Connect, make_request: MakeRequest
) -> None:
    async with serving(replying(body, b"Content-Encoding: " + encoding)) as url:
        error = await failure(connect(url), make_request())
    assert type(error) is MaybeProcessed
    assert message in str(error)
    assert error.http_status == 200
    # A compressed text would hide biometric geometry from the one who cuts it.
    assert (error.body or "") == (redact(body) if message == "not JSON" else "")


async def test_a_bomb_takes_no_more_memory_than_the_limit(
    connect: Connect, make_request: MakeRequest
) -> None:
    packed = bomb(512 << 20, 2)
    assert len(packed) < 10_000
    for status in (b"200 OK", b"500 X"):
        async with serving(replying(packed, b"Content-Encoding: gzip, gzip", status=status)) as url:
            tracemalloc.start()
            try:
                error = await failure(connect(url), make_request())
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert type(error) is MaybeProcessed
        assert peak < 16 << 20


@pytest.mark.parametrize("head", [b"202 Accepted", b"206 X"])
async def test_what_is_no_response_breaks_the_contract(
    head: bytes, connect: Connect, make_request: MakeRequest
) -> None:
    async with serving(replying(SEED, status=head)) as url:
        error = await failure(connect(url), make_request())
    assert type(error) is ContractBroken


async def test_a_response_that_is_cut_without_a_length(connect: Connect, make_request: MakeRequest) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + SEED[:500])

    async with serving(handler) as url:
        error = await failure(connect(url), make_request())
    assert type(error) is MaybeProcessed


async def test_an_unreadable_response_ends_its_connection(
    connect: Connect, make_request: MakeRequest
) -> None:
    connections = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(response(b"<html>") if connections == 1 else response())

    async with serving(handler) as url, connect(url) as client:
        with pytest.raises(MaybeProcessed):
            await client.verify(make_request())
        assert (await client.verify(make_request())).verification_id == 457
    assert connections == 2


@pytest.mark.parametrize("depth", [60, 968, 3_000, 50_000])
async def test_a_deep_response_is_received_and_found_alike(
    depth: int, connect: Connect, make_request: MakeRequest
) -> None:
    deep = b"[" * depth + b"]" * depth
    record = json.dumps(json.loads(SEED)["result"]).encode()
    record = record[:-1] + b', "deep": ' + deep + b', "verified": true, "deep": ' + deep + b"}"
    id_tag = b'{"name": "submissionId", "value": "s-1"}'
    record = record.replace(b'"tags": [', b'"tags": [' + id_tag + b", ")
    page = b'{"totalCount": 1, "count": 1, "data": [' + record + b"]}"

    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            head, length = await read_head(reader)
            await reader.readexactly(length)
            writer.write(response(page if head.startswith(b"GET") else b'{"result": ' + record + b"}"))

    async with serving(handler) as url, connect(url) as client:
        received = await client.verify(make_request("s-1"))
        assert await client.check_access()
        (found,) = await client.find("s-1")
    assert found.text.replace(" ", "") == received.text.replace(" ", "")
    assert (DEEP_MARKER in received.text) is (depth > MAX_DEPTH)
    assert receive(received.text.encode()).text == received.text


@pytest.mark.parametrize("missing", ["id_file", "selfie_file"])
async def test_a_document_that_vanished(
    missing: str, connect: Connect, make_request: MakeRequest, tmp_path: Path
) -> None:
    requests = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        requests += 1

    request = make_request()
    (tmp_path / getattr(request, missing).path).unlink()
    async with serving(handler) as url:
        error = await failure(connect(url), request)
    assert (type(error), error.sent) == (DocumentUnavailable, Sent.NOTHING)
    assert requests == 0


@pytest.mark.parametrize("change", [-LARGE // 2, -1, 1, 20, 5000])
async def test_a_document_that_changes_its_size_while_it_is_sent(
    change: int, connect: Connect, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(size=LARGE)
    received = bytearray()
    announced = 0
    ended = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal announced
        _, announced = await read_head(reader)
        with (tmp_path / accepted(request.selfie_file).path).open("r+b") as selfie:
            selfie.truncate(LARGE + change)
        try:
            while chunk := await reader.read(1 << 20):
                received.extend(chunk)
        finally:
            ended.set()

    async with serving(handler) as url:
        error = await failure(connect(url), request)
        await ended.wait()
    assert type(error) is DocumentUnavailable
    assert len(received) < announced
    assert not received.endswith(b"--\r\n")


def same_size(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def web_page(path: Path) -> None:
    path.write_bytes(b"<html>".ljust(path.stat().st_size))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_out(path: Path) -> None:
    outside = path.parents[1] / f"{path.parent.name}-outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


@pytest.mark.parametrize("size", [20_000, LARGE])
@pytest.mark.parametrize("replace", [same_size, web_page, pipe, link_out])
async def test_a_document_that_was_replaced_does_not_leave_at_all(
    size: int, replace: Callable[[Path], None], connect: Connect, make_request: MakeRequest, tmp_path: Path
) -> None:
    connections = 0

    async def handler(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1

    request = make_request(size=size)
    replace(tmp_path / accepted(request.selfie_file).path)
    async with serving(handler) as url:
        error = await failure(connect(url), request)
    assert type(error) is DocumentUnavailable
    assert "selfieFile: the " in str(error)
    assert connections == 0
    assert error.sent is Sent.NOTHING


async def test_a_document_that_changes_while_it_is_sent_has_no_end(
    connect: Connect, make_request: MakeRequest, tmp_path: Path
) -> None:
    request = make_request(size=LARGE)
    received = bytearray()
    ended = asyncio.Event()

    async def handler(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        same_size(tmp_path / accepted(request.selfie_file).path)
        try:
            while chunk := await reader.read(1 << 20):
                received.extend(chunk)
        finally:
            ended.set()

    async with serving(handler) as url:
        error = await failure(connect(url), request)
        await ended.wait()
    assert type(error) is DocumentUnavailable
    assert "selfieFile: the file has changed" in str(error)
    assert received
    assert error.sent is Sent.PART
    assert not received.endswith(b"--\r\n")


@dataclass(frozen=True)
class OnSlowDisk(AcceptedDocument):
    """A document whose storage responds only when `ready` is set."""

    ready: threading.Event = field(default_factory=threading.Event)

    def _opened(self) -> io.BufferedReader:
        self.ready.wait()
        return AcceptedDocument._opened(self)


def accepted(document: object) -> AcceptedDocument:
    """The document, as `make_request` made it."""
    assert isinstance(document, AcceptedDocument)
    return document


def slowly(document: AcceptedDocument) -> OnSlowDisk:
    return OnSlowDisk(*(getattr(document, name) for name in AcceptedDocument.__slots__))


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("size", [20_000, LARGE])
async def test_a_slow_disk_does_not_hold_up_the_others(
    size: int, connect: Connect, make_request: MakeRequest
) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(response())

    slow = make_request("slow", size=size)
    slow.id_file = document = slowly(accepted(slow.id_file))
    async with serving(handler) as url, connect(url) as client:
        waiting = asyncio.create_task(client.verify(slow))
        try:
            await client.verify(make_request("another"))
            assert not waiting.done()
        finally:
            document.ready.set()
        await waiting


async def test_a_disk_that_does_not_respond_in_time(connect: Connect, make_request: MakeRequest) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        raise AssertionError("nothing is sent")

    request = make_request()
    request.id_file = document = slowly(accepted(request.id_file))
    async with serving(handler) as url:
        error = await failure(connect(url, timeout_seconds=0.1), request)
    document.ready.set()
    assert type(error) is DocumentUnavailable
    assert "could not be read in time" in str(error)


async def test_documents_are_streamed(connect: Connect, make_request: MakeRequest) -> None:
    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(response())

    request = make_request(size=LARGE)
    async with serving(handler) as url, connect(url) as client:
        await client.verify(make_request("warm-up"))
        tracemalloc.start()
        try:
            await client.verify(request)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < LARGE / 3
