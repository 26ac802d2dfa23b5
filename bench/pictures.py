"""Bar charts of the benchmarks' tables, as SVG: the variants of one benchmark, and one figure of each."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import altair as alt
import vl_convert

Table = list[dict[str, str]]
"""The rows of a Markdown table: the text of each cell by the name of its column."""


class Picture(NamedTuple):
    """What a benchmark's picture shows."""

    labels: Sequence[str]
    """The columns that name a bar, together."""
    value: str
    """The column with the length of the bar."""
    title: str
    is_logarithmic: bool = False


PICTURES = {
    "verify": Picture(("latency", "in flight", "variant"), "calls/s", "Calls per second (more is better)"),
    "flatten": Picture(
        ("variant",), "µs per response", "µs per response, on a logarithmic axis (less is better)", True
    ),
    "ingest": Picture(("variant",), "wall s", "Seconds for all rows (less is better)"),
    "analyze": Picture(
        ("verifications",), "ratio", "Time of the build, relative to DuckDB alone (less is better)"
    ),
    "backfill": Picture(
        ("days per run",), "in one process", "Seconds for days that are already paid (less is better)"
    ),
}


def tables(markdown: str) -> Iterator[Table]:
    """The tables of a text in Markdown."""
    for block in re.findall(r"(?:^\|.*\|\n?)+", markdown, re.MULTILINE):
        header, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        )
        yield [dict(zip(header, row, strict=True)) for row in rows]


def table_with(column: str, markdown: str) -> Table:
    """The first table that has the column; empty if there is none."""
    return next((table for table in tables(markdown) if table and column in table[0]), [])


def number(text: str) -> float:
    """The number that a cell begins with."""
    return float(re.sub(r"[^0-9.].*", "", text.replace(",", "")))


def draw(name: str, markdown: str) -> str | None:
    """The picture of a benchmark's output, as SVG; None without one, or without the table that it shows."""
    if name not in PICTURES:
        return None
    labels, column, title, is_logarithmic = PICTURES[name]
    table = table_with(column, markdown)
    if not table:
        return None
    values = [number(row[column]) for row in table]
    bars = [
        {"label": ", ".join(row[label] for label in labels), "value": value}
        for row, value in zip(table, values, strict=True)
    ]
    # A logarithmic axis has no zero to begin at.
    start = min(values) / 2 if is_logarithmic else 0
    scale = alt.Scale(type="log" if is_logarithmic else "linear", domain=[start, max(values) * 1.2])
    base = alt.Chart(alt.InlineData(values=bars)).encode(
        x=alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6)),
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=300)),
    )
    chart = base.mark_bar().encode(x2=alt.X2Datum(start)) + base.mark_text(align="left", dx=4).encode(
        text=alt.Text("value:Q", format=",.3~r")
    )
    return str(vl_convert.vegalite_to_svg(chart.properties(width=500, background="white").to_dict()))
