"""`kyc-pipeline limits`: the rate limits that all runs share through the ledger."""

import click

from kyc_pipeline.cli.options import accountable, format_table, open_trail
from kyc_pipeline.ledger.audit import AuditAction
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.rate_limits import list_rate_limits, reset_rate_limits
from kyc_pipeline.ledger.times import SECOND
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import plural


@click.group()
def limits() -> None:
    """Show the rate limits that all runs share through the ledger, or reset them."""


@limits.command("list")
def list_command() -> None:
    """Show how far ahead permits are booked, and how long calls are paused."""
    with Ledger(load_settings().kyc_ledger_url) as ledger:
        found = list_rate_limits(ledger)
    if not found:
        click.echo("no run has used a rate limit yet")
        return
    click.echo(
        format_table(
            ("API", "booked for", "paused for"),
            [
                (name, _seconds(limit.arrival - limit.now), _seconds(limit.paused_until - limit.now))
                for name, limit in found.items()
            ],
        )
    )


@limits.command("reset")
@accountable
def reset_command(reason: str | None, request: str | None) -> None:
    """Forget bookings and pauses, for example after the clock was wrong. Waiting runs continue."""
    settings = load_settings()
    with Ledger(settings.kyc_ledger_url) as ledger:
        trail = open_trail(settings, ledger, reason=reason, request=request)  # before: it may be refused
        count = reset_rate_limits(ledger)
        if count:
            trail.record(AuditAction.RESET_LIMITS, details={"limits": count})
    click.echo(f"{plural(count, 'rate limit')} reset")


def _seconds(microseconds: int) -> str:
    return f"{max(microseconds, 0) / SECOND:,.1f} s"
