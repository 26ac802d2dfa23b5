"""The one place that makes HTTP calls to DeepXL.

One call is one request. Nothing here retries, since only the caller knows what a second call costs. Errors
say whether the server may have processed the request (see :mod:`kyc_pipeline.deepxl.call_errors`). Before the
client hands the end of the multipart body to the transport, the server cannot have a whole request;
afterwards it may have processed it. The transport's exceptions do not distinguish the two: it reports both a
refused connection and a server that hangs up after the request as `ConnectTimeout`.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import httpx
import msgspec
from pydantic import SecretStr

from kyc_pipeline import __version__
from kyc_pipeline.deepxl.call_errors import (
    AccessDenied,
    ContractBroken,
    DeepXLError,
    DocumentUnavailable,
    LookupFailed,
    MaybeProcessed,
    NotAResponse,
    NotProcessed,
    Refused,
    Sent,
    UnexpectedRedirect,
    describe,
    error_class,
    parse_retry_after,
    status_error,
)
from kyc_pipeline.deepxl.compression import ACCEPT
from kyc_pipeline.deepxl.contract import Received, receive, redact
from kyc_pipeline.deepxl.echo import MAX_CLOCK_SKEW, Echo, echo_of
from kyc_pipeline.deepxl.jsontext import MAX_DEPTH, cut_depth
from kyc_pipeline.deepxl.multipart import Confirm, DocumentPart, MultipartBody, Sendable, no_objection
from kyc_pipeline.deepxl.tracing import span_of
from kyc_pipeline.deepxl.transport import MAX_ERROR_BYTES, QUICK_BYTES, Reply, Transport
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import SUBMISSION_TAG

_WITH_RESULT: Final = frozenset({200, 201})
"""The statuses of a response with a result; any other 2xx, such as 202 or 204, has none."""
_PAGE_SIZE: Final = 100
_MAX_PAGES: Final = 10


@dataclass(slots=True)
class VerificationRequest:
    """One submission to verify. Its `repr` shows no personal data."""

    submission_id: str
    id_file: Sendable = field(repr=False)
    selfie_file: Sendable = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)


@dataclass(slots=True)
class VerificationResponse:
    """A 2xx response that meets the hard contract. `text` is its JSON without geometry: personal data."""

    http_status: int
    text: str = field(repr=False)
    echo: Echo = field(repr=False)
    verification_id: int
    verified: bool
    requested_at: datetime
    responded_at: datetime
    latency_ms: float


class _Call:
    """Times one call, for its response or for the :class:`DeepXLError` that ends it."""

    def __enter__(self) -> Self:
        self._requested_at = datetime.now(UTC)
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, DeepXLError):
            error.requested_at = self._requested_at
            error.latency_ms = self._latency_ms()

    async def parse(self, status: int, body: bytes, problem: str = "") -> VerificationResponse:
        """Parses the response in `body`, unless it has a `problem`. Raises :class:`ContractBroken`.

        A thread parses a large body: megabytes may take seconds, in which the other calls must go on.
        """
        responded_at, latency_ms = datetime.now(UTC), self._latency_ms()
        if problem:
            raise NotAResponse(f"the response is {problem}", text="")
        if status not in _WITH_RESULT:
            raise ContractBroken(f"a response with status {status} has no result", text=redact(body))
        is_quick = len(body) <= QUICK_BYTES
        received, echo = _parsed(body) if is_quick else await asyncio.to_thread(_parsed, body)
        return VerificationResponse(
            http_status=status,
            text=received.text,
            echo=echo,
            verification_id=received.verification_id,
            verified=received.verified,
            requested_at=self._requested_at,
            responded_at=responded_at,
            latency_ms=latency_ms,
        )

    def _latency_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000


class _Page(msgspec.Struct, rename="camel"):
    """A page of the history, with undecoded records."""

    total_count: int
    data: list[msgspec.Raw]
    count: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it has all records, according to each of its numbers."""
        return len(self.data) == self.total_count and self.count in (None, len(self.data))


