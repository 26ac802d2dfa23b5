"""The parts of the report's page, and the format of its figures.

:mod:`charts` defines how charts look, the modules of the sections what they show, the templates the page.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from kyc_pipeline.analyze.report.periods import Period
from kyc_pipeline.rules import LOW_N

NONE: Final = "–"
FEW: Final = "*"
"""Marks a small sample."""


@dataclass(frozen=True, slots=True)
class View:
    """The texts of a chart in one period: a note beside the title, and the text alternative.

    If there is no chart, `empty` says why.
    """

    note: str
    alt: str
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, shown in `periods` (their keys)."""

    cells: Sequence[str]
    periods: Sequence[str]


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table; columns from `numeric_from` on are aligned as numbers. `empty` replaces an empty table."""

    headings: Sequence[str]
    rows: Sequence[Row]
    numeric_from: int = 1
    empty: str = "Nothing in this period."


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart with the table behind it. `check` is the check that it shows, for the page's filter."""

    id: str
    title: str
    spec: dict[str, Any]
    views: Mapping[str, View]
    table: DataTable
    check: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """A table or column (`table.column`) of the section, with the warehouse's description."""

    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its heading. If it has no content, `empty` says why."""

    id: str
    title: str
    intro: str
    empty: str
    figures: Sequence[Figure] = ()
    table: DataTable | None = None
    table_title: str = ""
    definitions: Sequence[Definition] = ()
    key: Sequence[tuple[str, str]] = ()
    """The key of colours: name in the palette, meaning."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure. `change` compares it with the period before."""

    label: str
    value: str
    of: str
    change: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """One notable finding, and the section that shows it."""

    text: str
    section: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the template shows."""

    build: Mapping[str, str]
    periods: Sequence[Period]
    checks: Sequence[str]
    tiles: Mapping[str, Sequence[Tile]]
    remarks: Sequence[Remark]
    sections: Sequence[Section]
    explorer: Sequence[Mapping[str, Any]]
    findings: Sequence[Mapping[str, Any]]
    """Rows of `build_checks`."""


def number(value: float | Decimal | None) -> str:
    """`12,345`; a dash without a value."""
    return NONE if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """`82.9%`; a dash without a value."""
    return NONE if value is None else f"{value:.1%}"


def interval(low: float | None, high: float | None) -> str:
    """`80.2% to 85.3%`; nothing without a value."""
    return "" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def bounds(passed: int, decided: int, undecided: int) -> str:
    """The lowest and the highest possible rate once `undecided` more are decided; empty without any."""
    if not undecided:
        return ""
    return interval(passed / (decided + undecided), (passed + undecided) / (decided + undecided))


def points(value: float | None) -> str:
    """`+1.2 pts`, a difference of two rates; a dash without a value."""
    return NONE if value is None else f"{value * 100:+.1f} pts".replace("-", "−")


def amount(value: Decimal | None) -> str:
    """`1,234.50`, for a place that names the currency; a dash without a price."""
    return NONE if value is None else f"{value:,.2f}"


def money(value: Decimal | None, currency: str) -> str:
    """`1,234.50 EUR`; a dash without a price."""
    return NONE if value is None else f"{amount(value)} {currency}"


def decimals(value: float | None, digits: int = 3) -> str:
    """`0.123`; a dash without a value."""
    return NONE if value is None else f"{value:.{digits}f}"


def sample_size(n: int | None) -> str:
    """A sample's size, marked where it is small."""
    return number(n) + (FEW if n is not None and n < LOW_N else "")


def day(value: datetime.date) -> str:
    """`9 Sep 2024`."""
    return f"{value.day} {value:%b %Y}"


def share(part: float, whole: float | None) -> float | None:
    """part / whole; None without a whole."""
    return part / whole if whole else None


def some(n: int, one: str, many: str = "") -> str:
    """`1 day`, `12 days`."""
    return f"{number(n)} {one if n == 1 else many or one + 's'}"
