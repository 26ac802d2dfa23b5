"""The usual run: each submission is sent once, recorded and written; a second run makes no call."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from kyc_pipeline.deepxl.call_errors import AccessDenied, NotProcessed
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.queries import read_entries
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.reconcile import reconcile
from kyc_pipeline.verify.summary import Stopped
from kyc_pipeline.vocabulary import Outcome
from tests.unit.verify.world import DATE, TOKEN, World, is_complete


def test_each_submission_is_sent_once_and_has_one_row(world: World) -> None:
    ids = [f"s-{number}" for number in range(50)]
    world.submit(*ids)
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
    assert summary.outcomes == {Outcome.COMPLETED: 50}
    assert (summary.calls, summary.billable_calls, summary.retries, summary.held) == (50, 50, 0, 0)
    assert summary.stopped is Stopped.NONE
    assert is_complete(summary)
    rows = world.responses()
    assert sorted(rows) == sorted(ids)
    for row in rows.values():
        assert row["outcome"] == "completed"
        assert row["http_status"] == 200
        assert row["attempts"] == row["billable_calls"] == 1
        assert row["requested_at"] <= row["responded_at"]
        assert row["latency_ms"] > 0
        assert row["error"] is None
        assert '"verificationId"' in row["response"]
    assert world.lake.metadata(VERIFICATION_RESPONSES, DATE)["state"] == "complete"


def test_a_second_run_makes_no_call_needs_no_token_and_leaves_the_file(world: World) -> None:
    world.submit("a", "b")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    path = Path(world.lake.path(VERIFICATION_RESPONSES, DATE))
    before = path.stat().st_ino
    world.options = {"deepxl_api_token": None}
    summary = world.verify(run_id="run-2")
    assert summary.calls == 0
    assert summary.outcomes == {Outcome.COMPLETED: 2}
    assert path.stat().st_ino == before


def test_the_table_is_rebuilt_from_the_ledger_without_a_call(world: World) -> None:
    world.submit("a", "b")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    before = world.responses()
    Path(world.lake.path(VERIFICATION_RESPONSES, DATE)).unlink()
    summary = world.verify(run_id="run-2")
    assert summary.calls == 0
    assert world.responses() == before


def without_a_row(rows: pa.Table) -> pa.Table:
    return rows.slice(1)


def with_a_stray_row(rows: pa.Table) -> pa.Table:
    stray = pa.Table.from_pylist([rows.to_pylist()[0] | {"submission_id": "z"}], rows.schema)
    return pa.concat_tables([rows, stray])


def with_another_outcome(rows: pa.Table) -> pa.Table:
    first, *others = rows.to_pylist()
    return pa.Table.from_pylist([first | {"outcome": "quarantined"}, *others], rows.schema)


@pytest.mark.parametrize("damage", [without_a_row, with_a_stray_row, with_another_outcome])
def test_a_damaged_table_is_written_again_though_its_footer_is_current(
    world: World, damage: Callable[[pa.Table], pa.Table]
) -> None:
    world.submit("a", "b")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    before = world.responses()
    footer = world.lake.metadata(VERIFICATION_RESPONSES, DATE)
    damaged = damage(world.lake.read(VERIFICATION_RESPONSES, DATE).replace_schema_metadata())
    world.lake.write(VERIFICATION_RESPONSES, DATE, damaged, footer)
    summary = world.verify(run_id="run-2")
    assert summary.calls == 0
    assert world.responses() == before


@pytest.mark.parametrize("kept", [slice(-20), slice(100, None)], ids=["cut off", "without its start"])
def test_an_unreadable_table_is_written_again(world: World, kept: slice) -> None:
    world.submit("a", "b")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    before = world.responses()
    path = Path(world.lake.path(VERIFICATION_RESPONSES, DATE))
    path.write_bytes(path.read_bytes()[kept])
    summary = world.verify(run_id="run-2")
    assert summary.calls == 0
    assert world.responses() == before


def test_an_empty_partition_gets_an_empty_table(world: World) -> None:
    world.submit()
    assert world.verify().outcomes == {}
    assert world.responses() == {}


def test_without_a_token_nothing_is_claimed_and_every_submission_has_an_outcome(world: World) -> None:
    world.submit("a")
    world.options = {"deepxl_api_token": None}
    with pytest.raises(UsageError, match="DEEPXL_API_TOKEN"):
        world.verify()
    assert world.outcomes() == {"a": "not_attempted"}
    assert read_entries(world.ledger, ["a"]) == {}


def test_a_wrong_token_is_found_before_anything_is_claimed(world: World) -> None:
    world.submit("a", "b")
    with running_simulator(token="another") as simulator:
        world.server = simulator.url
        with pytest.raises(AccessDenied):
            world.verify()
        assert not simulator.received
    assert world.outcomes() == {"a": "not_attempted", "b": "not_attempted"}
    assert read_entries(world.ledger, ["a", "b"]) == {}


def test_an_unreachable_server_is_found_before_anything_is_claimed(world: World) -> None:
    world.submit("a")
    with pytest.raises(NotProcessed, match="DEEPXL_BASE_URL"):
        world.verify()
    assert world.outcomes() == {"a": "not_attempted"}
    assert read_entries(world.ledger, ["a"]) == {}


def test_a_changed_manifest_and_a_failing_credential_leave_no_row_without_an_outcome(world: World) -> None:
    world.submit("a")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
        paid = world.responses()["a"]
        world.submit("a", "late")
        world.options = {"deepxl_api_token": "revoked"}
        with pytest.raises(AccessDenied):
            world.verify(run_id="run-2")
        assert world.outcomes() == {"a": "completed", "late": "not_attempted"}
        assert world.responses()["a"] == paid
        assert dict(simulator.received) == {"a": 1}
    assert reconcile(world.lake, world.ledger, DATE).differences == ()
    assert world.lake.metadata(VERIFICATION_RESPONSES, DATE)["state"] == "complete"


def test_a_used_up_budget_needs_neither_token_nor_api(world: World) -> None:
    world.submit("a", "b")
    world.options = {"deepxl_api_token": None}
    summary = world.verify(budget=CallBudget(0))
    assert (summary.stopped, summary.calls, is_complete(summary)) == (Stopped.BUDGET, 0, False)
    assert world.outcomes() == {"a": "not_attempted", "b": "not_attempted"}
