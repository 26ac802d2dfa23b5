"""Each ending of a day, brought about with the real server and stores, and everything that tells of it."""

import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest
import yaml

import kyc_pipeline.cli.backfill
from kyc_pipeline.cli.local_run import failure_line
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502, Fault, Responds
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.orchestration.alerts.model import Kind, Message
from kyc_pipeline.orchestration.alerts.sensor import deliver
from kyc_pipeline.orchestration.checks import latest_materialization
from kyc_pipeline.orchestration.code_location import LOCATION, MODULE
from kyc_pipeline.orchestration.jobs import VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.paid_calls import STOPPED, CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.run_origin import REPOSITORY
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify import shard
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.shard import Shard
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Stopped
from kyc_pipeline.wording import run_again
from tests.conftest import Landing
from tests.dagster.conftest import DAILY, TOKEN, Run, make_settings
from tests.dagster.endings import ENDINGS, INTERRUPTIONS, Ending
from tests.dagster.test_metrics import scrape
from tests.faults import Meanwhile
from tests.shard_processes import shard_processes

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
BACKFILL = ("backfill", "--no-publish", "--from", DAY, "--to", DAY)
GUIDE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
OF_THE_JOB = dg.RunsFilter(
    job_name=VERIFY_AND_PUBLISH, tags={".dagster/repository": f"{REPOSITORY}@{LOCATION}"}
)
"""What the UI asks for: the runs of the job in the code location."""
FAST = Timing(look_ups=(0.0,), back_off=0.01, breaker_waits=(0.01, 0.01), ledger_patience=0.1)


@dataclass
class Day:
    """What a situation prepares: submissions, their faults, settings, and what holds during the run."""

    landing: Landing
    folder: Path
    date: str = DAY
    stop: StopFlag = field(default_factory=StopFlag)
    faults: dict[str, Sequence[Fault]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=lambda: {"DEEPXL_MAX_CONCURRENCY": "1"})
    during: AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)

    def submit(self, count: int, *faults: Fault, after: int = 1) -> list[str]:
        """Submits a day; all but the first `after` submissions have these faults."""
        ids = self.landing.day(self.date, count)
        self.faults |= dict.fromkeys(ids[after:], faults)
        return ids

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.sqlite"


BringAbout = Callable[[Day], object]


def rejected(day: Day) -> None:
    good = day.landing.submission(f"good-{day.date}", 1)
    day.landing.manifest(day.date, [good, *({"id": n} for n in range(6))])


def not_a_manifest(day: Day) -> None:
    day.submit(1)
    (day.landing.root / "manifests" / day.date / "Maria.docx").write_text("not read")


def budget(day: Day, setting: str = "DEEPXL_MAX_CALLS_PER_RUN") -> None:
    day.submit(3)
    day.settings[setting] = "1"


def stop(day: Day) -> None:
    ids = day.submit(3)
    day.faults = {ids[0]: [Meanwhile(day.stop.drain)]}


def responds(submission_id: str, **result: object) -> Responds:
    """A response about this submission, with these fields."""
    tags = [{"name": "submissionId", "value": submission_id}]
    return Responds(200, body=json.dumps({"result": {"verificationId": 7, "tags": tags, **result}}).encode())


def quarantined(day: Day) -> None:
    *_, odd = day.submit(2)
    day.faults |= {odd: [responds(odd, verified=None)]}


def same_record(day: Day) -> None:
    day.faults |= {id_: [responds(id_, verified=True)] for id_ in day.submit(2)}


def failed(day: Day) -> None:
    day.submit(2, Responds(503))
    day.settings["DEEPXL_MAX_ATTEMPTS"] = "1"


def unread(day: Day) -> None:
    manifest = day.landing.root / "manifests" / day.date / "bad.csv"
    manifest.parent.mkdir()
    manifest.write_text("name,photo\nx,y\n")


def no_documents(day: Day) -> None:
    day.submit(1)
    (day.landing.root / "documents").rename(day.folder / "documents")


