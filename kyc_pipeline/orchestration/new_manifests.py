"""Which days the sensor `new_manifests` requests: each day until its manifests are ingested.

A day waits until two consecutive ticks see the same files, so that no manifest is read while it is being
written, and until no other run works on it. After a failed run it is requested again, less and less often. So
no delivery is forgotten, whatever its run did.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import dagster as dg

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import manifest_identity, manifest_signature
from kyc_pipeline.ingest.state import Records
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.landing.zone import Landing
from kyc_pipeline.orchestration.catch_up import unreadable_key
from kyc_pipeline.orchestration.jobs import BACKFILL, QUEUED, STARTED, days_of
from kyc_pipeline.orchestration.resources import Pipeline

DIGITS = 16
"""Hex digits of a SHA-256 in the cursor: enough to detect a change."""
ASK_AGAIN_SECONDS = 60
"""Wait before the next request for a day that is still not ingested; it doubles each time."""
ASK_AGAIN_MAX_SECONDS = 86_400


class KnownDay(NamedTuple):
    """What the sensor knows of a day: its files, and the requests made for its present state."""

    signature: str = ""
    """First digits of the signature of the manifests."""
    identity: str = ""
    """First digits of the identity of the manifests; empty until they are read."""
    state: str = ""
    """First digits of a hash of that identity and the lake's version of the day, when a run was requested."""
    requests: int = 0
    requested_at: int = 0
    """Seconds since the epoch."""

    def in_state(self, version: object) -> "KnownDay":
        """Forgets the requests that were made for other manifests or another version of the lake's day."""
        state = hashlib.sha256(f"{self.identity} {version!r}".encode()).hexdigest()[:DIGITS]
        return self if state == self.state else KnownDay(self.signature, self.identity, state)

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next request."""
        if not self.requests:
            return True
        wait = min(math.ldexp(ASK_AGAIN_SECONDS, self.requests - 1), ASK_AGAIN_MAX_SECONDS)
        return time.time() >= self.requested_at + wait

    def requested(self) -> "KnownDay":
        """With one more request, made now."""
        return self._replace(requests=self.requests + 1, requested_at=int(time.time()))

    def run_key(self, day: str) -> str:
        """The key of the last request. Dagster ignores a key that it knows, so each request has its own."""
        again = f":{self.requests}" if self.requests > 1 else ""
        return f"{day}:{self.identity}:{self.state}{again}"

    def shortened(self) -> list[Any]:
        """As a list, without fields that are empty."""
        return list(self if self.requests else self[:2])


@dataclass
class Tick:
    """One tick of the sensor: call :meth:`run_key` for each day with a manifest folder."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    cursor: str
    landing: Landing = field(init=False)
    """As at the start of the tick."""
    seen: dict[str, KnownDay] = field(init=False)
    unreadable: dict[str, KycError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = {day: KnownDay(*entry) for day, entry in json.loads(self.cursor or "{}").items()}
        self._versions = {
            day: partition.version for day, partition in self.pipeline.lake.partitions(SUBMISSIONS).items()
        }
        options = LandingOptions.of(self.pipeline.settings)
        self._records = Records(self.pipeline.lake, versions=self._versions, options=options)
        self.landing = open_landing(self.pipeline.settings.kyc_landing).snapshot()
        self.seen = {}

    def run_key(self, day: str) -> str | None:
        """The key of the run that the day needs now, or None."""
        before = self._before.get(day, KnownDay())
        try:
            signature = manifest_signature(self.landing, day)[:DIGITS]
            if signature != before.signature:
                self.seen[day] = before._replace(signature=signature, identity="")
                return None
            now = before._replace(identity=before.identity or manifest_identity(self.landing, day)[:DIGITS])
        except KycError as error:
            self.unreadable[day] = error
            return unreadable_key(self.pipeline.settings, day)
        if self._records.is_current(day, now.identity):
            self.seen[day] = KnownDay(now.signature, now.identity)
            return None
        self.seen[day] = now = now.in_state(self._versions.get(day))
        if not now.is_due or self._is_under_way(day):
            return None
        self.seen[day] = now = now.requested()
        return now.run_key(day)

    def skip(self, day: str) -> None:
        """Leaves the day to the next tick."""
        if day in self._before:
            self.seen[day] = self._before[day]

    def new_cursor(self) -> str:
        """The cursor for the next tick. It is short, because Dagster stores it with every tick."""
        return json.dumps({day: seen.shortened() for day, seen in self.seen.items()})

    def _is_under_way(self, day: str) -> bool:
        """Whether a run works on the day or is about to."""
        return any(first <= day <= last for first, last in self._ranges_under_way)

    @functools.cached_property
    def _ranges_under_way(self) -> list[tuple[str, str]]:
        return list(ranges_under_way(self.instance))


def ranges_under_way(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """The days (first, last) of each run that has not ended.

    Without the queued runs of a backfill, which may wait for days, and without runs older than a day,
    which Dagster may still count as started after a reboot.
    """
    filters = dg.RunsFilter(statuses=[*QUEUED, *STARTED], created_after=datetime.now(UTC) - timedelta(days=1))
    for run in instance.get_runs(filters):
        if run.status in QUEUED and BACKFILL in run.tags:
            continue
        if days := days_of(run.tags):
            yield days
