"""Checks whether a command could finish its work, before it starts."""

import asyncio
from collections.abc import Sequence

from kyc_pipeline.cli.plan import plan_days
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import is_ingested, manifest_dates
from kyc_pipeline.lake.storage import PartitionUnreadable
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.planning import plan_partitions


def check_stores_and_api(pipeline: Pipeline, days: Sequence[str], *, look_up_first: bool = False) -> None:
    """Raises, before anything changes, if lake and ledger do not belong together, or the API is unusable.

    Raises :class:`~kyc_pipeline.errors.UsageError` if there is no credential, and the client's errors if the
    credential is rejected or no DeepXL API responds. Days that are paid for need neither, nor does a budget
    of no calls, unless everything is looked up first.
    """
    pipeline.open_ledger().close()  # raises for a wrong KYC_LEDGER_URL
    pipeline.check_lake()
    if pipeline.settings.deepxl_max_calls_per_run == 0 and not look_up_first:
        return
    if not _calls_expected(pipeline, days):
        return
    pipeline.settings.require_token()
    asyncio.run(_check_access(pipeline.settings))


def _calls_expected(pipeline: Pipeline, days: Sequence[str]) -> bool:
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    wanted = sorted(set(days).intersection(manifest_dates(landing)))
    options = LandingOptions.of(pipeline.settings)
    if not all(is_ingested(landing, lake, day, options=options) for day in wanted):
        return True  # calls are very likely, and reading all manifests to be sure would take longer
    try:
        with pipeline.open_ledger() as ledger:
            if any(plan.calls_to_make for plan in plan_partitions(lake, ledger, wanted, pipeline.settings)):
                return True
    except PartitionUnreadable:
        return True  # the run says so, and does the other days
    plans, unreadable = plan_days(pipeline, wanted)
    return bool(unreadable) or any(plan.calls_to_make for plan in plans)


async def _check_access(settings: Settings) -> None:
    # Imported here because an HTTP client takes half a second to import, and paid days need none.
    from kyc_pipeline.deepxl.client import DeepXLClient

    async with DeepXLClient.of(settings, max_connections=1) as client:
        await client.check_access()
