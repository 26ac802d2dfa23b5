"""The command line: its results, and one clear line with the documented exit code for each invalid input."""

import asyncio
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kyc_pipeline.cli import local_run
from kyc_pipeline.cli.backfill import run_interruptibly
from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES, VERIFICATIONS
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.rate_limits import list_rate_limits, reset_rate_limits
from kyc_pipeline.orchestration import partitions
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify import rate_limit
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.wording import run_again
from tests.conftest import Landing

DAY = "2024-09-08"
RANGE = ("--from", DAY, "--to", DAY)
TOKEN = "test-token"

Run = Callable[..., tuple[int, str, str]]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "dagster_home" not in path.parts}


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def warnings(err: str) -> list[tuple[str, str]]:
    """The checks that warn, each with the beginning of its text."""
    return re.findall(r"^warning: (\w+): (\d+ \w+(?: \(.*?\))?): ", err, re.MULTILINE)


def test_a_day_is_planned_paid_queried_and_grows_beside_one_that_cannot_be_read(
    landing: Landing, run: Run, simulator: Simulator, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 4)
    bad = landing.root / "manifests" / "2024-09-09" / "bad.csv"
    bad.parent.mkdir()
    bad.write_text("name,photo\nx,y\n")
    both = ("--from", DAY, "--to", "2024-09-09")
    limited = {"DEEPXL_PRICE_PER_CALL": "0.50", "DEEPXL_MAX_CALLS_PER_RUN": "3"}
    code, out, err = run("plan", *both, **limited)
    assert code == 1
    assert out.splitlines()[-1] == "a run stops after 3 calls (DEEPXL_MAX_CALLS_PER_RUN)"
    day, unreadable, total = (line.split() for line in out.splitlines()[1:4])
    assert (day[:2], unreadable[:2]) == ([DAY, "4"], ["2024-09-09", "unreadable"])
    assert total == ["total", "4", "0", "0", "0", "4", "2.00"]
    assert "bad.csv" in one_line(err)
    code, out, err = run("backfill", *both, DEEPXL_PRICE_PER_CALL="0.50", KYC_DIMENSIONS="cuntry")
    assert code == 1
    assert "bad.csv" in err
    assert "2024-09-09" in err
    assert "Traceback" not in err
    expected = [
        ("answers_echo_what_was_sent", "1 anomaly"),
        ("configured_tags_occur", "1 tag (KYC_DIMENSIONS: cuntry)"),
    ]
    assert warnings(err) == expected, "and none for yesterday"
    assert simulator.received.total() == 4
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["rows", "4 accepted, 0 rejected"],
        ["outcomes", "4 completed"],
        ["this", "run   4 calls, 0 retries, estimated cost 2.00 EUR"],
        ["warehouse", "warehouse/kyc.duckdb"],
        ["report", "report/index.html"],
    ]
    code, out, err = run("publish", DEEPXL_PRICE_PER_CALL="0.50", KYC_DIMENSIONS="cuntry")
    assert (code, "up to date" in out, warnings(err)) == (0, True, expected)
    code, out, _ = run("plan", *RANGE, **limited)
    assert code == 0
    assert out.splitlines()[-1].split() == ["total", "4", "0", "4", "0", "0", "0.00"]
    lake = Lake(str(tmp_path / "lake"))
    assert lake.dates(SUBMISSIONS) == lake.dates(VERIFICATIONS) == [DAY]
    rows = lake.read(VERIFICATION_RESPONSES, DAY).to_pylist()
    assert [row["submission_id"] for row in rows] == ids
    assert all(f'"{row["submission_id"]}"' in row["response"] for row in rows)
    # What is paid for needs no credential, and no API.
    nowhere = {"DEEPXL_API_TOKEN": "", "DEEPXL_BASE_URL": "http://127.0.0.1:9"}
    assert run("backfill", "--no-publish", *RANGE, **nowhere)[0] == 0
    assert simulator.received.total() == 4
    code, out, _ = run("query", "SELECT date, received, completed FROM submission_funnel", "--format", "csv")
    assert (code, out.splitlines()[1:]) == (0, [f"{DAY},4,4"])
    grown = landing.day(DAY, 6)
    assert run("backfill", "--no-publish", *RANGE)[0] == 0
    assert simulator.received.total() == 6
    assert lake.read(VERIFICATION_RESPONSES, DAY)["submission_id"].to_pylist() == grown


