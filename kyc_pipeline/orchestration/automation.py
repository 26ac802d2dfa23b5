"""Declarative automation: the warehouse is published when the tables that it reads are new.

Runs of the job publish by themselves. This is for what comes another way: backfills of the daily assets and
partitions that were materialized by hand. Nothing is published while one of them is still at work, so a
backfill of 60 days publishes once or twice, not 60 times.
"""

import dagster as dg

_Is = dg.AutomationCondition
_COMES = _Is.newly_missing() | _Is.any_deps_updated()
_IS_NEW = _COMES.since(
    # As eager() has it, but not since the sensor was switched on: what was made before is published too. And
    # days that come between the same two ticks as a publication count: Dagster 1.13 loses the order of the
    # two in its `&` and `|`, and would take the new days for published.
    (_Is.newly_requested() | _Is.newly_updated()) & ~_COMES
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
