"""A new pseudonym key: the lake's pseudonyms are made anew, erased people stay barred, holds hold."""

import os
import shutil
import signal
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, text

from kyc_pipeline.erasure.find import find
from kyc_pipeline.erasure.rekey import outdated_days, rekey_lake
from kyc_pipeline.erasure.remove import erase, require_no_hold
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.audit import AuditTrail, Author
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.legal_holds import LegalHoldError, add_hold, remove_hold
from kyc_pipeline.ledger.pseudonym_key import ledgers_pseudonymizer
from kyc_pipeline.ledger.schema import attempts, submissions, vendor_deletions
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings
from tests.unit.erasure.deployment import KEY, Deployment

DAYS = ("2024-09-08", "2024-09-09")
ANNA, BERT = ("customerId", "Anna-1"), ("customerId", "Bert-2")
NEW, NEWER = "n" * 32, "m" * 32


def keys(*names: str) -> Pseudonymizer:
    """The pseudonymizer with the first key; the others are known."""
    return Pseudonymizer(names[0], [Pseudonymizer(name) for name in names[1:]])


def stores(deployment: Deployment, *names: str) -> Stores:
    return replace(deployment.stores, pseudonymizer=keys(*names))


def with_keys(deployment: Deployment, key: str, *old: str) -> Settings:
    """The settings with the first key; the others are old ones."""
    values = {"kyc_pseudonym_key": SecretStr(key), "kyc_pseudonym_old_keys": SecretStr(", ".join(old))}
    return deployment.settings.model_copy(update=values)


def fill(landing: Any, deployment: Deployment, *, erases: bool = True) -> None:
    for start, day in enumerate(DAYS):
        landing.manifest(
            day,
            [
                landing.submission(f"{name}-{day}", 100 * start + 10 * n, {"customerId": f"{name}-{n}"})
                for n, name in enumerate(("Zoe", "Anna", "Bert"))
            ],
        )
    deployment.run(*DAYS)
    if erases:
        deployment.erase(*ANNA)


def rekey(deployment: Deployment, *names: str) -> list[tuple[str, KycError | None]]:
    made = stores(deployment, *names)
    made.ledger.rekey(made.pseudonymizer, lambda connection, done: None)
    return list(rekey_lake(made))


def pseudonyms(deployment: Deployment) -> set[str]:
    """Every pseudonym of the lake's curated tables."""
    rows = deployment.rows()
    return {row["pseudonym"] for row in rows["verification_tags"]} | {
        row["id_document_pseudonym"] for row in rows["verifications"]
    }


def test_lake_and_ledger_have_no_pseudonym_of_the_old_key(any_filled: Deployment) -> None:
    deployment = any_filled
    lake = pseudonyms(deployment)
    tombstones = {each.pseudonym for each in deployment.stores.ledger.tombstones()}
    figures = "SELECT count(*), sum(billable) FROM attempts"
    with deployment.ledger.read() as connection:
        before = connection.execute(text(figures)).one()
    assert rekey(deployment, NEW, KEY) == [(day, None) for day in DAYS]
    deployment.key = NEW
    assert not lake & pseudonyms(deployment)
    assert keys(NEW).tag(*BERT) in pseudonyms(deployment)
    for rows in deployment.ledger_rows().values():
        assert not any(old in str(rows) for old in tombstones)
    with deployment.ledger.read() as connection:
        assert connection.execute(text(figures)).one() == before
        kept = set(connection.execute(select(submissions.c.submission_id)).scalars())
        assert set(connection.execute(select(attempts.c.submission_id)).scalars()) == kept
        registered = set(connection.execute(select(vendor_deletions.c.submission)).scalars())
    assert registered
    assert registered < kept
    if deployment.ledger_url:  # PostgreSQL: a row that was updated stays in its table until VACUUM
        deployment.stores.ledger.purge()
        query = (
            "SELECT relname FROM pg_stat_user_tables WHERE schemaname = current_schema() AND vacuum_count > 0"
        )
        with deployment.ledger.read() as connection:
            assert {"erasures", "legal_holds"} <= set(connection.execute(text(query)).scalars())


