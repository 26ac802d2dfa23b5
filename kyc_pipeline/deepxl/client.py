"""The one place that makes HTTP calls to DeepXL.

One call is one request: nothing here retries, since only the caller knows what a second call costs. The
client's duty is to say truthfully what a failure means (see :mod:`kyc_pipeline.deepxl.errors`). What
decides is whether the end of the multipart body was handed to the transport: before that the server
cannot have had a whole request, after that it may have processed it. The transport's own exceptions
cannot tell (it reports a refused connection and a server that hangs up after the request both as
`ConnectTimeout`).

Requests and answers are httpx's; they go straight to its transport. What `httpx.AsyncClient` adds is not
wanted here (redirects, authentication that follows them, logs with the URL), and takes a quarter of a
call's CPU time; so does a body that httpx builds.
"""

import asyncio
import json
import os
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from types import TracebackType
from typing import Final, Literal, Self

import httpx
import msgspec
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from kyc_pipeline import __version__
from kyc_pipeline.deepxl.contract import receive, redact
from kyc_pipeline.deepxl.errors import (
    AccessDenied,
    ContractBroken,
    DeepXLError,
    DocumentUnavailable,
    LookupFailed,
    MaybeProcessed,
    NotProcessed,
    UnexpectedRedirect,
    answer_error,
    describe,
    error_class,
    parse_retry_after,
)
from kyc_pipeline.vocabulary import SUBMISSION_TAG

_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_MAX_ERROR_BYTES: Final = 64 * 1024
# Just below the size from which malloc maps pages for each buffer anew, which takes longer than to fill it.
_UPLOAD_CHUNK_BYTES: Final = 120 * 1024
_PAGE: Final = 100
_MAX_PAGES: Final = 10
# Shorter than what common servers keep (5 s is uvicorn's): a request on a connection that the server is
# just closing would count as "may have been processed".
_KEEPALIVE_SECONDS: Final = 3.0

_EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "application/pdf": "pdf",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
}


@dataclass(slots=True)
class VerificationRequest:
    """One submission to verify. Its `repr` shows nothing personal."""

    submission_id: str
    id_path: str | os.PathLike[str] = field(repr=False)
    selfie_path: str | os.PathLike[str] = field(repr=False)
    id_content_type: str = field(repr=False)
    selfie_content_type: str = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)


@dataclass(slots=True)
class Answer:
    """A 2xx answer that fits the hard requirements. `text` is its JSON with geometry removed: personal."""

    http_status: int
    text: str = field(repr=False)
    verification_id: int
    verified: bool
    requested_at: datetime
    responded_at: datetime
    latency_ms: float


@dataclass(slots=True)
class _Call:
    """The clock of one call, and what came of it."""

    requested_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)

    def latency_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1000

    def answer(self, status: int, body: bytes) -> Answer:
        received = receive(body)
        return Answer(
            http_status=status,
            text=received.text,
            verification_id=received.verification_id,
            verified=received.verified,
            requested_at=self.requested_at,
            responded_at=datetime.now(UTC),
            latency_ms=self.latency_ms(),
        )

    def stamped(self, error: DeepXLError) -> DeepXLError:
        error.requested_at = self.requested_at
        error.latency_ms = self.latency_ms()
        return error


class _Upload(httpx.AsyncByteStream):
    """A multipart body on its way, which knows whether its end was handed to the transport.

    It is read from the files as it is sent, in few large chunks, since each costs a system call. The last
    one holds the closing boundary. It is given only when every file had exactly the announced size: one
    that shrank or grew meanwhile fails before the server has a whole request.
    """

    def __init__(self, files: Sequence[tuple[bytes, int]], end: bytes) -> None:
        """`files`: for each file what goes before it, and its descriptor."""
        self._parts = [(head, file, os.fstat(file).st_size) for head, file in files]
        self._end = end
        self.length = sum(len(head) + size for head, _, size in self._parts) + len(end)
        self.on_end: Callable[[], None] = lambda: None
        self.handed_over = False
        self.unreadable = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunk = b""
        for head, file, size in self._parts:
            chunk += head
            left = size + 1  # the byte too many shows that a file grew
            while left:
                if len(chunk) >= _UPLOAD_CHUNK_BYTES:
                    yield chunk
                    chunk = b""
                wanted = min(left, _UPLOAD_CHUNK_BYTES - len(chunk))
                data = self._read(file, wanted)
                chunk += data
                left -= len(data)
                if len(data) < wanted:
                    break  # the file's end
            if left != 1:
                self.unreadable = True
                raise OSError("a document changed its size while it was sent")
        self.handed_over = True
        self.on_end()
        yield chunk + self._end

    def _read(self, file: int, most: int) -> bytes:
        try:
            return os.read(file, most)
        except OSError:
            self.unreadable = True
            raise


