"""The resource `pipeline` over the stores of a simulated world."""

from typing import TYPE_CHECKING

from kyc_pipeline.cli.plan import plan_days
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.verify.planning import PartitionPlan

if TYPE_CHECKING:
    from tests.simulation.world import World


class _Pipeline(Pipeline):
    def __init__(self, world: "World") -> None:
        super().__init__(world.settings)
        self._world = world

    @property
    def lake(self) -> Lake:
        return self._world.lake

    def open_ledger(self) -> Ledger:
        return self._world.new_ledger()


def plan(world: "World") -> list[PartitionPlan]:
    """What `kyc-pipeline plan` says about all days."""
    plans, unreadable = plan_days(_Pipeline(world), world.days)
    assert not unreadable, unreadable
    return plans