def _page(body: bytes) -> _Page:
    """Raises `MsgspecError` or UnicodeDecodeError."""
    try:
        return msgspec.json.decode(body, type=_Page)
    except RecursionError:
        # In a page a record lies one level deeper than in a response.
        return msgspec.json.decode(cut_depth(body.decode(), MAX_DEPTH + 1), type=_Page)


class _Tag(msgspec.Struct):
    name: str
    value: str


class _Tagged(msgspec.Struct):
    tags: list[_Tag] = []


def _belongs_to(submission_id: str, record: msgspec.Raw) -> bool | None:
    """Whether a record has the submission's tag; None if it has no such tag, several, or odd ones."""
    try:
        tags = msgspec.json.decode(record, type=_Tagged).tags
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # it may be another submission's, which must not hide ours
    owners = {tag.value for tag in tags if tag.name == SUBMISSION_TAG}
    return owners == {submission_id} if len(owners) == 1 else None


class DeepXLClient(AbstractAsyncContextManager["DeepXLClient"]):
    """An asynchronous client for one DeepXL account. Use it with `async with` in one event loop.

    `timeout_seconds` limits each step: reading the documents, the upload, the wait. Every error is a
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
        proxy: SecretStr | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._base = httpx.URL(base_url.rstrip("/"))
        self._verifications = httpx.URL(f"{self._base}/v1/verification")
        self._token = token
        self._auth_scheme = auth_scheme
        self._transport = Transport(
            timeout_seconds=timeout_seconds, max_connections=max_connections, proxy=proxy, ca_file=ca_file
        )

    @classmethod
    def of(cls, settings: Settings, *, max_connections: int | None = None) -> Self:
        """As configured. Raises :class:`UsageError` without a credential."""
        return cls(
            settings.deepxl_base_url,
            settings.require_token(),
            auth_scheme=settings.deepxl_auth_scheme,
            timeout_seconds=settings.deepxl_timeout_seconds,
            max_connections=max_connections or settings.deepxl_max_concurrency,
            proxy=settings.deepxl_proxy,
            ca_file=settings.deepxl_ca_file,
        )

    def __repr__(self) -> str:
        return f"DeepXLClient({str(self._base)!r})"

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    async def verify(
        self, request: VerificationRequest, confirm: Confirm = no_objection, *, fresh: bool = False
    ) -> VerificationResponse:
        """Sends one submission: the paid call, on a new connection if `fresh`.

        `confirm` may still stop it just before its last byte.

        The subclass of :class:`DeepXLError` says what a failure means. A response may be about another
        submission: compare its `echo`.
        """
        subject = f"submission {request.submission_id}"
        documents = (
            DocumentPart("idFile", "id", request.id_file),
            DocumentPart("selfieFile", "selfie", request.selfie_file),
        )
        body = MultipartBody({**request.tags, SUBMISSION_TAG: request.submission_id}, documents, confirm)
        with span_of("verify", "POST", self._base.host), _Call() as call:
            try:
                reply = await self._transport.post(self._verifications, self._headers(), body, fresh=fresh)
            # The transport also raises several of aiohttp's errors. For all of them the only question is
            # whether the server can have the whole request.
            except Exception as error:
                raise _no_response_error(subject, body, error) from None
            status = reply.response.status_code
            if reply.is_early:
                if body.handed_over:  # the connection is kept, so the real response may still arrive
                    self.distrust_connections()
                raise _early_response_error(subject, body, reply, fresh=fresh)
            if not reply.response.is_success:
                raise _status_error(subject, reply.response, reply.body)
            try:
                return await call.parse(status, reply.body, reply.problem)
            except NotAResponse as error:
                self.distrust_connections()
                raise MaybeProcessed(
                    f"{subject}: DeepXL responded with {status}, but {error}",
                    http_status=status,
                    body=error.text or None,
                ) from None
            except ContractBroken as error:
                raise ContractBroken(f"{subject}: {error}", text=error.text, http_status=status) from None

    def distrust_connections(self) -> None:
        """Uses only new connections from now on: a response did not belong to its request."""
        self._transport.distrust()

    def _headers(self) -> dict[str, str]:
        """Headers with the credential, for requests below the base URL only."""
        secret = self._token.get_secret_value().strip()
        return {
            "User-Agent": f"kyc-pipeline/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": ACCEPT,
            **(
                {"Authorization": f"Bearer {secret}"}
                if self._auth_scheme == "bearer"
                else {"x-api-key": secret}
            ),
        }

    async def find(self, submission_id: str) -> list[VerificationResponse]:
        """The history's records with this submission's tag; empty if there is certainly none.

        If the history ignores `tagFilter`, reads up to 1,000 records and selects those with exactly this
        tag. Only a single page proves that there is none: records may move between pages while they are read.
        Raises :class:`LookupFailed` if the history cannot tell, :class:`AccessDenied` for 401 and 402.
        """
        subject = f"look-up of submission {submission_id}"
        found: list[VerificationResponse] = []
        is_proof = True
        offset = 0
        with span_of("find", "GET", self._base.host), _Call() as call:
            for _ in range(_MAX_PAGES):
                params: dict[str, str | int] = {
                    "tagFilter": f"{SUBMISSION_TAG}={submission_id}",
                    "limit": _PAGE_SIZE,
                    "offset": offset,
                }
                response, body = await self._look_up(subject, self._verifications.copy_with(params=params))
                status = response.status_code
                try:
                    page = _page(body)
                    ours = [_belongs_to(submission_id, record) for record in page.data]
                    found += [
                        await call.parse(status, b'{"result":' + bytes(record) + b"}")
                        for record, is_ours in zip(page.data, ours, strict=True)
                        if is_ours
                    ]
                except (msgspec.MsgspecError, UnicodeDecodeError, ContractBroken):
                    raise LookupFailed(
                        f"{subject}: the history's response has an unexpected shape",
                        http_status=status,
                        body=redact(body[:MAX_ERROR_BYTES]),
                    ) from None
                is_proof = is_proof and None not in ours and page.is_whole and _is_current(response)
                offset += len(page.data)
                if offset >= page.total_count or not page.data:
                    break
            if not found and not is_proof:
                raise LookupFailed(
                    f"{subject}: the history's response is partial, in several pages or from a cache, or has "
                    "records whose tags do not have exactly one submissionId"
                )
        return found

    async def check_access(self) -> bool:
        """Requests one record, to detect a wrong address, credential or clock before anything is paid.

        Returns whether DeepXL's history responded. Raises :class:`AccessDenied` (401, 402, 403),
        :class:`UnexpectedRedirect` (3xx), :class:`NotProcessed` (cannot connect), :class:`DeepXLError` (the
        response is a web page, so this is not the API; or the clocks differ). Ignores other failures of the
        history: they say nothing about verifications.
        """
        subject = "access check"
        with span_of("check_access", "GET", self._base.host), _Call():
            try:
                url = self._verifications.copy_with(params={"limit": 1})
                response, body = await self._transport.get(url, self._headers())
            except (httpx.ReadTimeout, TimeoutError):
                return False
            # As in `verify`, of any class; here they all mean "not reachable".
            except Exception as error:
                raise NotProcessed(
                    f"cannot reach DeepXL at {self._base} ({_cause(error)}): check DEEPXL_BASE_URL "
                    "and the network"
                ) from None
            status = response.status_code
            if error_class(status) in (AccessDenied, UnexpectedRedirect):
                raise _status_error(subject, response, body)
            if (response.is_success or status == 404) and _is_html(response, body):
                raise DeepXLError(
                    f"{self._base} responds with a web page, so it is not the DeepXL API: "
                    "check DEEPXL_BASE_URL",
                    http_status=status,
                )
            try:
                _page(body)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return False
            if response.is_success:
                _check_clock(response)
            return response.is_success

    async def _look_up(self, subject: str, url: httpx.URL) -> tuple[httpx.Response, bytes]:
        """The 2xx response to a GET and its body; raises for everything else.

        Uses a new connection, because nothing in an empty page shows that it is the response to this request.
        """
        try:
            headers = self._headers() | {"Cache-Control": "no-cache"}
            response, body = await self._transport.get(url, headers, fresh=True)
        # As in `verify`; a look-up is free, so how its response was lost does not matter.
        except Exception as error:
            raise LookupFailed(f"{subject}: no response ({_cause(error)})") from None
        status = response.status_code
        if response.is_success:
            return response, body
        failure = _status_error(subject, response, body)
        if status in (401, 402) or isinstance(failure, UnexpectedRedirect):
            raise failure
        raise LookupFailed(
            describe(subject, status, failure.body or ""),
            http_status=status,
            body=failure.body,
            retry_after=failure.retry_after,
        )


def _parsed(body: bytes) -> tuple[Received, Echo]:
    received = receive(body)
    return received, echo_of(received.parsed)


def _status_error(subject: str, response: httpx.Response, body: bytes) -> DeepXLError:
    retry_after = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    return status_error(subject, response.status_code, redact(body), retry_after)


def _early_response_error(subject: str, body: MultipartBody, reply: Reply, *, fresh: bool) -> DeepXLError:
    """The error for a response that began before the last byte of the body had left.

    On a kept connection it may belong to an earlier request, so a refusal counts only on a fresh one. A
    result never counts.
    """
    response = reply.response
    error = _status_error(subject, response, reply.body)
    was_sent = body.handed_over  # while the response was read
    if response.is_success or (was_sent and not fresh and isinstance(error, Refused)):
        return MaybeProcessed(
            f"{subject}: DeepXL responded with {response.status_code} before the documents were sent",
            http_status=response.status_code,
            body=redact(reply.body),
        )
    if was_sent:
        return error
    if not error.stops_run and not (fresh and isinstance(error, Refused)):
        error = NotProcessed(
            f"{error}, before the documents were sent",
            http_status=error.http_status,
            body=error.body,
            retry_after=error.retry_after,
        )
    error.sent = Sent.PART
    return error


def _is_current(response: httpx.Response) -> bool:
    """Whether the response is complete and current: status 200, and from no cache."""
    return response.status_code == HTTPStatus.OK and response.headers.get("Age", "0").strip() == "0"


def _check_clock(response: httpx.Response) -> None:
    """Raises :class:`DeepXLError` if the server's `Date` is far from this machine's time."""
    try:
        theirs = parsedate_to_datetime(response.headers.get("Date", ""))
    except (ValueError, TypeError):
        return
    ahead = datetime.now(UTC) - (theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC))
    if abs(ahead) > MAX_CLOCK_SKEW:
        minutes = round(ahead.total_seconds() / 60)
        raise DeepXLError(
            f"this machine's clock is {abs(minutes)} minutes {'ahead of' if minutes > 0 else 'behind'} "
            "DeepXL's: correct it; otherwise an old response could pass for a new one"
        )


def _no_response_error(subject: str, body: MultipartBody, error: Exception) -> DeepXLError:
    """The error for a request without a whole response."""
    if body.handed_over:
        return MaybeProcessed(f"{subject}: sent, but the response was lost ({_cause(error)})")
    failure: NotProcessed
    if body.objection:
        failure = NotProcessed(f"{subject}: not sent: {body.objection}")
    elif body.problem:
        failure = DocumentUnavailable(
            f"{subject}: not sent: {body.problem}; put the accepted file back, or run its day again, "
            "which ingests the file that is there now"
        )
    else:
        failure = NotProcessed(f"{subject}: could not be sent ({_cause(error)})")
    failure.sent = Sent.PART if body.begun else Sent.NOTHING
    return failure


def _cause(error: BaseException) -> str:
    """The class of a transport failure; its text may hold addresses or the vendor's words."""
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else None
    return type(cause or error).__name__


def _is_html(response: httpx.Response, body: bytes) -> bool:
    return "html" in response.headers.get("Content-Type", "") or body.lstrip()[:1] == b"<"
