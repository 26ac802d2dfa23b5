"""Errors of calls to DeepXL, by what they imply about the charge.

* KycError
  * DeepXLError                 `http_status`, `body`, `retry_after`, `requested_at`, `latency_ms`
    * NotProcessed              not processed: no connection, or the last byte of the body never left
      * DocumentUnavailable     a document is not there as it was accepted
    * MaybeProcessed            sent, but no sound response: look it up before anything else
      * TurnedAway              408, 425, 429, 503: send it again if a look-up finds no record
    * Refused                   final refusal: 400, 413, 415, 422 and a few other 4xx
    * Denied                    other calls show whether the fault is the run's or the submission's
      * AccessDenied            401, 402, 403
      * WrongAddress            404, 405
    * ContractBroken            2xx without `result`, `verificationId` or boolean `verified`; has `text`
      * NotAResponse            2xx, but not JSON: proves nothing; the client raises MaybeProcessed instead
    * UnexpectedRedirect        3xx, never followed: stops the run; may have been processed
    * LookupFailed              the history could not tell whether a record exists

Once the whole body has left, a status does not say whether the request was processed: gateways respond with
429 and 503 to requests that the server behind them has processed.

A message is one line of our own words with the status, its reason phrase and the names of form fields.
The vendor's text may echo personal data, so it is only in `body`, for the restricted ledger.
"""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus
from typing import ClassVar, Final

from kyc_pipeline.errors import KycError

RETRY_AFTER_CAP_SECONDS: Final = 3600.0
"""The longest wait that a server can impose."""


class Sent(Enum):
    """How much of a request may have left this machine."""

    NOTHING = "nothing"
    """Not a byte: no connection, or no document to send. It counts as no call."""
    PART = "part"
    WHOLE = "whole"


class DeepXLError(KycError):
    """A call to DeepXL failed.

    `http_status` is None without a response. `body` is the response's text without geometry: personal data,
    for the restricted ledger only. `retry_after` is in seconds. The client sets `requested_at` (UTC) and
    `latency_ms`. `sent` is how much of the request may have left.
    """

    stops_run: ClassVar[bool] = False
    """Whether every further call may fail too, so that the run must stop."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        body: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.body = body
        self.retry_after = retry_after
        self.sent = Sent.WHOLE
        self.requested_at: datetime | None = None
        self.latency_ms: float | None = None


class NotProcessed(DeepXLError):
    """Not processed: no connection, or the last byte of the body never left."""


class DocumentUnavailable(NotProcessed):
    """A document cannot be read, or is no longer the accepted one. The server has no whole request."""


class MaybeProcessed(DeepXLError):
    """The request was sent, but there is no sound response to it.

    Timeout, lost connection, 5xx, 409, a gateway's own 4xx such as 499, or a response that came too early or
    is not about this submission.
    """


class TurnedAway(MaybeProcessed):
    """408, 425, 429 or 503 to a whole request: the server asks for it again, but may have processed it."""


class Refused(DeepXLError):
    """A final refusal, by DeepXL or by an HTTP server before it acts on the request."""


class Denied(DeepXLError):
    """Not final: every call may be denied, or only this submission's (by a firewall)."""

    stops_run = True


class AccessDenied(Denied):
    """401, 402 or 403: a fault of the credential or the account."""


class WrongAddress(Denied):
    """404 or 405: the address is not that of the API."""


class UnexpectedRedirect(DeepXLError):
    """3xx: the base URL is wrong, or a proxy responds.

    Never followed: the credential and the documents are for one host only. The request may have been
    processed.
    """

    stops_run = True


class LookupFailed(DeepXLError):
    """The history could not tell whether a record exists: there may be one."""


class ContractBroken(DeepXLError):
    """A 2xx response that does not meet the hard contract. `text` is the body without geometry.

    The record was probably created and billed.
    """

    def __init__(self, message: str, *, text: str, http_status: int | None = None) -> None:
        super().__init__(message, http_status=http_status, body=text)
        self.text = text


class NotAResponse(ContractBroken):
    """A 2xx body that is not JSON, such as a web page or a part of a response."""


_BY_STATUS: Final[dict[int, type[DeepXLError]]] = {
    **dict.fromkeys((400, 406, 410, 411, 413, 414, 415, 417, 418, 422, 431, 451), Refused),
    401: AccessDenied,
    402: AccessDenied,
    403: AccessDenied,
    404: WrongAddress,
    405: WrongAddress,
    408: TurnedAway,
    425: TurnedAway,
    429: TurnedAway,
    503: TurnedAway,
}

_ADVICE: Final[dict[int, str]] = {
    401: "check DEEPXL_API_TOKEN and DEEPXL_AUTH_SCHEME",
    402: "the account's usage limit is reached",
    403: "the credential may not do this",
    404: "check DEEPXL_BASE_URL",
    405: "check DEEPXL_BASE_URL",
    413: "the documents are too large",
    415: "the documents' file type is not supported",
    429: "too many requests",
}


def error_class(status: int) -> type[DeepXLError]:
    """The error class for this status (not 2xx) in response to a whole request.

    A status that proves nothing is `MaybeProcessed`: 5xx, 409 ("already processing"), 499 (a gateway assumes
    that the client hung up), and any other status that a gateway may invent.
    """
    return _BY_STATUS.get(status, UnexpectedRedirect if status // 100 == 3 else MaybeProcessed)


def status_error(subject: str, status: int, body: str, retry_after: float | None) -> DeepXLError:
    """The error for a response with `status` (not 2xx) and `body` (text without geometry)."""
    kind = error_class(status)
    advice = "check DEEPXL_BASE_URL: a redirect is never followed" if kind is UnexpectedRedirect else None
    return kind(
        describe(subject, status, body, advice or _ADVICE.get(status)),
        http_status=status,
        body=body or None,
        retry_after=retry_after,
    )


def describe(subject: str, status: int, body: str, advice: str | None = None) -> str:
    """One line such as `s-1: DeepXL responded with 422 Unprocessable Entity at body.idFile`."""
    locations = error_locations(body)
    return (
        f"{subject}: DeepXL responded with {status} {reason_phrase(status)}".rstrip()
        + (f" at {', '.join(locations)}" if locations else "")
        + (f" ({advice})" if advice else "")
    )


def reason_phrase(status: int) -> str:
    """The standard phrase for `status`; empty if there is none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


_KNOWN_LOCATIONS: Final = frozenset(
    {"body", "header", "query", "path", "form", "idFile", "selfieFile", "tags", "verificationId"}
    | {"limit", "offset", "sortBy", "direction", "tagFilter"}
)


def error_locations(body: str) -> list[str]:
    """The locations that an error body names (such as `body.idFile`), at most five.

    Any word outside the API's own vocabulary becomes `?`, so that no personal data gets into a message.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return []
    detail = document.get("detail") if isinstance(document, dict) else None
    locations = [
        item["loc"]
        for item in (detail if isinstance(detail, list) else [])
        if isinstance(item, dict) and isinstance(item.get("loc"), list) and item["loc"]
    ]
    words = [
        ".".join(part if isinstance(part, str) and part in _KNOWN_LOCATIONS else "?" for part in location[:4])
        for location in locations
    ]
    return list(dict.fromkeys(words))[:5]


_SECONDS: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds of a `Retry-After` header in either form, from 0 to the cap; None if unreadable.

    An HTTP date is compared with `now`, which must have a time zone.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_CAP_SECONDS)
