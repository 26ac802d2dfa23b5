"""Declarative automation: the warehouse is published when the tables that it reads are new.

Runs of the job publish by themselves. This is for what comes another way: backfills of the daily assets and
partitions that were materialized by hand. Nothing is published while one of them is still at work, so a
backfill of 60 days publishes once or twice, not 60 times.
"""

import dagster as dg

_Is = dg.AutomationCondition
_IS_NEW = (_Is.newly_missing() | _Is.any_deps_updated()).since(
    # Not since the sensor was switched on, as eager() has it: what was made before is to be published too.
    _Is.newly_requested() | _Is.newly_updated()
)
PUBLISH_WHEN_NEW = (
    _IS_NEW
    # Not eager()'s "no dependency is missing": it wants every partition of the last years to be there.
    & _Is.any_deps_match(~_Is.missing() | _Is.will_be_requested())
    & ~_Is.any_deps_in_progress()
    & ~_Is.in_progress()
    & _Is.all_deps_blocking_checks_passed()
).with_label("when the daily tables are new and nothing is at work on them")


def publish_when_new(pipeline_group: str = "analyze") -> dg.AutomationConditionSensorDefinition:
    """The sensor that looks at the conditions; one run builds all tables."""
    return dg.AutomationConditionSensorDefinition(
        name="publish_when_new",
        target=dg.AssetSelection.groups(pipeline_group),
        minimum_interval_seconds=30,
        run_tags={"kyc/trigger": "publish_when_new", "dagster/priority": "5"},
        description="Builds and publishes the warehouse when the tables that it reads are new.",
    )
