"""Declarative automation: the warehouse is published when the tables that it reads are new.

Runs of the job publish by themselves. This is for what comes another way: backfills of the daily assets and
partitions that were materialized by hand. Nothing is published while one of them is still at work, so a
backfill of 60 days publishes once or twice, not 60 times.
"""

import dagster as dg

PUBLISH_WHEN_NEW = (
    # Plain eager() would wait for ever: it wants every partition of the last years to be there.
    dg.AutomationCondition.eager().without(~dg.AutomationCondition.any_deps_missing())
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
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
