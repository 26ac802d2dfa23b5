"""Arbitrary manifests: every row is accepted or rejected, whatever its content and format."""

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters='"\0\r\n'), max_size=30), max_size=15
    )
)
def test_any_lines_below_a_header_are_accounted_for(make_zone: Callable[[], Any], lines: list[str]) -> None:
    zone = make_zone()
    zone.manifest("a.csv", "\n".join([",".join(FIELDS), *lines, "A1,id.jpg,selfie.png,,"]))
    assert zone.ingest().received == sum(line != "" for line in lines) + 1
    assert zone.ids() == ["A1"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert zone.ingest().received == len(values)
