"""Ends the runs of commands that were killed.

A command executes its runs in its own process. If that is killed, nobody tells Dagster: the run stays
started, and takes a place in the queue. So each such run names its process, and whoever looks next (another
command, or the sensor) marks it as failed if that process has certainly ended. In another container, or after
a reboot, this is unknown.
"""

import json

import dagster as dg

from kyc_pipeline.ledger.process import ProcessIdentity
from kyc_pipeline.orchestration.jobs import COMMAND_LINE, QUEUED, STARTED, TRIGGER, days_of
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.wording import run_again

PROCESS = "kyc/process"
"""Tag with the run's id and its process: a run that is executed again has the tags of the old one."""
_NO_RETRY = {"dagster/max_retries": "0"}
"""The daemon would start the run again, perhaps while somebody repeats the command."""


def command_tags(run_id: str) -> dict[str, str]:
    """The tags of a run that this process executes. They do not name the host, which may name a person."""
    me = ProcessIdentity.current()
    return {TRIGGER: COMMAND_LINE, PROCESS: json.dumps([run_id, me.machine, me.pid, me.started])}


def end_killed_commands(instance: dg.DagsterInstance) -> list[str]:
    """Marks the runs of killed commands as failed; returns one line for each."""
    filters = dg.RunsFilter(tags={TRIGGER: COMMAND_LINE}, statuses=[*QUEUED, *STARTED])
    lines = []
    for run in instance.get_runs(filters):
        if not _is_killed(instance, run):
            continue
        days = days_of(run.tags)
        again = f"the days again, with {run_again(*days)}" if days else "the command again"
        line = f"the command of this run was killed; every paid call is in the ledger: run {again}"
        instance.add_run_tags(run.run_id, _NO_RETRY)
        instance.report_run_failed(run, line)
        lines.append(f"run {run.run_id[:8]} of a killed command is now marked as failed")
    return lines


def _is_killed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    run_id, machine, pid, started = json.loads(run.tags.get(PROCESS, "[null, null, null, null]"))
    if run_id != run.run_id or not ProcessIdentity(machine, "", pid, started).is_surely_dead():
        return False
    now = instance.get_run_by_id(run.run_id)  # the process may have ended its run since it was listed
    return now is not None and not now.is_finished


@dg.sensor(
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks as failed the runs of `kyc-pipeline` commands that were killed.",
)
@safe_errors
def killed_commands(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Ends them even if nobody starts another command. It starts no run."""
    return dg.SkipReason("; ".join(end_killed_commands(context.instance)) or "none")
