"""The ledger on a cluster of Patroni whose primary dies in the middle of a run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.verify.dispatcher import Timing
from tests.e2e.patroni import PatroniCluster, running_patroni
from tests.e2e.servers import poll
from tests.unit.verify.test_verify_crashes import assert_nothing_paid_twice_or_lost
from tests.unit.verify.world import TOKEN, World, is_complete

IDS = [f"s-{number:02}" for number in range(30)]
pytestmark = [pytest.mark.e2e, pytest.mark.scale]


def test_runs_survive_every_failover_to_a_synchronous_standby(tmp_path: Path) -> None:
    with running_patroni() as cluster, running_simulator(token=TOKEN, latency_ms=300) as simulator:
        world = World(tmp_path, simulator.url, cluster.url, {"deepxl_max_concurrency": 4})
        for day in ("2024-09-01", "2024-09-02"):
            log = cluster.members[0].folder / "log"
            poll(cluster.has_synchronous_standby, "a synchronous standby", log=log)
            verify_through_a_failover(world, cluster, simulator, day)
        assert set(simulator.received.values()) == {1}
        world.ledger.close()


def verify_through_a_failover(world: World, cluster: PatroniCluster, simulator: Simulator, day: str) -> None:
    ids = [f"{day}-{each}" for each in IDS]
    world.submit(*ids, date=day)
    primary = cluster.find("primary")
    assert primary is not None
    run = ThreadPoolExecutor().submit(world.verify, day, timing=Timing())
    poll(lambda: any(each in simulator.received for each in ids), "the first call")
    primary.kill()
    assert not run.done()
    assert is_complete(run.result())
    assert_nothing_paid_twice_or_lost(world, simulator, ids, date=day)
    assert cluster.find("primary") not in (None, primary)
    primary.start()  # it follows: it lacks what the new primary has
