"""The response contract: what is received, quarantined and never stored."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.deepxl.call_errors import ContractBroken
from kyc_pipeline.deepxl.contract import receive, redact, removed_geometry, reread
from kyc_pipeline.deepxl.jsontext import (
    DEEP_MARKER,
    MAX_DEPTH,
    NotJson,
    Number,
    Object,
    read_json,
    write_json,
)

SEED = (Path(__file__).parents[2] / "fixtures" / "seed_response.json").read_bytes()
DEEP = "[" * 50_000 + "]" * 50_000
VALID = '"verificationId": 457, "verified": true'


def test_the_seed_example_is_received_verbatim() -> None:
    received = receive(SEED)
    assert (received.verification_id, received.verified) == (457, True)
    assert received.text == SEED.decode()
    assert "passport" not in repr(received)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ('{"verificationId": 457, "verified": false}', (457, False)),
        ('{"verificationId": "457", "verified": true}', (457, True)),
        ('{"verificationId": 9007199254740993, "verified": true}', (2**53 + 1, True)),
        ('{"verificationId": 9223372036854775807, "verified": true}', (2**63 - 1, True)),
        ('{"verificationId": -9223372036854775808, "verified": true}', (-(2**63), True)),
        ('{"verificationId": 1, "verificationId": 1, "verified": true}', (1, True)),
        ('{"verification\\u0049d": 2, "verified": true}', (2, True)),
        (f'{{{VALID}, "confidence": NaN, "other": -Infinity}}', (457, True)),
        (f'{{{VALID}, "deep": {DEEP}}}', (457, True)),
        (f'{{{VALID}, "big": {"9" * 5000}}}', (457, True)),
        (f'{{{VALID}, "lone": "\\ud800"}}', (457, True)),
        (f'{{{VALID}, "control": "a\nb\tc"}}', (457, True)),
        (f'{{{VALID}, "tags": {{"result": 1, "verified": "x", "verificationId": null}}}}', (457, True)),
    ],
)
def test_what_the_hard_contract_lets_pass(result: str, expected: tuple[int, bool]) -> None:
    received = receive(f'{{"result": {result}}}'.encode())
    assert (received.verification_id, received.verified) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "<html><body>Bad Gateway</body></html>",
        '{"result": null}',
        '{"result": [1]}',
        '{"verificationId": 457, "verified": true}',
        '{"result": {"verified": true}}',
        '{"result": {"verificationId": null, "verified": true}}',
        '{"result": {"verificationId": true, "verified": true}}',
        '{"result": {"verificationId": 457.0, "verified": true}}',
        '{"result": {"verificationId": 4e2, "verified": true}}',
        '{"result": {"verificationId": "v457", "verified": true}}',
        '{"result": {"verificationId": "", "verified": true}}',
        '{"result": {"verificationId": "\\"5\\"", "verified": true}}',
        '{"result": {"verificationId": 9223372036854775808, "verified": true}}',
        '{"result": {"verificationId": 1, "verificationId": 2, "verified": true}}',
        '{"result": {"verificationId": 457}}',
        '{"result": {"verificationId": 457, "verified": "true"}}',
        '{"result": {"verificationId": 457, "verified": 1}}',
        '{"result": {"verificationId": 457, "verified": null}}',
        '{"result": {"verificationId": 457, "verified": true, "verified": false}}',
        '{"result": {"verificationId": 457, "verified": true}} trailing',
        '{"result": {"verificationId": 457, "verified": true}',
        '{"result": {"verificationId": 457, "verified": tru',
    ],
)
def test_a_body_without_the_hard_contract_is_kept_for_quarantine(body: str) -> None:
    with pytest.raises(ContractBroken) as caught:
        receive(body.encode())
    assert caught.value.text == body
    assert body == "" or body not in str(caught.value)


GEOMETRY = '[{"landmarks": [[1, 2]], "boundingBox": {"x": 0.5}}, {"age": 7}]'


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        (f'{{"idFaces": {GEOMETRY} , "a": 1}}', '{"idFaces": "[geometry removed: 2]" , "a": 1}'),
        (f'{{"SELFIE_FACES":{GEOMETRY}}}', '{"SELFIE_FACES":"[geometry removed: 2]"}'),
        ('{"a": [{"Landmarks": {"eye": [1, 2]}}]}', '{"a": [{"Landmarks": "[geometry removed: 1]"}]}'),
        ('{"boundingbox": [1, 2, "],", 4]}', '{"boundingbox": "[geometry removed: 4]"}'),
        ('{"land\\u006darks": 0.5 }', '{"land\\u006darks": "[geometry removed: 1]" }'),
        ('{"landmarks": 1, "landmarks": [2]}',
         '{"landmarks": "[geometry removed: 1]", "landmarks": "[geometry removed: 1]"}'),
        ('{"idFaces": null, "selfieFaces": [], "landmarks": {}}',
         '{"idFaces": null, "selfieFaces": [], "landmarks": {}}'),
        ('{"details": "landmarks: 5, \\"boundingBox\\": 7"}',
         '{"details": "landmarks: 5, \\"boundingBox\\": 7"}'),
        ('{"a": 1, "idFaces": [{"x": 0.1', '{"a": 1, "[geometry removed: rest of an unreadable body]'),
        ("{'landmarks': [0.1]}", "{'[geometry removed: rest of an unreadable body]"),
        ('{"land__marks-": [1, 2]}', '{"land__marks-": "[geometry removed: 2]"}'),
        ('{"-m_a-rks": 1, "i-d_faces": [1]}', '{"-m_a-rks": 1, "i-d_faces": "[geometry removed: 1]"}'),
        ('{"a": 1, "\\u006Candm\\u0041rks": [[1, 2',
         '{"a": 1, "[geometry removed: rest of an unreadable body]'),
        ('{"a": 1, "id\\u005F-faces": [[1, 2', '{"a": 1, "[geometry removed: rest of an unreadable body]'),
    ],
)  # fmt: skip
def test_geometry_is_cut_and_leaves_a_marker(body: str, stored: str) -> None:
    assert redact(body.encode()) == stored
    assert redact(stored.encode()) == stored


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_geometry_in_utf16_that_ends_within_a_character_is_cut(encoding: str) -> None:
    stored = redact('{"a": 1, "landmarks": [[12345, 2]'.encode(encoding) + b"1")
    assert "12345" not in stored.replace("\\u0000", "")


def test_removed_geometry_is_counted_from_its_marker() -> None:
    assert removed_geometry("[geometry removed: 12]") == 12
    assert removed_geometry("geometry removed: 12") is None
    assert removed_geometry(12) is None


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        (b"\xef\xbb\xbf{}", "{}"),
        ("\ufeff{}".encode("utf-16-le"), "{}"),
        (b'{"a": "M\xfcller"}', '{"a": "M\\udcfcller"}'),
        (b'{"a": "\xed\xa0\x80"}', '{"a": "\\ud800"}'),
        (b'{"a": "x\x00"}', '{"a": "x\\u0000"}'),
        ('{"a": "Zoë 🙂"}'.encode(), '{"a": "Zoë 🙂"}'),
    ],
)
def test_any_bytes_become_text_that_can_be_stored(body: bytes, stored: str) -> None:
    assert redact(body) == stored


@given(st.binary())
def test_no_bytes_break_the_reader(body: bytes) -> None:
    text = redact(body)
    assert "\0" not in text
    text.encode()
    with pytest.raises(ContractBroken):
        receive(body)


NAMES = st.sampled_from(["a", "details", "landmarks", "boundingBox", "idFaces", "SelfieFaces"]) | st.text()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


def plain(value: object) -> object:
    """The result of `json`, from the result of `read_json`."""
    if isinstance(value, Object):
        return {key: plain(member) for key, member in value.members}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return json.loads(value.literal) if isinstance(value, Number) else value


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_reading_exactly_agrees_with_the_standard_library(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    exact = read_json(text)
    assert repr(plain(exact)) == repr(json.loads(text))
    assert read_json(write_json(exact)) == exact


def test_a_literal_and_a_repeated_key_are_kept() -> None:
    value = read_json('{"a": 0.970, "a": 1E2, "b": 18446744073709551616}')
    assert value == Object(
        [("a", Number("0.970")), ("a", Number("1E2")), ("b", Number("18446744073709551616"))]
    )
    assert write_json(value) == '{"a":0.970,"a":1E2,"b":18446744073709551616}'
    assert write_json("\ud800é") == '"\\ud800é"'


@given(st.text(alphabet='{}[]",:0123.eE+-ntrufalse \\', max_size=30))
def test_reading_exactly_refuses_what_the_standard_library_refuses(text: str) -> None:
    try:
        json.loads(text, strict=False)
    except ValueError:
        with pytest.raises(NotJson):
            read_json(text)
    else:
        read_json(text)


MARKER = f'"{DEEP_MARKER}"'


def nested(depth: int) -> str:
    return '[{"a": ' * (depth // 2) + "0" + "}]" * (depth // 2)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (nested(MAX_DEPTH), nested(MAX_DEPTH)),
        (f"[{nested(MAX_DEPTH)}, 1]", f"[{nested(MAX_DEPTH)}, 1]".replace('{"a": 0}', MARKER)),
        ("[" * 9_999 + '"]", "\\"[", 1' + "]" * 9_999, "[" * MAX_DEPTH + MARKER + "]" * MAX_DEPTH),
        ("[" * 9_999, "[" * MAX_DEPTH + MARKER),
        ("[" * 65 + '"' + '\\"' * 1_000_000, "[" * MAX_DEPTH + MARKER),
        ('"' + "[" * 9_999 + '"', '"' + "[" * 9_999 + '"'),
        (f'{{"landmarks": {DEEP}}}', '{"landmarks": "[geometry removed: 1]"}'),
        ("[" * MAX_DEPTH + '{"landmarks": 1', "[" * MAX_DEPTH + MARKER),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_nested_too_deep_leaves_a_marker(text: str, stored: str) -> None:
    assert redact(text.encode()) == stored
    assert redact(stored.encode()) == stored


def test_a_stored_response_of_any_depth_is_read() -> None:
    text = f'{{"result": {{{VALID}, "x": {DEEP}}}, "result": {{{VALID}, "x": {DEEP}}}}}'
    assert reread(text).verification_id == 457
    assert DEEP_MARKER in write_json(reread(text).parsed)


def cut(value: object) -> object:
    """The specification of `redact`, on values."""
    if isinstance(value, list):
        return [cut(item) for item in value]
    if not isinstance(value, dict):
        return value
    cut_keys = {"landmarks", "boundingbox", "idfaces", "selfiefaces"}
    return {
        key: f"[geometry removed: {len(inner) if isinstance(inner, list | dict) else 1}]"
        if key.lower() in cut_keys and inner not in (None, "", [], {})
        else inner if key.lower() in cut_keys else cut(inner)
        for key, inner in value.items()
    }  # fmt: skip


@given(VALUES, st.sampled_from([None, 1]))
def test_redaction_cuts_geometry_at_any_depth_and_nothing_else(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert repr(json.loads(redact(text.encode()))) == repr(cut(json.loads(text)))
