"""`kyc-pipeline legal-hold`: people whose data must not be removed."""

import contextlib
from collections.abc import Iterator

import click

from kyc_pipeline.cli.options import format_table, open_trail, person, request_option
from kyc_pipeline.erasure.find import find
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.ledger.audit import AuditTrail, operator
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.ledger.legal_holds import add_hold, read_holds, remove_hold
from kyc_pipeline.ledger.pseudonym_key import ledgers_pseudonymizer
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.settings import Settings, load_settings

tag_option = click.option(
    "--tag",
    required=True,
    metavar="NAME=VALUE",
    help="As for `erase`. The hold covers every submission with this tag.",
)


@click.group("legal-hold")
def legal_hold() -> None:
    """Set, lift or list legal holds: `erase` refuses to remove what they cover."""


@contextlib.contextmanager
def _opened(
    settings: Settings, reason: str, request: str | None
) -> Iterator[tuple[Ledger, Stores, AuditTrail]]:
    with (
        open_ledger(settings) as ledger,
        open_trail(settings, ledger, reason=reason, request=request).noted() as trail,
    ):
        yield ledger, Stores.of(settings, ledger, ledgers_pseudonymizer(settings, ledger)), trail


@legal_hold.command("add")
@tag_option
@click.option("--reason", required=True, help="Why the data must be kept; no personal data.")
@request_option
def add_command(tag: str, reason: str, request: str | None) -> None:
    """Set a hold."""
    subject, settings = person(tag), load_settings()
    with _opened(settings, reason, request) as (ledger, stores, trail):
        who = operator(settings.kyc_operator)
        add_hold(ledger, trail, subject, stores.held_as(*subject), reason, who)
        found = find(stores, *subject)
    click.echo("hold set")
    if not found.is_known:
        click.echo(
            f"{found.why_unknown}. If --tag has a typing error, remove this hold and add another",
            err=True,
        )


@legal_hold.command("remove")
@tag_option
@click.option("--reason", required=True, help="Why the hold is lifted; no personal data.")
@request_option
def remove_command(tag: str, reason: str, request: str | None) -> None:
    """Lift a hold."""
    subject = person(tag)
    with _opened(load_settings(), reason, request) as (ledger, stores, trail):
        remove_hold(ledger, trail, subject, stores.held_as(*subject))
    click.echo("hold lifted")


@legal_hold.command("list")
def list_command() -> None:
    """Show the holds. The people appear as pseudonyms only."""
    with open_ledger(load_settings()) as ledger:
        holds = read_holds(ledger)
    if not holds:
        click.echo("no legal holds")
        return
    click.echo(
        format_table(
            ("since (UTC)", "by", "about", "reason"),
            [
                (
                    f"{to_datetime(hold.set_at):%Y-%m-%d}",
                    hold.set_by,
                    f"{hold.subject.name} {hold.subject.pseudonym[:12]}",
                    hold.reason,
                )
                for hold in holds
            ],
        )
    )
