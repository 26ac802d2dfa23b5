"""The fast path gives the rows of the exact path, and takes only responses with nothing to report."""

import json
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.deepxl.call_errors import ContractBroken
from kyc_pipeline.deepxl.contract import reread
from kyc_pipeline.flatten import blocks
from kyc_pipeline.flatten.blocks import BlockFlattener, select
from kyc_pipeline.flatten.drift import DriftCounter
from kyc_pipeline.flatten.partition import as_sent
from kyc_pipeline.flatten.records import FACTS, RecordFlattener, Rows, SentSubmission
from kyc_pipeline.lake.tables import SUBMISSIONS
from tests.effort import tries
from tests.unit.flatten.support import (
    CLEAR,
    PSEUDONYMS,
    SEED,
    SEED_TAGS,
    SHA,
    Day,
    echo,
    submission_row,
    text_of,
)

SENT_COLUMNS = ["id_sha256", "id_size", "selfie_size", "tags"]
SENT = SentSubmission(SHA, SEED["idFileSize"], SEED["selfieFileSize"], SEED_TAGS)

ODD_VALUES = st.sampled_from(
    [
        *(None, "", " ", [], {}, [1], {"a": 1}, True, 0, 1, -1, 97, 2**53 + 1, 2**63, 0.970001, 5e9, 1e300),
        *(1725795600.1, 1725795600123, float("nan"), float("inf"), "0.97", "Zoë 🙂", "a\u0000b", "a\x1fb"),
        *("confidence", "null", "PASS", "fail ", "GAIT", "\ud800", "\u2028", "2024-02-30T10:00:00"),
        *("2024-09-08 10:00:00.123", "2024-09-08T10:00:00Z", "1899-01-01T00:00:00", "2024-09-08T23:59:60"),
        *("2024-09-08T10:00:00.1234567", "2024-09-08T24:00:00"),
    ]
)
LITERALS = st.sampled_from(
    [
        ("0.97", "0.9700"),
        ("0.97", "9.7e-1"),
        ("0.97", "1"),
        ("0.97", "-0.0"),
        ("0.97", "0.1" + "0" * 40 + "1"),
        ("0.97", "1.0000000000000000000001"),
        ('"confidence": 0.97', '"confidence":\t0.97'),
        ('"confidence": 0.97', '"c\\u006fnfidence": 0.97'),
        ("1725795600", "1.7257956e9"),
        ("1725795600", "1725795600.1234567"),
        ("457", "4.57e2"),
        ("457", "0457"),
        (": ", ":"),
        ("}", " }"),
        ("{", "{\n"),
        ("", " "),
        ("}", "} x"),
        ("}", ""),
        ("true", "false"),
        ('"model": "', '"model": "\\"confidence\\": 5'),
        ('"model"', '"model": "x", "model"'),
        ('"name"', '"name": "x", "name"'),
        ('"details": "', '"details": "\\/\\u00e9'),
        ('"details": "', '"details": "\\ud800'),
        ('{"result"', '{"other": {"confidence": 0.1}, "result"'),
        ("{", '{"modelVersion": "2", '),
    ]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in `value`."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in places(value[key])]


@st.composite
def responses(draw: st.DrawFn) -> str:
    """The response to s-0, correct or with one or two changes anywhere."""
    result = json.loads(json.dumps(echo("s-0")))
    if draw(st.booleans()):
        result["modelVersion"] = draw(st.sampled_from(["1.0.0", "", None]))
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from(places(result)))
        change = draw(st.sampled_from(["value", "value", "remove", "reverse", "add", "twice"]))
        if change == "value":
            container[key] = draw(ODD_VALUES)
        elif change == "remove":
            del container[key]
        elif change == "reverse" and isinstance(container, list):
            container.reverse()
        elif change == "twice" and isinstance(container, list):
            container.append(container[key])
        elif isinstance(container, dict):
            container[draw(st.sampled_from(["new", "technicalChecks", "idSize", "checkType"]))] = draw(
                ODD_VALUES
            )
    text = text_of(result)
    for old, new in draw(st.lists(LITERALS, max_size=1)):
        text = text.replace(old, new, draw(st.sampled_from([1, -1])))
    return text