def another_run(day: Day) -> None:
    day.submit(1)
    settings = Settings(
        _env_file=None, kyc_ledger_url=f"sqlite:///{day.ledger}", kyc_lake=str(day.folder / "lake")
    )
    day.during = Pipeline(settings).day_lease(day.date, "another run")


def ledger_gone(day: Day) -> None:
    away = day.ledger.with_suffix(".away")
    day.submit(3, Meanwhile(lambda: day.ledger.exists() and day.ledger.rename(away)))


def lake_broken(day: Day) -> None:
    table = Path(Lake(str(day.folder / "lake")).path(VERIFICATION_RESPONSES, day.date))

    def damage() -> None:
        table.rename(table.with_suffix(".kept"))
        (table / "in-the-way").mkdir(parents=True)

    day.submit(2, Meanwhile(damage))


def process_killed(day: Day) -> None:
    """The kernel ends the process of one shard, as it does when memory is short."""
    of_first_process = next(filter(Shard(1, 2).has, day.submit(8)))
    day.faults = {of_first_process: [Meanwhile(lambda: os.kill(shard_processes()[0], signal.SIGKILL))]}
    day.settings |= {"KYC_SHARDS": "2", "DEEPXL_MAX_CONCURRENCY": "2"}
    day.during = patch.multiple(shard, SUBMISSIONS_WORTH_A_PROCESS=1, CALLS_WORTH_A_PROCESS=1)


@dataclass(frozen=True)
class Situation:
    """One way to an ending, and what is particular about it."""

    ending: str
    bring_about: BringAbout
    said: str
    """On the console."""
    metrics: Mapping[str, float]
    """Some of `/metrics`, afterwards."""
    also: Kind | None = None
    """Another alert."""


OUTAGE = [HTML_502] * 9
HELD, COMPLETED, REFUSED = (
    "kyc_held_submissions",
    "kyc_submissions{outcome=completed}",
    "kyc_submissions{outcome=refused}",
)
UP = {"kyc_ledger_up": 1.0, "kyc_runs_under_way": 0.0}
DOWN = {"kyc_ledger_up": 0.0}
DENIED = f"once that is mended, run the day again, with `kyc-pipeline backfill --from {DAY} --to {DAY}`"

