"""The figures of a run."""

from array import array
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from kyc_pipeline.deepxl.call_errors import UnexpectedRedirect
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.verify.summary import Progress, percentile
from tests.unit.verify.world import QUICK, TOKEN, World


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])
def test_a_percentile_is_that_of_the_warehouse(share: float) -> None:
    generator = np.random.default_rng(7)
    for size in range(1, 120):
        values = generator.exponential(300, size).tolist()
        query = "SELECT quantile_cont(value, $share) FROM (SELECT unnest($values::DOUBLE[]) AS value)"
        (expected,) = duckdb.execute(query, {"values": values, "share": share}).fetchall()[0]
        assert percentile(array("d", values), share) == pytest.approx(expected, rel=1e-12)


def test_no_values_have_no_percentile() -> None:
    assert percentile(array("d"), 0.5) is None


def test_adopted_submissions_of_earlier_runs_do_not_make_the_uncertain_ones_negative(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    ids = [f"s{n}" for n in range(4)]
    world.submit(*ids)
    seen: list[Progress] = []
    faults = {key: [Responds(500, record=True)] for key in ids}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        assert world.verify(timing=replace(QUICK, look_ups=()), progress=seen.append).held == 4
        assert seen[-1].uncertain == 4
        summary = world.verify(run_id="run-2", progress=seen.append)
    assert (summary.adopted, summary.held) == (4, 0)
    assert seen[-1].uncertain == 0
    assert all(progress.uncertain >= 0 for progress in seen)


def test_a_submission_that_a_look_up_settled_at_once_is_not_uncertain(sqlite_world: World) -> None:
    sqlite_world.submit("a", "b")
    seen: list[Progress] = []
    faults = {"a": [Responds(500, record=True)], "b": [Responds(500)]}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        sqlite_world.server = simulator.url
        assert sqlite_world.verify(progress=seen.append).adopted == 1
    assert seen[-1].uncertain == 1


def test_a_run_that_failed_reports_its_last_calls(sqlite_world: World) -> None:
    sqlite_world.submit("a", "b")
    sqlite_world.options = {"deepxl_max_concurrency": 1}
    seen: list[Progress] = []
    with running_simulator(token=TOKEN, faults={"b": [Responds(307, {"Location": "/"})]}) as simulator:
        sqlite_world.server = simulator.url
        with pytest.raises(UnexpectedRedirect):
            sqlite_world.verify(progress=seen.append)
    assert seen[-1].calls == 2
