"""Known and conceivable variations of the response: where each value goes, and what is counted."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from kyc_pipeline.deepxl.contract import receive
from kyc_pipeline.lake.tables import MODEL_CHECKS, VERIFICATION_FILES, VERIFICATION_TAGS, VERIFICATIONS, Table
from kyc_pipeline.vocabulary import Anomaly, DriftKind
from tests.unit.flatten.support import PSEUDONYMS, SEED, Day, echo, text_of

GONE = object()
CHECK = {"type": "LIVENESS", "status": "PASS", "confidence": 0.5, "details": "fine"}
FILE = SEED["files"][0]
TECHNICAL = "result.modelResults.technicalChecks"
FOREIGN = {
    "REVIEW": "REVIEW",
    "WARNING": "REVIEW",
    "NOT_EXECUTED": "NOT_EVALUATED",
    "ERROR": "ERROR",
    "PENDING": "PENDING",
}
OWN_TAG = {"name": "submissionId", "value": "s-0"}


def response(**changes: Any) -> str:
    """The response to s-0 with changes; `GONE` removes a field."""
    return text_of({key: value for key, value in echo("s-0", **changes).items() if value is not GONE})


def with_check(**changes: Any) -> str:
    """A response with one check, changed."""
    check = {key: value for key, value in {**CHECK, **changes}.items() if value is not GONE}
    return response(modelResults={"technicalChecks": [check]})


def with_file(**changes: Any) -> str:
    """A response with one file, changed."""
    return response(files=[{key: value for key, value in {**FILE, **changes}.items() if value is not GONE}])


def literal(text: str, old: str, new: str) -> str:
    """`text` with a piece of JSON that `json.dumps` would not write."""
    assert old in text
    return text.replace(old, new)


def times(timestamp: str, iso: Any = "2024-09-08T11:40:00") -> str:
    return literal(response(timestamp=-77, timestampISO=iso, files=[FILE]), "-77", timestamp)


Expected = tuple[str, dict[tuple[str, str], int], list[str], Table, list[dict[str, Any]]]
MOMENT = datetime(2024, 9, 8, 11, 40, tzinfo=UTC)

CASES: dict[str, Expected] = {
    "checkType": (
        literal(with_check(), '"type"', '"checkType"'),
        {},
        [],
        MODEL_CHECKS,
        [{"type": "LIVENESS"}],
    ),
    "both names agree": (
        with_check(checkType="LIVENESS"),
        {},
        [],
        MODEL_CHECKS,
        [{"type": "LIVENESS"}],
    ),
    "both names disagree": (
        with_check(checkType="FACE_MATCH"),
        {},
        ["field_conflict"],
        MODEL_CHECKS,
        [{"type": "LIVENESS"}],
    ),
    "checks at result": (
        response(modelResults=GONE, technicalChecks=[CHECK]),
        {},
        [],
        MODEL_CHECKS,
        [{"check_group": "technicalChecks", "check_index": 0, "confidence": 0.5}],
    ),
    "the same checks in both places": (
        response(modelResults={"technicalChecks": [CHECK]}, technicalChecks=[CHECK]),
        {},
        [],
        MODEL_CHECKS,
        [{"check_group": "technicalChecks"}],
    ),
    "other checks in both places": (
        response(modelResults={"technicalChecks": [CHECK]}, technicalChecks=[CHECK, CHECK]),
        {},
        [],
        MODEL_CHECKS,
        [
            {"check_group": "technicalChecks", "check_index": 0},
            {"check_group": "result.technicalChecks", "check_index": 0},
            {"check_group": "result.technicalChecks", "check_index": 1},
        ],
    ),
    "no checks": (
        response(modelResults={"technicalChecks": []}),
        {(TECHNICAL, "empty_field"): 1},
        ["empty_field"],
        VERIFICATIONS,
        [{"check_count": 0, "verified": True}],
    ),
    "no model results": (
        response(modelResults=GONE),
        {("result.modelResults", "missing_field"): 1},
        ["missing_field"],
        VERIFICATIONS,
        [{"check_count": 0}],
    ),
    "null model results": (
        response(modelResults=None),
        {("result.modelResults", "null_field"): 1},
        ["null_field"],
        MODEL_CHECKS,
        [],
    ),
    "another group of checks": (
        response(modelResults={"technicalChecks": [CHECK], "fraudChecks": [CHECK, CHECK]}),
        {},
        ["text_withheld"],
        MODEL_CHECKS,
        [
            {"check_group": "technicalChecks", "check_index": 0},
            {"check_group": "OTHER", "check_index": 0},
            {"check_group": "OTHER", "check_index": 1},
        ],
    ),
    "texts that may be a person's": (
        response(model="Jane Doe", idFileType="Jane Doe", modelVersion="J. Doe, born 1990"),
        {},
        ["text_withheld"],
        VERIFICATIONS,
        [{"model": "OTHER", "id_file_type": "OTHER", "model_version": "OTHER"}],
    ),
    "words that may be a person's": (
        response(model="JaneDoe", idFileType="L01X00T47", modelVersion="03.02.1990"),
        {},
        ["text_withheld"],
        VERIFICATIONS,
        [{"model": "OTHER", "id_file_type": "OTHER", "model_version": "OTHER"}],
    ),
    "a category and a type that may be a person's": (
        with_file(category="JaneDoe", contentType="jane/doe"),
        {},
        ["text_withheld"],
        VERIFICATION_FILES,
        [{"category": "OTHER", "content_type": "OTHER"}],
    ),
    "a confidence of many digits": (
        with_check(confidence=12345678901234567890123456789012345678901),
        {(f"{TECHNICAL}[].confidence", "confidence_out_of_range"): 1},
        ["confidence_out_of_range"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "OTHER"}],
    ),
    "a group that is no list": (
        response(modelResults={"technicalChecks": [CHECK], "risk": {"score": 3, "by": [1]}}),
        {
            ("result.modelResults.risk", "type_mismatch"): 1,
            ("result.modelResults.risk.score", "unknown_field"): 1,
            ("result.modelResults.risk.by[]", "unknown_field"): 1,
        },
        ["type_mismatch", "unknown_field"],
        VERIFICATIONS,
        [{"check_count": 1}],
    ),
    "a check that is no object": (
        response(modelResults={"technicalChecks": ["PASS", None, CHECK]}),
        {(f"{TECHNICAL}[]", "type_mismatch"): 1, (f"{TECHNICAL}[]", "null_field"): 1},
        ["null_field", "type_mismatch"],
        MODEL_CHECKS,
        [{"check_index": 2}],
    ),
    "unknown type": (
        with_check(type="GAIT"),
        {(f"{TECHNICAL}[].type", "unknown_type"): 1},
        ["unknown_type"],
        MODEL_CHECKS,
        [{"type": "OTHER"}],
    ),
    "status FAIL": (
        with_check(status="FAIL"),
        {},
        [],
        MODEL_CHECKS,
        [{"status": "FAIL", "normalized_status": "FAIL"}],
    ),
    "status of another vendor": (
        with_check(status=" warning "),
        {},
        [],
        MODEL_CHECKS,
        [{"status": " warning ", "normalized_status": "REVIEW"}],
    ),
    "statuses of other vendors": (
        response(modelResults={"technicalChecks": [{**CHECK, "status": status} for status in FOREIGN]}),
        {},
        [],
        MODEL_CHECKS,
        [{"status": status, "normalized_status": normal} for status, normal in FOREIGN.items()],
    ),
    "unknown status": (
        with_check(status="MAYBE"),
        {(f"{TECHNICAL}[].status", "unknown_status"): 1},
        ["unknown_status"],
        MODEL_CHECKS,
        [{"status": "OTHER", "normalized_status": "UNKNOWN"}],
    ),
    "no status": (
        with_check(status=GONE),
        {(f"{TECHNICAL}[].status", "missing_field"): 1},
        ["missing_field"],
        MODEL_CHECKS,
        [{"status": None, "normalized_status": "UNKNOWN"}],
    ),
    "null status": (
        with_check(status=None),
        {(f"{TECHNICAL}[].status", "null_field"): 1},
        ["null_field"],
        MODEL_CHECKS,
        [{"status": None, "normalized_status": "UNKNOWN"}],
    ),
    "empty status": (
        with_check(status=""),
        {(f"{TECHNICAL}[].status", "empty_field"): 1},
        ["empty_field"],
        MODEL_CHECKS,
        [{"status": "", "normalized_status": "UNKNOWN"}],
    ),
    "numeric status": (
        with_check(status=1),
        {(f"{TECHNICAL}[].status", "type_mismatch"): 1},
        ["type_mismatch"],
        MODEL_CHECKS,
        [{"status": None, "normalized_status": "UNKNOWN"}],
    ),
    "confidence 0": (
        with_check(confidence=0),
        {},
        [],
        MODEL_CHECKS,
        [{"confidence": 0.0, "confidence_raw": "0"}],
    ),
    "confidence 1.0": (
        with_check(confidence=1.0),
        {},
        [],
        MODEL_CHECKS,
        [{"confidence": 1.0, "confidence_raw": "1.0"}],
    ),
    "confidence with a trailing zero": (
        literal(with_check(), "0.5", "9.70e-1"),
        {},
        [],
        MODEL_CHECKS,
        [{"confidence": 0.97, "confidence_raw": "9.70e-1"}],
    ),
    "confidence 97": (
        with_check(confidence=97),
        {(f"{TECHNICAL}[].confidence", "confidence_out_of_range"): 1},
        ["confidence_out_of_range"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "97"}],
    ),
    "confidence -1": (
        with_check(confidence=-1),
        {(f"{TECHNICAL}[].confidence", "confidence_out_of_range"): 1},
        ["confidence_out_of_range"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "-1"}],
    ),
    "confidence NaN": (
        with_check(confidence=float("nan")),
        {(f"{TECHNICAL}[].confidence", "confidence_out_of_range"): 1},
        ["confidence_out_of_range"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "NaN"}],
    ),
    "confidence beyond any double": (
        literal(with_check(), "0.5", "1e999"),
        {(f"{TECHNICAL}[].confidence", "confidence_out_of_range"): 1},
        ["confidence_out_of_range"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "1e999"}],
    ),
    "confidence as text": (
        with_check(confidence="0.97"),
        {(f"{TECHNICAL}[].confidence", "type_mismatch"): 1},
        ["confidence_not_a_number", "type_mismatch"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "OTHER"}],
    ),
    "confidence true": (
        with_check(confidence=True),
        {(f"{TECHNICAL}[].confidence", "type_mismatch"): 1},
        ["confidence_not_a_number", "type_mismatch"],
        MODEL_CHECKS,
        [{"confidence_raw": "OTHER"}],
    ),
    "confidence null": (
        with_check(confidence=None),
        {(f"{TECHNICAL}[].confidence", "null_field"): 1},
        ["null_field"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "null"}],
    ),
    "confidence absent": (
        with_check(confidence=GONE),
        {(f"{TECHNICAL}[].confidence", "missing_field"): 1},
        ["missing_field"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": None}],
    ),
    "confidence nested": (
        with_check(confidence={"score": 0.5}),
        {
            (f"{TECHNICAL}[].confidence", "type_mismatch"): 1,
            (f"{TECHNICAL}[].confidence.score", "unknown_field"): 1,
        },
        ["confidence_not_a_number", "type_mismatch", "unknown_field"],
        MODEL_CHECKS,
        [{"confidence": None, "confidence_raw": "OTHER"}],
    ),
    "the other file names": (
        response(
            idFileName=GONE,
            idFileSize=GONE,
            selfieFileName=GONE,
            selfieFileSize=GONE,
            idName="a.jpg",
            idSize=234567,
            selfieName="b.jpg",
            selfieSize=112233,
        ),
        {},
        [],
        VERIFICATIONS,
        [{"id_file_size": 234567, "selfie_file_size": 112233}],
    ),
    "sizes of the wrong type": (
        response(idFileSize="234567", selfieFileSize=112233.0),
        {("result.idFileSize", "type_mismatch"): 1, ("result.selfieFileSize", "type_mismatch"): 1},
        ["type_mismatch"],
        VERIFICATIONS,
        [{"id_file_size": None, "selfie_file_size": None}],
    ),
    "a size beyond 64 bits": (
        response(idFileSize=2**63),
        {("result.idFileSize", "type_mismatch"): 1},
        ["type_mismatch"],
        VERIFICATIONS,
        [{"id_file_size": None}],
    ),
    "another size than was sent": (
        response(selfieFileSize=1),
        {},
        ["echo_size_mismatch"],
        VERIFICATIONS,
        [{"selfie_file_size": 1}],
    ),
    "an id beyond 2^53": (
        response(verificationId=2**53 + 1),
        {},
        [],
        VERIFICATIONS,
        [{"verification_id": 2**53 + 1}],
    ),
    "an id as text": (
        response(verificationId="457"),
        {("result.verificationId", "type_mismatch"): 1},
        ["type_mismatch"],
        VERIFICATIONS,
        [{"verification_id": 457}],
    ),
    "with a model version": (
        response(modelVersion="1.0.0"),
        {},
        [],
        VERIFICATIONS,
        [{"model_version": "1.0.0"}],
    ),
    "milliseconds": (
        times("1725795600123"),
        {},
        ["timestamp_milliseconds"],
        VERIFICATIONS,
        [{"verified_at": MOMENT.replace(microsecond=123000), "iso_offset_seconds": -0.123}],
    ),
    "a float of seconds": (
        times("1725795600.25"),
        {},
        [],
        VERIFICATIONS,
        [{"verified_at": MOMENT.replace(microsecond=250000), "iso_offset_seconds": -0.25}],
    ),
    "microseconds are no known unit": (
        times("1725795600123456"),
        {},
        ["timestamp_out_of_range"],
        VERIFICATIONS,
        [{"verified_at": None, "iso_offset_seconds": None}],
    ),
    "a timestamp NaN": (
        times("NaN"),
        {},
        ["timestamp_out_of_range"],
        VERIFICATIONS,
        [{"verified_at": None}],
    ),
    "a timestamp as text": (
        times('"1725795600"'),
        {("result.timestamp", "type_mismatch"): 1},
        ["type_mismatch"],
        VERIFICATIONS,
        [{"verified_at": None}],
    ),
    "the ISO text with a zone": (
        times("1725795600", "2024-09-08T13:40:00+02:00"),
        {},
        [],
        VERIFICATIONS,
        [{"timestamp_iso": "2024-09-08T13:40:00+02:00", "iso_offset_seconds": 0.0}],
    ),
    "the ISO text an hour ahead": (
        times("1725795600", "2024-09-08T12:40:00.5"),
        {},
        [],
        VERIFICATIONS,
        [{"iso_offset_seconds": 3600.5}],
    ),
    "an ISO text that is none": (
        times("1725795600", "08/09/2024"),
        {},
        ["timestamp_iso_unreadable"],
        VERIFICATIONS,
        [{"timestamp_iso": "OTHER", "iso_offset_seconds": None}],
    ),
    "an ISO text of no calendar": (
        times("1725795600", "2024-13-08T12:40:00"),
        {},
        ["timestamp_iso_unreadable"],
        VERIFICATIONS,
        [{"iso_offset_seconds": None}],
    ),
    "tags null": (
        response(tags=None),
        {("result.tags", "null_field"): 1},
        ["echo_tags_missing", "null_field"],
        VERIFICATION_TAGS,
        [],
    ),
    "tags absent": (
        response(tags=GONE),
        {("result.tags", "missing_field"): 1},
        ["echo_tags_missing", "missing_field"],
        VERIFICATION_TAGS,
        [],
    ),
    "tags empty": (
        response(tags=[]),
        {("result.tags", "empty_field"): 1},
        ["echo_tags_missing", "empty_field"],
        VERIFICATION_TAGS,
        [],
    ),
    "tags as an object": (
        response(tags={"companyId": "C", "submissionId": "s-0"}),
        {
            ("result.tags", "type_mismatch"): 1,
            ("result.tags.companyId", "unknown_field"): 1,
            ("result.tags.submissionId", "unknown_field"): 1,
        },
        ["echo_tags_mismatch", "echo_tags_missing", "type_mismatch", "unknown_field"],
        VERIFICATION_TAGS,
        [{"name": "companyId", "value": "C"}, {"name": "submissionId", "value": "s-0"}],
    ),
    "a tag twice": (
        response(tags=[*SEED["tags"], OWN_TAG, {"name": "customerId", "value": "8888"}]),
        {},
        ["echo_tags_mismatch", "tag_repeated"],
        VERIFICATION_TAGS,
        [
            *({"name": tag["name"]} for tag in SEED["tags"]),
            {"value": "s-0"},
            {"name": "customerId", "value": None, "pseudonym": PSEUDONYMS.tag("customerId", "8888")},
        ],
    ),
    "tag values that are no text": (
        response(
            tags=[
                {"name": "companyId", "value": 7},
                {"name": "a", "value": None},
                {"name": "b", "value": " "},
                {"name": "c"},
                OWN_TAG,
            ]
        ),
        {
            ("result.tags[].value", "type_mismatch"): 1,
            ("result.tags[].value", "null_field"): 1,
            ("result.tags[].value", "missing_field"): 1,
        },
        [
            *("echo_tags_mismatch", "echo_tags_missing", "missing_field", "null_field"),
            *("text_withheld", "type_mismatch"),
        ],
        VERIFICATION_TAGS,
        [
            {"name": "companyId", "value": "7", "pseudonym": PSEUDONYMS.tag("companyId", "7")},
            {"name": "OTHER", "value": None, "pseudonym": None},
            {"name": "OTHER", "value": None, "pseudonym": None},
            {"name": "OTHER", "value": None, "pseudonym": None},
            {"name": "submissionId", "value": "s-0"},
        ],
    ),
    "tags without a name": (
        response(tags=[*SEED["tags"], {"value": "x"}, {"name": 5, "value": "y"}, 9, OWN_TAG]),
        {
            ("result.tags[].name", "missing_field"): 1,
            ("result.tags[].name", "type_mismatch"): 1,
            ("result.tags[]", "type_mismatch"): 1,
        },
        ["missing_field", "tag_without_name", "type_mismatch"],
        VERIFICATION_TAGS,
        [*({"name": tag["name"]} for tag in SEED["tags"]), {"value": "s-0"}],
    ),
    "files null": (
        response(files=None),
        {("result.files", "null_field"): 1},
        ["null_field"],
        VERIFICATION_FILES,
        [],
    ),
    "a file's url and category null": (
        with_file(url=None, category=None),
        {("result.files[].url", "null_field"): 1, ("result.files[].category", "null_field"): 1},
        ["null_field"],
        VERIFICATION_FILES,
        [{"category": None, "content_type": "image/jpeg", "uploaded_at": MOMENT}],
    ),
    "a file in milliseconds": (
        with_file(timestamp=1725795600000),
        {},
        ["timestamp_milliseconds"],
        VERIFICATION_FILES,
        [{"uploaded_at": MOMENT}],
    ),
    "a file that is no object": (
        response(files=[[FILE]]),
        {("result.files[]", "type_mismatch"): 1}
        | {(f"result.files[][].{key}", "unknown_field"): 1 for key in FILE},
        ["type_mismatch", "unknown_field"],
        VERIFICATION_FILES,
        [],
    ),
    "unknown keys at any depth": (
        literal(
            response(risk={"a": [{"b": 1}, {"b": None}], "c": {}}), '{"result"', '{"requestId": "r", "result"'
        ),
        {
            ("requestId", "unknown_field"): 1,
            ("result.risk.a[].b", "unknown_field"): 2,
            ("result.risk.c", "unknown_field"): 1,
        },
        ["unknown_field"],
        VERIFICATIONS,
        [{"verification_id": 457}],
    ),
    "unknown keys that may be personal": (
        response(**{"Anna Schmidt": 1, "Acme": 2, "id12345": 3, "9": 4, "DEEPXL": 5}, m={"DOC-2024-001": 1}),
        {
            ("result.?", "unknown_field"): 4,
            ("result.m.?", "unknown_field"): 1,
            ("result.DEEPXL", "unknown_field"): 1,
        },
        ["unknown_field"],
        VERIFICATIONS,
        [{"verification_id": 457}],
    ),
    "an unknown place without end": (
        literal(response(risk=-77), "-77", "[" * 5000 + "]" * 5000),
        {("result.risk" + "[]" * 14, "unknown_field"): 1},
        ["unknown_field"],
        VERIFICATIONS,
        [{"verified": True}],
    ),
    "geometry": (
        response(
            idFaces="[geometry removed: 2]",
            selfieFaces=None,
            other=[{"Landmarks": "[geometry removed: 5]"}],
            landmarks=[],
        ),
        {
            ("result.idFaces", "geometry_removed"): 1,
            ("result.other[].Landmarks", "geometry_removed"): 1,
            ("result.selfieFaces", "null_field"): 1,
            ("result.landmarks", "empty_field"): 1,
        },
        ["empty_field", "geometry_removed", "null_field"],
        VERIFICATIONS,
        [{"verified": True}],
    ),
    "a repeated key": (
        literal(response(), '"model": "verification"', '"model": "1", "model": "2"'),
        {("result.model", "duplicate_field"): 1},
        ["duplicate_field"],
        VERIFICATIONS,
        [{"model": "2"}],
    ),
    "a lone surrogate": (
        with_check(details="a\ud800b"),
        {},
        ["invalid_unicode"],
        MODEL_CHECKS,
        [{"details": "a\ufffdb"}],
    ),
    "text beyond ASCII": (
        with_check(details="Zoë 🙂 \u0000"),
        {},
        [],
        MODEL_CHECKS,
        [{"details": "Zoë 🙂 \u0000"}],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_variation_is_kept_and_counted(day: Day, case: str) -> None:
    text, drift, anomalies, table, rows = CASES[case]
    day.flatten(text)
    assert day.drift() == drift
    assert day.anomalies() == anomalies
    found = day.rows(table)
    assert [{key: row[key] for key in expected} for row, expected in zip(found, rows, strict=True)] == rows


def test_geometry_is_cut_on_receipt_and_its_presence_counted(day: Day) -> None:
    face = {"landmarks": {"leftEye": [0.31, 0.42]}, "boundingBox": {"x": 0.1, "y": 0.2}}
    check = {**CHECK, "idFaces": [face], "selfieFaces": [face, face], "score": {"landmarks": [[1, 2]]}}
    received = receive(response(modelResults={"technicalChecks": [check]}, boundingBox=None).encode())
    assert "0.31" not in received.text
    day.flatten(received.text)
    assert day.drift() == {
        (f"{TECHNICAL}[].idFaces", "geometry_removed"): 1,
        (f"{TECHNICAL}[].selfieFaces", "geometry_removed"): 1,
        (f"{TECHNICAL}[].score.landmarks", "geometry_removed"): 1,
        ("result.boundingBox", "null_field"): 1,
    }
    assert day.anomalies() == ["geometry_removed", "null_field"]


NOT_TRIED = {"result.verificationId", "result.verified"}
"""Responses that break the hard contract."""
EMPTY: dict[type, Any] = {str: "", list: [], dict: {}}


def places(value: Any, path: str, *keys: Any) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Every place below `value`: its path, the keys that lead there, and its value."""
    for key, member in value.items() if isinstance(value, dict) else enumerate(value):
        below = f"{path}.{key}" if isinstance(value, dict) else f"{path}[]"
        yield below, (*keys, key), member
        if isinstance(member, dict | list):
            yield from places(member, below, *keys, key)