SHARED: Mapping[str, tuple[str, BringAbout, str]] = {
    # day -> ending, how, and what the run's log says of the day
    "2024-09-01": ("all submissions are settled", lambda day: day.submit(2), "2 submissions (2 completed)"),
    "2024-09-02": ("all submissions are settled", lambda day: None, "no manifests"),
    "2024-09-03": ("rows are rejected", rejected, "6 of 7 rows were rejected"),
    "2024-09-04": ("a file is not a manifest", not_a_manifest, "1 not read, because of the name (.docx)"),
    "2024-09-05": ("a response is quarantined", quarantined, "0 of 2 submissions held"),
}
"""Situations that need nobody, as the days of one run."""
SITUATIONS: Mapping[str, Situation] = {
    "attempts used up": Situation(
        "submissions failed, their attempts used up", failed, "1 failed", {"kyc_failures_in_a_row": 1}
    ),
    "budget": Situation(
        "the run's budget is used up",
        budget,
        "stopped: the budget of calls is used up; 1 settled, 2 left: run the same",
        {COMPLETED: 1, "kyc_calls_today": 1},
    ),
    "budget of the day": Situation(
        "the day's budget is used up",
        functools.partial(budget, setting="DEEPXL_MAX_CALLS_PER_DAY"),
        "1 settled, 2 left: run the same days again after that",
        {COMPLETED: 1},
    ),
    "stop": Situation(
        "a stop was requested",
        stop,
        "stopped on request; 1 settled, 2 left: run the same days again",
        {COMPLETED: 1},
    ),
    "held": Situation(
        "submissions are held",
        lambda day: day.submit(2, HTML_502),
        f"{DAY}: 1 settled, 1 held, 0 left; decide about the held ones: `kyc-pipeline held list`",
        {HELD: 1, COMPLETED: 1, "kyc_breaker_open": 0},
    ),
    "outage from the start": Situation(
        "the circuit is open",
        lambda day: day.submit(20, *OUTAGE, after=0),
        "too many calls in a row failed",
        {COMPLETED: 0, "kyc_failures_in_a_row": 10, "kyc_breaker_open": 0},
        also=Kind.HELD,
    ),
    "outage in the middle": Situation(
        "the circuit is open",
        lambda day: day.submit(20, *OUTAGE, after=5),
        "too many calls in a row failed",
        {COMPLETED: 5, "kyc_failures_in_a_row": 10},
        also=Kind.HELD,
    ),
    "outage at the end": Situation(
        "the circuit is open",
        lambda day: day.submit(14, *OUTAGE, after=2),
        f"{DAY}: 2 settled, 12 held, 0 left",
        {HELD: 12, COMPLETED: 2},
        also=Kind.HELD,
    ),
    "wrong credential": Situation(
        "access is denied", lambda day: day.submit(8, Responds(401), after=0), DENIED, {COMPLETED: 0, HELD: 0}
    ),
    "credential revoked in the middle": Situation(
        "access is denied", lambda day: day.submit(8, Responds(401), after=3), DENIED, {COMPLETED: 3, HELD: 0}
    ),
    "account without funds": Situation(
        "access is denied", lambda day: day.submit(8, Responds(402), after=0), "402", {COMPLETED: 0}
    ),
    "ten refusals": Situation(
        "ten final responses of one kind in a row",
        lambda day: day.submit(12, Responds(422)),
        "10 responses in a row were 422",
        {REFUSED: 10, COMPLETED: 1},
    ),
    "process killed": Situation(
        "one of the day's processes is killed",
        process_killed,
        "the process of shard 1 of 2 was killed by SIGKILL",
        {HELD: 1},
        also=Kind.HELD,
    ),
    "one record for two": Situation(
        "two submissions have the same record",
        same_record,
        f"check verification_ids_unique: {DAY}: 1 verification id more than once",
        {COMPLETED: 2},
    ),
    "unreadable manifest": Situation("a manifest cannot be read", unread, "bad.csv", UP),
    "no documents": Situation("a manifest cannot be read", no_documents, "documents", UP),
    "another run": Situation("another run has the day", another_run, "another run", UP),
    "ledger removed": Situation("the ledger fails or is refused", ledger_gone, "ledger", DOWN),
    "lake not writable": Situation(
        "the lake cannot be written", lake_broken, "every response is in the ledger", {COMPLETED: 2}
    ),
}


def test_every_ending_is_brought_about() -> None:
    brought = {one.ending for one in SITUATIONS.values()} | {ending for ending, *_ in SHARED.values()}
    assert brought == {ending.reason for ending in ENDINGS}


def test_the_guide_has_the_table() -> None:
    def code(name: str | None) -> str:
        return f"`{name}`" if name else "–"

    lines = []
    for one in ENDINGS:
        stopped = None if one.stopped is Stopped.NONE else one.stopped
        cells = (one.reason, one.run, one.partition, code(one.check), code(stopped), code(one.alert))
        lines.append(f"| {' | '.join(cells)} | {one.exit_code} |")
    assert "\n".join(lines) in GUIDE
    # tests/e2e brings these about, with processes of their own.
    interruptions = [
        f"| {each.how} | {each.run} | {code(each.alert)} | {code(each.log or None)} | {each.then} |"
        for each in INTERRUPTIONS
    ]
    assert "\n".join(interruptions) in GUIDE


@dataclass
class Told:
    """A channel that keeps the kinds of its alerts."""

    name: str = "KYC_ALERT_WEBHOOK"
    kinds: set[Kind] = field(default_factory=set)

    def send(self, message: Message) -> None:
        self.kinds |= {alert.kind for alert in message.alerts}


