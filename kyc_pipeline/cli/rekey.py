"""`kyc-pipeline rekey`: replaces the key of the pseudonyms, in ledger, lake and warehouse."""

import click

from kyc_pipeline.cli.erase import publisher
from kyc_pipeline.cli.options import accountable, is_verbose, open_trail
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.erasure.rekey import outdated_days, rekey_lake
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import UNFINISHED, UsageError
from kyc_pipeline.ledger.audit import AuditAction
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.identity import open_ledger
from kyc_pipeline.ledger.pseudonym_key import ledgers_pseudonymizer
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, load_pseudonymizer
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.wording import plural


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be replaced.")
@accountable
@click.pass_context
def rekey(context: click.Context, dry_run: bool, reason: str | None, request: str | None) -> None:
    """Replace the pseudonym key by KYC_PSEUDONYM_KEY; set KYC_PSEUDONYM_OLD_KEYS to the old one.

    Replaces the pseudonyms in ledger, lake and warehouse. Erased people stay barred, and legal holds stay in
    force. It is safe to repeat the command. Stop the daemon first.
    """
    settings = load_settings()
    with open_ledger(settings) as ledger:
        former, new = _keys(settings, ledger)
        stores = Stores.of(settings, ledger, new)
        days = outdated_days(stores.lake, new.key_id)
        done = f"ledger and lake have the key {new.key_id} already: nothing to replace there"
        if dry_run:
            old = [each for each in stores.ledger.tombstones() if each.key_id != new.key_id]
            is_done = former == new.key_id and not (old or days)
            to_do = (
                f"the new key is {new.key_id}; {plural(len(old), 'tombstone')} and "
                f"{plural(len(days), 'day')} have another"
            )
            click.echo(f"dry run: nothing changes; {done if is_done else to_do}")
            return
        publish = publisher(
            settings,
            verbose=is_verbose(context),
            failure="ledger and lake have the new key, but not the published warehouse, because it could not "
            "be rebuilt: fix the cause and repeat the command",
        )
        trail = open_trail(settings, ledger, reason=reason, request=request)
        with trail.noted():
            rekeyed = stores.ledger.rekey(
                new,
                lambda connection, counts: trail.append(
                    connection, AuditAction.REKEY, [None], {**counts._asdict(), "key": new.key_id}
                ),
            )
        if not (rekeyed or days):
            click.echo(done)
        failed = {day: problem for day, problem in rekey_lake(stores) if problem}
        publish()
        stores.ledger.purge()  # of the old pseudonyms
        trail.record(
            AuditAction.REKEYED, details={"key": new.key_id, "days": len(days), "failed": len(failed)}
        )
        _report_needed_keys(stores.ledger, new, has_old_keys=bool(settings.kyc_pseudonym_old_keys))
    for day, problem in failed.items():
        click.echo(f"{day} keeps pseudonyms of the old key: {problem}", err=True)
    context.exit(UNFINISHED if failed else 0)


def _keys(settings: Settings, ledger: Ledger) -> tuple[str, Pseudonymizer]:
    """The id of the ledger's key, and the pseudonymizer with `KYC_PSEUDONYM_KEY`.

    Raises :class:`UsageError` if the settings lack the ledger's key.
    """
    if not ledger.exists():
        raise UsageError("there is no ledger yet, so there are no pseudonyms: set KYC_PSEUDONYM_KEY")
    return ledgers_pseudonymizer(settings, ledger).key_id, load_pseudonymizer(settings)


def _report_needed_keys(ledger: LedgerErasure, new: Pseudonymizer, *, has_old_keys: bool) -> None:
    """Prints the new key, and which earlier keys are still needed."""
    click.echo(f"the key of the pseudonyms is {new.key_id}")
    subjects = [*ledger.tombstones(), *(hold.subject for hold in ledger.holds())]
    needed = {key for each in subjects for key in each.keys if new.of_key(key) is not new}
    if needed:
        click.echo(
            f"leave in KYC_PSEUDONYM_OLD_KEYS: {', '.join(sorted(needed))}. Without them, erased people and "
            "legal holds are not recognised"
        )
    elif has_old_keys:
        click.echo("KYC_PSEUDONYM_OLD_KEYS is no longer needed")
