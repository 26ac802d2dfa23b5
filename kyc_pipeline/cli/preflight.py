"""Checks before a command starts work that it could not finish."""

import asyncio
from collections.abc import Sequence

from kyc_pipeline.cli.plan import plan_days
from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.ingest.manifests import is_ingested, manifest_dates
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings


def check_api_when_needed(pipeline: Pipeline, days: Sequence[str]) -> None:
    """Raises, with nothing changed, if the days need calls and the API cannot be used.

    Raises :class:`~kyc_pipeline.errors.UsageError` without a credential, and the client's errors for a
    rejected credential or an address where no DeepXL API answers. Days that are paid for need neither.
    """
    pipeline.open_ledger().close()  # raises for a wrong KYC_LEDGER_URL
    if not _calls_expected(pipeline, days):
        return
    pipeline.settings.require_token()
    asyncio.run(_check_access(pipeline.settings))


def _calls_expected(pipeline: Pipeline, days: Sequence[str]) -> bool:
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    wanted = sorted(set(days).intersection(manifest_dates(landing)))
    if not all(is_ingested(landing, lake, day) for day in wanted):
        return True  # very likely, and faster than reading every manifest
    plans, unreadable = plan_days(pipeline, wanted)
    return bool(unreadable) or any(plan.calls_to_make for plan in plans)


async def _check_access(settings: Settings) -> None:
    async with DeepXLClient(
        settings.deepxl_base_url,
        settings.require_token(),
        auth_scheme=settings.deepxl_auth_scheme,
        timeout_seconds=settings.deepxl_timeout_seconds,
        max_connections=1,
    ) as client:
        await client.check_access()
