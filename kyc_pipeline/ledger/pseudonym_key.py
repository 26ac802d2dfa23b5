"""Each ledger has one pseudonym key: it records the key's id on first use.

Hosts that share a ledger share its lake. If each host made its own key, one person would have several
pseudonyms, and an erased person would not be recognised.
"""

from sqlalchemy import Connection, select, update

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.schema import erasures, identity, legal_holds
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, has_pseudonym_key, load_pseudonymizer
from kyc_pipeline.settings import Settings


def ledgers_pseudonymizer(settings: Settings, ledger: Ledger, *, keeps: bool = True) -> Pseudonymizer:
    """The pseudonymizer with the configured key, which must be the ledger's. Does not create a ledger.

    If the ledger's key is one of `KYC_PSEUDONYM_OLD_KEYS`, it stays in use until `rekey` replaces it. A key
    file is created on first use, but only if the ledger is a file too, since a database may serve several
    hosts. Without `keeps`, the ledger does not record the first key: inside a transaction on SQLite,
    a second write would wait for the first one. Raises :class:`UsageError` if the key is missing, unusable,
    or not the ledger's.
    """
    is_there = ledger.exists()
    known = _known(ledger) if is_there else None
    if not has_pseudonym_key(settings):
        if known is not None:
            raise UsageError(
                f"KYC_PSEUDONYM_KEY: the key {known} of the ledger {ledger.name} is missing: set it, or "
                f"restore {settings.pseudonym_key_file}"
            )
        if ledger.file is None:
            raise UsageError(
                "KYC_PSEUDONYM_KEY: not set: hosts that share a ledger need the same key; make one with "
                "`openssl rand -hex 32` and set it on all of them"
            )
    pseudonymizer = load_pseudonymizer(settings)
    if keeps and is_there and known is None:
        known = _keep(ledger, pseudonymizer.key_id)
    in_use = pseudonymizer if known is None else pseudonymizer.switched_to(known)
    if in_use is None:
        raise UsageError(
            f"KYC_PSEUDONYM_KEY: the ledger {ledger.name} was used with the key {known}, but this is "
            f"{pseudonymizer.key_id}: use one key on every host; docs/operations.md says how to rotate it"
        )
    return in_use


def use_key(connection: Connection, key_id: str) -> str | None:
    """Makes this the ledger's key, in the transaction that replaces pseudonyms. Returns the former one."""
    former = _read(connection)
    connection.execute(update(identity).values(pseudonym_key_id=key_id))
    return former


def forget_pseudonym_key(ledger: Ledger) -> None:
    """Makes the next key that is used the ledger's.

    Raises :class:`UsageError` if anybody was erased or is under a legal hold: only the old key finds them.
    """
    with ledger.write() as connection:
        if connection.execute(select(erasures.c.name).limit(1)).first():
            raise UsageError(
                "the pseudonym key cannot be forgotten: people were erased, and only this key recognises "
                "them; `kyc-pipeline rekey` replaces it"
            )
        if connection.execute(select(legal_holds.c.name).limit(1)).first():
            raise UsageError(
                "the pseudonym key cannot be forgotten: there are legal holds, and only this key recognises "
                "the people; `kyc-pipeline rekey` replaces it"
            )
        connection.execute(update(identity).values(pseudonym_key_id=None))


def _known(ledger: Ledger) -> str | None:
    with ledger.read() as connection:
        return _read(connection)


def _keep(ledger: Ledger, key_id: str) -> str | None:
    """Records the key, unless another host was faster. Returns the id of the ledger's key."""
    with ledger.write() as connection:
        connection.execute(
            update(identity).where(identity.c.pseudonym_key_id.is_(None)).values(pseudonym_key_id=key_id)
        )
        return _read(connection)


def _read(connection: Connection) -> str | None:
    found: str | None = connection.execute(select(identity.c.pseudonym_key_id)).scalar_one()
    return found
