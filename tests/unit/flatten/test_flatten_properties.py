"""Nothing is lost: every leaf of any response is in a table, in `anomalies` or in `contract_drift`."""

import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.lake.tables import MODEL_CHECKS, VERIFICATION_FILES, VERIFICATION_TAGS, VERIFICATIONS
from tests.effort import tries
from tests.unit.flatten.support import CLEAR, PSEUDONYMS, Day, echo, response_row, submission_row, text_of

TOP_KEYS = ["model", "modelVersion", "idFileType", "idFileName", "idName", "idFileSize", "idSize"]
TIME_KEYS = ["timestamp", "timestampISO"]
CHECK_KEYS = ["type", "checkType", "status", "confidence", "details"]
TAG_KEYS = ["name", "value"]
FILE_KEYS = ["category", "contentType", "fileSize", "fileName", "url", *TIME_KEYS]
GROUP_KEYS = ["modelResults", "technicalChecks", "tags", "files"]
KEYS = [*TOP_KEYS, *CHECK_KEYS, *TAG_KEYS, *FILE_KEYS, *GROUP_KEYS, "new", "other"]
LEAVES = st.sampled_from(["text", "whole", "fraction", "null", "true", "empty", "object", "list"])
SHAPES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=30,
)


def members(keys: list[str], leaves: Any = LEAVES) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of `keys`, often several."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, leaves))


CHECKS = st.lists(members(CHECK_KEYS, st.just("text") | LEAVES) | SHAPES, max_size=3)
TAGS = st.lists(members(TAG_KEYS, st.just("text") | LEAVES) | SHAPES, max_size=3)
RESULTS = (members([*TOP_KEYS, *TIME_KEYS]) | st.dictionaries(st.sampled_from(KEYS), SHAPES)).flatmap(
    lambda base: st.fixed_dictionaries(
        {},
        optional={
            "modelResults": st.fixed_dictionaries({"technicalChecks": CHECKS}, optional={"other": CHECKS}),
            "technicalChecks": CHECKS,
            "tags": TAGS,
            "files": st.lists(members(FILE_KEYS), max_size=3),
        },
    ).map(lambda known: {**base, **known})
)


