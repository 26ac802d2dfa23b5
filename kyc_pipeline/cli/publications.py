"""`kyc-pipeline publications`: where the hosts that share the ledger have published the warehouse."""

import sys

import click

from kyc_pipeline.cli.options import format_table
from kyc_pipeline.errors import UNFINISHED, UsageError
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.ledger.publications import copies_before_erasure, forget_place, list_copies
from kyc_pipeline.settings import load_settings


@click.command()
@click.option(
    "--forget", "place", metavar="PLACE", help="Forget a place whose warehouse and report no longer exist."
)
def publications(place: str | None) -> None:
    """List the published warehouses of all hosts that share the ledger.

    Exit code 3: one of them is from before the last erasure, and may still contain the person. Run
    `kyc-pipeline publish` on that host, or remove its files and forget the place.
    """
    with open_ledger(load_settings()) as ledger:
        if place is not None:
            if not forget_place(ledger, place):
                raise UsageError(f"no publication at {place}: `kyc-pipeline publications` lists the places")
            click.echo(f"forgotten: {place}")
            return
        copies, outdated = list_copies(ledger), set(copies_before_erasure(ledger))
    if not copies:
        click.echo("nothing is published")
        return
    rows = [
        (
            copy.place,
            copy.sequence,
            f"{copy.began:%Y-%m-%d %H:%M:%S}" if copy.began else "–",
            "before the last erasure: publish there" if copy in outdated else "",
        )
        for copy in copies
    ]
    click.echo(format_table(("place", "sequence", "built (UTC)", ""), rows))
    if outdated:
        sys.exit(UNFINISHED)
