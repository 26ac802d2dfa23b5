"""`kyc-pipeline ledger`: checks that the ledger is sound and is the lake's, moves it, restores it."""

import contextlib
from pathlib import Path

import click

from kyc_pipeline.cli.options import accountable, format_table, open_trail
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.identity import check_bond, check_lake, check_outcomes, read_identity
from kyc_pipeline.ledger.offload import check_offloaded
from kyc_pipeline.ledger.pseudonym_key import forget_pseudonym_key
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.settings import Settings, ledger_below, load_settings
from kyc_pipeline.wording import plural


@click.group()
def ledger() -> None:
    """Check, move or restore the ledger of paid calls (KYC_LEDGER_URL)."""


@ledger.command("check")
@click.option(
    "--bind",
    is_flag=True,
    help="Make it the ledger of a lake that was rebuilt or lost its id, if it knows all the lake's outcomes.",
)
@click.option(
    "--forget-pseudonym-key",
    "forget_key",
    is_flag=True,
    help="Let the ledger accept a new KYC_PSEUDONYM_KEY, unless somebody was erased or a legal hold is set.",
)
def check_command(bind: bool, forget_key: bool) -> None:
    """Check that the ledger is sound, durable and this lake's, and knows every outcome in the lake."""
    lake, mine = _open(load_settings())
    with mine:
        check_bond(lake, mine)
        if not mine.exists():
            click.echo("there is no ledger yet: the first run creates it")
            return
        if bind:
            transfer.bind_again(lake, mine)
        check_lake(lake, mine)
        if forget_key:
            forget_pseudonym_key(mine)
        transfer.check_file(mine)
        check_outcomes(lake, mine, lake.dates(VERIFICATION_RESPONSES))
        offloaded = check_offloaded(lake, mine)
        known = read_identity(mine)
        restored = to_datetime(known.restored_at)
        lines = [
            ("ledger", mine.name),
            ("id", known.ledger_id),
            ("lake", f"{lake.root} ({known.lake_id or 'not bound until the first call'})"),
            ("key id", known.pseudonym_key_id or "none until the first pseudonym"),
            ("restored", f"{restored:%Y-%m-%d %H:%M} UTC" if restored else "never"),
            *((state.value, count) for state, count in transfer.count_states(mine).items()),
            ("offloaded", f"{plural(offloaded, 'response')} that only the lake has"),
        ]
    click.echo("\n".join(f"{name:<12}{value}" for name, value in lines))
    click.echo("the ledger is sound, and knows every outcome in the lake")


@ledger.command("move")
@click.argument("url")
def move_command(url: str) -> None:
    """Copy the ledger to URL, such as postgresql+psycopg://user@host/kyc, and put this one out of use.

    A relative path in sqlite:/// begins in KYC_HOME. The ledger at URL must be empty. Stop the daemon first.
    Set KYC_LEDGER_URL to URL afterwards.
    """
    settings = load_settings()
    try:
        place = ledger_below(settings.kyc_home, url)
    except ValueError as error:
        raise UsageError(f"URL {error}") from None
    lake, mine = _open(settings)
    with mine, Ledger(place) as target:
        if not mine.exists():
            raise UsageError(f"there is no ledger at {mine.name} to move")
        rows = transfer.move(lake, mine, target)
        _show(rows)
        click.echo(f"moved: set KYC_LEDGER_URL to {target.name}; {mine.name} is out of use")


@ledger.command("restore")
@click.argument("backup", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--replace", is_flag=True, help="First rename an existing ledger file.")
@accountable
def restore_command(backup: Path | None, replace: bool, reason: str | None, request: str | None) -> None:
    """Restore the ledger from BACKUP, a SQLite file, and complete it with the outcomes in the lake.

    Without BACKUP it uses the ledger that you restored at KYC_LEDGER_URL (with pg_restore, say), or creates
    one from the lake alone. Before later runs send anything, they look up what the ledger may lack. With
    --replace, it keeps from the former ledger, if that can be read, the audit trail, the legal holds, the
    register of vendor deletions, the tombstones and what was abandoned.
    """
    settings = load_settings()
    lake, mine = _open(settings)
    with mine, contextlib.ExitStack() as stack:
        source = None
        if backup is not None:
            if not replace and mine.file is not None and mine.file.exists():
                raise UsageError(f"there is a ledger at {mine.name}: add --replace to rename its file first")
            source = stack.enter_context(transfer.opened_backup(backup))
            transfer.check_backup(lake, source)  # before the ledger makes room for it
        aside = transfer.set_aside(mine) if replace else None
        if aside is not None:
            click.echo(f"the former ledger is {aside} now")
        # A restore that is killed leaves no ledger, and repeating it finds the former one.
        makes_file = mine.file is not None and (replace or source is not None)
        made = stack.enter_context(transfer.draft_beside(mine)) if makes_file else mine
        if source is not None:
            _show(transfer.copy_backup(source, made))
        added = transfer.complete_from_lake(lake, made)
        if aside is not None:
            _carry_over(lake, aside, made)
        transfer.declare_restored(lake, made)
        if makes_file:
            transfer.put_into_place(made, mine)
        trail = open_trail(settings, mine, reason=reason, request=request)
        lost = trail.record_restore()
    click.echo(f"completed with {plural(added, 'outcome')} from the lake")
    click.echo("restored: before runs send anything, they look up at DeepXL what the ledger may lack")
    if lost != 0:
        missing = "may lack entries" if lost is None else f"lacks {plural(lost, 'entry', 'entries')}"
        click.echo(
            f"the audit trail {missing}: repeat the erasures, legal holds, confirmed deletions and decisions "
            "made since the backup"
        )


def _carry_over(lake: Lake, aside: Path, mine: Ledger) -> None:
    try:
        with transfer.opened_backup(aside) as former:
            carried = transfer.carry_over(lake, former, mine)
    except KycError as error:
        click.echo(f"nothing of the former ledger was kept: {error}")
        return
    click.echo(
        f"kept of the former ledger: {plural(carried.legal_holds, 'legal hold')}, "
        f"{plural(carried.vendor_deletions, 'vendor deletion')}, "
        f"{plural(carried.entries, 'newer entry', 'newer entries')} of the audit trail, "
        f"{plural(carried.tombstones, 'newer tombstone')}, "
        f"{plural(carried.abandoned, 'abandoned submission')}"
    )
    if carried.tombstones:
        click.echo(
            "the backup brought back data of people erased since: repeat one of these erasures "
            "(`kyc-pipeline erase`), which completes all of them"
        )
    if carried.needs_rekey:
        click.echo(
            "the backup has pseudonyms of an earlier key: leave that in KYC_PSEUDONYM_OLD_KEYS, and run "
            "`kyc-pipeline rekey`"
        )


def _open(settings: Settings) -> tuple[Lake, Ledger]:
    return Lake(settings.kyc_lake), Ledger(settings.kyc_ledger_url)


def _show(rows: dict[str, int]) -> None:
    click.echo(format_table(("copied", "rows"), list(rows.items())))
