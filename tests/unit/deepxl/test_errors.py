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
CONFLICT = 409


def expected(status: int) -> type[DeepXLError]:
    if status in ACCESS:
        return AccessDenied
    if status in ADDRESS:
        return WrongAddress
    if status in TURNED_AWAY:
        return TurnedAway
    if status == CONFLICT:
        return MaybeProcessed
    return {3: UnexpectedRedirect, 4: Refused}.get(status // 100, MaybeProcessed)


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_has_its_meaning(status: int) -> None:
    assert error_class(status) is expected(status)
    error = status_error("submission s-1", status, "", None)
    assert type(error) is expected(status)
    assert error.http_status == status
    assert f"submission s-1: DeepXL responded with {status}" in str(error)


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