@dataclass(frozen=True)
class World:
    """Runs the command, and reads what it and everything else say afterwards."""

    folder: Path
    run: Run
    instance: dg.DagsterInstance

    def backfill(self, days: Sequence[Day]) -> tuple[int, str]:
        """Exit code and output for the days' range."""
        faults = {id_: faults for day in days for id_, faults in day.faults.items()}
        settings = {name: value for day in days for name, value in day.settings.items()}
        with running_simulator(token=TOKEN, faults=faults) as simulator, contextlib.ExitStack() as stack:
            for day in days:
                stack.enter_context(day.during)
            arguments = ("--from", days[0].date, "--to", days[-1].date)
            settings["DEEPXL_BASE_URL"] = simulator.url
            code, out, err = self.run("backfill", "--no-publish", *arguments, **settings)
        assert "Traceback" not in err
        return code, out + err

    @property
    def _pipeline(self) -> Pipeline:
        return Pipeline(make_settings(self.folder, "http://127.0.0.1:1", kyc_catch_up_days=10_000))

    def alerts(self) -> set[Kind]:
        """The kinds that the sensor sends now."""
        told = Told()
        deliver(self._pipeline, self.instance, [told], None, time.time())
        return told.kinds

    def metrics(self) -> dict[str, float]:
        """`/metrics`."""
        return scrape(self._pipeline, self.instance)

    def is_as(self, ending: Ending, date: str, logged: str) -> None:
        """Asserts what Dagster says of the day's only run."""
        [dagster_run] = self.instance.get_runs(OF_THE_JOB)
        assert dagster_run.status.value == ending.run
        responses = dg.AssetKey(VERIFICATION_RESPONSES.name)
        done = self.instance.get_materialized_partitions(responses)
        assert (date in done) == (ending.partition == "materialized")
        events = [entry.dagster_event for entry in self.instance.all_logs(dagster_run.run_id)]
        checks = [
            event.asset_check_evaluation_data
            for event in events
            if event and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
        ]
        of_day = [check for check in checks if check.partition == date]
        failing = {check.check_name for check in of_day if not check.passed}
        assert failing >= {ending.check} if ending.check else not failing
        assert all((check.description or "").startswith(f"{date}: ") for check in of_day)
        made = latest_materialization(self.instance, responses.to_user_string(), date)
        metadata = made.asset_materialization.metadata if made and made.asset_materialization else {}
        stopped = metadata[STOPPED].value if STOPPED in metadata else Stopped.NONE
        assert stopped == ending.stopped
        lines = [entry.user_message for entry in self.instance.all_logs(dagster_run.run_id)]
        lines += [failure_line(event) for event in events if event and event.is_step_failure]
        assert [line for line in lines if date in line and logged in line], lines


@pytest.fixture
def world(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, day: "Day"
) -> World:
    controls = functools.partial(CallControls, stop=day.stop, timing=FAST)
    monkeypatch.setattr(kyc_pipeline.cli.backfill, "CallControls", controls)
    return World(tmp_path, run, instance)


@pytest.fixture
def day(landing: Landing, tmp_path: Path) -> Day:
    return Day(landing, tmp_path)


BY_REASON = {ending.reason: ending for ending in ENDINGS}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation(name: str, day: Day, world: World) -> None:
    situation = SITUATIONS[name]
    ending = BY_REASON[situation.ending]
    situation.bring_about(day)
    code, output = world.backfill([day])
    assert code == ending.exit_code, output
    assert situation.said in output
    # The log has the figures that the console sums up.
    sums_up = ending.stopped in (Stopped.BUDGET, Stopped.DAY_BUDGET, Stopped.CANCELLED)
    logged = "" if sums_up else situation.said
    world.is_as(ending, DAY, logged.removeprefix(f"{DAY}: ").removeprefix("check "))
    assert world.alerts() == {ending.alert, situation.also} - {None}
    assert world.metrics().items() >= situation.metrics.items()


def test_the_situations_that_need_nobody(day: Day, world: World) -> None:
    days = []
    for date, (_, bring_about, _) in SHARED.items():
        days.append(Day(day.landing, day.folder, date))
        bring_about(days[-1])
    code, output = world.backfill(days)
    assert code == 0, output
    for said in ("6 rejected: `kyc-pipeline rejected --from", "1 not read (.docx)", "1 quarantined"):
        assert said in output
    for date, (reason, _, logged) in SHARED.items():
        ending = BY_REASON[reason]
        assert ending.exit_code == 0
        world.is_as(ending, date, logged)
    assert world.alerts() == {BY_REASON[reason].alert for reason, *_ in SHARED.values()} - {None}
    assert (
        world.metrics().items() >= {COMPLETED: 5.0, "kyc_submissions{outcome=quarantined}": 1.0, **UP}.items()
    )

    # A late row of a settled day is the only call of the next run.
    late = Day(day.landing, day.folder, "2024-09-01")
    late.submit(3)
    code, output = world.backfill([late])
    assert (code, "3 completed" in output, "1 call," in output) == (0, True, True), output