def changed(keys: tuple[Any, ...], value: Any) -> str:
    """The response to s-0 with another value at one place; `GONE` removes it."""
    result: Any = json.loads(json.dumps(echo("s-0")))
    container = result
    for key in keys[:-1]:
        container = container[key]
    if value is GONE:
        del container[keys[-1]]
    else:
        container[keys[-1]] = value
    return text_of(result)


def test_null_missing_empty_and_another_type_are_told_apart_at_every_place(day: Day) -> None:
    texts: list[str] = []
    expected: list[tuple[str, str]] = []
    for path, keys, found in places(echo("s-0"), "result"):
        if path in NOT_TRIED:
            continue
        variations: dict[str, object] = {
            "null_field": None,
            "type_mismatch": 7 if isinstance(found, str) else "seven",
        }
        if type(found) in EMPTY:
            variations["empty_field"] = EMPTY[type(found)]
        # No item of a list is required, and `modelResults` without its only group is empty.
        if isinstance(keys[-1], str) and path != TECHNICAL:
            variations["missing_field"] = GONE
        texts += [changed(keys, value) for value in variations.values()]
        expected += [(path, kind) for kind in variations]
    summary = day.flatten_each(texts)
    assert summary.verifications == len(texts) > 150
    assert day.drift() == Counter(expected)
    anomalies = [row["anomalies"] for row in day.rows(VERIFICATIONS)]
    assert [kind in codes for (_, kind), codes in zip(expected, anomalies, strict=True)] == [True] * len(
        texts
    )


