"""What is looked at before a command starts work that it could not finish."""

import asyncio
from collections.abc import Sequence

from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.ingest.manifests import is_ingested, manifest_dates
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.ledger import Ledger
from kyc_pipeline.verify.plan import plan_partitions


def check_api_when_needed(pipeline: Pipeline, days: Sequence[str]) -> None:
    """Ends early, with nothing changed, where calls are to be made and the API cannot be used.

    Raises :class:`~kyc_pipeline.errors.UsageError` without a credential, and the client's errors for a
    rejected one or an address where no DeepXL API answers. Days that are paid already need neither.
    """
    with pipeline.open_ledger() as ledger:
        expected = _calls_expected(pipeline, ledger, days)
    if not expected:
        return
    pipeline.settings.require_token()
    asyncio.run(_check_access(pipeline.settings))


def _calls_expected(pipeline: Pipeline, ledger: Ledger, days: Sequence[str]) -> bool:
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    wanted = set(days).intersection(manifest_dates(landing))
    ingested = [day for day in sorted(wanted) if is_ingested(landing, lake, day)]
    if len(ingested) < len(wanted):
        return True
    return any(plan.calls_to_make for plan in plan_partitions(lake, ledger, ingested, pipeline.settings))


async def _check_access(settings: Settings) -> None:
    async with DeepXLClient(
        settings.deepxl_base_url,
        settings.require_token(),
        auth_scheme=settings.deepxl_auth_scheme,
        timeout_seconds=settings.deepxl_timeout_seconds,
        max_connections=1,
    ) as client:
        await client.check_access()