@pytest.mark.usefixtures("filled")
def test_erased_people_stay_barred_over_several_keys_and_without_one_nothing_is_ingested(
    deployment: Deployment,
) -> None:
    rekey(deployment, NEW, KEY)
    rekey(deployment, NEWER, NEW, KEY)
    again = ErasedSubjects(deployment.stores.ledger.tombstones(), keys(NEWER, KEY, NEW))
    assert again({"customer_id": "ANNA-1"})
    assert again({"submissionId": f"Anna-{DAYS[0]}"})
    assert not again({"customerId": "Bert-2", "submissionId": f"Bert-{DAYS[0]}"})
    made = stores(deployment, NEWER, NEW, KEY)
    for day in DAYS:
        summary = ingest_partition(
            landing=deployment.settings.kyc_landing,
            lake=deployment.lake,
            date=day,
            erased=ErasedSubjects(made.ledger.tombstones(), made.pseudonymizer),
        )
        assert summary.rejected == {"erased_subject": 1}
        assert summary.accepted == 2
    for names in ((NEWER,), (NEWER, NEW), (NEWER, KEY)):
        with pytest.raises(UsageError, match="KYC_PSEUDONYM_OLD_KEYS"):
            ErasedSubjects(made.ledger.tombstones(), keys(*names))


@pytest.mark.usefixtures("filled")
def test_it_can_be_repeated(deployment: Deployment) -> None:
    rekey(deployment, NEW, KEY)
    before = (deployment.rows(), deployment.ledger_rows())
    assert rekey(deployment, NEW, KEY) == []
    assert (deployment.rows(), deployment.ledger_rows()) == before
    assert outdated_days(deployment.lake, keys(NEW).key_id) == []


@pytest.mark.usefixtures("filled")
def test_people_are_erased_with_the_new_key_and_those_before_stay(deployment: Deployment) -> None:
    rekey(deployment, NEW, KEY)
    made = stores(deployment, NEW, KEY)
    assert find(made, *ANNA).was_erased
    found = find(made, *BERT)
    assert len(found.ids) == 2
    made.ledger.finish(erase(made, found).tombstones)
    assert not find(made, *BERT).is_stored
    erased = ErasedSubjects(made.ledger.tombstones(), made.pseudonymizer)
    assert erased({"customerId": "Anna-1"})
    assert erased({"customerId": "Bert-2"})


@pytest.mark.usefixtures("filled")
def test_holds_hold(deployment: Deployment) -> None:
    trail = AuditTrail(deployment.ledger, deployment.lake, Author("Ann"), lambda: keys(KEY))
    add_hold(deployment.ledger, trail, BERT, deployment.stores.held_as(*BERT), "a lawsuit", "Ann")
    rekey(deployment, NEW, KEY)
    made = stores(deployment, NEW, KEY)
    with pytest.raises(LegalHoldError):
        require_no_hold(find(made, *BERT))
    with pytest.raises(UsageError, match="already"):
        add_hold(deployment.ledger, trail, BERT, made.held_as(*BERT), "again", "Ann")
    remove_hold(deployment.ledger, trail, BERT, made.held_as(*BERT))
    require_no_hold(find(made, *BERT))


@pytest.mark.usefixtures("filled")
def test_an_active_run_forbids_it(deployment: Deployment) -> None:
    before = deployment.ledger_rows()["erasures"]
    made = stores(deployment, NEW, KEY)
    with (
        deployment.held_by_another_run(DAYS[0]),
        pytest.raises(KycError, match=r"run run-of-somebody-else .* uses the ledger"),
    ):
        made.ledger.rekey(made.pseudonymizer, lambda connection, done: None)
    assert deployment.ledger_rows()["erasures"] == before


def rekey_and_die(root: str, server: str, step: int) -> None:
    """Kills itself after `step` days; with 0 in the ledger's transaction."""
    deployment = Deployment(Path(root), server)
    made = stores(deployment, NEW, KEY)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    made.ledger.rekey(made.pseudonymizer, die if step == 0 else lambda connection, done: None)
    for done, _ in enumerate(rekey_lake(made), 1):
        if done == step:
            die()


