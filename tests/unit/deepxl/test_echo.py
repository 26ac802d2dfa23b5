"""A response's echo against what was sent."""

import json
from typing import Any

import pytest

from kyc_pipeline.deepxl.echo import Echo, echo_mismatches, read_echo
from kyc_pipeline.vocabulary import Anomaly

SIZE, MISMATCH, MISSING = Anomaly.ECHO_SIZE_MISMATCH, Anomaly.ECHO_TAGS_MISMATCH, Anomaly.ECHO_TAGS_MISSING


def tags(**pairs: Any) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in pairs.items()]


@pytest.mark.parametrize(
    ("result", "mismatches"),
    [
        ({"idFileSize": 5, "selfieFileSize": 6, "tags": tags(a="1", b="2")}, []),
        ({"tags": tags(b="2", a="1")}, []),
        ({}, []),
        ({"idFileSize": None, "selfieFileSize": "7", "tags": "a"}, []),
        ({"idFileSize": 6}, [(SIZE, "idFileSize")]),
        ({"idSize": 6, "selfieSize": 7}, [(SIZE, "idFileSize"), (SIZE, "selfieFileSize")]),
        ({"tags": tags(b="x")}, [(MISSING, "tag a"), (MISMATCH, "tag b")]),
        ({"tags": tags(a="1", b="2", other="3")}, [(MISMATCH, None)]),
        ({"tags": tags(a="1", b="2") + tags(a="x")}, [(MISMATCH, "tag a")]),
        ({"tags": [1, {"name": ["a"]}, *tags(a="1", b=2)]}, [(MISMATCH, "tag b")]),
    ],
)
def test_an_echo_that_contradicts_what_was_sent_is_named(
    result: dict[str, Any], mismatches: list[tuple[Anomaly, str | None]]
) -> None:
    echo = read_echo(json.dumps({"result": result}))
    sent = {"b": "2", "a": "1"}
    assert list(echo_mismatches(echo, id_size=5, selfie_size=6, tags=sent)) == mismatches


@pytest.mark.parametrize(
    "text", ["", "{}", '{"result": 1}', f'{{"result": {{"deep": {"[" * 5000}{"]" * 5000}}}}}']
)
def test_a_text_without_a_result_echoes_nothing(text: str) -> None:
    assert read_echo(text) == Echo(None, None, None)
