"""What must hold in every simulated world. The vendor's truth is compared with ledger, lake and summaries."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kyc_pipeline.deepxl.echo import MAX_CLOCK_SKEW
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.models import Decision, State, outcome_of
from kyc_pipeline.verify.planning import PartitionPlan, total
from kyc_pipeline.verify.reconcile import reconcile
from tests.simulation.vendor import Handover

if TYPE_CHECKING:
    from tests.simulation.world import Run, World

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
    leases = world.query(
        "SELECT run_id FROM leases JOIN submissions USING (partition_date) WHERE submission_id = ?", key
    )
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
    plan = total(_plan(world), world.settings)
    _demand((plan.held, plan.calls_to_make) == (0, 0), f"not settled: {plan}")
    given_up = {key for key, outcome in _outcomes(world).items() if outcome not in _SETTLED}
    _demand(given_up <= world.refused | world.given_up, f"no progress: {_outcomes(world)}")
    check_truth(world)
    if world.rng.random() < 0.1:  # it costs as much as the rest of a simulation
        with world.new_ledger() as ledger:
            differences = [
                each for day in world.days for each in reconcile(world.lake, ledger, day).differences
            ]
        _demand(not differences, f"lake and ledger differ: {differences}")
    if world.rng.random() < 0.2:
        sent = len(world.vendor.handovers)
        run = _run(world)
        _demand(run.calls == 0 and len(world.vendor.handovers) == sent, "a repeated run makes calls")


def _run(world: "World") -> "Run":
    run = world.start(ingest=world.deliveries is not None and world.rng.random() < 0.3)
    world.wait(run)
    assert run.error is None, f"without faults, {run.name} ends with {run.error!r}"
    return run


def _run_as_planned(world: "World") -> None:
    """Without faults, a run makes the calls that `plan` announces, but for what the history has.

    A record that cannot be the call's holds a submission, whatever the policy says.
    """
    plans, sent = _plan(world), len(world.vendor.handovers)
    plan = total(plans, world.settings)
    run = _run(world)
    _check_ingest(world, plans)
    calls = len(world.vendor.handovers) - sent
    _demand(calls == run.calls, f"{calls} calls, but the run says {run.calls}")
    strange = {record.submission_id for record in world.vendor.foreign} | _not_theirs(world)
    _demand(
        plan.calls_to_make - run.adopted - len(strange) <= calls <= plan.calls_to_make,
        f"planned {plan}, made {calls} calls, adopted {run.adopted}",
    )


def _check_ingest(world: "World", plans: "Sequence[PartitionPlan]") -> None:
    """After a run over all days, no row of a manifest is lost, none is on two days, and no day is due."""
    accepted = {day: _accepted(world, day) for day in world.days}
    for plan in plans:
        rows = len(accepted[plan.date])
        _demand(rows == plan.submissions, f"planned {plan} on {plan.date}, accepted {rows}")
    if world.deliveries is not None:
        ids = [key for rows in accepted.values() for key in rows]
        _demand(sorted(ids) == world.ids, f"accepted {accepted}, delivered {world.deliveries.rows}")
        due = [day for day in world.days if world.is_outdated(day)]
        _demand(not due, f"after a run over all days, {due} is due again")


def _accepted(world: "World", day: str) -> dict[str, dict[str, str]]:
    """The tags of the day's submissions by id."""
    rows = world.lake.read(SUBMISSIONS, day, ["submission_id", "tags"]).to_pylist()
    return {row["submission_id"]: dict(row["tags"]) for row in rows}


def _plan(world: "World") -> "list[PartitionPlan]":
    with world.new_ledger() as ledger:
        plans = world.plan(ledger)
        held = list_held(ledger)
    outcomes = dict(world.query("SELECT submission_id, state FROM submissions"))
    paid = sum(state in _SETTLED for state in outcomes.values())
    plan = total(plans, world.settings)
    _demand(plan.submissions == len(world.ids), f"wrong number of submissions: {plan}")
    _demand((plan.already_paid, plan.held) == (paid, len(held)), f"{plan}, but the ledger has {outcomes}")
    return plans


def _not_theirs(world: "World") -> set[str]:
    """The submissions with a record that cannot be theirs.

    It is too old, since our clock was ahead when they were sent. Or they were corrected after a call that had
    been turned away, but was processed.
    """
    first = dict(world.query("SELECT submission_id, min(started_at) FROM attempts GROUP BY submission_id"))
    tags = {key: tags for day in world.days for key, tags in _accepted(world, day).items()}
    return {
        record.submission_id
        for record in world.vendor.records
        if first[record.submission_id] / 1e6 - record.result["timestamp"] > MAX_CLOCK_SKEW.total_seconds()
        or not tags[record.submission_id].items()
        <= {(tag["name"], tag["value"]) for tag in record.result["tags"]}
    }


def _responses(world: "World") -> list[dict[str, Any]]:
    rows = []
    for day in world.days:
        of_day = world.lake.read(VERIFICATION_RESPONSES, day).to_pylist()
        ids = [row["submission_id"] for row in of_day]
        _demand(ids == list(_accepted(world, day)), f"{day}: not every submission has one outcome: {ids}")
        rows += of_day
    return rows


def _outcomes(world: "World") -> dict[str, str]:
    return {row["submission_id"]: row["outcome"] for row in _responses(world)}


def check_truth(world: "World") -> None:
    """Outcomes against the vendor's records, bills against decisions, the lake against the ledger."""
    rows = _responses(world)
    _demand(sorted(row["submission_id"] for row in rows) == world.ids, "not every submission has one outcome")
    known = {
        key: rest for key, *rest in world.query("SELECT submission_id, state, decision FROM submissions")
    }
    for row in rows:
        state, decision = known.get(row["submission_id"], (None, None))
        last = Decision(decision) if decision else None
        outcome = outcome_of(State(state), last) if state else "not_attempted"
        _demand(row["outcome"] == outcome, f"{row['submission_id']}: the ledger has {state}, the lake {row}")
    bills = Counter(record.submission_id for record in world.vendor.records)
    by_number = {record.number: record for record in world.vendor.records}
    by_policy = world.settings.deepxl_uncertain == "retry"
    billable = dict(world.query("SELECT submission_id, sum(billable) FROM attempts GROUP BY submission_id"))
    not_theirs = _not_theirs(world)
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
        elif outcome == "abandoned":
            _demand(decided[key] == "abandon", f"{key} is abandoned, but nobody decided it")
        elif outcome == "uncertain":
            _demand(not bills[key] or key in not_theirs, f"{key} is in the history, but not adopted")
        else:
            _demand(not bills[key], f"{key} is {outcome}, but it was billed")
