"""`kyc-pipeline reopen`: takes back a final outcome that was a mistake."""

import click

from kyc_pipeline.ledger.decisions import operator
from kyc_pipeline.ledger.decisions import reopen as reopen_submission
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.settings import load_settings


@click.command()
@click.option("--submission", "submission_id", required=True, help="The submission's id.")
@click.option("--reason", required=True, help="Why the outcome was wrong. The ledger keeps it.")
def reopen(submission_id: str, reason: str) -> None:
    """Let a refused or quarantined submission be sent again.

    The next run of its day looks it up, and sends it if DeepXL has no record of it, which may cost
    a second call.
    """
    with open_ledger(load_settings()) as ledger:
        date = reopen_submission(ledger, submission_id, reason, operator())
    click.echo(f"{submission_id}: reopened; run {date} again")
