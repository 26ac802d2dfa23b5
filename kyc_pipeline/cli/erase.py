"""`kyc-pipeline erase`: removes one person from everything that this project stores.

Prints only counts and DeepXL's ids: no tag value, no name, no document path. `docs/erasure.md` says what
stays and what to do elsewhere.
"""

import secrets
import sys
from collections.abc import Callable

import click

from kyc_pipeline.cli.options import table
from kyc_pipeline.erasure.find import Findings, find
from kyc_pipeline.erasure.remove import erase as erase_found
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, load_pseudonymizer
from kyc_pipeline.settings import Settings, load_settings


@click.command()
@click.option(
    "--tag",
    required=True,
    metavar="NAME=VALUE",
    help="A tag of the person, such as customerId=9999; submissionId=… for one submission. With `-` the "
    "value is read from standard input, so that no shell history keeps it.",
)
@click.option("--landing", is_flag=True, help="Delete the person's documents in the landing zone as well.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.pass_context
def erase(context: click.Context, tag: str, landing: bool, dry_run: bool) -> None:
    """Remove one person from lake, ledger, warehouse and report, for good, and keep them from coming back.

    Their rows in the manifests are rejected as `erased_subject` from now on. Can be repeated at any time.
    """
    name, value = _person(tag)
    settings = load_settings()
    with Ledger(settings.kyc_ledger_url) as ledger:
        stores = Stores.of(settings, ledger, _pseudonymizer(settings, dry_run=dry_run))
        found = find(stores, name, value)
        click.echo(_shown(found, stores.landing.unreadable, delete_documents=landing))
        if dry_run:
            return
        documents = landing and len(found.documents) > len(found.shared_documents)
        is_new = found.manifest_rows > 0 and not found.was_erased
        if not (found.is_stored or found.unfinished or documents or is_new):
            return
        verbose = bool(context.find_root().params.get("verbose"))
        # Before any change, so that wrong Dagster settings fail here.
        publish = _publisher(settings, verbose=verbose) if _is_published(settings) else None
        erased = erase_found(
            stores,
            found,
            delete_documents=landing,
            progress=lambda step: click.echo(step, err=True) if verbose else None,
        )
        # A run may have published the person before the tombstone was written.
        if publish or _is_published(settings):
            (publish or _publisher(settings, verbose=verbose))()
        stores.ledger.finish(erased.tombstones)
    click.echo("erased: nothing of the person is left in lake, ledger, warehouse and report")
    if settings.kyc_ledger_url.startswith("postgresql"):
        click.echo("PostgreSQL keeps old bytes in its pages and logs for a while: see docs/erasure.md")


def _is_published(settings: Settings) -> bool:
    return settings.kyc_warehouse.exists() or settings.kyc_report.exists()


def _person(tag: str) -> tuple[str, str]:
    """Name and value. Never shows the value."""
    name, separator, value = tag.partition("=")
    name = name.strip()
    if value == "-":
        value = sys.stdin.readline().rstrip("\r\n")
    if not (name and separator and value.strip()):
        raise UsageError(
            "--tag must be name=value, such as customerId=9999; with name=- the value is read from "
            "standard input"
        )
    return name, value


def _pseudonymizer(settings: Settings, *, dry_run: bool) -> Pseudonymizer:
    has_key = settings.kyc_pseudonym_key is not None or settings.pseudonym_key_file.exists()
    if dry_run and not has_key:
        # Without a key nothing was ever stored under one, and a dry run makes none.
        return Pseudonymizer(secrets.token_hex(32))
    return load_pseudonymizer(settings)


def _shown(found: Findings, unreadable: int, *, delete_documents: bool) -> str:
    rows: list[tuple[object, ...]] = [
        (f"lake: {table.name}", count, sum(bool(day.rows[table]) for day in found.days.values()))
        for table, count in found.rows.items()
    ]
    if found.ledger:
        rows.append(("ledger: submissions", len(found.ledger), len(set(found.ledger.values()))))
    lines = []
    if rows:
        lines.append(table(("what is stored", "rows", "days"), rows))
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
        used = f", but for {shared} that other people's submissions use" if shared else ""
        lines.append(f"landing zone: {len(found.documents)} documents {fate}{used}")
    if unreadable:
        lines.append(f"landing zone: {unreadable} manifests cannot be read and were not searched")
    if found.verification_ids:
        ids = ", ".join(map(str, sorted(found.verification_ids)))
        lines.append(f"DeepXL has records of its own; ask for their deletion: verifications {ids}")
    return "\n".join(lines)


def _publisher(settings: Settings, *, verbose: bool) -> Callable[[], None]:
    # Imported here: Dagster takes a second, and a dry run does without it.
    from kyc_pipeline.cli.local_run import open_instance, run_partitions
    from kyc_pipeline.orchestration.resources import Pipeline, RunControls

    instance = open_instance()

    def publish() -> None:
        level = "INFO" if verbose else "CRITICAL"
        report = run_partitions(Pipeline(settings), RunControls(), [], instance, log_level=level)
        if report.failures:
            raise KycError(
                "lake and ledger are done, but the warehouse could not be built again, so the published one "
                f"still has the person; erase again when it can: {'; '.join(report.failures)}"
            )

    return publish
