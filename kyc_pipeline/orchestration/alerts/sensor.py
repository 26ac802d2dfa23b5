"""The sensor `alerts`: delivers what is new since each channel's last delivery.

Each channel has its own part of the cursor, which moves only when the channel has accepted the message. So a
channel that fails loses nothing and does not make others repeat messages. The sensor tries it again after one
minute, then two, four and so on, up to an hour.
"""

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

import dagster as dg

from kyc_pipeline.background import background_thread
from kyc_pipeline.errors import KycError
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.orchestration.alerts.channels import Channel, channels
from kyc_pipeline.orchestration.alerts.conditions import Reported, look
from kyc_pipeline.orchestration.alerts.model import RULES, Message
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.wording import plural

RETRY_SECONDS: Final = 60.0
RETRY_MAX_SECONDS: Final = 3600.0
DELIVERY_SECONDS: Final = 20.0
"""For one delivery. Dagster ends a tick after a minute, and then forgets what its channels delivered."""


def alerts_sensor(configured: bool) -> dg.SensorDefinition:
    """The sensor; on by default if a channel is configured."""

    @dg.sensor(
        name="alerts",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if configured else dg.DefaultSensorStatus.STOPPED,
        description="Sends one message to KYC_ALERT_WEBHOOK and by e-mail if "
        + "; ".join(rule.when for rule in RULES.values())
        + ".",
    )
    @safe_errors
    def alerts(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.SkipReason:
        configured_channels = channels(pipeline.settings)
        if not configured_channels:
            return dg.SkipReason("no channel: set KYC_ALERT_WEBHOOK or KYC_ALERT_SMTP_URL")
        cursor, notes, failures = deliver(
            pipeline, context.instance, configured_channels, context.cursor, time.time()
        )
        context.update_cursor(cursor)
        for failure in failures:
            context.log.error(failure)
        return dg.SkipReason("; ".join((*failures, *notes)) or "nothing new")

    return alerts


def deliver(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    configured: Sequence[Channel],
    cursor: str | None,
    now: float,
) -> tuple[str, list[str], list[str]]:
    """Delivers what is new at `now` (seconds since the epoch); returns the new cursor, notes and failures."""
    before = {name: Reported.from_json(seen) for name, seen in json.loads(cursor or "{}").items()}
    after: dict[str, Reported] = {}
    notes: list[str] = []
    failures: list[str] = []
    landing = open_landing(pipeline.settings.kyc_landing).snapshot()
    for channel in configured:
        seen = after[channel.name] = before.get(channel.name) or Reported.at_first(now)
        if now < seen.retry_at:
            notes.append(f"{channel.name}: tried again in {seen.retry_at - now:.0f} s")
            continue
        found, news = look(pipeline, instance, landing, seen, now)
        if found:
            try:
                _send_in_time(channel, Message(found))
            except KycError as error:
                wait = min(math.ldexp(RETRY_SECONDS, min(seen.attempts, 10)), RETRY_MAX_SECONDS)
                after[channel.name] = seen.failed(retry_at=now + wait)
                failures.append(f"{error}; tried again in {wait:.0f} s")
                continue
            notes.append(f"{channel.name}: {plural(len(found), 'alert')} delivered")
        after[channel.name] = news
    return json.dumps({name: seen.as_json() for name, seen in after.items()}), notes, failures


def _send_in_time(channel: Channel, message: Message) -> None:
    """Delivers the message once; raises :class:`KycError` if that fails, or takes too long.

    A receiver that responds slowly passes the time limit of each step of a delivery. The thread of such a
    delivery goes on until one of its steps fails, or it succeeds: then the same message comes again.
    """
    ended: Future[None] = Future()
    background_thread(lambda: channel.send(message), ended, f"alerts by {channel.name}").start()
    try:
        ended.result(DELIVERY_SECONDS)
    except TimeoutError:
        raise KycError(f"{channel.name}: not delivered (no end within {DELIVERY_SECONDS:.0f} s)") from None
