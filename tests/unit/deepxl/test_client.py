"""The client against real servers: requests, responses, statuses and look-ups."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from kyc_pipeline import __version__
from kyc_pipeline.deepxl.call_errors import (
    AccessDenied,
    ContractBroken,
    DeepXLError,
    LookupFailed,
    MaybeProcessed,
    NotProcessed,
    Refused,
    TurnedAway,
    UnexpectedRedirect,
    WrongAddress,
)
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest, _Call
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import (
    EMPTY_OBJECT_200,
    HTML_200,
    HTML_502,
    Fault,
    HalfBody,
    Resets,
    Responds,
    redirects,
)
from kyc_pipeline.document_store import AcceptedDocument
from tests.faults import NoResponseInTime, PatienceOfTests

pytestmark = pytest.mark.anyio

SEED = (Path(__file__).parents[2] / "fixtures" / "seed_response.json").read_bytes()
MakeRequest = Callable[..., VerificationRequest]
Connect = Callable[..., DeepXLClient]
View = Callable[[web.Request], web.StreamResponse]


@asynccontextmanager
async def serving(view: View) -> AsyncIterator[tuple[str, list[tuple[web.Request, bytes]]]]:
    """Runs a server that responds with `view`; yields its URL and the requests with their bodies."""
    seen: list[tuple[web.Request, bytes]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((request, await request.read()))
        return view(request)

    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


def seed_view(request: web.Request) -> web.StreamResponse:
    return web.Response(body=SEED, content_type="application/json")


async def test_what_a_verification_sends(
    connect: Connect, make_request: MakeRequest, token: str, tmp_path: Path
) -> None:
    request = make_request()
    async with serving(seed_view) as (url, seen), connect(url) as client:
        before = datetime.now(UTC)
        response = await client.verify(request)
    ((sent, body),) = seen
    assert (sent.method, sent.path_qs) == ("POST", "/v1/verification")
    assert sent.headers["Authorization"] == f"Bearer {token}"
    assert "x-api-key" not in sent.headers
    assert sent.headers["User-Agent"] == f"kyc-pipeline/{__version__}"
    assert sent.headers["Accept"] == "application/json"
    assert sent.headers["Content-Length"] == str(len(body))
    assert "Transfer-Encoding" not in sent.headers
    boundary = sent.headers["Content-Type"].partition("boundary=")[2].encode()
    parts = dict(part.split(b"\r\n\r\n", 1) for part in body.split(b"--" + boundary)[1:-1])
    disposition = b"\r\nContent-Disposition: form-data; name="
    assert list(parts) == [
        disposition + b'"tags"',
        disposition + b'"idFile"; filename="id.jpg"\r\nContent-Type: image/jpeg',
        disposition + b'"selfieFile"; filename="selfie.png"\r\nContent-Type: image/png',
    ]
    tags, identity, selfie = parts.values()
    assert json.loads(tags) == {
        "customerName": "Jane Doe",
        "companyId": "COMP-001",
        "submissionId": "2024-09-03-0001",
    }
    identity_file, selfie_file = (
        tmp_path / cast("AcceptedDocument", file).path for file in (request.id_file, request.selfie_file)
    )
    assert identity.removesuffix(b"\r\n") == identity_file.read_bytes()
    assert selfie.removesuffix(b"\r\n") == selfie_file.read_bytes()
    assert (response.http_status, response.verification_id, response.verified) == (200, 457, True)
    assert json.loads(response.text) == json.loads(SEED)
    assert before <= response.requested_at <= response.responded_at
    assert response.latency_ms > 0


async def test_the_api_key_scheme(connect: Connect, make_request: MakeRequest, token: str) -> None:
    async with serving(seed_view) as (url, seen), connect(url, auth_scheme="api_key") as client:
        await client.verify(make_request())
        await client.check_access()
    for sent, _ in seen:
        assert sent.headers["x-api-key"] == token
        assert "Authorization" not in sent.headers


async def test_a_base_url_with_a_path(connect: Connect, make_request: MakeRequest) -> None:
    async with serving(seed_view) as (url, seen), connect(f"{url}/deepxl/") as client:
        await client.verify(make_request())
    assert [sent.path for sent, _ in seen] == ["/deepxl/v1/verification"]


BODIES = [
    b'{"statusCode":0,"error":"Bad","message":"customerName Jane Doe is invalid"}',
    b'{"detail":"Jane Doe"}',
    b'{"detail":[{"loc":["body","idFile"],"msg":"Jane Doe","type":"missing"}]}',
    b"<html>Jane Doe</html>",
    b"",
    b"\xff\xfe\x00Jane Doe",
]
MEANINGS: dict[int, type[DeepXLError]] = {
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308), UnexpectedRedirect),
    **dict.fromkeys((400, 406, 410, 413, 415, 418, 422, 431, 451), Refused),
    **dict.fromkeys((401, 402, 403), AccessDenied),
    **dict.fromkeys((404, 405), WrongAddress),
    **dict.fromkeys((408, 425, 429, 503), TurnedAway),
    **dict.fromkeys((409, 423, 444, 460, 499, 500, 501, 502, 504, 520, 524, 529), MaybeProcessed),
}


@pytest.mark.parametrize(("status", "meaning"), MEANINGS.items())
async def test_what_a_status_means(
    status: int, meaning: type[DeepXLError], connect: Connect, make_request: MakeRequest
) -> None:
    def view(request: web.Request) -> web.StreamResponse:
        headers = {"Retry-After": "7", "Location": "http://127.0.0.1:9/"}
        return web.Response(status=status, headers=headers, body=None if status == 304 else bodies.pop())

    bodies = list(BODIES)
    async with serving(view) as (url, seen), connect(url) as client:
        for body in reversed(BODIES):
            with pytest.raises(DeepXLError) as caught:
                await client.verify(make_request())
            error = caught.value
            assert type(error) is meaning
            assert error.http_status == status
            assert error.retry_after == 7
            assert error.requested_at is not None
            assert error.latency_ms is not None
            assert "submission 2024-09-03-0001" in str(error)
            assert "Jane" not in str(error)
            if status != 304:
                assert ("Jane" in (error.body or "")) == (b"Jane" in body)
    assert len(seen) == len(BODIES)


async def test_geometry_is_in_no_error_and_in_no_response(
    connect: Connect, make_request: MakeRequest
) -> None:
    geometry = {"idFaces": [{"landmarks": [[12345, 2], [3, 4]]}]}
    bodies = [
        (400, {"message": "x", **geometry}),
        (200, {"result": {"verificationId": 1, **geometry}}),
        (200, {"result": {"verificationId": 1, "verified": False, **geometry}}),
    ]

    def view(request: web.Request) -> web.StreamResponse:
        status, document = waiting.pop(0)
        return web.json_response(document, status=status)

    waiting = list(bodies)
    async with serving(view) as (url, _), connect(url) as client:
        with pytest.raises(Refused) as refused:
            await client.verify(make_request())
        with pytest.raises(ContractBroken) as broken:
            await client.verify(make_request())
        response = await client.verify(make_request())
    for text in (refused.value.body, broken.value.body, broken.value.text, response.text):
        assert text
        assert "12345" not in text
    assert broken.value.http_status == 200


async def test_nothing_secret_or_personal_in_logs_and_reprs(
    connect: Connect, make_request: MakeRequest, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    request = make_request()
    with running_simulator(token="another") as server:
        async with connect(server.url) as client:
            with pytest.raises(AccessDenied) as caught:
                await client.verify(request)
            shown = [repr(client), repr(request), repr(caught.value), str(caught.value)]
    async with serving(seed_view) as (url, _), connect(url) as client:
        shown.append(repr(await client.verify(request)))
    shown += [record.getMessage() for record in caplog.records]
    for text in shown:
        assert token not in text
        assert "Jane" not in text
        assert "COMP-001" not in text


async def test_a_redirect_is_never_followed(connect: Connect, make_request: MakeRequest) -> None:
    async with serving(seed_view) as (elsewhere, seen_elsewhere):
        with running_simulator(
            faults={"s-1": [redirects(elsewhere, status) for status in (301, 302, 303, 307, 308)]},
            lookup=redirects(elsewhere),
        ) as server:
            async with connect(server.url) as client:
                for _ in range(5):
                    with pytest.raises(UnexpectedRedirect):
                        await client.verify(make_request("s-1"))
                with pytest.raises(UnexpectedRedirect):
                    await client.find("s-1")
                with pytest.raises(UnexpectedRedirect):
                    await client.check_access()
    assert seen_elsewhere == []


FAULTS: list[tuple[Fault, type[DeepXLError]]] = [
    (Responds(503, {"Retry-After": "1"}), TurnedAway),
    (Responds(429, record=True), TurnedAway),
    (Responds(500, record=True), MaybeProcessed),
    (HTML_502, MaybeProcessed),
    (HTML_200, MaybeProcessed),
    (EMPTY_OBJECT_200, ContractBroken),
    (Resets(), MaybeProcessed),
    (Resets(record=True), MaybeProcessed),
    (HalfBody(), MaybeProcessed),
    (NoResponseInTime(record=True), MaybeProcessed),
    (NoResponseInTime(), MaybeProcessed),
]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(("fault", "meaning"), FAULTS)
async def test_a_lost_response_is_found_exactly_if_it_was_recorded(
    fault: Fault, meaning: type[DeepXLError], connect: Connect, make_request: MakeRequest
) -> None:
    with running_simulator(faults={"s-1": [fault]}) as server:
        async with connect(server.url) as client:
            with pytest.raises(meaning):
                await client.verify(make_request("s-1"))
            found = await client.find("s-1")
        assert server.received == {"s-1": 1}
    assert [response.verification_id for response in found] == [
        record.verification_id for record in server.records
    ]
    assert len(found) == (1 if fault.record else 0)


async def test_a_documents_upload_may_be_refused_early(connect: Connect, make_request: MakeRequest) -> None:
    with running_simulator(faults={"s-1": [Resets(early=True)]}) as server:
        async with connect(server.url) as client:
            with pytest.raises(NotProcessed):
                await client.verify(make_request("s-1", size=24 * 1024 * 1024))
    assert server.records == []


async def test_find_takes_only_records_with_the_very_tag(connect: Connect, make_request: MakeRequest) -> None:
    with running_simulator(ignore_tag_filter=True) as server:
        async with connect(server.url) as client:
            responses = [await client.verify(make_request(f"s-{number}")) for number in range(3)]
            again = await client.verify(make_request("s-1"))
            for number in (0, 2):
                (found,) = await client.find(f"s-{number}")
                assert found.verification_id == responses[number].verification_id
                assert json.loads(found.text) == json.loads(responses[number].text)
            both = await client.find("s-1")
            assert {response.verification_id for response in both} == {
                responses[1].verification_id,
                again.verification_id,
            }
            assert await client.find("s") == []


def record(identifier: int, tags: Any, **more: Any) -> dict[str, Any]:
    return {"verificationId": identifier, "verified": True, "tags": tags, **more}


def tagged(submission_id: str) -> list[dict[str, str]]:
    return [{"name": "submissionId", "value": submission_id}]


def history(records: list[dict[str, Any]], total: int | None = None) -> View:
    def view(request: web.Request) -> web.StreamResponse:
        offset, limit = int(request.query["offset"]), int(request.query["limit"])
        assert request.query["tagFilter"] == "submissionId=s-1"
        page = records[offset : offset + limit]
        return web.json_response({"totalCount": total or len(records), "count": len(page), "data": page})

    return view


async def test_find_reads_every_page(connect: Connect) -> None:
    records = [record(number, tagged(f"o-{number}")) for number in range(250)] + [record(999, tagged("s-1"))]
    async with serving(history(records)) as (url, seen), connect(url) as client:
        (found,) = await client.find("s-1")
    assert found.verification_id == 999
    assert [sent.query["offset"] for sent, _ in seen] == ["0", "100", "200"]


@pytest.mark.parametrize("odd", [None, {"submissionId": "o"}, [{"name": "x", "value": None}], "x", [1]])
@pytest.mark.parametrize("place", [0, 1])
async def test_odd_tags_of_another_record_do_not_hide_ours(odd: Any, place: int, connect: Connect) -> None:
    records = [record(1, tagged("s-1"))]
    records.insert(place, record(2, odd))
    async with serving(history(records)) as (url, _), connect(url) as client:
        (found,) = await client.find("s-1")
    assert found.verification_id == 1


@pytest.mark.parametrize(
    ("records", "total"),
    [
        ([record(1, [])], None),
        ([{"verificationId": 1, "verified": True}], None),
        ([record(1, tagged("other"))], 5),
        ([record(number, tagged("other")) for number in range(1001)], None),
        # Between two pages, a record may move to the one that was read already.
        ([record(number, tagged("other")) for number in range(101)], None),
        ([record(1, tagged("other") + tagged("s-1"))], None),
        ([record(1, tagged("s-1") + tagged("other"))], None),
        ([record(1, tagged("other"))], -1),
        ([record(1, tagged("s-1"), verified="yes")], None),
        ([record(1, {"submissionId": "s-1"})], None),
        ([record(1, None)], None),
    ],
)
async def test_find_cannot_conclude(
    records: list[dict[str, Any]], total: int | None, connect: Connect
) -> None:
    async with serving(history(records, total)) as (url, _), connect(url) as client:
        with pytest.raises(LookupFailed):
            await client.find("s-1")


EMPTY: dict[str, Any] = {"totalCount": 0, "count": 0, "data": []}


@pytest.mark.parametrize(
    ("status", "headers", "page"),
    [
        (202, {}, EMPTY),
        (206, {}, EMPTY),
        (200, {"Age": "60"}, EMPTY),
        (200, {}, EMPTY | {"count": 1}),
        (200, {}, {"count": 0, "data": []}),
    ],
    ids=["202", "206", "from a cache", "another count", "no total"],
)
async def test_a_page_that_may_lack_records_does_not_show_that_there_is_none(
    status: int, headers: dict[str, str], page: dict[str, Any], connect: Connect
) -> None:
    def view(_: web.Request) -> web.StreamResponse:
        return web.json_response(page, status=status, headers=headers)

    async with serving(view) as (url, _), connect(url) as client:
        with pytest.raises(LookupFailed):
            await client.find("s-1")


async def test_each_look_up_has_a_connection_of_its_own_and_wants_no_cache(connect: Connect) -> None:
    """An empty page on a kept connection may be a surplus response to an earlier look-up."""
    peers = []

    def view(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        assert request.headers["Cache-Control"] == "no-cache"
        return web.json_response(EMPTY)

    async with serving(view) as (url, _), connect(url) as client:
        assert [await client.find("s-1") for _ in range(3)] == [[], [], []]
    assert len(set(peers)) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"<html></html>",
        b'{"data":[]}',
        b'{"totalCount":0}',
        b'{"totalCount":"0","data":[]}',
        b'{"totalCount":0,"data":{}}',
        b'{"totalCount":1,"data":[7]}',
        b'{"totalCount":1,"data":[\xff]}',
        b'{"totalCount":1,"data":[',
    ],
)
async def test_a_history_in_another_shape(body: bytes, connect: Connect) -> None:
    async with serving(lambda _: web.Response(body=body)) as (url, _), connect(url) as client:
        with pytest.raises(LookupFailed) as caught:
            await client.find("s-1")
        assert caught.value.requested_at is not None


@pytest.mark.parametrize("status", [400, 403, 404, 422, 429, 500, 502, 503, 504])
async def test_a_history_that_fails(status: int, connect: Connect) -> None:
    with running_simulator(lookup=Responds(status, {"Retry-After": "3"}, b"{}")) as server:
        async with connect(server.url) as client:
            with pytest.raises(LookupFailed) as caught:
                await client.find("s-1")
            assert (caught.value.http_status, caught.value.retry_after) == (status, 3)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("fault", [NoResponseInTime(), Resets(), HalfBody()])
async def test_a_history_that_does_not_respond(fault: Fault, connect: Connect) -> None:
    with running_simulator(lookup=fault) as server:
        async with connect(server.url) as client:
            with pytest.raises(LookupFailed):
                await client.find("s-1")


@pytest.mark.parametrize("status", [401, 402])
async def test_a_look_up_without_access(status: int, connect: Connect) -> None:
    with running_simulator(lookup=Responds(status)) as server:
        async with connect(server.url) as client:
            with pytest.raises(AccessDenied):
                await client.find("s-1")


async def test_a_record_that_shows_up_late(connect: Connect, make_request: MakeRequest) -> None:
    with running_simulator(lookup_lag_looks=2) as server:
        async with connect(server.url) as client:
            await client.verify(make_request("s-1"))
            assert [len(await client.find("s-1")) for _ in range(4)] == [0, 0, 1, 1]


JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.mark.parametrize(
    ("response", "meaning"),
    [
        *((Responds(status, JSON, b"{}"), AccessDenied) for status in (401, 402, 403)),
        (redirects("https://elsewhere.example/"), UnexpectedRedirect),
        (Responds(404, HTML, b"<html>"), DeepXLError),
        (Responds(200, HTML, b"<html>"), DeepXLError),
        (Resets(), NotProcessed),
    ],
)
async def test_an_access_check_that_fails(
    response: Fault, meaning: type[DeepXLError], connect: Connect
) -> None:
    with running_simulator(lookup=response) as server:
        async with connect(server.url) as client:
            with pytest.raises(DeepXLError) as caught:
                await client.check_access()
    assert type(caught.value) is meaning
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "response",
    [
        None,
        *(Responds(status, JSON, b"{}") for status in (200, 404, 422, 429, 500, 503)),
        HTML_502,
        NoResponseInTime(),
    ],
)
async def test_an_access_check_that_passes(
    response: Fault | None, connect: Connect, patience: type[PatienceOfTests]
) -> None:
    with running_simulator(lookup=response) as server:
        async with connect(server.url, timeout_seconds=12.5) as client:
            await client.check_access()
    assert patience.seconds == [12.5]


async def test_many_calls_at_once(connect: Connect, make_request: MakeRequest) -> None:
    with running_simulator(latency_ms=5) as server:
        async with connect(server.url, max_connections=8) as client:
            requests = [make_request(f"s-{number}") for number in range(40)]
            responses = await asyncio.gather(*(client.verify(request) for request in requests))
            assert {response.verification_id for response in responses} == {
                record.verification_id for record in server.records
            }
    assert set(server.received.values()) == {1}
    assert len(server.received) == 40


def dated(seconds: float, body: bytes = b'{"totalCount":0,"count":0,"data":[]}') -> View:
    return lambda _: web.Response(
        body=body, headers={"Date": format_datetime(datetime.now(UTC) + timedelta(seconds=seconds))}
    )


@pytest.mark.parametrize(("seconds", "way"), [(3600, "behind"), (-3600, "ahead of")])
async def test_a_wrong_clock_is_found_before_anything_is_sent(
    seconds: float, way: str, connect: Connect
) -> None:
    async with serving(dated(seconds)) as (url, _), connect(url) as client:
        with pytest.raises(DeepXLError, match=f"clock is 60 minutes {way} DeepXL's"):
            await client.check_access()


@pytest.mark.parametrize(
    ("view", "is_history"),
    [
        (dated(60), True),
        (dated(-60), True),
        (dated(3600, b"{}"), False),
        (lambda _: web.json_response({"detail": "Not Found"}, status=404), False),
        (lambda _: web.json_response({"detail": "?"}, status=500), False),
    ],
)
async def test_an_access_check_returns_whether_the_history_responded(
    view: View, is_history: bool, connect: Connect
) -> None:
    async with serving(view) as (url, _), connect(url) as client:
        assert await client.check_access() is is_history


async def test_other_calls_go_on_while_a_large_body_is_parsed() -> None:
    members = ",".join(f'"landmarks{number}":[[1,2],[3,4]]' for number in range(5_000))
    body = f'{{"result":{{"verificationId":1,"verified":true,{members}}}}}'.encode()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    await asyncio.sleep(0)
    before = turns
    with _Call() as call:
        assert (await call.parse(200, body)).verification_id == 1
    assert turns > before
    others.cancel()