def numbered(shape: Any, numbers: Iterator[int]) -> Any:
    """`shape` with a unique value for each leaf, if its type allows."""
    if isinstance(shape, dict):
        return {key: numbered(value, numbers) for key, value in shape.items()}
    if isinstance(shape, list):
        return [numbered(value, numbers) for value in shape]
    number = next(numbers)
    unique = {"text": f"text {number}", "whole": number, "fraction": number / 1024}
    return unique.get(shape, {"null": None, "true": True, "empty": "", "object": {}, "list": []}.get(shape))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of scalars and empty containers."""
    if isinstance(value, dict) and value:
        for key, member in value.items():
            yield from leaves(member, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path, value


RESTRICTED = {"idFileName", "idName", "fileName", "url"}
"""Known fields that only the restricted response keeps."""
NOT_IN_A_TABLE = {
    "unknown_type",
    "unknown_status",
    "unknown_field",
    "type_mismatch",
    "null_field",
    "empty_field",
}
EXPLAINS = {
    "field_conflict": {"idFileName", "idName", "idFileSize", "idSize", "type", "checkType"},
    "tag_without_name": {"value"},
    "timestamp_out_of_range": {"timestamp"},
    "timestamp_iso_unreadable": {"timestampISO"},
    "confidence_not_a_number": {"confidence"},
    "text_withheld": {
        *("model", "modelVersion", "idFileType", "selfieFileType", "category", "contentType", "name"),
    },
}


def unaccounted(day: Day, response: Any) -> list[tuple[str, Any]]:
    """The leaves that nothing accounts for."""
    tables = [
        day.rows(table) for table in (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES)
    ]
    cells = {str(cell) for rows in tables for row in rows for cell in row.values()}
    tag_names = {str(value) for path, value in leaves(response) if path.endswith("name")}
    tag_names |= {path.removeprefix("result.tags.") for path, _ in leaves(response)}
    # The other kinds describe a value that is in a table.
    drift = {path for path, kind in day.drift() if kind in NOT_IN_A_TABLE}
    explained = set().union(*(EXPLAINS.get(code, set()) for code in day.anomalies()))

    def is_accounted(path: str, value: Any) -> bool:
        key = path.rpartition(".")[2]
        shown = {str(value), json.dumps(value)}
        if isinstance(value, int | float) and abs(value) < 10**11:
            shown.add(str(datetime.fromtimestamp(value, UTC)))
        pseudonyms = {PSEUDONYMS.tag(name, text) for name in tag_names for text in shown}
        return (
            bool(cells & (shown | pseudonyms))
            or any(path == known or path.startswith((f"{known}.", f"{known}[]")) for known in drift)
            or key in RESTRICTED | explained
            or path == "result.files[].timestampISO"
        )

    return [leaf for leaf in leaves(response) if not is_accounted(*leaf)]


@settings(max_examples=tries(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RESULTS, st.dictionaries(st.sampled_from(["new", "error"]), SHAPES, max_size=2))
def test_every_leaf_of_any_response_is_accounted_for(
    result: dict[str, Any], envelope: dict[str, Any]
) -> None:
    numbers = itertools.count(20_001)
    response = {
        **numbered(envelope, numbers),
        "result": {**numbered(result, numbers), "verificationId": 457, "verified": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        day = Day(Path(folder))
        summary = day.flatten(json.dumps(response))
        assert (summary.verifications, summary.unreadable) == (1, 0)
        assert unaccounted(day, response) == []


VARIED = ("model", "idFileSize", "tags", "files", "timestampISO", "modelResults", "timestamp")


def as_it_should_be(chance: random.Random, submission_id: str) -> dict[str, Any]:
    """A response with nothing to report, so that the fast path takes it."""
    checks = [
        {
            "type": type_,
            "status": chance.choice(["PASS", "FAIL", "WARNING"]),
            "confidence": chance.random(),
            "details": chance.choice(["fine", "Größe 🙂", 'a"b']),
        }
        for type_ in chance.sample(["FACE_MATCH", "LIVENESS", "ID_QUALITY"], chance.randint(1, 3))
    ]
    return echo(
        submission_id,
        verificationId=chance.randrange(2**53),
        verified=chance.random() < 0.8,
        modelResults={"technicalChecks": checks},
        timestamp=1725795600 + chance.randrange(10**6),
    )


def generated_day(seed: int, count: int) -> dict[str, dict[str, Any]]:
    """Responses as the API might give them, by submission; every second one may have variations."""
    chance = random.Random(seed)
    results: dict[str, dict[str, Any]] = {}
    for index in range(count):
        submission_id = f"s-{index:05}"
        if index % 2:
            results[submission_id] = as_it_should_be(chance, submission_id)
            continue
        checks = [
            {
                "type": type_,
                "status": chance.choice(["PASS", "FAIL", "WARNING"]),
                "confidence": chance.random(),
            }
            for type_ in chance.sample(["FACE_MATCH", "LIVENESS", "ID_QUALITY", "GAIT"], chance.randint(0, 4))
        ]
        for check in checks:
            if chance.random() < 0.2:
                check.pop(chance.choice(list(check)))
            if chance.random() < 0.2:
                check["confidence"] = chance.choice([97, -1, "0.97", None, True, 1, 0])
        result = echo(
            submission_id,
            verificationId=chance.randrange(2**53),
            verified=chance.random() < 0.8,
            modelResults={"technicalChecks": checks},
            timestamp=1725795600 + chance.randrange(10**6),
        )
        for key in VARIED:
            if chance.random() < 0.05:
                result[key] = None
            elif chance.random() < 0.05:
                del result[key]
        if chance.random() < 0.1:
            result["unknown"] = {"a": chance.random()}
        results[submission_id] = result
    return results


def plain_rows(results: dict[str, dict[str, Any]], record_path: list[str]) -> pd.DataFrame:
    """An independent reading: the records at `record_path`, with the id of their response."""
    having = []
    for submission_id, result in results.items():
        inner: Any = result
        for key in record_path:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if inner:
            having.append({**result, "submission_id": submission_id})
    return pd.json_normalize(having, record_path, ["submission_id"])


def plain(values: Any) -> list[Any]:
    """Values with one kind of missing."""
    return [None if pd.isna(value) else value for value in values]


def test_the_tables_agree_with_an_independent_reading(day: Day) -> None:
    results = generated_day(seed=4, count=tries(10_000))
    day.write(
        [response_row(id_, text_of(result)) for id_, result in results.items()],
        [submission_row(id_) for id_ in results],
    )
    assert day.flatten().exact <= len(results) / 2

    # Only flat fields: pandas is slow at copying nested values, and this test does not read them.
    scalars = [
        {key: None if isinstance(value, dict | list) else value for key, value in result.items()}
        for result in results.values()
    ]
    expected = pd.json_normalize(scalars)
    found = pd.DataFrame(day.rows(VERIFICATIONS))
    assert found["submission_id"].tolist() == list(results)
    assert found["verification_id"].tolist() == expected["verificationId"].tolist()
    assert found["verified"].tolist() == expected["verified"].tolist()
    for column, key in (
        ("model", "model"),
        ("id_file_size", "idFileSize"),
        ("timestamp_iso", "timestampISO"),
    ):
        assert plain(found[column]) == plain(expected[key])
    epochs = [None if pd.isna(at) else at.timestamp() for at in found["verified_at"]]
    assert epochs == plain(expected["timestamp"])

    checks = plain_rows(results, ["modelResults", "technicalChecks"])
    found = pd.DataFrame(day.rows(MODEL_CHECKS))
    assert found["submission_id"].tolist() == checks["submission_id"].tolist()
    assert plain(found["type"]) == ["OTHER" if each == "GAIT" else each for each in plain(checks["type"])]
    assert plain(found["status"]) == plain(checks["status"])
    scores = [
        value if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None
        for value in checks["confidence"]
    ]
    assert plain(found["confidence"]) == scores

    tags = plain_rows(results, ["tags"])
    found = pd.DataFrame(day.rows(VERIFICATION_TAGS))
    assert found["name"].tolist() == tags["name"].tolist()
    pairs = list(zip(tags["name"], tags["value"], strict=True))
    assert found["pseudonym"].tolist() == [PSEUDONYMS.tag(name, value) for name, value in pairs]
    assert plain(found["value"]) == [value if name in CLEAR else None for name, value in pairs]

    files = plain_rows(results, ["files"])
    found = pd.DataFrame(day.rows(VERIFICATION_FILES))
    assert found["submission_id"].tolist() == files["submission_id"].tolist()
    for column, key in (("category", "category"), ("content_type", "contentType"), ("file_size", "fileSize")):
        assert found[column].tolist() == files[key].tolist()

    drift = day.drift()
    for key in VARIED:
        path = f"result.{key}"
        assert drift[path, "missing_field"] == sum(key not in result for result in results.values())
        assert drift[path, "null_field"] == sum(result.get(key, "") is None for result in results.values())
    assert drift["result.unknown.a", "unknown_field"] == sum("unknown" in r for r in results.values())