def test_plan_reports_days_without_manifests_and_stray_folders(landing: Landing, run: Run) -> None:
    landing.day(DAY, 1)
    (landing.root / "manifests" / "Jane\nDoe \x1b[31m").mkdir()
    code, out, err = run("plan", "--from", "2024-09-09", "--to", "2024-09-10")
    assert (code, out) == (0, "no manifests from 2024-09-09 to 2024-09-10: nothing to do\n")
    assert "1 folder or file not read" in one_line(err)
    assert "Jane" not in err


def test_an_ignored_file_is_reported_without_its_name_and_a_default_dagster_home_is_created(
    landing: Landing, run_on_disk: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    landing.day(DAY, 1)
    shutil.rmtree(tmp_path / "dagster_home")
    code, _, err = run_on_disk("backfill", *RANGE)
    assert code == 2
    assert "DAGSTER_HOME" in one_line(err)
    (tmp_path / "what?").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "what?"))
    code, _, err = run_on_disk("backfill", *RANGE)
    assert (code, "has a ? in its path" in one_line(err)) == (2, True)
    monkeypatch.delenv("DAGSTER_HOME")
    (landing.root / "manifests" / DAY / "Maria.docx").write_text("not read")
    for command in (["plan"], ["backfill", "--no-publish"]):
        code, _, err = run_on_disk(*command, *RANGE)
        assert code == 0
        assert f"warning: manifests/{DAY}: 1 not read (.docx): manifests are .csv, .tsv, .jsonl" in err
        assert "Maria" not in err
    assert (tmp_path / "dagster_home" / "dagster.yaml").exists()


def test_plan_changes_nothing(landing: Landing, run: Run, tmp_path: Path) -> None:
    landing.day(DAY, 2)
    before = files(tmp_path)
    assert run("plan", *RANGE)[0] == 0
    assert files(tmp_path) == before


def test_plan_counts_rejected_rows_by_reason_and_reads_a_changed_manifest(landing: Landing, run: Run) -> None:
    landing.day(DAY, 2)
    run("backfill", "--no-publish", *RANGE)
    landing.manifest(DAY, [landing.submission("new", 50), {"submission_id": "bad"}], name="more.jsonl")
    unused = {"submitted": "2024-09-09T10:00:00Z", "Jane Doe": "1985-03-12"}
    landing.manifest("2024-09-09", [{"submission_id": "worse"}, landing.submission("b 1", 60) | unused])
    _, out, _ = run("plan", "--from", DAY, "--to", "2024-09-09")
    assert "\nignored: 2 columns of the manifests; those that are read are submission_id, " in out
    assert "Jane" not in out
    assert out.splitlines()[1].split() == [DAY, "3", "1", "2", "0", "1", "–"]
    assert "\nrejected: 2 missing_field, 1 invalid_submission_id; " in out


def test_plan_matches_the_next_run(landing: Landing, run: Run, simulator: Simulator) -> None:
    row = landing.submission("late-file", 1)
    selfie = landing.root / "documents" / str(row["selfie_file"])
    away = selfie.rename(selfie.with_suffix(".away"))
    landing.manifest(DAY, [row])
    assert run("backfill", "--no-publish", *RANGE)[0] == 0
    assert not simulator.received
    away.rename(selfie)
    twice = landing.submission("twice", 10)
    for day in ("2024-09-09", "2024-09-10"):
        landing.manifest(day, [twice])
    days = ("--from", DAY, "--to", "2024-09-10")
    *_, planned, rejected = run("plan", *days, DEEPXL_PRICE_PER_CALL="1")[1].splitlines()
    assert rejected.startswith("rejected: 1 duplicate_submission_id; ")
    assert planned.split()[:6] == ["total", "2", "1", "0", "0", "2"]
    assert run("backfill", "--no-publish", *days)[0] == 0
    assert set(simulator.received) == {"late-file", "twice"}


