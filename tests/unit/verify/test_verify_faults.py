"""Every way a response can go wrong, against a real server that counts its requests."""

import contextlib
import gzip
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.call_errors import AccessDenied, DeepXLError, UnexpectedRedirect, WrongAddress
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import (
    EMPTY_OBJECT_200,
    HTML_200,
    HTML_502,
    Fault,
    HalfBody,
    Resets,
    Responds,
    redirects,
)
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import dates_to_send_again, list_held, reopen, resolve_held
from kyc_pipeline.ledger.models import State
from kyc_pipeline.ledger.queries import dates_turned_away, read_entries, read_spend
from kyc_pipeline.ledger.schema import attempts, decisions
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.engine import LedgerConflict
from kyc_pipeline.verify.planning import plan_partitions
from kyc_pipeline.verify.reconcile import reconcile
from kyc_pipeline.verify.summary import Progress, Stopped
from kyc_pipeline.wording import run_again
from tests.faults import NoResponseInTime
from tests.unit.verify.world import DATE, JPEG, QUICK, TOKEN, World, is_complete

PAST = "Mon, 01 Jan 2024 00:00:00 GMT"
NOTHING_FOUND = Responds(200, body=b'{"totalCount":0,"count":0,"data":[]}')


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger whose tables exist: creating them takes a fifth of a test's time."""
    path = tmp_path_factory.mktemp("empty") / "ledger.sqlite"
    with Ledger(f"sqlite:///{path}") as ledger, ledger.read():
        return path


@pytest.fixture
def sqlite_world(tmp_path: Path, empty_ledger: Path) -> Iterator[World]:
    """A world on SQLite with a copy of the empty ledger."""
    shutil.copy(empty_ledger, tmp_path / "ledger.sqlite")
    made = World(tmp_path)
    yield made
    made.ledger.close()


def records_of(simulator: Simulator, submission_id: str) -> list[int]:
    return [
        record.verification_id
        for record in simulator.records
        if any(tag.name == "submissionId" and tag.value == submission_id for tag in record.tags)
    ]


HTML = {"Content-Type": "text/html"}
TURNED_AWAY = (408, 425, 429, 503)
UNREADABLE = [
    ("zstd", {"Content-Encoding": "zstd"}, b"\x28\xb5\x2f\xfd" * 9),
    ("gzip that is cut", {"Content-Encoding": "gzip"}, gzip.compress(b'{"result": {}}')[:-8]),
    ("a gzip bomb", {"Content-Encoding": "gzip, gzip"}, gzip.compress(gzip.compress(bytes(5 << 20)))),
    ("a large response", {}, b'{"result": {}}'.ljust(5 << 20)),
    ("a part of a response", {}, b'{"result": {"verificationId": 1, "verified": tr'),
]

# The faults of a submission, its outcome, and how often it was sent, also after two more runs.
FAULTS: list[tuple[str, Sequence[Fault], str, int]] = [
    *[(f"{status}", [Responds(status)], "refused", 1) for status in (400, 404, 405, 413, 415, 422)],
    *[(f"{status} then well", [Responds(status)], "completed", 2) for status in (408, 425, 429, 503)],
    ("429 with seconds", [Responds(429, {"Retry-After": "0"})], "completed", 2),
    (
        "429 with a past date",
        [Responds(429, {"Retry-After": "Mon, 01 Jan 2024 00:00:00 GMT"})],
        "completed",
        2,
    ),
    *[(f"{status}, not processed", [Responds(status)], "uncertain", 1) for status in (500, 502, 504, 520)],
    *[
        (f"{status}, processed", [Responds(status, record=True)], "completed", 1)
        for status in (500, 502, 504)
    ],
    ("a gateway's page", [HTML_502], "uncertain", 1),
    ("hang, not processed", [NoResponseInTime()], "uncertain", 1),
    ("hang, processed", [NoResponseInTime(record=True)], "completed", 1),
    ("reset, not processed", [Resets()], "uncertain", 1),
    ("reset, processed", [Resets(record=True)], "completed", 1),
    ("half a body", [HalfBody()], "completed", 1),
    *[(f"{status}, processed", [Responds(status, record=True)], "completed", 1) for status in TURNED_AWAY],
    *[(f"{status}, processed", [Responds(status, record=True)], "completed", 1) for status in (403, 404)],
    ("409, processed", [Responds(409, record=True)], "completed", 1),
    ("409, not processed", [Responds(409)], "uncertain", 1),
    ("HTML with 200, processed", [HTML_200], "completed", 1),
    ("HTML with 200, not processed", [Responds(200, HTML, b"<p>Maintenance")], "uncertain", 1),
    ("{} with 200, processed", [EMPTY_OBJECT_200], "completed", 1),
    *[(f"{status}, processed", [Responds(status, record=True)], "completed", 1) for status in (202, 204)],
    *[(f"{status}, not processed", [Responds(status)], "uncertain", 1) for status in (202, 204, 206)],
    (
        "an unknown encoding",
        [Responds(200, {"Content-Encoding": "br"}, b"\x8b", record=True)],
        "completed",
        1,
    ),
    *[
        (
            f"{name}, {'processed' if known else 'not processed'}",
            [Responds(200, coding, body, record=known)],
            outcome,
            1,
        )
        for name, coding, body in UNREADABLE
        for known, outcome in ((True, "completed"), (False, "uncertain"))
    ],
    ("403 then well", [Responds(403)], "refused", 1),
]