class _Page(msgspec.Struct, rename="camel"):
    """A page of the history; the records stay as they came."""

    total_count: int
    data: list[msgspec.Raw]


class _Tag(msgspec.Struct):
    name: str
    value: str


class _Tagged(msgspec.Struct):
    tags: list[_Tag] = []

    def submission_id(self) -> str | None:
        return next((tag.value for tag in self.tags if tag.name == SUBMISSION_TAG), None)


class DeepXLClient(AbstractAsyncContextManager["DeepXLClient"]):
    """An asynchronous client of one DeepXL account; use it with `async with`, in one event loop.

    `timeout_seconds` limits the upload, and then the wait for the whole answer. Every error raised is a
    :class:`DeepXLError` with `requested_at` and `latency_ms` set.
    """

    def __init__(
        self,
        base_url: str,
        token: SecretStr,
        *,
        auth_scheme: Literal["bearer", "api_key"] = "bearer",
        timeout_seconds: float = 60,
        max_connections: int = 16,
    ) -> None:
        self._base = httpx.URL(base_url.rstrip("/"))
        self._verifications = httpx.URL(f"{self._base}/v1/verification")
        self._timeout_seconds = timeout_seconds
        self._extensions = {
            "timeout": httpx.Timeout(
                timeout_seconds, connect=min(10.0, timeout_seconds / 2), pool=None
            ).as_dict()
        }
        self._token = token
        self._auth_scheme = auth_scheme
        # Random, so that nobody who sends documents in can put it into one.
        self._boundary = secrets.token_hex(16)
        self._transport = AiohttpTransport(
            verify=_tls(),
            limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=_KEEPALIVE_SECONDS),
        )

    def __repr__(self) -> str:
        return f"DeepXLClient({str(self._base)!r})"

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc, traceback)

    async def verify(self, request: VerificationRequest) -> Answer:
        """Send one submission: the paid call.

        Raises a subclass of :class:`DeepXLError` that says what the failure means.
        """
        call = _Call()
        subject = f"submission {request.submission_id}"
        with ExitStack() as opened:
            try:
                upload = self._upload(request, opened)
            except OSError:
                raise call.stamped(_unavailable(subject)) from None
            http_request = self._request("POST", self._verifications, upload)
            response: httpx.Response | None = None
            try:
                async with asyncio.timeout(self._timeout_seconds) as deadline:
                    upload.on_end = partial(_restart, deadline, self._timeout_seconds)
                    response = await self._transport.handle_async_request(http_request)
                    body = await _read(response)
            # Whatever the transport raises (it lets several of aiohttp's errors through), the one question
            # is whether the server can have had the whole request.
            except Exception as error:
                raise call.stamped(_lost(subject, upload, error)) from None
            finally:
                if response is not None:
                    await _close(response)
        return _settle(subject, call, response, body)

    def _upload(self, request: VerificationRequest, opened: ExitStack) -> _Upload:
        """The body of a verification; `opened` closes its files. Raises OSError."""
        tags = json.dumps({**request.tags, SUBMISSION_TAG: request.submission_id})
        part = f"--{self._boundary}\r\nContent-Disposition: form-data; name="
        before = f'{part}"tags"\r\n\r\n{tags}\r\n'
        files = []
        for name, stem, path, content_type in (
            ("idFile", "id", request.id_path, request.id_content_type),
            ("selfieFile", "selfie", request.selfie_path, request.selfie_content_type),
        ):
            file_name = _neutral_name(stem, content_type)
            head = f'{before}{part}"{name}"; filename="{file_name}"\r\nContent-Type: {content_type}\r\n\r\n'
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, file)
            files.append((head.encode(), file))
            before = "\r\n"
        return _Upload(files, f"\r\n--{self._boundary}--\r\n".encode())

    def _request(self, method: str, url: httpx.URL, upload: _Upload | None = None) -> httpx.Request:
        """A request with the credential. `url` begins with the base URL: no other host ever gets it."""
        secret = self._token.get_secret_value().strip()
        headers = {
            "User-Agent": f"kyc-pipeline/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",  # what httpx can always decode; aiohttp would name more
            **(
                {"Authorization": f"Bearer {secret}"}
                if self._auth_scheme == "bearer"
                else {"x-api-key": secret}
            ),
        }
        if upload is not None:
            headers["Content-Type"] = f"multipart/form-data; boundary={self._boundary}"
            headers["Content-Length"] = str(upload.length)
        return httpx.Request(method, url, headers=headers, stream=upload, extensions=self._extensions)

    async def find(self, submission_id: str) -> list[Answer]:
        """The records that carry this submission's tag, by the history; empty if there is surely none.

        A history that ignores `tagFilter` is read through (up to 1,000 records), and only records that
        carry the very tag count. Raises :class:`LookupFailed` where it cannot be known, and
        :class:`AccessDenied` for 401 and 402.
        """
        subject = f"look-up of submission {submission_id}"
        found: list[Answer] = []
        unclear = False
        offset = 0
        for _ in range(_MAX_PAGES):
            call = _Call()
            params: dict[str, str | int] = {
                "tagFilter": f"{SUBMISSION_TAG}={submission_id}",
                "limit": _PAGE,
                "offset": offset,
            }
            status, body = await self._look_up(subject, call, self._verifications.copy_with(params=params))
            try:
                page = msgspec.json.decode(body, type=_Page)
                owners = [msgspec.json.decode(record, type=_Tagged).submission_id() for record in page.data]
                found += [
                    call.answer(status, b'{"result":' + bytes(record) + b"}")
                    for record, owner in zip(page.data, owners, strict=True)
                    if owner == submission_id
                ]
            except (msgspec.MsgspecError, UnicodeDecodeError, ContractBroken):
                raise call.stamped(_other_shape(subject, status, body)) from None
            unclear = unclear or None in owners
            offset += len(page.data)
            if offset >= page.total_count:
                break
            if not page.data:
                unclear = True
                break
        else:
            unclear = True
        if unclear and not found:
            raise call.stamped(
                LookupFailed(f"{subject}: the history does not tell whose its records are, or has too many")
            )
        return found

    async def get(self, verification_id: int) -> Answer:
        """One record by DeepXL's id. Raises :class:`LookupFailed` or :class:`AccessDenied`."""
        call = _Call()
        subject = f"look-up of verification {verification_id}"
        url = httpx.URL(f"{self._verifications}/{verification_id}")
        status, body = await self._look_up(subject, call, url)
        try:
            answer = call.answer(status, body)
        except ContractBroken:
            raise call.stamped(_other_shape(subject, status, body)) from None
        if answer.verification_id != verification_id:
            raise call.stamped(_other_shape(subject, status, body))
        return answer

    async def check_access(self) -> None:
        """Ask the history for one record, to find a wrong address or credential before anything is paid.

        Raises :class:`AccessDenied` (401, 402, 403), :class:`UnexpectedRedirect` (3xx),
        :class:`NotProcessed` (cannot connect), :class:`DeepXLError` (a web page answers: another server).
        Other failures of the history say nothing about verifications, and are let pass.
        """
        call = _Call()
        subject = "access check"
        try:
            response, body = await self._fetch(self._verifications.copy_with(params={"limit": 1}))
        except (httpx.ReadTimeout, TimeoutError):
            return
        # As in `verify`: the transport lets several kinds through, and all mean "not reachable".
        except Exception as error:
            raise call.stamped(
                NotProcessed(
                    f"cannot reach DeepXL at {self._base} ({_cause(error)}): check DEEPXL_BASE_URL "
                    "and the network"
                )
            ) from None
        status = response.status_code
        if error_class(status) in (AccessDenied, UnexpectedRedirect):
            raise call.stamped(_answer_error(subject, response, body))
        if (response.is_success or status == 404) and _is_html(response, body):
            raise call.stamped(
                DeepXLError(
                    f"{self._base} answers with a web page, so it is not the DeepXL API: "
                    "check DEEPXL_BASE_URL",
                    http_status=status,
                )
            )

    async def _look_up(self, subject: str, call: _Call, url: httpx.URL) -> tuple[int, bytes]:
        """Status and body of a 2xx answer to a GET; everything else is raised."""
        try:
            response, body = await self._fetch(url)
        # As in `verify`: a look-up costs nothing, so every way to lose its answer is one.
        except Exception as error:
            raise call.stamped(LookupFailed(f"{subject}: no answer ({_cause(error)})")) from None
        status = response.status_code
        if response.is_success:
            return status, body
        answered = _answer_error(subject, response, body)
        if status in (401, 402) or isinstance(answered, UnexpectedRedirect):
            raise call.stamped(answered)
        raise call.stamped(
            LookupFailed(
                describe(subject, status, answered.body or ""),
                http_status=status,
                body=answered.body,
                retry_after=answered.retry_after,
            )
        )

    async def _fetch(self, url: httpx.URL) -> tuple[httpx.Response, bytes]:
        async with asyncio.timeout(self._timeout_seconds):
            response = await self._transport.handle_async_request(self._request("GET", url))
            try:
                return response, await _read(response)
            finally:
                await _close(response)


