"""The one place that makes HTTP calls to DeepXL.

One call is one request. Nothing here retries, since only the caller knows what a second call costs. The
client must say truthfully what a failure means (see :mod:`kyc_pipeline.deepxl.errors`): until the end of
the multipart body is handed to the transport, the server cannot have a whole request; from then on it may
have processed it. The transport's own exceptions cannot tell: it reports a refused connection and a server
that hangs up after the request both as `ConnectTimeout`.
"""

import os
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, Self

import httpx
import msgspec
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
from kyc_pipeline.deepxl.multipart import Document, MultipartBody
from kyc_pipeline.deepxl.transport import MAX_ERROR_BYTES, Transport
from kyc_pipeline.vocabulary import SUBMISSION_TAG

_PAGE: Final = 100
_MAX_PAGES: Final = 10


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


class _Call:
    """The clock of one call; it puts its times on the answer, or on the :class:`DeepXLError` that ends it."""

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

    def answer(self, status: int, body: bytes) -> Answer:
        """The answer in `body`. Raises :class:`ContractBroken`."""
        received = receive(body)
        return Answer(
            http_status=status,
            text=received.text,
            verification_id=received.verification_id,
            verified=received.verified,
            requested_at=self._requested_at,
            responded_at=datetime.now(UTC),
            latency_ms=self._latency_ms(),
        )

    def _latency_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000


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
        self._token = token
        self._auth_scheme = auth_scheme
        self._transport = Transport(timeout_seconds=timeout_seconds, max_connections=max_connections)

    def __repr__(self) -> str:
        return f"DeepXLClient({str(self._base)!r})"

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    async def verify(self, request: VerificationRequest) -> Answer:
        """Send one submission: the paid call.

        Raises a subclass of :class:`DeepXLError` that says what the failure means.
        """
        subject = f"submission {request.submission_id}"
        documents = (
            Document("idFile", "id", request.id_path, request.id_content_type),
            Document("selfieFile", "selfie", request.selfie_path, request.selfie_content_type),
        )
        body = MultipartBody({**request.tags, SUBMISSION_TAG: request.submission_id}, documents)
        with _Call() as call:
            try:
                with body:
                    response, content = await self._transport.post(self._verifications, self._headers(), body)
            # Whatever the transport raises (it lets several of aiohttp's errors through), the one question
            # is whether the server can have the whole request.
            except Exception as error:
                raise _lost(subject, body, error) from None
            if not response.is_success:
                raise _answer_error(subject, response, content)
            try:
                return call.answer(response.status_code, content)
            except ContractBroken as error:
                raise ContractBroken(
                    f"{subject}: {error}", text=error.text, http_status=response.status_code
                ) from None

    def _headers(self) -> dict[str, str]:
        """With the credential. Only requests below the base URL get them: no other host ever does."""
        secret = self._token.get_secret_value().strip()
        return {
            "User-Agent": f"kyc-pipeline/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",  # what httpx can always decode; aiohttp would name more
            **(
                {"Authorization": f"Bearer {secret}"}
                if self._auth_scheme == "bearer"
                else {"x-api-key": secret}
            ),
        }

    async def find(self, submission_id: str) -> list[Answer]:
        """The records that carry this submission's tag, by the history; empty if there is surely none.

        A history that ignores `tagFilter` is read through (up to 1,000 records), and only records with
        exactly this tag count. Raises :class:`LookupFailed` where the history cannot tell, and
        :class:`AccessDenied` for 401 and 402.
        """
        subject = f"look-up of submission {submission_id}"
        found: list[Answer] = []
        is_complete = False
        have_owners = True
        offset = 0
        with _Call() as call:
            for _ in range(_MAX_PAGES):
                params: dict[str, str | int] = {
                    "tagFilter": f"{SUBMISSION_TAG}={submission_id}",
                    "limit": _PAGE,
                    "offset": offset,
                }
                status, body = await self._look_up(subject, self._verifications.copy_with(params=params))
                try:
                    page = msgspec.json.decode(body, type=_Page)
                    owners = [
                        msgspec.json.decode(record, type=_Tagged).submission_id() for record in page.data
                    ]
                    found += [
                        call.answer(status, b'{"result":' + bytes(record) + b"}")
                        for record, owner in zip(page.data, owners, strict=True)
                        if owner == submission_id
                    ]
                except (msgspec.MsgspecError, UnicodeDecodeError, ContractBroken):
                    raise LookupFailed(
                        f"{subject}: the history answered in another shape",
                        http_status=status,
                        body=redact(body[:MAX_ERROR_BYTES]),
                    ) from None
                have_owners = have_owners and None not in owners
                offset += len(page.data)
                is_complete = offset >= page.total_count
                if is_complete or not page.data:
                    break
            if not found and not (is_complete and have_owners):
                raise LookupFailed(
                    f"{subject}: the history does not tell whose its records are, or has too many"
                )
        return found

    async def check_access(self) -> None:
        """Ask the history for one record, to find a wrong address or credential before anything is paid.

        Raises :class:`AccessDenied` (401, 402, 403), :class:`UnexpectedRedirect` (3xx),
        :class:`NotProcessed` (cannot connect), :class:`DeepXLError` (a web page answers: another server).
        Other failures of the history say nothing about verifications, and pass.
        """
        subject = "access check"
        with _Call():
            try:
                response, body = await self._get(self._verifications.copy_with(params={"limit": 1}))
            except (httpx.ReadTimeout, TimeoutError):
                return
            # As in `verify`: the transport lets several kinds through, and all mean "not reachable".
            except Exception as error:
                raise NotProcessed(
                    f"cannot reach DeepXL at {self._base} ({_cause(error)}): check DEEPXL_BASE_URL "
                    "and the network"
                ) from None
            status = response.status_code
            if error_class(status) in (AccessDenied, UnexpectedRedirect):
                raise _answer_error(subject, response, body)
            if (response.is_success or status == 404) and _is_html(response, body):
                raise DeepXLError(
                    f"{self._base} answers with a web page, so it is not the DeepXL API: "
                    "check DEEPXL_BASE_URL",
                    http_status=status,
                )

    async def _look_up(self, subject: str, url: httpx.URL) -> tuple[int, bytes]:
        """Status and body of a 2xx answer to a GET; everything else is raised."""
        try:
            response, body = await self._get(url)
        # As in `verify`; a look-up costs nothing, so it does not matter how its answer was lost.
        except Exception as error:
            raise LookupFailed(f"{subject}: no answer ({_cause(error)})") from None
        status = response.status_code
        if response.is_success:
            return status, body
        answered = _answer_error(subject, response, body)
        if status in (401, 402) or isinstance(answered, UnexpectedRedirect):
            raise answered
        raise LookupFailed(
            describe(subject, status, answered.body or ""),
            http_status=status,
            body=answered.body,
            retry_after=answered.retry_after,
        )

    async def _get(self, url: httpx.URL) -> tuple[httpx.Response, bytes]:
        return await self._transport.get(url, self._headers())


def _answer_error(subject: str, response: httpx.Response, body: bytes) -> DeepXLError:
    retry_after = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    return answer_error(subject, response.status_code, redact(body), retry_after)


def _lost(subject: str, body: MultipartBody, error: Exception) -> DeepXLError:
    """What it means that no whole answer came."""
    if body.handed_over:
        return MaybeProcessed(f"{subject}: sent, but the answer was lost ({_cause(error)})")
    if body.unreadable:
        return DocumentUnavailable(
            f"{subject}: a document cannot be read or has changed since it was accepted; "
            "check the landing zone's documents folder"
        )
    return NotProcessed(f"{subject}: could not be sent ({_cause(error)})")


def _cause(error: BaseException) -> str:
    """The kind of a transport failure, by its class: texts may carry addresses or the vendor's words."""
    kept = error.__cause__ if isinstance(error, httpx.HTTPError) else None
    return type(kept or error).__name__


def _is_html(response: httpx.Response, body: bytes) -> bool:
    return "html" in response.headers.get("Content-Type", "") or body.lstrip()[:1] == b"<"