def test_a_budget_exits_with_3_and_lists_what_is_left_and_nothing_is_published_on_request(
    landing: Landing, run: Run, simulator: Simulator, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 5)
    nowhere = {"DEEPXL_API_TOKEN": "", "DEEPXL_BASE_URL": "http://127.0.0.1:9"}
    code, out, _ = run("backfill", "--no-publish", *RANGE, "--max-calls", "0", **nowhere)
    assert (code, "not_attempted" in out) == (3, True), "no calls need no credential"
    code, out, _ = run("backfill", "--no-publish", *RANGE, "--max-calls", "2")
    assert code == 3
    assert simulator.received.total() == 2
    left = set(ids) - set(simulator.received)
    assert all(submission_id in out for submission_id in left)
    assert "3 not_attempted" in out
    assert "stopped: the budget" in out
    assert "not published: `kyc-pipeline publish`" in out
    assert not (tmp_path / "warehouse").exists()


def test_a_budget_covers_all_runs_of_a_backfill(
    landing: Landing, run: Run, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "BACKFILL_DAYS_PER_RUN", 1)
    days = [f"2024-09-{n:02d}" for n in range(1, 4)]
    for day in days:
        landing.manifest(
            day, [landing.submission(f"{day}-{n}", 100 * int(day[-2:]) + 2 * n) for n in range(2)]
        )
    code, out, _ = run("backfill", "--no-publish", "--from", days[0], "--to", days[-1], "--max-calls", "3")
    assert code == 3
    assert simulator.received.total() == 3
    assert "3 not_attempted" in out


def test_a_plan_warns_of_ids_like_personal_data_and_asks_for_consent(landing: Landing, run: Run) -> None:
    landing.manifest(DAY, [landing.submission("b", 1), landing.submission("anna.1985-03-12", 20)])
    code, out, err = run("plan", *RANGE)
    assert code == 0
    assert re.fullmatch(rf"warning: {DAY}: 1 submission id may be .* \(\S+ row 2\): .*\n", err)
    assert "1985" not in out + err
    code, out, err = run("plan", *RANGE, KYC_REQUIRE_CONSENT="explicit")
    assert re.search(rf"^{DAY} +0 +2 +0 +0 +0 ", out, re.MULTILINE), out
    assert err == ""


def test_documents_under_several_ids_are_told_before_they_are_paid(
    landing: Landing, run: Run, simulator: Simulator
) -> None:
    row = landing.submission("A", 1)
    landing.manifest(DAY, [{**row, "submission_id": key} for key in "ABC"])
    code, out, _ = run("plan", *RANGE)
    assert code == 0
    assert "2 calls would pay for two documents that another submission has too" in out
    code, out, _ = run("backfill", "--no-publish", *RANGE, KYC_DUPLICATE_DOCUMENTS="reject")
    assert code == 0
    assert dict(simulator.received) == {"A": 1}
    code, out, _ = run("plan", *RANGE)
    assert "2 calls would pay for two documents" in out, "the setting no longer rejects them"


def test_no_option_raises_the_budget_of_the_day(landing: Landing, run: Run, simulator: Simulator) -> None:
    landing.day(DAY, 5)
    budget = {"DEEPXL_MAX_CALLS_PER_DAY": "3"}
    command = ("backfill", "--no-publish", *RANGE, "--max-calls")
    _, out, _ = run("plan", *RANGE, **budget)
    assert "the day's budget (DEEPXL_MAX_CALLS_PER_DAY=3) has 3 calls left" in out
    code, out, _ = run(*command, "1", **budget)
    assert (code, simulator.received.total()) == (3, 1)
    assert "stopped: the budget of calls is used up" in out
    code, out, _ = run(*command, "100", **budget)
    assert (code, simulator.received.total()) == (3, 3)
    stopped = "the day's budget (DEEPXL_MAX_CALLS_PER_DAY=3) is used up; it begins again at "
    assert f"stopped: {stopped}" in out
    _, out, _ = run("plan", *RANGE, **budget)
    assert stopped in out


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"DEEPXL_API_TOKEN": ""}, 2, "DEEPXL_API_TOKEN is not set"),
        ({"DEEPXL_API_TOKEN": "wrong"}, 1, "401"),
        ({"DEEPXL_BASE_URL": "http://api.deepxl.ai"}, 2, "DEEPXL_BASE_URL"),
        ({"DEEPXL_MAX_CONCURRENCY": "many"}, 2, "DEEPXL_MAX_CONCURRENCY"),
        ({"KYC_PSEUDONYM_KEY": "short"}, 2, "KYC_PSEUDONYM_KEY"),
        ({"KYC_LEDGER_URL": "nonsense"}, 2, "KYC_LEDGER_URL"),
    ],
)
def test_invalid_settings_fail_early_and_change_nothing(
    landing: Landing,
    run: Run,
    tmp_path: Path,
    simulator: Simulator,
    settings: dict[str, str],
    code: int,
    message: str,
) -> None:
    landing.day(DAY, 2)
    before = files(tmp_path)
    ended, _, err = run("backfill", *RANGE, **settings)
    assert message in one_line(err)
    assert ended == code
    assert files(tmp_path) == before
    assert not simulator.received