def test_the_code_location_has_the_name_that_runs_are_given() -> None:
    root = Path(__file__).parents[2]
    [location] = yaml.safe_load((root / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    module = location["python_module"]
    assert (module["location_name"], module["module_name"]) == (LOCATION, MODULE)
    assert build_defs(publication=False).get_repository_def().name == REPOSITORY


def test_rejected_rows_are_listed_without_their_content(day: Day, run: Run) -> None:
    code, out, _ = run("rejected")
    assert (code, out.startswith("no rejected rows: no day is ingested yet in ")) == (0, True)
    good = day.landing.submission("good", 1)
    day.landing.manifest(DAY, [good, {"submission_id": "Jane-Roe"}, {**good, "submission_id": "Jane Roe"}])
    with running_simulator(token=TOKEN) as simulator:
        assert run(*BACKFILL, DEEPXL_BASE_URL=simulator.url)[0] == 0
    code, out, _ = run("rejected")
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:]] == [
        [DAY, "m.jsonl", "2", "missing_field"],
        [DAY, "m.jsonl", "3", "invalid_submission_id"],
    ]
    assert run("rejected", "--to", "2024-09-07")[:2] == (0, "no rejected rows\n")


def test_each_day_of_a_run_keeps_its_own_result(
    landing: Landing, job: dg.JobDefinition, instance: dg.DagsterInstance
) -> None:
    for of_day in (DAY, NEXT_DAY):
        landing.day(of_day, 2)
    left = {"ops": {"verify": {"config": {"max_calls": 1}}}}
    job.execute_in_process(
        instance=instance, tags=range_tags(DAY, NEXT_DAY), asset_selection=DAILY, run_config=left
    )
    # Another day passes, in a run of one partition and in one of a range.
    job.execute_in_process(instance=instance, partition_key=NEXT_DAY, asset_selection=DAILY)
    landing.day("2024-09-10", 1)
    job.execute_in_process(
        instance=instance, tags=range_tags("2024-09-10", "2024-09-10"), asset_selection=DAILY
    )
    key = dg.AssetCheckKey(dg.AssetKey(VERIFICATION_RESPONSES.name), "all_attempted")
    found = {
        one.partition_key: (one.latest_execution_status.value, one.is_current)
        for one in instance.event_log_storage.get_asset_check_partition_info([key])
    }
    passed = ("SUCCEEDED", True)
    assert found == {DAY: ("FAILED", True), NEXT_DAY: passed, "2024-09-10": passed}


def test_a_terminated_run_says_what_is_paid_and_left(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance
) -> None:
    first, *_ = landing.day(DAY, 6)
    interrupts = Meanwhile(lambda: os.kill(os.getpid(), signal.SIGINT))
    with running_simulator(token=TOKEN, faults={first: [interrupts]}, latency_ms=200) as simulator:
        changes = {"deepxl_base_url": simulator.url, "deepxl_max_concurrency": 1}
        job = build_defs(Pipeline(settings.model_copy(update=changes))).resolve_job_def(VERIFY_AND_PUBLISH)
        # As Dagster's own run worker: the signal arrives in the thread of the step.
        job.execute_in_process(
            instance=instance, partition_key=DAY, asset_selection=DAILY, raise_on_error=False
        )
        paid = simulator.received.total()
    [run_record] = instance.get_run_records()
    lines = [entry.user_message for entry in instance.all_logs(run_record.dagster_run.run_id)]
    assert 0 < paid < 6
    counts = f"{paid} settled, 0 held, {6 - paid} left"
    assert f"{DAY}: terminated; {counts}: run the day again, with {run_again(DAY)}" in lines
