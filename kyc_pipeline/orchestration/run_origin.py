"""Adds the code location to runs of the command line.

The UI lists a run under its job and on the timeline, and can execute it again, only if the run names the code
location of the job. Runs that Dagster starts do; a run that the command line executes in its own process does
not.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from typing import Any, Final

import dagster as dg

from kyc_pipeline.orchestration.code_location import LOCATION, MODULE

REPOSITORY: Final = "__repository__"
"""Dagster's name for definitions without a name."""


@contextlib.contextmanager
def belonging_to(instance: dg.DagsterInstance, job: str) -> Iterator[None]:
    """Runs that `instance` creates in the block belong to the job `job` of this code location."""
    # `execute_in_process` passes no origin; Dagster has no public way to give it one.
    create = functools.partial(instance.create_run_for_job, remote_job_origin=_origin(job))
    instance.create_run_for_job = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        del instance.create_run_for_job


def _origin(job: str) -> Any:
    """Dagster's type, which is public only in serialised form."""
    target = {"__class__": "LoadableTargetOrigin", "module_name": MODULE}
    location = {
        "__class__": "ManagedGrpcPythonEnvRepositoryLocationOrigin",
        "loadable_target_origin": target,
        "location_name": LOCATION,
    }
    repository = {
        "__class__": "ExternalRepositoryOrigin",
        "repository_location_origin": location,
        "repository_name": REPOSITORY,
    }
    origin = {
        "__class__": "ExternalPipelineOrigin",
        "external_repository_origin": repository,
        "pipeline_name": job,
    }
    return dg.deserialize_value(json.dumps(origin))
