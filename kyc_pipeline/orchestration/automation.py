"""Declarative automation: the warehouse is published when the tables that it reads are new.

Runs of the job publish by themselves. This is for what comes another way: backfills of the daily assets and
partitions that were materialized by hand. Nothing is published while one of them is still at work, so a
backfill of 60 days publishes once or twice, not 60 times.
"""

import dagster as dg

_Is = dg.AutomationCondition
_TRIGGER = {"kyc/trigger": "publish_when_new"}
# Not "new since it was handled", as eager() has it, but "not handled since it was new". So what was there
# when the sensor was switched on is published too, and what comes between the same two ticks as a
# publication: Dagster 1.13 loses in its `&` and `|` which came first. A build of this sensor counts as
# handled when it is asked for and not when it ends, since days may come while it reads.
_HANDLED = _Is.newly_requested() | (_Is.newly_updated() & ~_Is.executed_with_tags(tag_values=_TRIGGER))
_IS_NEW = ~_HANDLED.since(_Is.any_deps_updated())
PUBLISH_WHEN_NEW = (
    _IS_NEW
    # Not eager()'s "no dependency is missing": it wants every partition of the last years to be there.
    & _Is.any_deps_match(~_Is.missing() | _Is.will_be_requested())
    & ~_Is.any_deps_in_progress()
    & ~_Is.in_progress()
    # Not "all passed": a later run that failed before its checks would hold back the good days before it.
    & ~_Is.any_deps_match(_Is.any_checks_match(_Is.check_failed(), blocking_only=True))
).with_label("when the daily tables are new and nothing is at work on them")


publish_when_new = dg.AutomationConditionSensorDefinition(
    name="publish_when_new",
    target=dg.AssetSelection.groups("analyze"),
    minimum_interval_seconds=30,
    run_tags={**_TRIGGER, "dagster/priority": "5"},
    description="Builds and publishes the warehouse when the tables that it reads are new.",
)
"""The sensor that evaluates the conditions; one run builds all tables."""
