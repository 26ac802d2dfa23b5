"""`kyc-pipeline held`: submissions with an uncertain outcome, and the operator's decision."""

from datetime import date

import click

from kyc_pipeline.cli.options import IsoDate, accountable, format_table, open_trail
from kyc_pipeline.ledger.audit import operator
from kyc_pipeline.ledger.decisions import (
    RESOLUTIONS,
    RESOLUTIONS_HELP,
    list_held,
    partitions_of,
    resolve_all_held,
    resolve_held,
)
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import run_again


@click.group()
def held() -> None:
    """List or settle uncertain submissions: sent, but with no sound response and no record found."""


@held.command("list")
def list_command() -> None:
    """List the held submissions, oldest first."""
    with open_ledger(load_settings()) as ledger:
        rows, is_new = list_held(ledger), not ledger.exists()
    if not rows:
        why = f": there is no ledger yet ({ledger.name})" if is_new else ""
        click.echo(f"nothing is held{why}")
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
                    _without_id(row.error or "", row.submission_id),
                )
                for row in rows
            ],
        )
    )


def _without_id(text: str, submission_id: str) -> str:
    """`text` without the submission's name, which has a column of its own."""
    return text.replace(f" of submission {submission_id}:", ":").replace(f"submission {submission_id}: ", "")


@held.command("resolve")
@click.option("--submission", "submission_id", help="One submission's id.")
@click.option("--date", "day", type=IsoDate(), help="All held submissions of this day.")
@click.option("--all", "is_all", is_flag=True, help="All held submissions.")
@click.option(
    "--as",
    "decision",
    type=click.Choice([*RESOLUTIONS]),
    required=True,
    help=RESOLUTIONS_HELP,
)
@accountable
def resolve_command(
    submission_id: str | None,
    day: date | None,
    is_all: bool,
    decision: str,
    reason: str | None,
    request: str | None,
) -> None:
    """Decide about held submissions: one, those of a day, or all. The next run of their day applies it."""
    if sum((submission_id is not None, day is not None, is_all)) != 1:
        raise click.UsageError("give one of --submission, --date and --all")
    settings = load_settings()
    who = operator(settings.kyc_operator)
    with (
        open_ledger(settings) as ledger,
        open_trail(settings, ledger, reason=reason, request=request).noted() as trail,
    ):
        if submission_id is not None:
            resolve_held(ledger, submission_id, decision, who, trail=trail)
            ids = [submission_id]
        else:
            ids = resolve_all_held(ledger, decision, who, day.isoformat() if day else None, trail=trail)
        days = partitions_of(ledger, ids)
    for key in ids:
        click.echo(f"{key}: {decision}")
    if ids:
        click.echo(f"now run {run_again(days[0], days[-1])}: it applies the decision")
    else:
        click.echo("nothing is held")
