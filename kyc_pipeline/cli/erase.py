"""`kyc-pipeline erase`: removes one person from everything that this project stores.

Prints counts and DeepXL's ids only, never a tag value, a name or a document path. `docs/erasure.md` lists
what remains and what to do in other systems.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import click

from kyc_pipeline.analyze.publish import is_published, name_of
from kyc_pipeline.analyze.report import has_report
from kyc_pipeline.cli.options import (
    accountable,
    format_table,
    is_verbose,
    open_trail,
    person,
    reading_pseudonymizer,
)
from kyc_pipeline.erasure.find import Findings, find
from kyc_pipeline.erasure.remove import erase as erase_found
from kyc_pipeline.erasure.remove import require_no_hold
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import UNFINISHED, KycError, in_one_line
from kyc_pipeline.ledger.audit import AuditAction, require_anonymous
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.ledger.pseudonym_key import ledgers_pseudonymizer
from kyc_pipeline.ledger.publications import Copy, copies_before_erasure, forget_place
from kyc_pipeline.privacy.pseudonyms import DOCUMENT_DOMAIN
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.vocabulary import SUBMISSION_TAG
from kyc_pipeline.wording import plural


@click.command()
@click.option(
    "--tag",
    required=True,
    metavar="NAME=VALUE",
    help="A tag of the person, such as customerId=9999; submissionId=… for one submission. The value `-` "
    "means standard input, which keeps the real value out of the shell history.",
)
@click.option("--landing", is_flag=True, help="Also delete the person's documents in the landing zone.")
@click.option(
    "--with-responses",
    is_flag=True,
    help="Also erase submissions that were sent without the tag, but whose response has it.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@accountable
@click.pass_context
def erase(
    context: click.Context,
    tag: str,
    landing: bool,
    with_responses: bool,
    dry_run: bool,
    reason: str | None,
    request: str | None,
) -> None:
    """Remove one person from lake, ledger, warehouse and report, permanently.

    From now on, their manifest rows are rejected as `erased_subject`. It is safe to repeat the command. Exit
    code 3: nobody was found, or something is left, such as the warehouse of another host.
    """
    name, value = person(tag)
    require_anonymous(value, reason, request)
    settings = load_settings()
    with open_ledger(settings) as ledger:
        pseudonymizer = reading_pseudonymizer if dry_run else ledgers_pseudonymizer
        stores = Stores.of(settings, ledger, pseudonymizer(settings, ledger))
        stores.landing.require_mounted(stores.lake)
        found = find(stores, name, value, with_responses=with_responses)
        documents = landing and found.deletable_documents
        is_to_do = bool(found.is_stored or found.unfinished or documents or found.remembered)
        if dry_run:
            verdict = "be refused" if found.holds else "do this"
            click.echo(f"dry run: nothing changes. The erasure would {verdict}:")
        click.echo(_describe(found, delete_documents=landing))
        if is_to_do and not found.holds and _is_published(settings):
            click.echo("warehouse and report are rebuilt")
        if dry_run:
            _end(context, found)
        if not is_to_do:
            _end(context, found, copies_before_erasure(ledger))
        require_no_hold(found)
        verbose = is_verbose(context)
        publish = publisher(settings, verbose=verbose)
        trail = open_trail(settings, ledger, reason=reason, request=request)
        trail.record(AuditAction.ERASE, (name, value), _counts(found, len(documents) if documents else 0))
        erased = erase_found(
            stores,
            found,
            delete_documents=landing,
            request=request,
            progress=lambda step: click.echo(step, err=True) if verbose else None,
        )
        publish()
        trail.record(AuditAction.ERASED, (name, value), {"left": found.left})
        stores.ledger.finish(erased.tombstones)
        if not _is_published(settings):  # the operator removed the files
            forget_place(ledger, name_of(settings.kyc_warehouse))
        elsewhere = copies_before_erasure(ledger)
    if not found.is_known:
        click.echo("erased: what was left of people who had been erased before; nobody new")
    elif found.left:
        click.echo("erased: everything else about the person in lake, ledger, warehouse and report")
    else:
        click.echo("erased: nothing of the person is left in lake, ledger, warehouse and report")
    if ledger.file is None:
        click.echo("PostgreSQL keeps deleted data in its pages and logs for a while: see docs/erasure.md")
    _end(context, found, elsewhere)


def _end(context: click.Context, found: Findings, elsewhere: Sequence[Copy] = ()) -> NoReturn:
    """Ends the command. The exit code says whether somebody must act.

    `elsewhere`: published builds of other hosts that may contain somebody who was erased.
    """
    for copy in elsewhere:
        click.echo(
            f"the warehouse at {copy.place} is from before the last erasure: run `kyc-pipeline publish` "
            "there, or see `kyc-pipeline publications`",
            err=True,
        )
    if found.left:
        click.echo(
            f"{plural(found.left, 'submission')} left that only the response ties to the person (see "
            "`export`); if they are this person's, erase again with --with-responses",
            err=True,
        )
    is_done = found.is_known and not (found.left or found.holds or found.unreadable or elsewhere)
    context.exit(0 if is_done else UNFINISHED)


def _is_published(settings: Settings) -> bool:
    """Whether there is a warehouse, its restricted file or a report."""
    return is_published(settings.kyc_warehouse) or has_report(settings.kyc_report)


def _counts(found: Findings, documents: int) -> dict[str, int]:
    """What the audit trail keeps of an erasure."""
    return {
        **{table.name: count for table, count in found.rows.items()},
        "ledger": len(found.ledger),
        "documents": documents,
        "remembered": len(found.remembered),
        "vendor_records": len(found.vendor),
    }


def _describe(found: Findings, *, delete_documents: bool) -> str:
    landing = _describe_landing(found, delete_documents=delete_documents)
    return "\n".join([*_describe_stored(found), *landing, *_describe_rest(found)])


def _describe_stored(found: Findings) -> Iterator[str]:
    rows: list[tuple[object, ...]] = [
        (f"lake: {table.name}", count, sum(bool(day.rows[table]) for day in found.days.values()))
        for table, count in found.rows.items()
    ]
    if found.ledger:
        rows.append(("ledger: submissions", len(found.ledger), len(set(found.ledger.values()))))
    if not found.is_known:
        yield f"nobody found: {found.why_unknown}"
        if rows:
            yield "stored again, of people who had been erased before:"
    elif not rows:
        yield "nothing is left: the person was erased before" if found.was_erased else "nothing is stored"
    if rows:
        yield format_table(("stored in", "rows", "days"), rows)
    if found.spellings > 1:
        yield f"the value is written in {found.spellings} ways, which count as one person"
    if found.echoed:
        fate = "erased too" if found.with_responses else "kept"
        echoed = plural(len(found.echoed), "submission")
        yield f"{echoed} with the tag only in the response, not as sent: {fate}"
    if found.vendor:
        known = (
            [f"verifications {', '.join(map(str, found.verification_ids))}"] if found.verification_ids else []
        )
        unknown = sum(record.is_incomplete for record in found.vendor.values())
        calls = [f"{plural(unknown, 'submission')} with a record of unknown id"] if unknown else []
        yield (
            "DeepXL keeps its own records; request their deletion (`kyc-pipeline vendor-deletions list`): "
            + "; ".join(known + calls)
        )


def _describe_rest(found: Findings) -> Iterator[str]:
    if found.remembered:
        yield f"remembered as pseudonyms: {', '.join(_describe_remembered(found))}"
    for hold in found.holds:
        yield f"refused: {hold}"


def _describe_remembered(found: Findings) -> Iterator[str]:
    counts = Counter(each.name for each in found.remembered)
    submissions, documents = counts.pop(SUBMISSION_TAG, 0), counts.pop(DOCUMENT_DOMAIN, 0)
    if counts:
        yield "the tag"
    if submissions:
        yield plural(submissions, "submission")
    if documents:
        yield plural(documents, "document")


def _describe_landing(found: Findings, *, delete_documents: bool) -> Iterator[str]:
    if found.manifest_rows:
        rows, manifests = plural(found.manifest_rows, "row"), plural(len(found.manifests), "manifest")
        yield f"landing zone: {rows} in {manifests}; they stay, and are rejected as erased_subject"
    if found.unreadable:
        yield (
            f"landing zone: {plural(len(found.unreadable), 'unreadable manifest')} not searched "
            f"({in_one_line(found.unreadable)}); documents stay, because they may be named there"
        )
    elif found.documents:
        shared = len(found.shared_documents)
        fate = "deleted" if delete_documents else "kept; --landing deletes them"
        used = f", except {shared} that other people's submissions use" if shared else ""
        yield f"landing zone, {plural(len(found.documents), 'document')}: {fate}{used}"


def publisher(
    settings: Settings,
    *,
    verbose: bool,
    failure: str = "erased from lake and ledger; the published warehouse still has the person, because it "
    "could not be rebuilt: fix the cause and erase again",
) -> Callable[[], None]:
    """A function that rebuilds warehouse and report after an erasure, if they exist then.

    Call this before any change, so that invalid Dagster settings raise first. `failure` begins the error if
    they cannot be rebuilt.
    """
    prepared = _prepared(settings, failure, verbose=verbose) if _is_published(settings) else None

    def publish() -> None:
        # A run may have published the person before the tombstone existed.
        if prepared or _is_published(settings):
            (prepared or _prepared(settings, failure, verbose=verbose))()

    return publish


def _prepared(settings: Settings, failure: str, *, verbose: bool) -> Callable[[], None]:
    # Imported here because Dagster takes a second and a dry run does not need it.
    from kyc_pipeline.cli.dagster_home import open_instance
    from kyc_pipeline.cli.local_run import run_partitions
    from kyc_pipeline.orchestration.resources import Pipeline

    instance = open_instance()

    def publish() -> None:
        failures = run_partitions(Pipeline(settings), [], instance, force=True, verbose=verbose)
        if failures:
            raise KycError(f"{failure}: {'; '.join(failures)}")

    return publish
