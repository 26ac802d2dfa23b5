"""Arbitrary manifests: every row is accepted or rejected, whatever its content and format."""

import gzip
import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from tests.effort import tries

FIELDS = ("submission_id", "id_file", "selfie_file", "tags", "submitted_at")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
CELLS = {
    "submission_id": st.one_of(st.sampled_from(["A1", "A2", "A3", "A4"]), TEXT),
    "id_file": st.one_of(st.sampled_from(["id.jpg", "selfie.png", "lost.jpg", "../x"]), TEXT),
    "selfie_file": st.one_of(st.sampled_from(["id.jpg", "selfie.png"]), TEXT),
    "tags": st.one_of(
        st.just(""),
        st.dictionaries(TEXT, TEXT, max_size=3).map(json.dumps),
        st.just('{"submissionId":"x"}'),
        TEXT,
    ),
    "submitted_at": st.one_of(st.just(""), st.datetimes().map(lambda t: f"{t.isoformat()}Z"), TEXT),
}
ROWS = st.lists(st.fixed_dictionaries(CELLS), max_size=12)


def as_csv(rows: list[dict[str, str]], separator: str, end: str) -> bytes:
    """Quotes every cell, so that each row has all its fields, whatever their content."""
    lines = [FIELDS, *([row[name] for name in FIELDS] for row in rows)]
    quoted = (separator.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)
    return (end.join(quoted) + end).encode()


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in FIELDS])), target)
    return target.getvalue()


def result(zone: Any) -> tuple[list[Any], list[Any]]:
    accepted = [{k: v for k, v in row.items() if k != "manifest"} for row in zone.accepted()]
    return accepted, [(row["submission_id"], row["reason"], row["manifest_row"]) for row in zone.rejected()]


@settings(max_examples=tries(8), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, separator=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n"]))
def test_every_form_gives_the_same_rows_and_loses_none(
    make_zone: Callable[[], Any], rows: list[dict[str, str]], separator: str, end: str
) -> None:
    results = []
    for name, content in (
        ("a.csv", as_csv(rows, separator, end)),
        ("a.csv.gz", gzip.compress(as_csv(rows, separator, end))),
        ("a.jsonl", as_jsonl(rows)),
        ("a.parquet", as_parquet(rows)),
    ):
        zone = make_zone()
        zone.manifest(name, content)
        assert zone.ingest().received == len(rows)  # the rest is asserted by the fixture
        taken = [row["manifest_row"] for row in (*zone.accepted(), *zone.rejected())]
        assert sorted(taken) == list(range(1, len(rows) + 1))
        results.append(result(zone))
    assert results == [results[0]] * len(results)


@settings(max_examples=tries(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters='"\0\r\n'), max_size=30), max_size=15
    )
)
def test_any_lines_below_a_header_are_accounted_for(make_zone: Callable[[], Any], lines: list[str]) -> None:
    zone = make_zone()
    zone.manifest("a.csv", "\n".join([",".join(FIELDS), *lines, "A1,id.jpg,selfie.png,,"]))
    # A mark of the byte order at the start of a line is no text, and a row of empty cells is no row.
    texts = [line.removeprefix("\ufeff") for line in lines]
    rows = [text for text in texts if text.strip(",") or 0 < len(text) < len(FIELDS) - 1]
    assert zone.ingest().received == len(rows) + 1
    assert zone.ids() == ["A1"]


@settings(max_examples=tries(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | TEXT,
            lambda v: st.lists(v) | st.dictionaries(st.sampled_from([*FIELDS, "x"]), v),
            max_leaves=6,
        ),
        max_size=8,
    )
)
def test_any_json_lines_are_accounted_for(make_zone: Callable[[], Any], values: list[Any]) -> None:
    zone = make_zone()
    zone.manifest("a.jsonl", "\n".join(map(json.dumps, values)))
    before_objects = itertools.takewhile(lambda value: not isinstance(value, dict), values)
    if any(isinstance(value, list) and value and isinstance(value[0], dict) for value in before_objects):
        with pytest.raises(KycError, match="is a JSON array"):
            zone.ingest()
    else:
        assert zone.ingest().received == len(values)


EDITS = st.lists(
    st.tuples(
        st.integers(0, 2000),
        st.integers(0, 3),
        st.one_of(
            st.binary(max_size=3),
            st.sampled_from([b'"', b"\n", b"\r", b",", b"[", b"{", b"NaN", b"\xef\xbb\xbf", b"\xff\xfe"]),
        ),
    ),
    max_size=4,
)


@settings(max_examples=tries(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, form=st.sampled_from(["csv", "csv.gz", "jsonl", "parquet", "tsv"]), edits=EDITS)
def test_damaged_bytes_give_our_own_error_or_account_for_each_row(
    make_zone: Callable[[], Any], rows: list[dict[str, str]], form: str, edits: list[tuple[int, int, bytes]]
) -> None:
    whole = {"jsonl": as_jsonl(rows), "parquet": as_parquet(rows)}.get(form, as_csv(rows, ",", "\n"))
    content = bytearray(whole)
    for place, length, new in edits:
        start = place % (len(content) + 1)
        content[start : start + length] = new
    zone = make_zone()
    zone.manifest(f"a.{form}", bytes(content))
    refusal = None
    try:
        summary = zone.ingest()  # the fixture compares the counts
    except ManifestUnreadable as error:
        refusal = str(error)
    if refusal is None:
        taken = [row["manifest_row"] for row in (*zone.accepted(), *zone.rejected())]
        assert len(set(taken)) == len(taken) == summary.received
    else:
        assert refusal.startswith(f"manifests/2024-09-01/a.{form}: ")
        assert refusal.isprintable()
