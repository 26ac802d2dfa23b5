"""Declarative automation: publishes the warehouse when the tables that it reads are new.

Runs of the job `verify_and_publish` publish at their end. This is for everything else: backfills of the daily
assets and partitions materialized by hand. Nothing is published while a dependency is in progress, so a
backfill of 60 days publishes once or twice, not 60 times.
"""

import dagster as dg

_Is = dg.AutomationCondition
_TRIGGER = {"kyc/trigger": "publish_when_new"}
# eager() means "updated since it was handled". Here it is "not handled since it was updated", which also
# publishes data from before the sensor was switched on, and data that arrives between the same two ticks as
# a publication (`&` and `|` of Dagster 1.13 lose the order). A build by this sensor counts as handled when
# it is requested, not when it ends, because days may arrive while it reads.
_HANDLED = _Is.newly_requested() | (_Is.newly_updated() & ~_Is.executed_with_tags(tag_values=_TRIGGER))
_IS_NEW = ~_HANDLED.since(_Is.any_deps_updated())
PUBLISH_WHEN_NEW = (
    _IS_NEW
    # eager() requires that no dependency is missing, which means every partition since the start date.
    & _Is.any_deps_match(~_Is.missing() | _Is.will_be_requested())
    & ~_Is.any_deps_in_progress()
    & ~_Is.in_progress()
    # Not "all checks passed": a later run that fails before its checks would hold back earlier good days.
    & ~_Is.any_deps_match(_Is.any_checks_match(_Is.check_failed(), blocking_only=True))
).with_label("when the daily tables are new and none is in progress")

publish_when_new = dg.AutomationConditionSensorDefinition(
    name="publish_when_new",
    target=dg.AssetSelection.groups("analyze"),
    minimum_interval_seconds=30,
    run_tags={**_TRIGGER, "dagster/priority": "5"},
    description="Builds and publishes the warehouse when the tables that it reads are new.",
)
"""Evaluates the conditions. One run builds all tables."""
