"""What a response means; a message never repeats the vendor's text."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.deepxl.call_errors import (
    RETRY_AFTER_CAP_SECONDS,
    AccessDenied,
    ContractBroken,
    DeepXLError,
    DocumentUnavailable,
    LookupFailed,
    MaybeProcessed,
    NotProcessed,
    Refused,
    Sent,
    TurnedAway,
    UnexpectedRedirect,
    WrongAddress,
    error_class,
    parse_retry_after,
    status_error,
)
from kyc_pipeline.errors import KycError

NOW = datetime(2024, 9, 3, 12, 0, 0, tzinfo=UTC)

ACCESS = {401, 402, 403}
ADDRESS = {404, 405}
TURNED_AWAY = {408, 425, 429, 503}
REFUSED = {400, 406, 410, 411, 413, 414, 415, 417, 418, 422, 431, 451}


def expected(status: int) -> type[DeepXLError]:
    if status in ACCESS:
        return AccessDenied
    if status in ADDRESS:
        return WrongAddress
    if status in TURNED_AWAY:
        return TurnedAway
    if status in REFUSED:
        return Refused
    return UnexpectedRedirect if status // 100 == 3 else MaybeProcessed


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_has_its_meaning(status: int) -> None:
    assert error_class(status) is expected(status)
    error = status_error("submission s-1", status, "", None)
    assert type(error) is expected(status)
    assert error.http_status == status
    assert f"submission s-1: DeepXL responded with {status}" in str(error)


@pytest.mark.parametrize("status", [100, 199, 600, 999])
def test_a_status_that_http_does_not_know_proves_nothing(status: int) -> None:
    assert error_class(status) is MaybeProcessed


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (307, "307 Temporary Redirect (check DEEPXL_BASE_URL: a redirect is never followed)"),
        (401, "401 Unauthorized (check DEEPXL_API_TOKEN and DEEPXL_AUTH_SCHEME)"),
        (404, "404 Not Found (check DEEPXL_BASE_URL)"),
        (413, "413 Request Entity Too Large (the documents are too large)"),
        (422, "422 Unprocessable Entity"),
        (499, "499"),
    ],
)
def test_a_message_says_what_to_do(status: int, message: str) -> None:
    assert str(status_error("s-1", status, "", None)) == f"s-1: DeepXL responded with {message}"
    located = status_error("s-1", status, '{"detail":[{"loc":["body"]}]}', None)
    assert " at body" in str(located)


def test_an_error_keeps_what_the_response_said() -> None:
    error = status_error("s-1", 429, "busy", 7.0)
    assert (error.http_status, error.body, error.retry_after) == (429, "busy", 7.0)
    assert (error.sent, error.requested_at, error.latency_ms) == (Sent.WHOLE, None, None)
    broken = ContractBroken("odd", text="{}", http_status=200)
    assert (str(broken), broken.text, broken.body, broken.http_status) == ("odd", "{}", "{}", 200)


def test_only_what_fails_every_call_stops_the_run() -> None:
    stopping = {
        kind
        for kind in (
            NotProcessed,
            DocumentUnavailable,
            MaybeProcessed,
            TurnedAway,
            Refused,
            AccessDenied,
            WrongAddress,
            ContractBroken,
            UnexpectedRedirect,
            LookupFailed,
        )
        if kind.stops_run
    }
    assert stopping == {AccessDenied, WrongAddress, UnexpectedRedirect}
    assert issubclass(DeepXLError, KycError)
    assert issubclass(DocumentUnavailable, NotProcessed)
    assert not issubclass(TurnedAway, NotProcessed)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"detail":[{"loc":["body","idFile"],"msg":"field required","type":"missing"}]}', " at body.idFile"),
        (
            '{"detail":[{"loc":["body","tags","Jane Doe"],"msg":"x"},{"loc":["body","selfieFile",0]}]}',
            " at body.tags.?, body.selfieFile.?",
        ),
        ('{"detail":[{"loc":["body","tags","?","?","idFile"]}]}', " at body.tags.?.?"),
        (
            '{"detail":[{"loc":"body"},{"loc":[]},{"loc":null},{"msg":"x"},"body",{"loc":["query"]}]}',
            " at query",
        ),
        (
            json.dumps(
                {
                    "detail": [
                        {"loc": [name]}
                        for name in ("limit", "offset", "limit", "form", "path", "tags", "query")
                    ]
                }
            ),
            " at limit, offset, form, path, tags",
        ),
        ('{"detail":"Jane Doe is unknown"}', ""),
        ('{"statusCode":422,"error":"Jane Doe","message":"customerName Jane Doe invalid"}', ""),
        ("<html><body>Jane Doe</body></html>", ""),
        ("", ""),
        ("[" * 100_000, ""),
    ],
)
def test_messages_show_places_only(body: str, shown: str) -> None:
    error = status_error("submission s-1", 422, body, None)
    assert str(error) == f"submission s-1: DeepXL responded with 422 {error_phrase(422)}{shown}"
    assert error.body == (body or None)


def error_phrase(status: int) -> str:
    from http import HTTPStatus

    return HTTPStatus(status).phrase


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
error_bodies = st.one_of(
    st.text(),
    json_values.map(json.dumps),
    st.lists(json_values, max_size=4).map(
        lambda places: json.dumps({"detail": [{"loc": [place], "msg": "x"} for place in places]})
    ),
    st.fixed_dictionaries({"statusCode": st.integers(), "error": st.text(), "message": st.text()}).map(
        json.dumps
    ),
)


@given(status=st.integers(300, 599), secret=st.text(min_size=1), body=error_bodies)
def test_no_body_reaches_a_message(status: int, secret: str, body: str) -> None:
    marked = f"Jane\x1b[31m{secret}"
    for text in (body, body + marked, json.dumps({"detail": [{"loc": ["body", marked], "msg": marked}]})):
        message = str(status_error("submission s-1", status, text, None))
        assert "Jane" not in message
        assert message.isprintable()
        assert len(message) < 300


@given(st.integers(0, 10**9))
def test_retry_after_in_seconds(seconds: int) -> None:
    assert parse_retry_after(str(seconds), NOW) == min(seconds, RETRY_AFTER_CAP_SECONDS)


@given(st.integers(-(10**6), 10**6))
def test_retry_after_as_a_date(seconds: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(value, NOW) == min(max(seconds, 0), RETRY_AFTER_CAP_SECONDS)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("١٢", None),
        ("-5", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("9" * 5000, RETRY_AFTER_CAP_SECONDS),
        ("Tue, 03 Sep 2024 12:00:30 -0000", 30.0),
        ("Tue, 03 Sep 2024 14:00:30 +0200", 30.0),
        ("Tue, 99 Sep 2024 12:00:30 GMT", None),
    ],
)
def test_retry_after_odd_values(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text())
def test_retry_after_never_fails(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_CAP_SECONDS
