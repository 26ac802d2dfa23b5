"""`kyc-pipeline reopen`: takes back a final outcome that was a mistake."""

import click

from kyc_pipeline.cli.options import open_trail, request_option
from kyc_pipeline.ledger.audit import operator
from kyc_pipeline.ledger.decisions import reopen as reopen_submission
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import run_again


@click.command()
@click.option("--submission", "submission_id", required=True, help="The submission's id.")
@click.option("--reason", required=True, help="Why the outcome was wrong. The audit trail keeps it.")
@request_option
def reopen(submission_id: str, reason: str, request: str | None) -> None:
    """Let a refused or quarantined submission be sent again.

    The next run of its day looks it up, and sends it if DeepXL has no record of it, which may cost
    a second call.
    """
    settings = load_settings()
    with (
        open_ledger(settings) as ledger,
        open_trail(settings, ledger, reason=reason, request=request).noted() as trail,
    ):
        date = reopen_submission(ledger, submission_id, reason, operator(settings.kyc_operator), trail=trail)
    click.echo(f"{submission_id}: reopened; now run {run_again(date)}")
