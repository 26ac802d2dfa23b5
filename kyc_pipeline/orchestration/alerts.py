"""Reports failed runs to the webhook of `KYC_ALERT_WEBHOOK`.

An alert names the run, its days and the failed steps. It contains no error message, because that may name a
manifest and we do not know who reads the channel. The run's page in the UI has the details.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Final

import dagster as dg
from pydantic import SecretStr

from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.catalog import OPERATIONS
from kyc_pipeline.orchestration.jobs import TRIGGER, days_of
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors

ATTEMPTS: Final = 3
PAUSE_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 10.0
"""All attempts together take less than a minute, Dagster's time limit of a tick."""


def alert_on_failure(configured: bool) -> dg.SensorDefinition:
    """The sensor that posts failed runs; on by default if a webhook is configured."""

    @dg.run_failure_sensor(
        name="alert_on_failure",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if configured else dg.DefaultSensorStatus.STOPPED,
        description="Posts each failed run, with its days and failed steps, to KYC_ALERT_WEBHOOK.",
    )
    @safe_errors
    def sensor(
        context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.SkipReason | None:
        webhook = pipeline.settings.kyc_alert_webhook
        if webhook is None:
            return dg.SkipReason("KYC_ALERT_WEBHOOK is not set")
        steps = sorted({event.step_key for event in context.get_step_failure_events() if event.step_key})
        post(webhook, alert(context.dagster_run, steps))
        return None

    return sensor


def alert(run: dg.DagsterRun, failed_steps: Sequence[str]) -> dict[str, object]:
    """The body to post: `text` for a chat channel, the rest for programs."""
    days = partition_range(run.tags)
    at = f" at {', '.join(failed_steps)}" if failed_steps else ""
    return {
        "text": f"kyc-pipeline: run {run.run_id[:8]} of {run.job_name}{f' for {days}' if days else ''} "
        f"failed{at}. What to do: {OPERATIONS}",
        "event": "run_failed",
        "run_id": run.run_id,
        "job": run.job_name,
        "partitions": days,
        "failed_steps": list(failed_steps),
        "trigger": run.tags.get(TRIGGER),
    }


def partition_range(tags: Mapping[str, str]) -> str | None:
    """The run's partition, or `first..last`; None for an unpartitioned run."""
    days = days_of(tags)
    return "..".join(dict.fromkeys(days)) if days else None


def post(webhook: SecretStr, body: Mapping[str, object], *, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Posts `body` as JSON, with retries: Dagster evaluates the sensor only once for a failed run.

    Raises :class:`KycError` without the URL, which contains the webhook's key.
    """
    import httpx  # imported here because it takes half a second

    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause_seconds)
        try:
            response = httpx.post(
                webhook.get_secret_value(),
                json=dict(body),
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
                follow_redirects=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = type(error).__name__
            continue
        if response.is_success:
            return
        problem = f"it responded with {response.status_code}"
    raise KycError(f"KYC_ALERT_WEBHOOK cannot be used: {problem}, {ATTEMPTS} times")
