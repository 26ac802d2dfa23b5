"""`kyc-pipeline erase`: removes one person from everything that this project stores.

Prints counts and DeepXL's ids only, never a tag value, a name or a document path. `docs/erasure.md` lists
what remains and what to do in other systems.
"""

import secrets
import sys
from collections.abc import Callable

import click

from kyc_pipeline.cli.options import format_table, is_verbose
from kyc_pipeline.erasure.find import Findings, find
from kyc_pipeline.erasure.remove import erase as erase_found
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, has_pseudonym_key, load_pseudonymizer
from kyc_pipeline.settings import Settings, load_settings


@click.command()
@click.option(
    "--tag",
    required=True,
    metavar="NAME=VALUE",
    help="A tag of the person, such as customerId=9999; submissionId=… for one submission. The value `-` "
    "means standard input, which keeps the real value out of the shell history.",
)
@click.option("--landing", is_flag=True, help="Also delete the person's documents in the landing zone.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.pass_context
def erase(context: click.Context, tag: str, landing: bool, dry_run: bool) -> None:
    """Remove one person from lake, ledger, warehouse and report, permanently.

    From now on, their manifest rows are rejected as `erased_subject`. It is safe to repeat the command.
    """
    name, value = _person(tag)
    settings = load_settings()
    with open_ledger(settings) as ledger:
        stores = Stores.of(settings, ledger, _pseudonymizer(settings, dry_run=dry_run))
        found = find(stores, name, value)
        click.echo(_describe(found, stores.landing.unreadable, delete_documents=landing))
        if dry_run:
            return
        documents = landing and len(found.documents) > len(found.shared_documents)
        is_new = found.manifest_rows > 0 and not found.was_erased
        if not (found.is_stored or found.unfinished or documents or is_new):
            return
        verbose = is_verbose(context)
        # Before any change, so that invalid Dagster settings fail first.
        publish = _publisher(settings, verbose=verbose) if _is_published(settings) else None
        erased = erase_found(
            stores,
            found,
            delete_documents=landing,
            progress=lambda step: click.echo(step, err=True) if verbose else None,
        )
        # A run may have published the person before the tombstone existed.
        if publish or _is_published(settings):
            (publish or _publisher(settings, verbose=verbose))()
        stores.ledger.finish(erased.tombstones)
    click.echo("erased: nothing of the person is left in lake, ledger, warehouse and report")
    if settings.kyc_ledger_url.startswith("postgresql"):
        click.echo("PostgreSQL keeps deleted data in its pages and logs for a while: see docs/erasure.md")


def _is_published(settings: Settings) -> bool:
    return settings.kyc_warehouse.exists() or settings.kyc_report.exists()


def _person(tag: str) -> tuple[str, str]:
    """The tag's name and value. An error never shows the value."""
    name, separator, value = tag.partition("=")
    name = name.strip()
    if value == "-":
        value = sys.stdin.readline().rstrip("\r\n")
    if not (name and separator and value.strip()):
        raise UsageError(
            "--tag must be name=value, such as customerId=9999; name=- reads the value from standard input"
        )
    return name, value


def _pseudonymizer(settings: Settings, *, dry_run: bool) -> Pseudonymizer:
    if dry_run and not has_pseudonym_key(settings):
        # Without a key there are no pseudonyms yet, and a dry run creates no key.
        return Pseudonymizer(secrets.token_hex(32))
    return load_pseudonymizer(settings)


def _describe(found: Findings, unreadable: int, *, delete_documents: bool) -> str:
    rows: list[tuple[object, ...]] = [
        (f"lake: {table.name}", count, sum(bool(day.rows[table]) for day in found.days.values()))
        for table, count in found.rows.items()
    ]
    if found.ledger:
        rows.append(("ledger: submissions", len(found.ledger), len(set(found.ledger.values()))))
    lines = []
    if rows:
        lines.append(format_table(("stored in", "rows", "days"), rows))
    elif found.was_erased:
        lines.append("nothing is left: the person was erased before")
    else:
        lines.append("nothing found")
    if found.manifest_rows:
        lines.append(
            f"landing zone: {found.manifest_rows} rows in {len(found.manifests)} manifests; they stay, "
            "and are rejected as erased_subject"
        )
    if found.documents:
        shared = len(found.shared_documents)
        fate = "are deleted" if delete_documents else "stay; --landing deletes them"
        used = f", except {shared} that other people's submissions use" if shared else ""
        lines.append(f"landing zone: {len(found.documents)} documents {fate}{used}")
    if unreadable:
        lines.append(f"landing zone: {unreadable} manifests are unreadable and were not searched")
    if found.verification_ids:
        ids = ", ".join(map(str, sorted(found.verification_ids)))
        lines.append(f"DeepXL keeps its own records; request their deletion: verifications {ids}")
    return "\n".join(lines)


def _publisher(settings: Settings, *, verbose: bool) -> Callable[[], None]:
    # Imported here because Dagster takes a second and a dry run does not need it.
    from kyc_pipeline.cli.local_run import open_instance, run_partitions
    from kyc_pipeline.orchestration.resources import Pipeline

    instance = open_instance()

    def publish() -> None:
        failures = run_partitions(Pipeline(settings), [], instance, force=True, verbose=verbose)
        if failures:
            raise KycError(
                "erased from lake and ledger; the published warehouse still has the person, because it could "
                f"not be rebuilt: fix the cause and erase again: {'; '.join(failures)}"
            )

    return publish
