"""Options, checks and output that several commands share."""

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from kyc_pipeline.days import day_range
from kyc_pipeline.errors import UsageError
from kyc_pipeline.ingest.formats import SUFFIXES
from kyc_pipeline.ingest.manifests import ignored_files, kinds_of, require_landing, stray_line, strays
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.ledger.audit import AuditTrail, Author, operator
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.pseudonym_key import ledgers_pseudonymizer
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, has_pseudonym_key
from kyc_pipeline.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class IsoDate(click.ParamType[date]):
    """A day as YYYY-MM-DD."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """The date. Fails with a usage error if `value` is not a date."""
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2024-09-01", param, ctx)


def date_range(function: F) -> F:
    """Adds the options `--from` and `--to`; both days are included."""
    function = click.option("--to", "last", type=IsoDate(), required=True, help="Last day, included.")(
        function
    )
    return click.option("--from", "first", type=IsoDate(), required=True, help="First day.")(function)


request_option = click.option(
    "--request", help="Number of the request or case, for the audit trail; no personal data."
)


def accountable(function: F) -> F:
    """Adds the options `--reason` and `--request`, which the audit trail keeps."""
    function = request_option(function)
    return click.option("--reason", help="Why, for the audit trail; no personal data.")(function)


def open_trail(
    settings: Settings, ledger: Ledger, *, reason: str | None = None, request: str | None = None
) -> AuditTrail:
    """The audit trail, with this process's operator as the author of new entries."""
    author = Author(operator(settings.kyc_operator), reason=reason, request=request)
    # As early as possible: in an entry's transaction, the ledger could not store the key's id.
    is_certain = has_pseudonym_key(settings) or ledger.file is None
    checked = ledgers_pseudonymizer(settings, ledger) if is_certain else None
    return AuditTrail(
        ledger,
        Lake(settings.kyc_lake),
        author,
        lambda: checked or ledgers_pseudonymizer(settings, ledger, keeps=False),
    )


def person(tag: str) -> tuple[str, str]:
    """The tag's name and value. An error never shows the value."""
    name, separator, value = tag.partition("=")
    name = name.strip()
    if value == "-":
        value = sys.stdin.readline().rstrip("\r\n")
    if not (name and separator and value.strip()):
        raise UsageError(
            "--tag must be name=value, such as customerId=9999; name=- reads the value from standard input"
        )
    return name, value


def reading_pseudonymizer(settings: Settings, ledger: Ledger) -> Pseudonymizer:
    """The pseudonymizer for a command that changes nothing: it creates no key.

    Without a key there are no pseudonyms yet, so any key works.
    """
    if has_pseudonym_key(settings):
        return ledgers_pseudonymizer(settings, ledger)
    return Pseudonymizer(secrets.token_hex(32))


force_option = click.option(
    "--force", is_flag=True, help="Build again what is up to date. Makes no additional call."
)


def partitions_between(first: date, last: date, settings: Settings) -> list[str]:
    """The partitions from `first` to `last`. Raises :class:`UsageError` if one of them does not exist."""
    today = datetime.now(UTC).date()
    if first > last:
        raise UsageError(f"--from {first} is after --to {last}")
    if first < settings.kyc_start_date:
        raise UsageError(
            f"--from {first} is before KYC_START_DATE {settings.kyc_start_date}, the first partition"
        )
    if last > today:
        raise UsageError(f"--to {last} is in the future: the last partition is {today}")
    return day_range(first, last)


def check_landing(settings: Settings, days: Sequence[str]) -> None:
    """Raises if there is no landing zone, and warns on standard error about what ingest ignores.

    It ignores the :func:`strays` and, in the folders of `days`, files without the suffix of a manifest. The
    warning shows only counts and common suffixes, because the names may be personal.
    """
    landing = open_landing(settings.kyc_landing).snapshot()
    require_landing(landing, Lake(settings.kyc_lake))
    warnings = []
    if stray := len(strays(landing, settings.kyc_start_date, datetime.now(UTC).date())):
        warnings.append(stray_line(stray))
    ignored = {day: ignored_files(landing, day) for day in days}
    warnings += [
        f"manifests/{day}: {len(names)} not read ({kinds_of(names)}): manifests are {SUFFIXES} files"
        for day, names in ignored.items()
        if names
    ]
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def is_verbose(context: click.Context) -> bool:
    """Whether the command was called with `--verbose`."""
    return bool(context.find_root().params.get("verbose"))


def display_path(path: Path | str) -> str:
    """`path`, relative to the working directory if it is below it. A URL stays as it is."""
    if isinstance(path, str):
        return path
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def format_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as plain text: the first column left-aligned, the others right-aligned. Rows may be short."""
    cells = [[*map(str, row), *[""] * (len(headings) - len(row))] for row in (headings, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join((first, *rest)).rstrip()

    return "\n".join(line(row) for row in cells)
