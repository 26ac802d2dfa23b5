"""A standby of PostgreSQL takes over: what it lacks is never paid again.

Two real servers with streaming replication, as Patroni would run them. The URL names both: libpq connects to
the one that accepts writes.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.database import WrongLedger
from kyc_pipeline.ledger.identity import read_identity
from kyc_pipeline.verify.dispatcher import Timing
from tests.faults import WaitsForTest
from tests.unit.postgres import PostgresServer, running_postgres
from tests.unit.verify import children
from tests.unit.verify.test_verify_crashes import assert_nothing_paid_twice_or_lost, records_by_submission
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

Until = Callable[[Callable[[], bool]], None]
NEXT_DATE = "2024-09-02"
IDS = [f"s-{number:02}" for number in range(30)]
PATIENT = Timing(look_ups=(0.0, 0.05), back_off=0.01, back_off_cap=0.05, ledger_patience=60)
pytestmark = pytest.mark.e2e


@dataclass
class Cluster:
    """A primary and its standby."""

    primary: PostgresServer
    standby: PostgresServer

    @property
    def url(self) -> str:
        hosts = f"host={self.primary.socket},{self.standby.socket}"
        return f"postgresql+psycopg://kyc@/postgres?{hosts}&target_session_attrs=read-write"

    def has_all(self) -> bool:
        """Whether the standby has replayed everything that the primary has committed."""
        with self.primary.admin() as primary, self.standby.admin() as standby:
            position = primary.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            return standby.execute(query, position).fetchone() == (True,)

    def cut(self) -> None:
        """From now on, the standby receives nothing."""
        with self.standby.admin() as standby:
            standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            standby.execute("SELECT pg_reload_conf()")
            while standby.execute("SELECT 1 FROM pg_stat_wal_receiver").fetchone():
                standby.execute("SELECT pg_sleep(0.01)")

    def fail_over(self) -> None:
        """Kills the primary, as a power cut would, and lets the standby take over."""
        self.primary.stop()
        self.standby.promote()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_postgres() as primary, primary.standby() as standby:
        made = Cluster(primary, standby)
        yield made
        if not (primary.socket / "data" / "postmaster.pid").exists():
            primary.start()  # the block stops it


@pytest.fixture
def world(tmp_path: Path, cluster: Cluster) -> Iterator[World]:
    made = World(tmp_path, ledger_url=cluster.url)
    made.submit(*IDS)
    made.submit("t-1", "t-2", date=NEXT_DATE)
    yield made
    made.ledger.close()


def run_in_child(world: World, processes: ForkServerContext, date: str) -> Any:
    arguments = (str(world.root), world.server, world.ledger_url, world.options, date, "run")
    child = processes.Process(target=children.verify, args=arguments)
    child.start()
    return child


def test_an_asynchronous_standby_is_a_restored_ledger(
    world: World, cluster: Cluster, processes: ForkServerContext, simulator: Simulator, until: Until
) -> None:
    world.server = simulator.url
    world.verify(NEXT_DATE)
    until(cluster.has_all)
    cluster.cut()
    run_in_child(world, processes, DATE).join()  # its commits are lost, but not its lake
    cluster.fail_over()

    refused = pytest.raises(WrongLedger, match=r"older than the lake .* has seen it.*ledger restore")
    for date in (DATE, NEXT_DATE):
        with refused:
            world.verify(date, run_id="after")
    assert simulator.received.total() == len(IDS) + 2

    assert transfer.complete_from_lake(world.lake, world.ledger) == len(IDS)
    transfer.declare_restored(world.lake, world.ledger)
    assert read_identity(world.ledger).restored_at is not None
    for date in (DATE, NEXT_DATE):
        assert world.verify(date, run_id="restored").calls == 0
    assert_nothing_paid_twice_or_lost(world, simulator, IDS)


def test_calls_that_the_standby_and_the_lake_lack_are_looked_up(
    world: World, cluster: Cluster, processes: ForkServerContext, until: Until
) -> None:
    waits = WaitsForTest()
    with running_simulator(token=TOKEN, faults={key: [waits] for key in IDS[12:]}) as simulator:
        world.server = simulator.url
        world.options = {"deepxl_max_concurrency": 4}
        world.verify(NEXT_DATE)
        until(cluster.has_all)
        cluster.cut()
        child = run_in_child(world, processes, DATE)
        until(lambda: len(simulator.records) >= 12)  # of both days
        child.kill()
        child.join()
        waits.go.set()
        cluster.fail_over()
        transfer.complete_from_lake(world.lake, world.ledger)
        transfer.declare_restored(world.lake, world.ledger)
        before = {key for key, found in records_by_submission(simulator).items() if found}
        summary = world.verify(run_id="restored")
        assert summary.adopted >= len(before & set(IDS)) >= 8
        assert_nothing_paid_twice_or_lost(world, simulator, IDS)
        assert max(map(len, records_by_submission(simulator).values())) == 1


def test_a_run_survives_a_failover_to_a_synchronous_standby(
    world: World, cluster: Cluster, until: Until
) -> None:
    with cluster.primary.admin() as primary:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        while primary.execute("SHOW synchronous_standby_names").fetchone() != ("*",):
            primary.execute("SELECT pg_sleep(0.01)")
    world.options = {"deepxl_max_concurrency": 4}
    with running_simulator(token=TOKEN, latency_ms=20) as simulator:
        world.server = simulator.url

        def fail_over() -> None:
            until(lambda: simulator.received.total() >= 10)
            cluster.fail_over()

        failing = threading.Thread(target=fail_over)
        failing.start()
        summary = world.verify(timing=PATIENT)
        failing.join()
        assert is_complete(summary)
        assert dict(simulator.received) == dict.fromkeys(IDS, 1)
        assert_nothing_paid_twice_or_lost(world, simulator, IDS)
