"""`kyc-pipeline audit`: who decided, erased or looked at what, when and why."""

import json
import sys

import click

from kyc_pipeline.cli.options import format_table, person, reading_pseudonymizer
from kyc_pipeline.errors import UNFINISHED
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.audit import problems, read_trail
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import plural


@click.group()
def audit() -> None:
    """Show or verify the audit trail: who decided, erased or looked at what, when and why."""


@audit.command("list")
@click.option(
    "--tag",
    metavar="NAME=VALUE",
    help="Only what was done about this person or, by submissionId=…, about this submission.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all fields.")
def list_command(tag: str | None, as_json: bool) -> None:
    """Show the entries, oldest first."""
    settings = load_settings()
    with open_ledger(settings) as ledger:
        pseudonymizer = reading_pseudonymizer(settings, ledger)
        about = person(tag) if tag else None
        # Entries never change, so they have the pseudonyms of the keys of their time.
        keys = (pseudonymizer, *pseudonymizer.others)
        subjects = {Tombstone.of_tag(key, *about).pseudonym for key in keys} if about else None
        entries = [row for row in read_trail(ledger) if subjects is None or row.subject in subjects]
    if as_json:
        for row in entries:
            happened = {"happened_at": f"{to_datetime(row.happened_at):%Y-%m-%dT%H:%M:%S.%fZ}"}
            values = row._asdict() | happened | {"details": json.loads(row.details)}
            click.echo(json.dumps(values))
        return
    if not entries:
        click.echo("no entries")
        return
    click.echo(
        format_table(
            ("number", "time (UTC)", "operator", "host", "action", "about", "request", "reason", "details"),
            [
                (
                    row.number,
                    f"{to_datetime(row.happened_at):%Y-%m-%d %H:%M:%S}",
                    row.operator,
                    row.host,
                    row.action,
                    f"{row.subject_name} {row.subject[:12]}" if row.subject else "",
                    row.request or "",
                    row.reason or "",
                    ", ".join(f"{name} {value}" for name, value in json.loads(row.details).items()),
                )
                for row in entries
            ],
        )
    )


@audit.command("verify")
@click.option(
    "--seen",
    multiple=True,
    metavar="HASH",
    help="A hash that this command printed earlier: the trail must still contain it. Repeatable.",
)
def verify_command(seen: tuple[str, ...]) -> None:
    """Check that no entry was changed, removed or inserted. Exit code 3 if one was."""
    settings = load_settings()
    with open_ledger(settings) as ledger:
        found, head = problems(Lake(settings.kyc_lake), ledger, seen)
    for line in found:
        click.echo(line, err=True)
    if found:
        sys.exit(UNFINISHED)
    click.echo(f"{plural(head.number, 'entry', 'entries')}, none changed, removed or inserted")
    click.echo(f"keep this hash elsewhere, for --seen: {head.hash}")
