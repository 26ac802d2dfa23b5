"""Options and output that several commands share."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import click

from kyc_pipeline.errors import UsageError
from kyc_pipeline.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class IsoDate(click.ParamType[date]):
    """A day as YYYY-MM-DD."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """The date, or a usage error."""
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2024-09-01", param, ctx)


def date_range(function: F) -> F:
    """The options `--from` and `--to`, both included."""
    function = click.option("--to", "last", type=IsoDate(), required=True, help="Last day, included.")(
        function
    )
    return click.option("--from", "first", type=IsoDate(), required=True, help="First day.")(function)


def days_between(first: date, last: date, settings: Settings) -> list[str]:
    """The partitions from `first` to `last`; :class:`UsageError` where there are none such."""
    today = datetime.now(UTC).date()
    if first > last:
        raise UsageError(f"--from {first} is after --to {last}")
    if first < settings.kyc_start_date:
        raise UsageError(
            f"--from {first} is before KYC_START_DATE {settings.kyc_start_date}, the first partition"
        )
    if last > today:
        raise UsageError(f"--to {last} is in the future: the last partition is {today}")
    return [(first + timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain text columns: first column left, the others right aligned."""
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join((first, *rest)).rstrip()

    return "\n".join(line(row) for row in cells)