@cache
def _tls() -> ssl.SSLContext:
    """httpx's own choice of certificates and versions, loaded once: it takes a tenth of a second."""
    return httpx.create_ssl_context(trust_env=False)


def _restart(deadline: asyncio.Timeout, seconds: float) -> None:
    deadline.reschedule(asyncio.get_running_loop().time() + seconds)


async def _read(response: httpx.Response) -> bytes:
    """The body, up to a limit: a cut one is no JSON, so that the contract calls it broken.

    An error's status says all that counts: one whose body is lost counts as an error without a body.
    """
    limit = _MAX_ANSWER_BYTES if response.is_success else _MAX_ERROR_BYTES
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= limit:
                break
    except httpx.HTTPError:
        if response.is_success:
            raise
    return bytes(body[:limit])


async def _close(response: httpx.Response) -> None:
    # Whatever closing meets, an answer that has been read must not be lost by it.
    with suppress(Exception):
        await response.aclose()


def _settle(subject: str, call: _Call, response: httpx.Response, body: bytes) -> Answer:
    """The answer, or the error that its status or its body means."""
    if not response.is_success:
        raise call.stamped(_answer_error(subject, response, body))
    try:
        return call.answer(response.status_code, body)
    except ContractBroken as error:
        raise call.stamped(
            ContractBroken(f"{subject}: {error}", text=error.text, http_status=response.status_code)
        ) from None