@pytest.mark.parametrize(
    ("faults", "outcome", "sent"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
@pytest.mark.usefixtures("patience")
def test_a_fault(sqlite_world: World, faults: list[Fault], outcome: str, sent: int) -> None:
    world = sqlite_world
    # One at a time: when the time of one is up, no other waits.
    world.options = {"deepxl_max_concurrency": 1, "deepxl_max_attempts": 3}
    world.submit("good", "odd", "well")
    with running_simulator(token=TOKEN, faults={"odd": faults}) as simulator:
        world.server = simulator.url
        world.verify()
        assert world.outcomes() == {"good": "completed", "odd": outcome, "well": "completed"}
        row = world.responses()["odd"]
        world.verify(run_id="run-2")
        world.verify(run_id="run-3")
        assert world.outcomes()["odd"] == outcome
        assert dict(simulator.received) == {"good": 1, "odd": sent, "well": 1}
        completed = outcome == "completed"
        assert len(records_of(simulator, "odd")) == (completed or outcome == "quarantined")
        if completed:
            assert f'"verificationId":{records_of(simulator, "odd")[0]}' in row["response"]
        held = [held.submission_id for held in list_held(world.ledger)]
        assert held == (["odd"] if outcome == "uncertain" else [])
    assert row["attempts"] == sent
    assert row["billable_calls"] == (outcome in ("completed", "uncertain", "quarantined"))


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_surely_not_processed_is_tried_again_by_a_later_run(world: World, status: int) -> None:
    world.options = {"deepxl_max_attempts": 3}
    world.submit("a")
    with running_simulator(token=TOKEN, faults={"a": [Responds(status)] * 3}) as simulator:
        world.server = simulator.url
        first = world.verify()
        assert world.outcomes() == {"a": "failed"}
        assert (first.calls, first.retries, first.billable_calls) == (3, 2, 0)
        world.verify(run_id="run-2")
        assert world.responses()["a"]["attempts"] == 4
        assert world.outcomes() == {"a": "completed"}


@pytest.mark.parametrize("status", [401, 402])
def test_denied_access_stops_the_run_after_one_call(world: World, status: int) -> None:
    ids = [f"s-{number:02}" for number in range(40)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 1}
    with running_simulator(token=TOKEN, faults={ids[0]: [Responds(status)]}) as simulator:
        world.server = simulator.url
        with pytest.raises(AccessDenied, match=str(status)):
            world.verify()
        assert simulator.received.total() == 1
        outcomes = world.outcomes()
        assert outcomes.pop(ids[0]) == "failed"
        assert set(outcomes.values()) == {"not_attempted"}
        world.verify(run_id="run-2")
        assert set(world.outcomes().values()) == {"completed"}
        assert simulator.received.total() == 41


def test_a_redirect_is_not_followed_and_stops_the_run(world: World) -> None:
    world.submit("a", "b")
    world.options = {"deepxl_max_concurrency": 1}
    with running_simulator() as stranger:
        faults = {"a": [redirects(f"{stranger.url}/v1/verification")]}
        with running_simulator(token=TOKEN, faults=faults) as simulator:
            world.server = simulator.url
            with pytest.raises(UnexpectedRedirect):
                world.verify()
            assert world.outcomes() == {"a": "uncertain", "b": "not_attempted"}
        assert not stranger.received


@pytest.mark.parametrize(
    "lookup",
    [Responds(404), Responds(403), Responds(500), Responds(200, body=b'{"items": []}')],
    ids=["404", "403", "500", "another shape"],
)
def test_without_a_look_up_it_is_held(sqlite_world: World, lookup: Fault) -> None:
    world = sqlite_world
    world.submit("a", "b")
    with running_simulator(
        token=TOKEN, lookup=lookup, faults={"a": [Responds(500, record=True)]}
    ) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert world.outcomes() == {"a": "uncertain", "b": "completed"}
        assert summary.held == 1
        # The history is back: the next run finds the record, and pays nothing.
        simulator.lookup = None
        summary = world.verify(run_id="run-2")
        assert (summary.calls, summary.adopted) == (0, 1)
        assert world.outcomes()["a"] == "completed"
        assert simulator.received["a"] == 1


def test_a_record_that_shows_late_is_adopted_by_a_later_look(world: World) -> None:
    world.submit("a")
    with running_simulator(
        token=TOKEN, lookup_lag_looks=1, faults={"a": [Responds(500, record=True)]}
    ) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert (summary.calls, summary.lookups, summary.adopted) == (1, 2, 1)
    row = world.responses()["a"]
    assert (row["outcome"], row["attempts"], row["billable_calls"]) == ("completed", 1, 1)
    assert row["latency_ms"] is None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("policy", ["hold", "retry"])
def test_what_was_turned_away_is_held_if_a_look_up_cannot_tell(
    world: World, status: int, policy: str
) -> None:
    world.submit("a")
    world.options = {"deepxl_uncertain": policy}
    faults = {"a": [Responds(status, record=True)]}
    with running_simulator(token=TOKEN, lookup=Responds(500), faults=faults) as simulator:
        world.server = simulator.url
        for run in range(3):
            summary = world.verify(run_id=f"run-{run}")
            assert summary.held == 1
            assert (world.responses()["a"]["outcome"], summary.billable_calls) == ("uncertain", 0)
        assert world.responses()["a"]["billable_calls"] == 1
        simulator.lookup = None
        world.verify(run_id="last")
        assert simulator.received["a"] == 1
    assert world.outcomes() == {"a": "completed"}


def test_what_was_turned_away_by_an_earlier_run_is_looked_up_before_it_is_sent(world: World) -> None:
    world.submit("a", "b")
    world.options = {"deepxl_max_attempts": 1, "deepxl_max_concurrency": 1}
    with running_simulator(
        token=TOKEN,
        # The record of `a` shows only after the first run has ended.
        lookup_lag_looks=len(QUICK.look_ups),
        faults={"a": [Responds(503, record=True)], "b": [Responds(503)]},
    ) as simulator:
        world.server = simulator.url
        world.verify()
        assert world.outcomes() == {"a": "failed", "b": "failed"}
        (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
        assert plan.calls_to_make == 2
        world.verify(run_id="run-2")
        assert dict(simulator.received) == {"a": 1, "b": 2}
    rows = world.responses()
    assert {key: (row["outcome"], row["billable_calls"]) for key, row in rows.items()} == {
        "a": ("completed", 1),
        "b": ("completed", 1),
    }


@pytest.mark.parametrize("billed", [True, False])
def test_what_was_turned_away_and_then_withdrawn_is_looked_up(world: World, billed: bool) -> None:
    world.submit("a", "b")
    world.options = {"deepxl_max_attempts": 1}
    with running_simulator(
        token=TOKEN,
        # The record shows only after the first run has ended.
        lookup_lag_looks=len(QUICK.look_ups),
        faults={"a": [Responds(503, record=billed)]},
    ) as simulator:
        world.server = simulator.url
        world.verify()
        assert world.outcomes() == {"a": "failed", "b": "completed"}
        world.submit("b")
        (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
        assert plan.calls_to_make == 0
        if billed:
            with pytest.raises(LedgerConflict, match="submission a was turned away, then withdrawn"):
                world.verify(run_id="run-2")
        else:
            assert world.verify(run_id="run-2").lookups == len(QUICK.look_ups)
        state = read_entries(world.ledger, ["a"])["a"].state
        assert state is (State.TURNED_AWAY if billed else State.FAILED)
        assert read_spend(world.ledger, DATE).billable_calls == 1 + billed
        assert world.outcomes() == {"b": "completed"}
        assert not reconcile(world.lake, world.ledger, DATE).differences
        assert world.verify(run_id="run-3").lookups == 0, "the question has an answer"
        world.submit("a", "b")
        assert world.verify(run_id="run-4").calls == (not billed)
        assert dict(simulator.received) == {"a": 2 - billed, "b": 1}
    assert set(world.outcomes().values()) == {"completed"}


def test_a_withdrawn_submission_stays_in_question_until_a_look_up_can_tell(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a", "b")
    world.options = {"deepxl_max_attempts": 1}
    with running_simulator(token=TOKEN, faults={"a": [Responds(503)]}) as simulator:
        world.server = simulator.url
        world.verify()
        world.submit("b")
        simulator.lookup = Responds(500)
        assert world.verify(run_id="run-2").lookups == len(QUICK.look_ups)
        assert dates_turned_away(world.ledger) == [DATE]
        simulator.lookup = None
        world.verify(run_id="run-3")
        assert dates_turned_away(world.ledger) == []
        assert simulator.received["a"] == 1


def test_what_was_turned_away_and_then_moved_belongs_to_its_new_day(sqlite_world: World) -> None:
    world, later = sqlite_world, "2024-09-02"
    world.submit("a", "b")
    world.options = {"deepxl_max_attempts": 1}
    faults = {"a": [Responds(503, record=True)]}
    with running_simulator(token=TOKEN, lookup_lag_looks=len(QUICK.look_ups), faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
        world.submit("b")
        world.submit("a", date=later)
        assert world.verify(run_id="run-2").lookups == 0
        assert world.verify(later, run_id="run-3").adopted == 1
        assert simulator.received["a"] == 1


@pytest.mark.parametrize("status", [401, 402])
def test_what_was_denied_although_it_was_processed_is_adopted(sqlite_world: World, status: int) -> None:
    world = sqlite_world
    world.submit("a")
    with running_simulator(token=TOKEN, faults={"a": [Responds(status, record=True)]}) as simulator:
        world.server = simulator.url
        with pytest.raises(AccessDenied):
            world.verify()
        assert world.verify(run_id="run-2").adopted == 1
        assert simulator.received["a"] == 1
    assert world.responses()["a"]["billable_calls"] == 1


def test_the_policy_retry_sends_again_what_look_up_does_not_find(world: World) -> None:
    world.submit("a")
    world.options = {"deepxl_uncertain": "retry"}
    with running_simulator(token=TOKEN, faults={"a": [Responds(500)]}) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert simulator.received["a"] == 2
        assert (summary.calls, summary.retries, summary.billable_calls) == (2, 1, 2)
    row = world.responses()["a"]
    assert (row["outcome"], row["attempts"], row["billable_calls"]) == ("completed", 2, 2)


def test_the_policy_counts_once_for_each_submission(world: World) -> None:
    world.submit("a")
    world.options = {"deepxl_uncertain": "retry"}
    with running_simulator(token=TOKEN, faults={"a": [Responds(500)] * 9}) as simulator:
        world.server = simulator.url
        for run in range(3):
            world.verify(run_id=f"run-{run}")
            assert simulator.received["a"] == 2
        (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
        assert (plan.calls_to_make, plan.held) == (0, 1)
        assert dates_to_send_again(world.ledger, "retry") == []
        resolve_held(world.ledger, "a", "retry", "operator")
        world.verify(run_id="last")
        assert simulator.received["a"] == 3
    with world.ledger.read() as connection:
        query = sa.select(decisions.c.decided_by, decisions.c.decision).order_by(decisions.c.id)
        found: Sequence[Any] = connection.execute(query).all()
        assert found == [
            ("DEEPXL_UNCERTAIN=retry", "retry"),
            ("operator", "retry"),
        ]


@pytest.mark.parametrize("decided", ["by the policy", "by an operator"])
def test_a_look_up_that_fails_is_no_proof(world: World, decided: str) -> None:
    world.submit("a")
    with running_simulator(
        token=TOKEN, lookup=Responds(500), faults={"a": [Responds(502, record=True)]}
    ) as simulator:
        world.server = simulator.url
        if decided == "by the policy":
            world.options = {"deepxl_uncertain": "retry"}
            world.verify()
        else:
            world.verify()
            resolve_held(world.ledger, "a", "retry", "operator")
        for run in range(2):
            world.verify(run_id=f"run-{run}")
        assert simulator.received["a"] == 1
        assert world.outcomes() == {"a": "uncertain"}
        simulator.lookup = None
        world.verify(run_id="last")
        assert simulator.received["a"] == 1
    assert world.outcomes() == {"a": "completed"}


@pytest.mark.parametrize(
    "last",
    [Responds(422), Responds(404), HTML_200, Responds(204), Responds(503), Responds(401)],
    ids=["refused", "404", "HTML", "204", "503", "401"],
)
def test_after_a_call_in_doubt_only_a_response_settles(sqlite_world: World, last: Fault) -> None:
    world = sqlite_world
    world.submit("a", "well")
    world.options = {"deepxl_max_attempts": 1}
    with running_simulator(
        token=TOKEN, lookup=NOTHING_FOUND, faults={"a": [Responds(500, record=True), last]}
    ) as simulator:
        world.server = simulator.url
        world.verify()
        resolve_held(world.ledger, "a", "retry", "operator")
        with contextlib.suppress(AccessDenied, WrongAddress):
            world.verify(run_id="run-2")
        assert simulator.received["a"] == 2
        assert world.outcomes() == {"a": "uncertain", "well": "completed"}
        simulator.lookup = None
        world.verify(run_id="run-3")
    assert world.outcomes()["a"] == "completed"


def test_calls_of_an_earlier_run_that_are_adopted_never_count_below_zero(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit(*"abcd")
    faults = {key: [Responds(500, record=True)] for key in "abcd"}
    with running_simulator(token=TOKEN, lookup=NOTHING_FOUND, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
        assert set(world.outcomes().values()) == {"uncertain"}
        simulator.lookup = None
        seen: list[Progress] = []
        assert world.verify(run_id="run-2", progress=seen.append).adopted == 4
    assert {progress.uncertain for progress in seen} == {0}


def test_an_operator_lets_it_be_sent_again_once(world: World) -> None:
    world.submit("a", "b")
    faults = {"a": [Responds(500), Responds(500)], "b": [Responds(500)]}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
        resolve_held(world.ledger, "a", "retry", "operator")
        resolve_held(world.ledger, "b", "abandon", "operator")
        world.verify(run_id="run-2")
        assert simulator.received == {"a": 2, "b": 1}
        assert world.outcomes() == {"a": "uncertain", "b": "abandoned"}
        # The decision was for one call: `a` is held again, `b` is not.
        assert [held.submission_id for held in list_held(world.ledger)] == ["a"]
        summary = world.verify(run_id="run-3")
        assert simulator.received == {"a": 2, "b": 1}
        assert summary.held == 1


@pytest.mark.parametrize("status", [503, 401])
def test_a_decision_outlasts_a_call_that_was_not_processed(world: World, status: int) -> None:
    world.submit("a")
    world.options = {"deepxl_max_attempts": 1}
    with running_simulator(token=TOKEN, faults={"a": [Responds(500), Responds(status)]}) as simulator:
        world.server = simulator.url
        world.verify()
        resolve_held(world.ledger, "a", "retry", "operator")
        with contextlib.suppress(AccessDenied):
            world.verify(run_id="run-2")
        assert world.outcomes() == {"a": "uncertain"}
        world.verify(run_id="run-3")
        assert world.outcomes() == {"a": "completed"}
        assert simulator.received["a"] == 3


def test_of_several_records_the_first_is_adopted_and_the_others_are_reported(world: World) -> None:
    world.submit("a")
    world.options = {"deepxl_uncertain": "retry", "deepxl_max_attempts": 2}
    faults = {"a": [Responds(500, record=True)] * 2}
    with running_simulator(token=TOKEN, lookup=NOTHING_FOUND, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
        simulator.lookup = None
        world.verify(run_id="run-2")
        first, second = sorted(records_of(simulator, "a"))
        row = world.responses()["a"]
        assert first != second
        assert f'"verificationId":{first}' in row["response"]
        assert "2 records" in row["error"]
        assert row["billable_calls"] == 2


def test_a_response_about_something_else_is_noted_on_the_record(world: World) -> None:
    world.submit("a")
    body = (
        b'{"result":{"verificationId":7,"verified":true,"idFileSize":1,"selfieFileSize":612,'
        b'"tags":[{"name":"companyId","value":"ANOTHER"}]}}'
    )
    with running_simulator(token=TOKEN, faults={"a": [Responds(200, body=body)]}) as simulator:
        world.server = simulator.url
        world.verify()
    row = world.responses()["a"]
    assert (row["outcome"], row["response"]) == ("uncertain", None)
    assert row["error"].endswith(
        "idFileSize, selfieFileSize, tag companyId, tag customerId, tag submissionId"
    )
    assert "ANOTHER" not in row["error"]
    with world.ledger.read() as connection:
        assert connection.execute(sa.select(attempts.c.body)).scalar_one() == body.decode()


def record_of(submission_id: str, **changes: Any) -> dict[str, Any]:
    """A record that can be this submission's, but for the changes; `at` is its age in seconds."""
    tags = {"companyId": "COMP-001", "customerId": "9999", "submissionId": submission_id}
    tags |= changes.pop("tags", {})
    return {
        "verificationId": 7,
        "verified": True,
        "idFileSize": len(JPEG),
        "selfieFileSize": len(JPEG) + 6,
        "timestamp": int(time.time() - changes.pop("age", 0)),
        "tags": [{"name": name, "value": value} for name, value in tags.items() if value is not None],
        **changes,
    }


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "another submission": {"tags": {"submissionId": "z"}},
    "no submission": {"tags": {"submissionId": None}},
    "no tags": {"tags": {"submissionId": None, "companyId": None, "customerId": None}},
    "another id size": {"idFileSize": 1},
    "another selfie size": {"selfieFileSize": 1},
    "another tag value": {"tags": {"customerId": "SOMEBODY-ELSE"}},
    "a tag is missing": {"tags": {"customerId": None}},
    "years older": {"age": 200_000_000},
    "an hour older": {"age": 3600},
    "in milliseconds, years older": {"timestamp": 1_577_836_800_000},
    "only an ISO time, years older": {"timestamp": None, "timestampISO": "2020-01-01T00:00:00"},
    "in the future": {"age": -86_400},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=list(IMPOSSIBLE))
def test_a_response_that_cannot_be_this_calls_never_completes_it(
    sqlite_world: World, changes: dict[str, Any]
) -> None:
    world = sqlite_world
    world.submit("a", "b")
    stranger = json.dumps({"result": record_of("a", **changes)}).encode()
    with running_simulator(
        token=TOKEN,
        faults={"a": [Responds(200, body=stranger, record=True)], "b": [Responds(200, body=stranger)]},
    ) as simulator:
        world.server = simulator.url
        world.verify()
        assert world.outcomes() == {"a": "completed", "b": "uncertain"}
        assert f'"verificationId":{records_of(simulator, "a")[0]}' in world.responses()["a"]["response"]
        assert dict(simulator.received) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "completed"),
        ({"tags": {"addedByTheApi": "x"}}, "completed"),
        ({"timestamp": None, "timestampISO": "unreadable"}, "completed"),
        ({"idFileSize": None}, "completed"),
    ],
)
def test_a_response_that_can_be_this_calls_completes_it(
    sqlite_world: World, changes: dict[str, Any], outcome: str
) -> None:
    world = sqlite_world
    world.submit("a")
    body = json.dumps({"result": record_of("a", **changes)}).encode()
    with running_simulator(token=TOKEN, faults={"a": [Responds(200, body=body)]}) as simulator:
        world.server = simulator.url
        assert world.verify().lookups == 0
    assert world.outcomes() == {"a": outcome}


@pytest.mark.parametrize(
    "changes",
    [
        *(changes for name, changes in IMPOSSIBLE.items() if not name.startswith(("another sub", "no "))),
        {"tags": {"env": "staging"}},
    ],
)
@pytest.mark.parametrize("status", [502, 503])
def test_a_record_that_cannot_be_this_calls_is_not_adopted(
    sqlite_world: World, status: int, changes: dict[str, Any]
) -> None:
    world = sqlite_world
    world.submit("a")
    world.options = {"deepxl_uncertain": "retry"}
    page = {"totalCount": 1, "count": 1, "data": [record_of("a", **changes)]}
    lookup = Responds(200, body=json.dumps(page).encode())
    with running_simulator(token=TOKEN, lookup=lookup, faults={"a": [Responds(status)]}) as simulator:
        world.server = simulator.url
        world.verify()
        assert world.outcomes() == {"a": "uncertain"}
        assert "cannot be this call's" in world.responses()["a"]["error"]
        assert simulator.received["a"] == 1
        # An operator who knows better may send it.
        resolve_held(world.ledger, "a", "retry", "operator")
        world.verify(run_id="run-2")
        assert simulator.received["a"] == 2
    assert world.outcomes() == {"a": "completed"}


def test_a_first_attempt_under_a_wrong_clock_does_not_hold_the_next_response(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a")
    with running_simulator(token=TOKEN, faults={"a": [Responds(502)]}) as simulator:
        world.server = simulator.url
        world.verify()
        with world.ledger.write() as connection:  # the clock was two hours ahead
            connection.execute(sa.update(attempts).values(started_at=attempts.c.started_at + 7_200_000_000))
        resolve_held(world.ledger, "a", "retry", "operator")
        world.verify(run_id="run-2")
        assert simulator.received["a"] == 2
    assert world.outcomes() == {"a": "completed"}


def test_a_response_that_breaks_the_contract_but_is_about_it_is_quarantined(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a", "b")
    world.options = {"deepxl_uncertain": "retry"}
    faults = {
        key: [Responds(200, body=json.dumps({"result": record_of(key, verified=None)}).encode(), record=late)]
        for key, late in (("a", False), ("b", True))
    }
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
        world.verify(run_id="run-2")
        assert dict(simulator.received) == {"a": 1, "b": 1}
    # The history has a sound record of `b`.
    assert world.outcomes() == {"a": "quarantined", "b": "completed"}
    assert '"verified": null' in world.responses()["a"]["response"]


@pytest.mark.parametrize(("status", "concurrency"), [(403, 1), (403, 4), (404, 4), (405, 1)])
@pytest.mark.parametrize("which", ["first", "middle", "last", "several"])
def test_a_denial_of_one_submission_is_its_own(
    sqlite_world: World, status: int, concurrency: int, which: str
) -> None:
    world = sqlite_world
    ids = [f"s-{number:02}" for number in range(20)]
    bad = {"first": ids[:1], "middle": ids[9:10], "last": ids[-1:], "several": ids[::5]}[which]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": concurrency}
    faults = {key: [Responds(status)] * 9 for key in bad}
    with running_simulator(token=TOKEN, latency_ms=2, faults=faults) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert summary.stopped is Stopped.NONE
        assert world.outcomes() == {key: "refused" if key in bad else "completed" for key in ids}
        world.verify(run_id="run-2")
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
    assert str(status) in world.responses()[bad[0]]["error"]


@pytest.mark.parametrize("status", [403, 404, 405])
@pytest.mark.parametrize("history", [None, Responds(404, body=b'{"detail":"Not Found"}')])
def test_a_denial_that_everything_meets_stops_the_run_with_nothing_final(
    sqlite_world: World, status: int, history: Fault | None
) -> None:
    world = sqlite_world
    ids = [f"s-{number:02}" for number in range(40)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 4}
    faults = {key: [Responds(status)] for key in ids}
    with running_simulator(token=TOKEN, faults=faults, lookup=history) as simulator:
        world.server = simulator.url
        with pytest.raises((AccessDenied, WrongAddress), match=str(status)):
            world.verify()
        # One, if the history does not respond either; else those in flight and two probes.
        assert simulator.received.total() <= (1 if history else 4 + 2)
        assert set(world.outcomes().values()) == {"failed", "not_attempted"}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Responds(400), "refused"),
        (Responds(422), "refused"),
        (Responds(410), "refused"),
    ],
)
@pytest.mark.parametrize("history", [None, Responds(500)])
def test_like_final_responses_in_a_row_halt_the_run_and_can_be_taken_back(
    sqlite_world: World, fault: Fault, outcome: str, history: Fault | None
) -> None:
    world = sqlite_world
    ids = [f"s-{number:02}" for number in range(40)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 4}
    with running_simulator(token=TOKEN, faults={key: [fault] for key in ids}, lookup=history) as simulator:
        world.server = simulator.url
        with pytest.raises(DeepXLError, match=r"10 responses in a row .* reopen"):
            world.verify()
        assert simulator.received.total() <= 10 + (0 if history else 3)
        wrong = [key for key, found in world.outcomes().items() if found == outcome]
        assert len(wrong) == simulator.received.total()
        for key in wrong:
            assert reopen(world.ledger, key, "the gateway was at fault", "operator") == DATE
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        assert is_complete(world.verify(run_id="run-2"))
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
    with world.ledger.read() as connection:
        query = sa.select(decisions.c.decision, decisions.c.reason, decisions.c.decided_by).distinct()
        found: Sequence[Any] = connection.execute(query).all()
        assert found == [("reopen", "the gateway was at fault", "operator")]


def test_final_responses_among_sound_ones_do_not_halt_the_run(sqlite_world: World) -> None:
    world = sqlite_world
    ids = [f"s-{number:02}" for number in range(40)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 1}
    bad = [key for number, key in enumerate(ids) if number % 8]
    with running_simulator(token=TOKEN, faults={key: [Responds(422)] for key in bad}) as simulator:
        world.server = simulator.url
        world.verify()
        assert simulator.received.total() == 40
    assert Counter(world.outcomes().values()) == {"refused": 35, "completed": 5}


@pytest.mark.parametrize("state", ["completed", "uncertain", "failed", "unknown"])
def test_only_a_refused_or_quarantined_one_is_reopened(sqlite_world: World, state: str) -> None:
    world = sqlite_world
    world.submit("a", id_file="gone.jpg" if state == "failed" else "id.jpg")
    faults = {"a": [Responds(500)]} if state == "uncertain" else {}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
    with pytest.raises(UsageError, match="b is not in the ledger" if state == "unknown" else state):
        reopen(world.ledger, "b" if state == "unknown" else "a", "why", "operator")
    with pytest.raises(UsageError, match="--reason"):
        reopen(world.ledger, "a", " ", "operator")


def test_a_document_that_vanished_is_a_failure_without_a_call(world: World) -> None:
    world.submit("a", id_file="gone.jpg")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
        assert not simulator.received
    row = world.responses()["a"]
    assert (row["outcome"], row["billable_calls"]) == ("failed", 0)
    assert "gone.jpg" not in row["error"]


def test_the_budget_is_never_exceeded(world: World) -> None:
    ids = [f"s-{number:02}" for number in range(30)]
    world.submit(*ids)
    with running_simulator(token=TOKEN, faults={ids[0]: [Responds(503)] * 2}) as simulator:
        world.server = simulator.url
        summary = world.verify(budget=CallBudget(10))
        assert simulator.received.total() == summary.calls == 10
        assert summary.stopped is Stopped.BUDGET
        assert list(world.outcomes().values()).count("not_attempted") >= 18
        assert not is_complete(summary)
        rest = world.verify(run_id="run-2")
        assert rest.stopped is Stopped.NONE
        assert len(records_of(simulator, ids[29])) == 1
        assert len(simulator.records) == 30


def test_a_server_that_is_ill_opens_the_circuit(world: World) -> None:
    ids = [f"s-{number:03}" for number in range(200)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 4}
    with running_simulator(token=TOKEN, faults={key: [Responds(502)] * 9 for key in ids}) as simulator:
        world.server = simulator.url
        summary = world.verify()
        # Ten in a row, those that were in flight with them, and the probes.
        assert simulator.received.total() <= 10 + 4 + 2
    assert summary.stopped is Stopped.CIRCUIT_OPEN
    assert set(world.outcomes().values()) == {"uncertain", "not_attempted"}


def test_a_server_that_recovers_closes_the_circuit(world: World) -> None:
    ids = [f"s-{number:03}" for number in range(60)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 4, "deepxl_max_attempts": 20}
    with running_simulator(token=TOKEN, faults={key: [Responds(503)] * 4 for key in ids[:3]}) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert len(simulator.records) == 60
    assert summary.stopped is Stopped.NONE
    assert set(world.outcomes().values()) == {"completed"}


def test_the_same_id_with_another_date_or_content_is_never_sent(world: World) -> None:
    world.submit("a", "b")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
        world.submit("a", "new", date="2024-09-02")
        with pytest.raises(KycError, match=r"submission a is in the ledger under 2024-09-01 .* 2024-09-02"):
            world.verify(date="2024-09-02")
        world.submit("a", "b", content="changed")
        with pytest.raises(KycError, match=r"submission a was sent .* other content .* \(and 1 more\)"):
            world.verify()
        assert dict(simulator.received) == {"a": 1, "b": 1, "new": 1}
    assert world.outcomes("2024-09-02") == {"a": "not_attempted", "new": "completed"}
    assert run_again("2024-09-02") in world.responses("2024-09-02")["a"]["error"]
    assert world.outcomes(DATE) == {"a": "not_attempted", "b": "not_attempted"}


def test_a_failed_one_is_sent_with_the_date_and_content_it_has_by_then(world: World) -> None:
    world.submit("gone", "moved", id_file="gone.jpg")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
        assert set(world.outcomes().values()) == {"failed"}
        world.submit("gone", content="found again")
        world.submit("moved", date="2024-09-02")
        (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
        assert (plan.calls_to_make, plan.conflicts) == (1, 0)
        world.verify(run_id="run-2")
        world.verify(run_id="run-3", date="2024-09-02")
        assert dict(simulator.received) == {"gone": 1, "moved": 1}
    row = world.responses()["gone"]
    assert (row["outcome"], row["content_sha256"]) == ("completed", "found again-gone")
    assert (row["attempts"], row["billable_calls"]) == (1, 1)
    assert world.outcomes("2024-09-02") == {"moved": "completed"}


def test_nothing_personal_is_in_the_ledger_but_the_responses(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a", id_file="id.jpg", tags=[("companyId", "COMP-001"), ("customerId", "Erika")])
    with running_simulator(token=TOKEN, faults={"a": [Responds(400, body=b'{"detail": "no"}')]}) as simulator:
        world.server = simulator.url
        world.verify()
    world.ledger.close()
    stored = b"".join(path.read_bytes() for path in world.root.glob("ledger.sqlite*"))
    assert b"COMP-001" not in stored
    assert b"Erika" not in stored
    assert b"id.jpg" not in stored
    assert TOKEN.encode() not in stored
