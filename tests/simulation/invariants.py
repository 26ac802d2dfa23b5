"""What must hold in every simulated world. The vendor's truth is compared with ledger, lake and summaries."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kyc_pipeline.deepxl.echo import CLOCKS_APART
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.models import OUTCOMES, State
from kyc_pipeline.verify.planning import PartitionPlan, plan_partitions
from kyc_pipeline.verify.reconcile import reconcile
from tests.simulation.vendor import Handover

if TYPE_CHECKING:
    from kyc_pipeline.verify.summary import VerifySummary
    from tests.simulation.world import World

DATE = "2024-09-01"
_SETTLED = {"completed", "refused", "quarantined"}
_OPEN = {"failed", "not_attempted"}


def _demand(holds: bool, what: str) -> None:
    assert holds, what


def wrong_with(world: "World", handover: Handover) -> Iterator[str]:
    """The last byte of a paid call leaves only under an open claim and a lease of its own run.

    And if an earlier call had left, only after a look-up to which DeepXL responded.
    """
    run, key = handover.process.name, handover.submission_id
    claims = world.query(
        "SELECT state, run_id FROM submissions JOIN attempts USING (submission_id) WHERE submission_id = ? "
        "ORDER BY number DESC LIMIT 1",
        key,
    )
    if claims != [("claimed", run)]:
        yield f"{run} sends {key} without an open claim of its own: {claims}"
    leases = world.query("SELECT run_id FROM leases")
    if leases != [(run,)]:
        yield f"{run} sends {key} without the lease, which is {leases}"
    earlier = [other.moment for other in world.vendor.handovers[:-1] if other.submission_id == key]
    if earlier and not any(
        earlier[-1] <= moment for moment, wanted in world.vendor.truthful_look_ups if wanted == key
    ):
        yield f"{run} sends {key} again, and no look-up had a response since"


def check_end(world: "World") -> None:
    """The faults have stopped: the world comes to order, and what it says is true."""
    _run_as_planned(world)
    check_truth(world)
    outcomes = _outcomes(world)
    _demand(not _OPEN & set(outcomes.values()), f"no progress: {outcomes}")
    if "uncertain" in outcomes.values():
        world.decide_held("retry")
        _run_as_planned(world)
        # A refusal does not settle what was in doubt before: somebody has to give it up.
        world.decide_held("abandon")
        _run_as_planned(world)
    plan = _plan(world)
    _demand((plan.held, plan.calls_to_make) == (0, 0), f"not settled: {plan}")
    given_up = {key for key, outcome in _outcomes(world).items() if outcome not in _SETTLED}
    _demand(given_up <= world.refused | world.given_up, f"no progress: {_outcomes(world)}")
    check_truth(world)
    if world.rng.random() < 0.1:  # it costs as much as the rest of a simulation
        with world.new_ledger() as ledger:
            differences = reconcile(world.lake, ledger, DATE).differences
        _demand(not differences, f"lake and ledger differ: {differences}")
    if world.rng.random() < 0.2:
        sent = len(world.vendor.handovers)
        summary = _run(world)
        _demand(summary.calls == 0 and len(world.vendor.handovers) == sent, "a repeated run makes calls")


def _run(world: "World") -> "VerifySummary":
    run = world.start()
    world.wait(run)
    assert run.summary is not None, f"without faults, {run.name} ends with {run.error!r}"
    return run.summary


def _run_as_planned(world: "World") -> None:
    """Without faults, a run makes the calls that `plan` announces, but for what the history has.

    A record that cannot be the call's holds a submission, whatever the policy says.
    """
    plan, sent = _plan(world), len(world.vendor.handovers)
    summary = _run(world)
    calls = len(world.vendor.handovers) - sent
    _demand(calls == summary.calls, f"{calls} calls, but the run says {summary.calls}")
    strange = {record.submission_id for record in world.vendor.foreign} | _misdated(world)
    _demand(
        plan.calls_to_make - summary.adopted - len(strange) <= calls <= plan.calls_to_make,
        f"planned {plan}, made {calls} calls, adopted {summary.adopted}",
    )


def _plan(world: "World") -> PartitionPlan:
    with world.new_ledger() as ledger:
        [plan] = plan_partitions(world.lake, ledger, [DATE], world.settings)
        held = list_held(ledger)
    outcomes = dict(world.query("SELECT submission_id, state FROM submissions"))
    paid = sum(state in _SETTLED for state in outcomes.values())
    _demand(plan.submissions == len(world.ids), f"wrong number of submissions: {plan}")
    _demand((plan.already_paid, plan.held) == (paid, len(held)), f"{plan}, but the ledger has {outcomes}")
    return plan


def _misdated(world: "World") -> set[str]:
    """The submissions with a record that is too old to be theirs: our clock was ahead when they were sent."""
    first = dict(world.query("SELECT submission_id, min(started_at) FROM attempts GROUP BY submission_id"))
    return {
        record.submission_id
        for record in world.vendor.records
        if first[record.submission_id] / 1e6 - record.result["timestamp"] > CLOCKS_APART.total_seconds()
    }


def _outcomes(world: "World") -> dict[str, str]:
    rows = world.lake.read(VERIFICATION_RESPONSES, DATE, ["submission_id", "outcome"]).to_pylist()
    return {row["submission_id"]: row["outcome"] for row in rows}


def check_truth(world: "World") -> None:
    """Outcomes against the vendor's records, bills against decisions, the lake against the ledger."""
    rows = world.lake.read(VERIFICATION_RESPONSES, DATE).to_pylist()
    _demand(sorted(row["submission_id"] for row in rows) == world.ids, "not every submission has one outcome")
    states = dict(world.query("SELECT submission_id, state FROM submissions"))
    for row in rows:
        state = states.get(row["submission_id"])
        outcome = OUTCOMES[State(state)] if state else "not_attempted"
        _demand(row["outcome"] == outcome, f"{row['submission_id']}: the ledger has {state}, the lake {row}")
    bills = Counter(record.submission_id for record in world.vendor.records)
    by_number = {record.number: record for record in world.vendor.records}
    by_policy = world.settings.deepxl_uncertain == "retry"
    billable = dict(world.query("SELECT submission_id, sum(billable) FROM attempts GROUP BY submission_id"))
    misdated = _misdated(world)
    decided = dict(world.query("SELECT submission_id, decision FROM submissions"))
    for row in rows:
        key, outcome = row["submission_id"], row["outcome"]
        allowed = 1 + world.granted.count(key) + by_policy
        _demand(bills[key] <= allowed, f"{key} was paid {bills[key]} times, allowed were {allowed}")
        _demand(bills[key] <= billable.get(key, 0), f"{key}: {bills[key]} bills, the ledger has {billable}")
        if outcome == "completed":
            result = json.loads(row["response"])["result"]
            record = by_number.get(result["verificationId"])
            _demand(record is not None and record.submission_id == key, f"{key} has the record of {record}")
        elif outcome == "refused":
            # A gateway that denies one while others get a response dislikes its documents.
            is_disliked = key in world.vendor.denied and bool(world.vendor.responded - {key})
            _demand(key in world.refused or is_disliked, f"{key} is refused, but not by DeepXL")
            _demand(not bills[key], f"{key} is refused, but it was billed")
        elif outcome == "uncertain":
            may_be_held = decided[key] == "abandon" or key in misdated
            _demand(not bills[key] or may_be_held, f"{key} is in the history, but not adopted")
        else:
            _demand(not bills[key], f"{key} is {outcome}, but it was billed")