def test_an_unknown_key_is_reported_in_every_object(day: Day) -> None:
    texts: list[str] = []
    expected: list[tuple[str, str]] = []
    for path, keys, found in [("result", (), echo("s-0")), *places(echo("s-0"), "result")]:
        if isinstance(found, dict) and path != "result.modelResults":
            new = {**found, "extra": {"deep": [{"er": 1}, None]}}
            texts.append(changed(keys, new) if keys else text_of(new))
            expected += [
                (f"{path}.extra.deep[].er", "unknown_field"),
                (f"{path}.extra.deep[]", "unknown_field"),
            ]
    day.flatten_each(texts)
    assert day.drift() == Counter(expected)


@pytest.mark.parametrize("depth", [300, 968, 50_000])
def test_a_deep_response_does_not_stop_the_day(day: Day, depth: int) -> None:
    """As an earlier version stored it: with equal groups of checks in both places, which are compared."""
    deep = "[" * depth + "1" + "]" * depth
    response = text_of(
        echo("s-0", modelResults={"technicalChecks": "DEEP"}, technicalChecks="DEEP", new="DEEP")
    )
    summary = day.flatten(response.replace('"DEEP"', deep), text_of(echo("s-1")))
    assert summary.verifications == 2
    assert [row["submission_id"] for row in day.rows(MODEL_CHECKS)] == ["s-1"] * 3
    assert ("result.modelResults.technicalChecks[]", "type_mismatch") in day.drift()