@pytest.mark.parametrize("step", [0, 1])
def test_it_can_be_killed(filled: Deployment, processes: ForkServerContext, step: int) -> None:
    child = processes.Process(target=rekey_and_die, args=(str(filled.root), filled.server, step))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    again = Deployment(filled.root, filled.server)
    assert len(outdated_days(again.lake, keys(NEW).key_id)) == 2 - step
    rekey(again, NEW, KEY)
    assert outdated_days(again.lake, keys(NEW).key_id) == []
    erased = ErasedSubjects(again.stores.ledger.tombstones(), keys(NEW, KEY))
    assert erased({"customerId": "Anna-1"})
    assert {each.keys for each in again.stores.ledger.tombstones()} == {(keys(KEY).key_id, keys(NEW).key_id)}
    again.ledger.close()


@pytest.mark.usefixtures("filled")
def test_the_old_key_stays_in_use_until_then(deployment: Deployment) -> None:

    def in_use(key: str, *old: str) -> Pseudonymizer:
        with Ledger(deployment.settings.kyc_ledger_url) as ledger:
            return ledgers_pseudonymizer(with_keys(deployment, key, *old), ledger)

    assert in_use(KEY).key_id == keys(KEY).key_id
    window = in_use(NEW, KEY)
    assert window.key_id == keys(KEY).key_id
    assert window.tag(*ANNA) == keys(KEY).tag(*ANNA)
    assert [each.key_id for each in window.others] == [keys(NEW).key_id]
    rekey(deployment, NEW, KEY)
    assert in_use(NEW, KEY).key_id == keys(NEW).key_id
    with pytest.raises(UsageError, match="was used with the key"):
        in_use(KEY)


@pytest.mark.parametrize("erases_before", [True, False])
def test_a_ledger_restored_from_before_can_be_rekeyed_again(
    landing: Any, deployment: Deployment, erases_before: bool
) -> None:
    fill(landing, deployment, erases=erases_before)
    ledgers_pseudonymizer(with_keys(deployment, KEY), deployment.ledger)
    deployment.ledger.close()
    backup = deployment.root / "backup.sqlite"
    shutil.copy(deployment.root / "ledger.sqlite", backup)
    rekey(deployment, NEW, KEY)
    made = stores(deployment, NEW, KEY)
    made.ledger.finish(erase(made, find(made, *BERT)).tombstones)

    aside = transfer.set_aside(deployment.ledger)
    assert aside is not None
    with transfer.opened_backup(backup) as former:
        transfer.copy_backup(former, deployment.ledger)
    with transfer.opened_backup(aside) as former:
        carried = transfer.carry_over(deployment.lake, former, deployment.ledger)
    transfer.declare_restored(deployment.lake, deployment.ledger)
    assert carried.needs_rekey == erases_before
    if not erases_before:  # nothing in the backup needs the earlier key
        assert ledgers_pseudonymizer(with_keys(deployment, NEW), deployment.ledger).key_id == keys(NEW).key_id
    rekey(deployment, NEW, KEY)
    rows = deployment.ledger_rows()
    assert {row["key_id"] for row in rows["erasures"]} == {keys(NEW).key_id}
    erased = ErasedSubjects(made.ledger.tombstones(), made.pseudonymizer)
    assert erased({"customerId": "Anna-1"}) == erases_before
    assert erased({"customerId": "Bert-2"})
    assert not any(keys(KEY).tag("submissionId", f"Anna-{day}") in str(rows) for day in DAYS)


@pytest.mark.usefixtures("filled")
def test_a_day_without_responses_is_named(deployment: Deployment) -> None:
    Path(deployment.lake.path(VERIFICATION_RESPONSES, DAYS[0])).unlink()
    (day, problem), (other, none) = rekey(deployment, NEW, KEY)
    assert (day, other, none) == (*DAYS, None)
    assert "verification_responses has no partition" in str(problem)


def test_a_rekeyed_tombstone_tells_nothing_to_who_has_one_key() -> None:
    old = Tombstone.of_tag(keys(KEY), *ANNA)
    new = old.rekeyed(keys(NEW))
    assert new.pseudonym not in (old.pseudonym, keys(NEW).tag(*ANNA))
    assert new.keys == (keys(KEY).key_id, keys(NEW).key_id)
    assert ErasedSubjects([new], keys(NEW, KEY))(dict([ANNA]))
    assert ErasedSubjects([old], keys(NEW, KEY))(dict([ANNA])), "made by a process that still had the old key"
