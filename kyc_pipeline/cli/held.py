"""`kyc-pipeline held`: submissions with an uncertain outcome, and the operator's decision."""

import click

from kyc_pipeline.cli.options import format_table
from kyc_pipeline.ledger.decisions import list_held, operator, resolve_held
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.settings import load_settings


@click.group()
def held() -> None:
    """List or settle uncertain submissions: sent, but with no sound response and no record found."""


@held.command("list")
def list_command() -> None:
    """List the held submissions, oldest first."""
    with open_ledger(load_settings()) as ledger:
        rows = list_held(ledger)
    if not rows:
        click.echo("nothing is held")
        return
    click.echo(
        format_table(
            ("submission", "date", "attempts", "last sent (UTC)", "reason"),
            [
                (
                    row.submission_id,
                    row.partition_date,
                    row.attempts,
                    f"{row.last_sent_at:%Y-%m-%d %H:%M:%S}" if row.last_sent_at else "–",
                    row.error or "",
                )
                for row in rows
            ],
        )
    )


@held.command("resolve")
@click.option("--submission", "submission_id", required=True, help="The submission's id.")
@click.option(
    "--as",
    "decision",
    type=click.Choice(["retry", "abandon"]),
    required=True,
    help="retry: look it up, then send it again, which may cost a second call. abandon: never send it again.",
)
def resolve_command(submission_id: str, decision: str) -> None:
    """Decide about one held submission. The next run of its day applies the decision."""
    with open_ledger(load_settings()) as ledger:
        resolve_held(ledger, submission_id, decision, operator())
    click.echo(f"{submission_id}: {decision}")