def exactly(texts: list[str], ids: list[str]) -> tuple[dict[str, pa.Table], DriftCounter]:
    """The rows of the exact path."""
    rows, drift = Rows(), DriftCounter()
    flattener = RecordFlattener(PSEUDONYMS, CLEAR, drift)
    for submission_id, text in zip(ids, texts, strict=True):
        flattener.add(rows, submission_id, reread(text), SENT)
    return {table.name: rows.table(table) for table in FACTS}, drift


def is_readable(text: str) -> bool:
    try:
        reread(text)
    except ContractBroken:
        return False
    return True


def sent_rows(ids: list[str]) -> pa.Table:
    """What was sent, as stored in the lake."""
    rows = pa.Table.from_pylist([submission_row(id_) for id_ in ids], SUBMISSIONS.schema)
    return as_sent(rows.select(SENT_COLUMNS), pa.nulls(len(ids), pa.string()))


@settings(max_examples=tries(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(responses(), min_size=1, max_size=4))
def test_both_paths_give_the_same_rows(texts: list[str]) -> None:
    for text in texts:
        flatten_both([text])
    flatten_both(texts)
    with mock.patch.object(
        blocks, "_SMALLEST", 1
    ):  # a block that Arrow refuses is halved to single responses
        flatten_both(texts)


def select_of(texts: list[str]) -> Any:
    """The responses of `texts`, all to s-0, that the fast path takes."""
    ids = ["s-0"] * len(texts)
    return select(pa.array(ids, pa.string()), pa.array(texts, pa.string()), sent_rows(ids))


def taken(texts: list[str]) -> list[int]:
    positions: list[int] = select_of(texts)["position"].to_pylist()
    return positions


def flatten_both(texts: list[str]) -> None:
    """All are responses to s-0, since the fast path checks each response independently."""
    block = select_of(texts)
    tables = BlockFlattener(PSEUDONYMS, CLEAR).flatten(block)
    chosen = [texts[position] for position in block["position"].to_pylist()]
    assert all(is_readable(text) for text in chosen)
    expected, drift = exactly(chosen, ["s-0"] * len(chosen))
    for table in FACTS:
        assert tables[table].schema == table.schema
        assert tables[table].to_pylist() == expected[table.name].to_pylist()
    assert drift.rows() == []
    assert not any(expected["verifications"]["anomalies"].to_pylist())


def test_the_fast_path_takes_every_response_with_nothing_to_report() -> None:
    texts = [
        text_of(echo("s-0")),
        text_of(echo("s-0", modelVersion="1.0.0")),
        text_of(echo("s-0", tags=echo("s-0")["tags"][::-1])),
        text_of(echo("s-0", new=1)),
        text_of(echo("s-0")).replace('"confidence": 0.97, ', ""),
        text_of(echo("s-0", verificationId=2**53 + 1, timestamp=1725795600.25)),
        json.dumps({"result": echo("s-0")}, separators=(",", ":")),
    ]
    assert taken(texts) == [0, 1, 2, 5, 6]


@pytest.mark.parametrize(
    "odd",
    [
        [{"new": {"confidence": 0.5}}],
        [{"new": 1}, {"new": "x"}, {"new": [{"deep": {}}]}],
        [{"idFileSize": "234567"}],
        [{"verificationId": 2**63 - 1, "model": {"name": "a"}}],
        [{"timestampISO": "2024-02-30T10:00:00"}],
    ],
    ids=[
        "a confidence elsewhere",
        "types that differ",
        "a wrong type",
        "an object for a text",
        "no such day",
    ],
)
def test_an_odd_response_leaves_the_others_of_its_block_to_the_fast_path(odd: list[dict[str, Any]]) -> None:
    texts = [text_of(echo("s-0", **changes)) for changes in ({}, *odd, {}, {})]
    assert taken(texts) == [0, len(odd) + 1, len(odd) + 2]
    flatten_both(texts)


GOOD = text_of(echo("s-0"))
CONFIDENCE = '"confidence": 0.97'


@pytest.mark.parametrize(
    ("odd", "around"),
    [
        (GOOD.replace('"idFileSize": 234567', f'"idFileSize": {2**63}'), 0),
        (GOOD.replace('"model": "', '"model": null, "model": "'), 0),
        (GOOD[:-1] + f', "more": "{"x" * 70_000}"}}', 0),
        (GOOD.replace("{", "{\n", 1), 0),
        (GOOD[:-2], 0),
        ("", 0),
        (GOOD.replace('"model": "', '"model": "x", "model": "'), 63),
        (GOOD.replace('"confidence"', '"c\\u006fnfidence"', 1), 63),
    ],
    ids=[
        *("beyond 64 bits", "null", "long", "two lines"),
        *("cut off", "empty", "repeated key", "escaped key"),
    ],
)
def test_an_odd_response_costs_few_others_the_fast_path(odd: str, around: int) -> None:
    texts = [GOOD] * 150 + [odd] + [GOOD] * 150
    left = set(range(len(texts))) - set(taken(texts))
    assert 150 in left
    assert len(left) <= 1 + around


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('"model":', '"model" :', 1),
        GOOD.replace('"details": "', '"details": "\\"a\\": ', 1),
        GOOD.replace('"details": "', '"details": "\\"confidence\\": 0.5', 1),
    ],
    ids=["blank before a colon", "a key within a text", "a confidence within a text"],
)
def test_responses_that_only_look_odd_take_the_fast_path(text: str) -> None:
    assert taken([GOOD, text, GOOD]) == [0, 1, 2]
    flatten_both([GOOD, text, GOOD])


