"""The Celery app of the workers: each task is a run in a process of its own.

In the worker's own process, a Terminate that arrives between two steps would be ignored. `dagster api
execute_run`, which Kubernetes uses too, keeps it for the next step.
"""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

from celery.platforms import set_pdeathsig
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.make_app import make_app

app = make_app()  # type: ignore[no-untyped-call]


@app.task(name=TASK_EXECUTE_JOB_NAME, ignore_result=True)  # type: ignore[untyped-decorator]
def execute_job(execute_job_args_packed: Any) -> None:
    """Executes the run, forwards SIGTERM to it, and waits for its end. It dies with the worker."""
    run = subprocess.Popen(
        [sys.executable, "-m", "dagster", "api", "execute_run"],
        # Not an argument, which other users of the host could read.
        env={**os.environ, "DAGSTER_EXECUTE_RUN_ARGS": json.dumps(execute_job_args_packed)},
        preexec_fn=partial(set_pdeathsig, "SIGKILL"),
    )
    before = signal.signal(signal.SIGTERM, lambda number, _frame: run.send_signal(number))
    try:
        run.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
