"""Declarative automation: publishes the warehouse after its upstream tables were updated.

The job `verify_and_publish` publishes at its end. This is for everything else: backfills of the daily assets,
and partitions materialized by hand. The condition waits while any day is in progress or waits in a backfill,
so a backfill of 60 days publishes once, at its end.
"""

from functools import reduce
from operator import or_

import dagster as dg

from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration.jobs import TRIGGER
from kyc_pipeline.orchestration.specs import ANALYZE

_When = dg.AutomationCondition
_REQUESTED_HERE = {TRIGGER: "publish_when_new"}
# eager() publishes if an update followed the last publication. This publishes unless a publication followed
# the last update: so it also publishes data from before the sensor was on, and data that arrives between the
# same two ticks as a publication (`&` and `|` of Dagster 1.13 lose the order). A build that this sensor
# requested counts as handled from the request, not from its end, because days may arrive while it reads.
_HANDLED = _When.newly_requested() | (
    _When.newly_updated() & ~_When.executed_with_tags(tag_values=_REQUESTED_HERE)
)
_NOT_HANDLED = ~_HANDLED.since(_When.any_deps_updated())
# Of all daily tables, not of a table's own dependencies: once a run has ingested its days, what depends on
# `submissions` alone has no dependency in progress, and one step builds all tables.
_ANY_DAY_IN_PROGRESS = reduce(
    or_, (_When.asset_matches(table.name, _When.in_progress()) for table in TABLES)
).with_label("any day in progress")
PUBLISH_WHEN_NEW = (
    _NOT_HANDLED
    # eager() requires every dependency, which means every partition since the start date.
    & _When.any_deps_match(~_When.missing() | _When.will_be_requested())
    & ~_ANY_DAY_IN_PROGRESS
    & ~_When.any_deps_in_progress()
    & ~_When.in_progress()
    # "All checks passed" would let a later run that fails before its checks block earlier good days.
    & ~_When.any_deps_match(_When.any_checks_match(_When.check_failed(), blocking_only=True))
).with_label("when the daily tables are new and none is in progress")

publish_when_new = dg.AutomationConditionSensorDefinition(
    name="publish_when_new",
    target=dg.AssetSelection.groups(ANALYZE),
    minimum_interval_seconds=30,
    run_tags={**_REQUESTED_HERE, "dagster/priority": "5"},
    description="Builds and publishes the warehouse after its upstream tables were updated.",
)
"""One run builds all tables, because one step does."""
