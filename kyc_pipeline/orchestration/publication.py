"""Steps with nothing new to do: how they know, what they report, and how to force them to build."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

import dagster as dg
from pydantic import Field

from kyc_pipeline.analyze.build import Partitions, labels_version, list_partitions
from kyc_pipeline.analyze.report import has_report
from kyc_pipeline.analyze.up_to_date import Inputs, Published, build_inputs, read_published
from kyc_pipeline.days import start_of_day
from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.resources import Pipeline

UP_TO_DATE: Final = "up to date"
WAREHOUSE, REPORT = dg.AssetKey("warehouse"), dg.AssetKey("report")


def midnight() -> float:
    """When the current day (UTC) began, in seconds since the epoch."""
    return start_of_day(datetime.now(UTC)).timestamp()


class BuildConfig(dg.Config):
    """Config of a step that builds only what is out of date."""

    force: bool = Field(default=False, description="Build again even if nothing has changed.")


def up_to_date(asset: dg.AssetKey, *, partition: str | None = None, **metadata: Any) -> dg.AssetObservation:
    """The event of an asset that was found to be up to date."""
    return dg.AssetObservation(
        asset, description=UP_TO_DATE, partition=partition, metadata={"up_to_date": True, **metadata}
    )


class Publication:
    """The published warehouse and report, compared with what a publication would build now.

    The constructor reads only the Dagster instance, so its errors are the instance's.
    """

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self._pipeline = pipeline
        self._instance = instance
        self._recorded = {
            asset: instance.get_latest_materialization_event(asset) for asset in (WAREHOUSE, REPORT)
        }

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of a build now."""
        labels = labels_version(self._pipeline.lake)
        return build_inputs(self._pipeline.settings, self._pipeline.pseudonym_key_id(), labels)

    @cached_property
    def _partitions(self) -> Partitions:
        return list_partitions(self._pipeline.lake)

    @cached_property
    def _published(self) -> Published | None:
        return read_published(self._pipeline.settings.kyc_warehouse)

    def reasons(self) -> list[str]:
        """Why to build the warehouse: one line for each reason; empty if warehouse and report are up to date.

        The report counts, because Dagster skips its step if that of the warehouse yields nothing.
        """
        if not self._published:
            return ["there is no readable warehouse"]
        reasons = self._published.differences(self._partitions, self.inputs)
        if not self._has_report(self._published):
            reasons.append("the report is missing, was changed or belongs to another warehouse")
        if not all(self._recorded.values()):
            reasons.append("this Dagster instance has no record of a publication")
        return reasons

    def check_partitions(self) -> None:
        """Raises :class:`KycError` if a table of the lake has no partition, but the last build read some."""
        if self._published is None:
            return
        now = {table for table, days in self._partitions.items() if days}
        if gone := sorted({table for table, day in self._published.partitions if day} - now):
            raise KycError(
                f"the lake {self._pipeline.lake.root} has no partition of {', '.join(gone)}, but the "
                "published warehouse was made from some: mount the lake, or correct KYC_LAKE; "
                "`kyc-pipeline publish --force` publishes without them"
            )

    def is_report_current(self) -> bool:
        """Whether the report was drawn from the published warehouse by the present code and settings."""
        published = self._published
        return (
            published is not None
            and self._has_report(published)
            and not published.changed_inputs(self.inputs)
            and self._recorded[REPORT] is not None
        )

    def was_recorded_today(self) -> bool:
        """Whether Dagster has a materialization of the warehouse since midnight (UTC)."""
        record = self._recorded[WAREHOUSE]
        return record is not None and record.timestamp >= midnight()

    def events(
        self, assets: Iterable[dg.AssetKey]
    ) -> Iterator[dg.AssetObservation | dg.AssetMaterialization]:
        """What to record if there is nothing to publish.

        Usually observations of warehouse and report; the first time in a day, materializations of all
        `assets` with their last metadata, because the freshness policy counts only materializations.
        """
        if self.was_recorded_today():
            yield from self.observations(WAREHOUSE, REPORT)
            return
        for asset in assets:
            record = self._instance.get_latest_materialization_event(asset)
            if record and (last := record.asset_materialization):
                yield dg.AssetMaterialization(
                    asset, description=UP_TO_DATE, metadata={**last.metadata, "up_to_date": True}
                )

    def observations(self, *assets: dg.AssetKey) -> list[dg.AssetObservation]:
        """The events of `assets` that are up to date."""
        built_by = self._published.run_id if self._published else ""
        return [up_to_date(asset, built_by=built_by) for asset in assets]

    def _has_report(self, published: Published) -> bool:
        return has_report(self._pipeline.settings.kyc_report, published.built_ns)
