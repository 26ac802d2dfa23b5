"""What a run of some days would do, over ingest and verify together. Makes no call and changes nothing."""

import tempfile
from collections.abc import Sequence

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.manifests import awaits_files, ingest_partition, is_ingested
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.verify.plan import PartitionPlan, plan_partitions


def plan_days(pipeline: Pipeline, days: Sequence[str]) -> tuple[list[PartitionPlan], dict[str, KycError]]:
    """The plan of each day, and the days whose manifests cannot be read, with the reason.

    A day that an ingest would change is read into a scratch lake, so the plan is that of the run to come.
    """
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    plans: list[PartitionPlan] = []
    unreadable: dict[str, KycError] = {}
    with tempfile.TemporaryDirectory(prefix="kyc-plan-") as folder, pipeline.open_ledger() as ledger:
        scratch = Lake(folder)
        erased = pipeline.erased_subjects(ledger)
        for day in days:
            source = lake
            if not is_ingested(landing, lake, day) or awaits_files(lake, day):
                source = scratch
                try:
                    ingest_partition(landing=landing, lake=lake, date=day, erased=erased, destination=scratch)
                except KycError as error:
                    unreadable[day] = error
                    continue
            plans += plan_partitions(source, ledger, [day], pipeline.settings)
    return plans, unreadable
