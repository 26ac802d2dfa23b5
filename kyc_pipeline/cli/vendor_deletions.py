"""`kyc-pipeline vendor-deletions`: what DeepXL must delete of erased people, and the proof that it did."""

from datetime import UTC, date, datetime

import click

from kyc_pipeline.cli.options import IsoDate, format_table, open_trail
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger import vendor_deletions as register
from kyc_pipeline.ledger.audit import operator
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import plural


@click.group("vendor-deletions")
def vendor_deletions() -> None:
    """List what DeepXL must delete of erased people, or confirm that it did."""


@vendor_deletions.command("list")
@click.option("--confirmed", is_flag=True, help="Include confirmed records, with the evidence.")
def list_command(confirmed: bool) -> None:
    """Show the records for a deletion request to DeepXL, one submission per line."""
    with open_ledger(load_settings()) as ledger:
        rows = list(register.read_register(ledger, with_confirmed=confirmed))
    if not rows:
        click.echo("DeepXL has nothing to delete")
        return
    click.echo(
        format_table(
            (
                "erased (UTC)",
                "request",
                "sent (UTC)",
                "verifications",
                "tag submissionId",
                "confirmed",
                "evidence",
            ),
            [
                (
                    f"{to_datetime(row.erased_at):%Y-%m-%d}",
                    row.request or "",
                    f"{to_datetime(row.sent_at):%Y-%m-%d}" if row.sent_at else "",
                    ", ".join(map(str, register.verification_ids(row))),
                    row.submission_id or "",
                    row.confirmed_on or "",
                    row.evidence or "",
                )
                for row in rows
            ],
        )
    )


@vendor_deletions.command("confirm")
@click.option("--request", help="The records of this request.")
@click.option("--verification", "verifications", type=int, multiple=True, help="This record; repeatable.")
@click.option("--all", "is_all", is_flag=True, help="All open records.")
@click.option("--evidence", required=True, help="How you know, such as DeepXL's letter; no personal data.")
@click.option("--date", "day", type=IsoDate(), help="When DeepXL deleted them; today by default.")
def confirm_command(
    request: str | None, verifications: tuple[int, ...], is_all: bool, evidence: str, day: date | None
) -> None:
    """Record that DeepXL deleted records. The register then forgets their submission ids."""
    if sum((request is not None, bool(verifications), is_all)) != 1:
        raise click.UsageError("give one of --request, --verification and --all")
    if not evidence.strip():
        raise UsageError("--evidence must not be empty: say how you know that DeepXL deleted the records")
    today = datetime.now(UTC).date()
    if day and day > today:
        raise UsageError(f"--date {day} is in the future: give the day on which DeepXL deleted the records")
    settings = load_settings()
    with (
        open_ledger(settings) as ledger,
        open_trail(settings, ledger, reason=evidence, request=request).noted() as trail,
    ):
        count = register.confirm(
            ledger,
            trail,
            on=day or today,
            who=operator(settings.kyc_operator),
            evidence=evidence.strip(),
            request=request,
            verifications=verifications,
        )
        if count:
            LedgerErasure(ledger).purge()  # of the submission ids
    if not count:
        raise UsageError("no such record is open: see `kyc-pipeline vendor-deletions list`")
    click.echo(f"{plural(count, 'deletion')} confirmed")