def test_drift_names_the_first_submission_and_counts_all(day: Day) -> None:
    texts = [text_of(echo(f"s-{index}", new=[1] * index)) for index in range(4)]
    summary = day.flatten(*texts)
    rows = day.rows_of_drift()
    assert rows == [
        {"path": "result.new", "kind": "unknown_field", "occurrences": 1, "example_submission_id": "s-0"},
        {"path": "result.new[]", "kind": "unknown_field", "occurrences": 6, "example_submission_id": "s-1"},
    ]
    assert summary.anomalies == {"unknown_field": 4}


def test_many_unknown_paths_stay_bounded(day: Day) -> None:
    keys = {f"k{index % 1000}_{index // 1000}": index for index in range(5000)}
    day.flatten(text_of(echo("s-0", new=keys)))
    drift = day.drift()
    assert len(drift) == 2001
    assert sum(drift.values()) == 5000
    assert drift[("(other paths)", "unknown_field")] == 3000


def test_every_anomaly_has_a_description_and_every_kind_of_drift_is_one() -> None:
    assert all(code.description.endswith(".") for code in Anomaly)
    assert {kind.name for kind in DriftKind} <= {code.name for code in Anomaly}
    assert json.dumps(list(Anomaly)) == json.dumps([code.value for code in Anomaly])
