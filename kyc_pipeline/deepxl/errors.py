"""What can go wrong with a call to DeepXL, sorted by what it says about the money.

* KycError
  * DeepXLError                 `http_status`, `body`, `retry_after`, `requested_at`, `latency_ms`
    * NotProcessed              surely not processed: safe to send again
      * DocumentUnavailable     a file could not be read at send time
    * MaybeProcessed            sent, and the answer is lost: look it up, never just send again
    * Refused                   the API said no for good: 4xx
    * AccessDenied              401, 402, 403: stops the run
    * ContractBroken            2xx, but no `result`, `verificationId` or boolean `verified`; `text`
    * UnexpectedRedirect        3xx, never followed: stops the run; whether it was processed is not known
    * LookupFailed              the history could not settle whether a record exists

Messages are one line of our own words with the status, a reason phrase and the names of form fields.
The vendor's free text may echo personal data: it is only in `body`, meant for the restricted ledger.
"""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import ClassVar, Final

from kyc_pipeline.errors import KycError

RETRY_AFTER_CAP_SECONDS: Final = 3600.0
"""No server makes us wait longer than this."""


class DeepXLError(KycError):
    """A call to DeepXL failed.

    `http_status` is None where no answer came. `body` is the answer's text without geometry: personal,
    for the restricted ledger only. `retry_after` is in seconds. The client sets `requested_at` (UTC) and
    `latency_ms` before it raises.
    """

    stops_run: ClassVar[bool] = False
    """Whether every further call would fail alike, so that the run should stop."""

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
        self.requested_at: datetime | None = None
        self.latency_ms: float | None = None


class NotProcessed(DeepXLError):
    """Surely not processed: no connection, request not fully sent, 408, 425, 429, 503."""


class DocumentUnavailable(NotProcessed):
    """A document could not be read, or changed its size, while it was sent."""


class MaybeProcessed(DeepXLError):
    """The request was sent and its answer is lost: time-out, lost connection, truncated body, other 5xx."""


class Refused(DeepXLError):
    """The API said no for good: 400, 404, 413, 415, 422 and every 4xx not named elsewhere."""


class AccessDenied(DeepXLError):
    """401, 402 or 403: the credential or the account, so no other call would fare better."""

    stops_run = True


class UnexpectedRedirect(DeepXLError):
    """3xx: the base URL is wrong, or a proxy answers. Never followed, since the credential and the
    documents are for one host only. Whether something was processed before is not known."""

    stops_run = True


class LookupFailed(DeepXLError):
    """The history could not say whether a record exists: it is no proof that there is none."""


class ContractBroken(DeepXLError):
    """A 2xx body without the hard requirements. `text` is the body with geometry removed.

    The record has probably been created and billed: never send it again.
    """

    def __init__(self, message: str, *, text: str, http_status: int | None = None) -> None:
        super().__init__(message, http_status=http_status, body=text)
        self.text = text


_BY_STATUS: Final[dict[int, type[DeepXLError]]] = {
    401: AccessDenied,
    402: AccessDenied,
    403: AccessDenied,
    408: NotProcessed,  # the server did not get the whole request in time
    425: NotProcessed,  # "too early": the server was unwilling to process it
    429: NotProcessed,
    503: NotProcessed,
}
_BY_HUNDRED: Final[dict[int, type[DeepXLError]]] = {3: UnexpectedRedirect, 4: Refused, 5: MaybeProcessed}

_ADVICE: Final[dict[int, str]] = {
    401: "check DEEPXL_API_TOKEN and DEEPXL_AUTH_SCHEME",
    402: "the account's usage limit is reached",
    403: "the credential may not do this",
    404: "check DEEPXL_BASE_URL",
    413: "the documents are too large",
    415: "the documents' file type is not supported",
    429: "too many requests",
}


def error_class(status: int) -> type[DeepXLError]:
    """What an answer with this status (not 2xx) means for a verification."""
    return _BY_STATUS.get(status) or _BY_HUNDRED.get(status // 100, MaybeProcessed)


def answer_error(subject: str, status: int, body: str, retry_after: float | None) -> DeepXLError:
    """The error for an answer with `status` (not 2xx) and `body`, its text without geometry."""
    kind = error_class(status)
    advice = "check DEEPXL_BASE_URL: a redirect is never followed" if kind is UnexpectedRedirect else None
    return kind(
        describe(subject, status, body, advice or _ADVICE.get(status)),
        http_status=status,
        body=body or None,
        retry_after=retry_after,
    )


def describe(subject: str, status: int, body: str, advice: str | None = None) -> str:
    """One line such as `s-1: DeepXL answered 422 Unprocessable Entity at body.idFile`."""
    words = machine_words(body)
    return (
        f"{subject}: DeepXL answered {status} {reason_phrase(status)}".rstrip()
        + (f" at {', '.join(words)}" if words else "")
        + (f" ({advice})" if advice else "")
    )


def reason_phrase(status: int) -> str:
    """The standard's phrase for `status`; empty for one that it does not know."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


_KNOWN_LOCATIONS: Final = frozenset(
    {"body", "header", "query", "path", "form", "idFile", "selfieFile", "tags", "verificationId"}
    | {"limit", "offset", "sortBy", "direction", "tagFilter"}
)


def machine_words(body: str) -> list[str]:
    """The places that an error body complains about (`body.idFile`), at most five.

    Only words of the API's own vocabulary are taken, each other one becomes `?`: whatever else is in an
    error body, a person's name included, does not get into a message.
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
    """Seconds to wait by a `Retry-After` header: both of its forms, from 0 to the cap; None if unreadable.

    `now` (with a zone) is what an HTTP date is compared with.
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
