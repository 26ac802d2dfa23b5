"""The ledger keeps the id of its pseudonym key, and refuses another one."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.pseudonym_key import forget_pseudonym_key, ledgers_pseudonymizer
from kyc_pipeline.ledger.schema import erasures, legal_holds
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings

KEY, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2


def host(folder: Path, key: str | None = None) -> Settings:
    return Settings(
        _env_file=None,
        kyc_landing=folder / "landing",
        kyc_pseudonym_key=SecretStr(key) if key else None,
    )


def create(ledger: Ledger) -> None:
    with ledger.write():
        pass


def test_the_first_key_is_the_ledgers(ledger_url: str, tmp_path: Path) -> None:
    with Ledger(ledger_url) as ledger:
        create(ledger)
        for _ in range(2):
            assert ledgers_pseudonymizer(host(tmp_path, KEY), ledger).key_id == Pseudonymizer(KEY).key_id
        with pytest.raises(UsageError, match="was used with the key") as refused:
            ledgers_pseudonymizer(host(tmp_path, OTHER), ledger)
        assert KEY not in str(refused.value)
        assert OTHER not in str(refused.value)


def test_a_lost_key_file_is_not_replaced_by_a_new_key(tmp_path: Path) -> None:
    settings = host(tmp_path)
    with Ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        create(ledger)
        first = ledgers_pseudonymizer(settings, ledger).key_id
        settings.pseudonym_key_file.rename(tmp_path / "backup")
        with pytest.raises(UsageError, match=f"the key {first} of the ledger .* is missing"):
            ledgers_pseudonymizer(settings, ledger)
        assert not settings.pseudonym_key_file.exists()
        (tmp_path / "backup").rename(settings.pseudonym_key_file)
        assert ledgers_pseudonymizer(settings, ledger).key_id == first


def test_hosts_that_share_a_database_make_no_keys(postgres_url: str, tmp_path: Path) -> None:
    settings = host(tmp_path)
    with Ledger(postgres_url) as ledger, pytest.raises(UsageError, match="KYC_PSEUDONYM_KEY: not set"):
        ledgers_pseudonymizer(settings, ledger)
    assert not settings.pseudonym_key_file.exists()


def test_pseudonyms_do_not_create_a_ledger(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        assert ledgers_pseudonymizer(host(tmp_path, KEY), ledger).key_id == Pseudonymizer(KEY).key_id
        assert not ledger.exists()


def test_the_key_can_be_forgotten_until_somebody_is_erased(ledger_url: str, tmp_path: Path) -> None:
    with Ledger(ledger_url) as ledger:
        create(ledger)
        ledgers_pseudonymizer(host(tmp_path, KEY), ledger)
        forget_pseudonym_key(ledger)
        rotated = ledgers_pseudonymizer(host(tmp_path, OTHER), ledger)
        with ledger.write() as connection:
            erased = {"name": "customerId", "pseudonym": "0" * 64, "key_id": rotated.key_id, "erased_at": 1}
            connection.execute(sa.insert(erasures).values(**erased))
        with pytest.raises(UsageError, match="cannot be forgotten: people were erased"):
            forget_pseudonym_key(ledger)


def test_the_key_cannot_be_forgotten_while_only_it_finds_the_people_under_a_legal_hold(
    ledger_url: str, tmp_path: Path
) -> None:
    with Ledger(ledger_url) as ledger:
        create(ledger)
        key_id = ledgers_pseudonymizer(host(tmp_path, KEY), ledger).key_id
        with ledger.write() as connection:
            hold = {"name": "customerId", "pseudonym": "0" * 64, "key_id": key_id}
            why = {"reason": "a lawsuit", "set_at": 1, "set_by": "Ann"}
            connection.execute(sa.insert(legal_holds).values(**hold, **why))
        with pytest.raises(UsageError, match=r"cannot be forgotten: there are legal holds.*rekey"):
            forget_pseudonym_key(ledger)
        assert ledgers_pseudonymizer(host(tmp_path, KEY), ledger).key_id == key_id


def test_a_pseudonym_in_a_transaction_neither_waits_for_it_nor_replaces_a_lost_key(tmp_path: Path) -> None:
    settings = host(tmp_path)
    with Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", busy_timeout=0) as ledger:
        create(ledger)
        with ledger.write():
            first = ledgers_pseudonymizer(settings, ledger, keeps=False).key_id
        assert ledgers_pseudonymizer(settings, ledger).key_id == first
        settings.pseudonym_key_file.unlink()
        with ledger.write(), pytest.raises(UsageError, match=f"the key {first} of the ledger .* is missing"):
            ledgers_pseudonymizer(settings, ledger, keeps=False)
        assert not settings.pseudonym_key_file.exists()