def test_responses_that_end_with_a_line_break_take_the_fast_path() -> None:
    assert taken([GOOD + "\n", GOOD, GOOD + " \r\n"]) == [0, 1, 2]
    flatten_both([GOOD + "\n", GOOD])


def test_a_confidence_keeps_its_own_literal_though_others_have_one_too_many_or_too_few() -> None:
    more = text_of(echo("s-0", x={"confidence": 0.97}))
    fewer = GOOD.replace(CONFIDENCE, '"c\\u006fnfidence": 0.97', 1)
    replaced = text_of({**echo("s-0", x={"confidence": 0.97}), "model": None, "modelVersion": None})
    replaced = replaced.replace('"model": null, ', "").replace('"modelVersion": null, ', "")
    marked = GOOD.replace(CONFIDENCE, '"confidence": 0.970', 1)
    for surplus in (more, replaced):
        flatten_both([surplus, marked, fewer])
        assert set(taken([surplus, marked, fewer])) <= {1, 2}


def test_texts_that_are_json_only_together_are_not_taken() -> None:
    start, end = GOOD[:-1].rsplit('"tags"', 1)
    assert taken([f'{GOOD} {{"result":', GOOD + "}"]) == []
    assert taken([start + '"tags"', end + "}", GOOD]) == [2]
    assert taken(['{"a": "}', '{"}', GOOD + GOOD]) == []


@settings(max_examples=tries(100), deadline=None)
@given(
    st.lists(st.sampled_from([GOOD, GOOD + "\n", "", "{", "}", "{}", "null", " ", "{\n}", None]), max_size=9)
)
def test_only_whole_documents_are_taken(texts: list[Any]) -> None:
    expected = [place for place, text in enumerate(texts) if text and text.strip() == GOOD]
    assert taken(texts) == expected


def test_unknown_fields_take_no_memory_for_the_responses_that_lack_them() -> None:
    def peak(texts: list[str]) -> int:
        pool, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            taken(texts)
        finally:
            pa.set_memory_pool(usual)
        return pool.max_memory() or 0

    by_id = [text_of(echo("s-0", more={f"k{n}-{m}": 1 for m in range(20)})) for n in range(100)]
    assert peak([GOOD] * 900 + by_id) < 1.3 * peak([GOOD] * 1000)


def test_a_mixed_day_keeps_the_order_of_its_responses(day: Day) -> None:
    texts = [text_of(echo(f"s-{i}", verificationId=i, **({"new": 1} if i % 3 else {}))) for i in range(10)]
    summary = day.flatten(*texts)
    assert (summary.completed, summary.exact) == (10, 6)
    for table in FACTS:
        ids = [row["verification_id"] for row in day.rows(table)]
        assert ids == sorted(ids)
        assert set(ids) == set(range(10))
    checks = [row["check_index"] for row in day.rows(FACTS[1])]
    assert checks == [0, 1, 2] * 10
