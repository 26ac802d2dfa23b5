"""Starts runs as Celery tasks, asks the workers which runs are alive, and cancels a terminated run.

Only `dagster.yaml` names it. It requires the extra `celery`; docs/scale-out.md says how to configure it.
"""

import time
from typing import Any

import dagster as dg

# Dagster has no public module for the last two names; its launcher's has them.
from dagster_celery.launcher import (  # type: ignore[attr-defined]
    CeleryRunLauncher,
    CheckRunHealthResult,
    WorkerStatus,
)
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

REPLY_SECONDS = 3.0
"""How long to wait for the workers' replies."""
LOST_AFTER_SECONDS = 120
"""More than workers take to connect again after the broker was away."""


class CancellingCeleryRunLauncher(CeleryRunLauncher):
    """Dagster's launcher for Celery, without a result backend.

    Dagster's own reads health from the result backend: the task of a dead worker stays as it was, and without
    the backend a living run looks dead. This one asks the workers. A terminated run is cancelled.
    """

    def __init__(self, lost_after_seconds: int = LOST_AFTER_SECONDS, **config: Any) -> None:
        """`lost_after_seconds`: when a run counts as failed because no worker has it."""
        super().__init__(**{**config, "backend": "disabled://"})
        self._lost_after = lost_after_seconds
        self._missing_since: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """The fields below `run_launcher.config`."""
        fields: Any = super().config_type()
        return {
            **{name: field for name, field in fields.items() if name != "backend"},
            "lost_after_seconds": dg.Field(
                dg.IntSource,
                default_value=LOST_AFTER_SECONDS,
                description="Seconds after which a run counts as failed if no worker reports that it has it.",
            ),
        }

    def terminate(self, run_id: str) -> bool:
        """Cancels the run: it makes no further call, records those in flight, and ends as CANCELED."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        # Without it, the run takes the signal for a failure, and Dagster starts it again.
        self._instance.report_run_canceling(run)
        self.celery.control.revoke(task, terminate=True, signal="SIGTERM")
        return True

    @property
    def supports_resume_run(self) -> bool:
        """A run is started anew instead: the ledger knows what is paid."""
        return False

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """RUNNING until no worker has had the run's task for `lost_after_seconds`; then FAILED.

        Raises if the broker cannot be asked. Dagster then leaves the run as it is.
        """
        run_id = run.run_id
        try:
            worker = self._worker(run)
        except BaseException:
            self._missing_since.pop(run_id, None)
            raise
        if worker is not None:
            self._missing_since.pop(run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=worker)
        missing = time.monotonic() - self._missing_since.setdefault(run_id, time.monotonic())
        if missing < self._lost_after:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        del self._missing_since[run_id]
        return CheckRunHealthResult(WorkerStatus.FAILED, f"no worker has had it for {missing:.0f} s")

    def get_run_worker_debug_info(
        self, run: dg.DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """The task, for the run's log."""
        return f"Celery task {run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)}"

    def _worker(self, run: dg.DagsterRun) -> str | None:
        """The name of the worker that has the run's task."""
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        replies = self.celery.control.inspect(timeout=REPLY_SECONDS).query_task(task) or {}
        return next((worker for worker, tasks in replies.items() if task in tasks), None)
