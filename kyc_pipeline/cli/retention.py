"""`kyc-pipeline retention`: removes data whose retention period is over."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import click

from kyc_pipeline.cli.erase import publisher
from kyc_pipeline.cli.options import accountable, format_table, is_verbose, open_trail, reading_pseudonymizer
from kyc_pipeline.erasure.rejected import forget_rejected
from kyc_pipeline.erasure.relationships import Relationships
from kyc_pipeline.erasure.remove import delete_documents, erase
from kyc_pipeline.erasure.retention import NO_PERIOD, Plan, RetentionPeriods, make_plan
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import UsageError, in_one_line
from kyc_pipeline.ledger.audit import AuditAction
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.wording import plural


@click.command()
@click.option("--dry-run/--apply", default=True, help="Only show what is due (the default), or remove it.")
@accountable
@click.pass_context
def retention(context: click.Context, dry_run: bool, reason: str | None, request: str | None) -> None:
    """Remove data and documents of people whose relationship ended long enough ago, and old rejected rows.

    The landing zone's relationships/*.csv have the end dates. Data under a legal hold stays.
    """
    settings = load_settings()
    rules = RetentionPeriods.of(settings)
    if rules.is_empty:
        raise UsageError(NO_PERIOD)
    today = datetime.now(UTC).date()
    with open_ledger(settings) as ledger:
        stores = Stores.of(settings, ledger, reading_pseudonymizer(settings, ledger))
        relationships = Relationships(settings.kyc_landing, stores.pseudonymizer)
        plan = make_plan(stores, relationships, rules, today)
        if dry_run:
            click.echo("dry run: nothing changes. --apply would do this:")
        click.echo("\n".join(_describe(plan, rules)))
        if dry_run or plan.is_empty:
            context.exit()
        publish = _publisher(settings, verbose=is_verbose(context)) if plan.erases else None
        trail = open_trail(settings, ledger, reason=reason, request=request)
        counts = plan.counts(rules)
        trail.record(AuditAction.RETENTION, details=counts)
        delete_documents(stores, plan.documents)
        forget_rejected(stores, today, rules.rejected_days)
        if publish is not None:
            erased = erase(stores, plan.data, request=request)
            publish()
            stores.ledger.finish(erased.tombstones)
        trail.record(AuditAction.RETAINED, details=counts)
    click.echo("removed")


def _publisher(settings: Settings, *, verbose: bool) -> Callable[[], None]:
    return publisher(
        settings,
        verbose=verbose,
        failure="removed from lake and ledger, but not from the published warehouse, because it could not be "
        "rebuilt: fix the cause and repeat the command",
    )


def _describe(plan: Plan, rules: RetentionPeriods) -> Iterator[str]:
    yield f"relationships: {plural(plan.relationships, 'subject')}"
    days = rules.documents_days
    documents = len(plan.documents.deletable_documents)
    yield format_table(
        ("class", "days", "due"),
        [
            ("data", _days(rules.data_days), plural(len(plan.data.ids), "submission")),
            ("documents", _days(days), plural(documents, "document")),
            ("rejected rows", _days(rules.rejected_days), plural(plan.rejected.count, "row")),
        ],
    )
    if plan.data.unfinished:
        yield "a removal that was interrupted is completed"
    if plan.rejected.held:
        yield f"kept: {plural(plan.rejected.held, 'rejected row')} that a legal hold covers or may cover"
    for hold, count in plan.held.items():
        yield f"kept: {plural(count, 'submission')} under {hold}"
    if days is not None and plan.documents.unreadable:
        unreadable = plural(len(plan.documents.unreadable), "unreadable manifest")
        yield f"documents stay: {unreadable} may name them ({in_one_line(plan.documents.unreadable)})"
    elif shared := len(plan.documents.shared_documents):
        yield f"kept: {plural(shared, 'document')} that other submissions use too"


def _days(days: int | None) -> str:
    return "kept" if days is None else str(days)
