"""Erasure and legal holds where the ledger has moved its responses to the lake."""

from multiprocessing.context import ForkServerContext
from typing import Any

import pyarrow as pa
import pytest

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.erasure.find import find_holds
from kyc_pipeline.erasure.offloaded import offloaded_with
from kyc_pipeline.erasure.remove import erase
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.audit import AuditTrail, Author
from kyc_pipeline.ledger.legal_holds import add_hold
from kyc_pipeline.ledger.offload import check_offloaded
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.ledger.vendor_deletions import read_register, verification_ids
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.erasure.deployment import KEY, Deployment, killed_erasures
from tests.unit.erasure.test_erasure import (
    CUSTOMER,
    DAY,
    MARK,
    NEXT_DAY,
    PERSON,
    THEIR_TAGS,
    fill,  # noqa: F401 - of the fixture `any_filled`
    of_others,
    tags_of,
)


def test_nothing_is_left_and_nobody_else_is_touched(any_filled: Deployment) -> None:
    deployment = any_filled
    before, spent = deployment.rows(), read_spend(deployment.ledger, DAY)
    assert deployment.offload(DAY, NEXT_DAY) == 8
    found = deployment.erase(*PERSON)
    assert (len(found.ids), len(found.verification_ids)) == (3, 3)
    assert deployment.places_with(MARK) == []
    assert of_others(deployment.rows()) == of_others(before)
    assert read_spend(deployment.ledger, DAY) == spent
    assert check_offloaded(deployment.lake, deployment.ledger) == 5
    erased = deployment.rows()
    assert deployment.run(DAY, NEXT_DAY) == {DAY: 0, NEXT_DAY: 0}
    assert deployment.rows() == erased


def put_their_tag_into(deployment: Deployment, submission_id: str, *, own: str) -> None:
    """Makes another submission's response, in both stores, echo the person's tag."""
    with deployment.ledger.write() as connection:
        connection.exec_driver_sql(
            f"UPDATE submissions SET response = replace(response, '{own}', '{CUSTOMER}') "
            f"WHERE submission_id = '{submission_id}'"
        )
    lake = deployment.lake
    rows = lake.read(VERIFICATION_RESPONSES, DAY)
    texts = [
        str(text).replace(own, CUSTOMER) if key == submission_id else text
        for key, text in zip(rows["submission_id"].to_pylist(), rows["response"].to_pylist(), strict=True)
    ]
    place = rows.schema.get_field_index("response")
    changed = rows.set_column(place, "response", pa.array(texts, pa.string()))
    lake.write(VERIFICATION_RESPONSES, DAY, changed, lake.metadata(VERIFICATION_RESPONSES, DAY))


def test_a_tag_that_only_the_response_has_is_found_in_the_lake(any_filled: Deployment) -> None:
    deployment = any_filled
    put_their_tag_into(deployment, "a-1", own="other-1")
    assert deployment.offload(DAY, NEXT_DAY) == 8
    found = deployment.find(*PERSON)
    assert (len(found.ids), set(found.echoed)) == (3, {"a-1"})
    trail = AuditTrail(deployment.ledger, deployment.lake, Author("Ann"), lambda: Pseudonymizer(KEY))
    one = deployment.find("submissionId", "a-1")
    assert find_holds(deployment.stores, one) == []
    add_hold(deployment.ledger, trail, PERSON, deployment.stores.tombstone(*PERSON), "a lawsuit", "Ann")
    assert len(find_holds(deployment.stores, one)) == 1
    with deployment.ledger.write() as connection:
        connection.exec_driver_sql("DELETE FROM legal_holds")
    erase(deployment.stores, deployment.find(*PERSON, with_responses=True))
    assert deployment.places_with(MARK) == []
    assert check_offloaded(deployment.lake, deployment.ledger) == 4


def test_killed_at_any_step_and_repeated(
    landing: Any, deployment: Deployment, processes: ForkServerContext, simulator: Simulator
) -> None:
    landing.manifest(
        DAY, [landing.submission(f"{MARK}-0", 10, THEIR_TAGS), landing.submission("a", 20, tags_of(1))]
    )
    deployment.run(DAY)
    assert deployment.offload(DAY) == 2
    before = deployment.rows()
    [their_id] = deployment.find(*PERSON).verification_ids
    kills = 0
    for killed in killed_erasures(deployment, processes, *PERSON):
        kills += 1
        killed.ingest(DAY)
        killed.verify(DAY)  # a run before the erasure is repeated does not miss what is gone
        killed.erase(*PERSON)
        assert killed.places_with(MARK) == []
        assert of_others(killed.rows()) == of_others(before)
        register = [(verification_ids(row), row.submission_id) for row in read_register(killed.ledger)]
        assert register == [([their_id], None)]
    assert kills >= 5
    assert simulator.received.total() == 2


@pytest.mark.parametrize(
    ("stored", "is_found"),
    [
        ('{"tags": [{"name": "customerId", "value": "AB-1234"}]}', True),
        ('{"tags": {"customerId": "ab-1234"}}', True),
        ('{"tags": {"customerId": "AB-\\u0031234"}}', True),
        ('{"tags": {"customerId": "AB-１２３４"}}', True),
        ('{"tags": {"customerId": "AB-1235"}}', False),
        ('{"tags": {"other": "AB-1234"}}', False),
        ("no JSON AB-1234", False),
        (None, False),
    ],
)
def test_every_spelling_is_found(tmp_path: Any, stored: str | None, is_found: bool) -> None:
    lake, key = Lake(str(tmp_path)), Pseudonymizer(KEY)
    row = dict.fromkeys(VERIFICATION_RESPONSES.schema.names)
    row |= {"submission_id": "s", "outcome": "completed", "attempts": 1, "billable_calls": 1}
    row |= {"content_sha256": "c", "response": stored}
    lake.write(VERIFICATION_RESPONSES, DAY, [row])
    person = ErasedSubjects([Tombstone.of_tag(key, "customerId", "AB-1234")], key)
    found = list(offloaded_with(lake, {DAY, NEXT_DAY}, "AB-1234", person.has))
    assert found == ["s"] * is_found