def test_an_unreachable_api_fails_early_and_changes_nothing(
    landing: Landing, run: Run, tmp_path: Path
) -> None:
    landing.day(DAY, 2)
    before = files(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, _, err = run("backfill", *RANGE, DEEPXL_BASE_URL=url)
    assert code == 1
    assert "DEEPXL_BASE_URL" in one_line(err)
    assert files(tmp_path) == before


def test_a_wrong_base_url_fails_early(landing: Landing, run: Run, tmp_path: Path, html_url: str) -> None:
    landing.day(DAY, 1)
    before = files(tmp_path)
    code, _, err = run("backfill", *RANGE, DEEPXL_BASE_URL=html_url)
    assert code == 1
    assert "DEEPXL_BASE_URL" in one_line(err)
    assert files(tmp_path) == before


@pytest.fixture
def html_url() -> object:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>not here</html>")

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_missing_landing_zone_exits_with_2(run: Run, tmp_path: Path) -> None:
    before = files(tmp_path)
    code, _, err = run("backfill", *RANGE)
    assert code == 2
    assert "KYC_LANDING" in one_line(err)
    assert files(tmp_path) == before


def test_an_empty_landing_zone_exits_with_2(landing: Landing, run: Run, tmp_path: Path) -> None:
    before = files(tmp_path)
    code, _, err = run("backfill", *RANGE)
    assert code == 2
    assert "KYC_LANDING" in one_line(err)
    assert files(tmp_path) == before


def test_an_unreadable_partition_says_how_to_go_on_and_hides_no_other_day(
    landing: Landing, run: Run, simulator: Simulator, tmp_path: Path
) -> None:
    landing.day(DAY, 2)
    landing.day("2024-09-09", 3)
    both = ("--from", DAY, "--to", "2024-09-09")
    assert run("backfill", "--no-publish", *both)[0] == 0
    partition = Path(Lake(str(tmp_path / "lake")).path(SUBMISSIONS, DAY))
    kept = partition.read_bytes()
    partition.write_bytes(b"broken")
    advice = f"restore its file from a backup, or move it away and run the day, with {run_again(DAY)}"
    code, out, err = run("plan", *both)
    assert (code, advice in one_line(err)) == (1, True), err
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [[DAY, "unreadable"], ["2024-09-09", "3"]]
    code, out, err = run("backfill", "--no-publish", *both)
    # Each day that needs it says so once, and the results do not say it again.
    assert (code, one_line(err).count(f"submissions partition {DAY}")) == (1, 2), err
    assert advice in err
    assert out.splitlines()[:2] == ["rows       3 accepted, 0 rejected", "outcomes   3 completed"]
    partition.write_bytes(kept)
    assert run("backfill", "--no-publish", *both)[0] == 0
    assert simulator.received.total() == 5


def test_a_partition_that_a_run_makes_again_may_be_damaged(
    landing: Landing, run: Run, simulator: Simulator, tmp_path: Path
) -> None:
    landing.day(DAY, 2)
    assert run("backfill", "--no-publish", *RANGE)[0] == 0
    partition = Path(Lake(str(tmp_path / "lake")).path(REJECTED_SUBMISSIONS, DAY))
    partition.write_bytes(b"broken")
    assert run("backfill", "--no-publish", *RANGE)[0] == 0
    assert partition.read_bytes() != b"broken"
    assert simulator.received.total() == 2


def test_a_signal_stops_the_work_and_keeps_its_result() -> None:
    stop, asked = StopFlag(), threading.Event()

    def work() -> str:
        with stop.watched(asked.set):
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.wait(60)
        return "recorded"

    assert run_interruptibly(stop, work) == "recorded"
    assert stop.draining
    assert not stop.immediate


def test_ctrl_c_skips_the_remaining_runs_of_a_backfill_and_publishes(
    landing: Landing, run: Run, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "BACKFILL_DAYS_PER_RUN", 2)
    days = [f"2024-09-{day:02}" for day in range(1, 4)]
    for day in days:
        landing.day(day, 1)
    build = build_defs

    def build_and_interrupt(
        pipeline: Pipeline, controls: CallControls | None = None, *, publication: bool = True
    ) -> dg.Definitions:
        if controls:
            os.kill(os.getpid(), signal.SIGINT)
            with controls.stop.watched(asked.set):
                assert asked.wait(60)
        return build(pipeline, controls, publication=publication)

    asked = threading.Event()
    monkeypatch.setattr(local_run, "build_defs", build_and_interrupt)
    monkeypatch.setattr("kyc_pipeline.cli.backfill.SHOWN_SUBMISSIONS", 1)
    code, out, _ = run("backfill", "--from", days[0], "--to", days[-1])
    assert code == 3
    assert "stopped on request; 0 settled, 2 left, 1 day left out: run the same days again" in out
    assert not simulator.received
    assert Lake(str(tmp_path / "lake")).dates(SUBMISSIONS) == days[:-1]
    (command,) = re.findall("^… and 1 more: `kyc-pipeline (.+)` lists all$", out, re.MULTILINE)
    code, out, _ = run(*shlex.split(command), "--format", "csv")
    assert (code, [line.split(",")[0] for line in out.splitlines()]) == (0, ["date", *days[:-1]])


def test_ctrl_c_after_the_last_call_leaves_nothing_to_run_again(
    landing: Landing, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing.day(DAY, 1)

    def interrupt_and_flatten(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return flatten_partition(*arguments, **options)

    monkeypatch.setattr("kyc_pipeline.orchestration.assets.flatten.flatten_partition", interrupt_and_flatten)
    code, out, _ = run("backfill", "--no-publish", *RANGE)
    assert (code, out.splitlines()[-1]) == (
        0,
        "the stop request came too late: everything was done already",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("backfill", "--from", "yesterday", "--to", DAY),
        ("backfill", "--from", "2024-09-09", "--to", DAY),
        ("backfill", "--from", "2020-01-01", "--to", DAY),
        ("backfill", "--from", DAY, "--to", "2999-01-01"),
        ("backfill",),
        ("no-such-command",),
        ("held", "resolve", "--submission", "x", "--as", "forget"),
        ("held", "resolve", "--submission", "unknown", "--as", "retry"),
    ],
)
def test_wrong_usage_exits_with_2(landing: Landing, run: Run, arguments: tuple[str, ...]) -> None:
    landing.day(DAY, 1)
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_nothing_is_held(run: Run) -> None:
    code, out, _ = run("held", "list")
    assert (code, out.startswith("nothing is held: there is no ledger yet (sqlite:///")) == (0, True)


def test_a_long_wait_for_the_rate_limit_is_announced_and_can_be_ended(
    landing: Landing,
    run: Run,
    simulator: Simulator,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rate_limit, "_LONG_WAIT_SECONDS", 0.05)
    assert run("limits", "list")[:2] == (0, "no run has used a rate limit yet\n")
    assert run("limits", "reset")[:2] == (0, "0 rate limits reset\n")
    landing.day(DAY, 1)
    with Ledger(settings.kyc_ledger_url) as ledger:
        pause = rate_limit.SharedRateLimiter(ledger, simulator.url, 10).pause
        asyncio.run(pause(3000))
        code, out, _ = run("limits", "list")
        assert code == 0
        name, booked, _, paused, _ = out.splitlines()[1].split()
        assert (name, booked) == (simulator.url, "0.0")
        assert 2900 < float(paused.replace(",", "")) <= 3000
        assert run("limits", "reset")[:2] == (0, "1 rate limit reset\n")
        asyncio.run(pause(3000))

        def reset_when_a_call_waits() -> None:
            while not list_rate_limits(ledger)[simulator.url].arrival:  # until it has booked a permit
                pass
            reset_rate_limits(ledger)

        resetting = threading.Thread(target=reset_when_a_call_waits)
        resetting.start()
        assert run("backfill", "--no-publish", *RANGE, DEEPXL_REQUESTS_PER_SECOND="10")[0] == 0
        resetting.join()
    # Without a logging configuration, as in the command line, a warning goes to standard error.
    message = "for the rate limit in the ledger (DeepXL asked for a pause); `kyc-pipeline limits reset` ends"
    assert message in caplog.text
    assert simulator.received.total() == 1