def _answer_error(subject: str, response: httpx.Response, body: bytes) -> DeepXLError:
    retry_after = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    return answer_error(subject, response.status_code, redact(body), retry_after)


def _lost(subject: str, upload: _Upload, error: Exception) -> DeepXLError:
    """What it means that no whole answer came."""
    if upload.handed_over:
        return MaybeProcessed(f"{subject}: sent, but the answer was lost ({_cause(error)})")
    if upload.unreadable:
        return _unavailable(subject)
    return NotProcessed(f"{subject}: could not be sent ({_cause(error)})")


def _unavailable(subject: str) -> DocumentUnavailable:
    return DocumentUnavailable(
        f"{subject}: a document cannot be read or has changed since it was accepted; "
        "check the landing zone's documents folder"
    )


def _other_shape(subject: str, status: int, body: bytes) -> LookupFailed:
    return LookupFailed(
        f"{subject}: the history answered in another shape",
        http_status=status,
        body=redact(body[:_MAX_ERROR_BYTES]),
    )


def _cause(error: BaseException) -> str:
    """The kind of a transport failure, by its class: texts may carry addresses or the vendor's words."""
    kept = error.__cause__ if isinstance(error, httpx.HTTPError) else None
    return type(kept or error).__name__


def _is_html(response: httpx.Response, body: bytes) -> bool:
    return "html" in response.headers.get("Content-Type", "") or body.lstrip()[:1] == b"<"


def _neutral_name(stem: str, content_type: str) -> str:
    """A file name that tells nothing: the vendor puts it into its own URLs."""
    return f"{stem}.{_EXTENSIONS.get(content_type, 'bin')}"
