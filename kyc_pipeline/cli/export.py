"""`kyc-pipeline export`: everything that is stored about one person, for their right of access."""

import json
from pathlib import Path

import click

from kyc_pipeline.cli.options import accountable, display_path, open_trail, person, reading_pseudonymizer
from kyc_pipeline.cli.output import OUTPUT_FOLDER
from kyc_pipeline.erasure.export import count
from kyc_pipeline.erasure.export import export as collect
from kyc_pipeline.erasure.find import find
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import UNFINISHED, KycError, in_one_line
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.ledger.audit import AuditAction, require_anonymous
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.settings import load_settings
from kyc_pipeline.wording import plural


@click.command()
@click.option(
    "--tag",
    required=True,
    metavar="NAME=VALUE",
    help="As for `erase`: a tag of the person, or submissionId=…; the value `-` means standard input.",
)
@click.option("--with-responses", is_flag=True, help="As for `erase`.")
@click.option(
    "--output",
    type=OUTPUT_FOLDER,
    default=Path(),
    help="Existing folder for the file; by default the working directory.",
)
@accountable
@click.pass_context
def export(
    context: click.Context,
    tag: str,
    with_responses: bool,
    output: Path,
    reason: str | None,
    request: str | None,
) -> None:
    """Write everything that is stored about one person to a JSON file, with a list of their documents.

    It reads the landing zone, the lake and the ledger. Only the owner of the file can read it.
    """
    name, value = person(tag)
    require_anonymous(value, reason, request)
    settings = load_settings()
    with open_ledger(settings) as ledger:
        stores = Stores.of(settings, ledger, reading_pseudonymizer(settings, ledger))
        stores.landing.require_mounted(stores.lake)
        found = find(stores, name, value, with_responses=with_responses)
        exported = collect(stores, found)
        counts = count(exported)
        if ledger.exists():
            trail = open_trail(settings, ledger, reason=reason, request=request)
            trail.record(AuditAction.EXPORT, (name, value), counts)
        if found.unreadable:
            unreadable = plural(len(found.unreadable), "unreadable manifest")
            click.echo(f"incomplete: {unreadable} not searched ({in_one_line(found.unreadable)})", err=True)
        if not any(counts.values()):
            click.echo(f"nothing is stored: {found.why_unknown}")
            context.exit(UNFINISHED)
        # Named by the pseudonym, because more people see a file's name than its content.
        file = output / f"export-{stores.tombstone(name, value).pseudonym[:16]}.json"
        _write(file, json.dumps(exported, indent=1, ensure_ascii=False))
    click.echo(", ".join(f"{place.replace('_', ' ')}: {number}" for place, number in counts.items()))
    click.echo(f"written to {display_path(file)}: hand it over safely, then delete it")
    if found.unreadable:
        context.exit(UNFINISHED)


def _write(file: Path, text: str) -> None:
    try:
        with replacing(file, mode=0o600) as target:
            # A lone surrogate becomes its JSON escape.
            target.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise KycError(
            f"cannot write {display_path(file)} ({error.strerror}): choose another --output"
        ) from error
