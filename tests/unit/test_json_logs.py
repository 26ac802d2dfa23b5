"""`KYC_LOG_FORMAT=json`: what an object says, and that it shows no data of an error."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kyc_pipeline.errors import KycError
from kyc_pipeline.json_logs import JsonFormatter


def record(message: str, **attributes: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "kyc_pipeline.test", "levelno": logging.WARNING, "levelname": "WARNING", "created": 0.5}
        | {"msg": message}
        | attributes
    )


def of_run(message: str, **changes: Any) -> logging.LogRecord:
    """A record as Dagster makes it for a run."""
    known = {"run_id": "r1", "job_tags": {"dagster/partition": "2024-09-01"}, "step_key": "verify"}
    return record("long", dagster_meta={"orig_message": message, **known, **changes})


def test_an_object_says_when_who_and_what() -> None:
    assert json.loads(JsonFormatter().format(record("held: 2\nsecond line"))) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "warning",
        "logger": "kyc_pipeline.test",
        "message": "held: 2\nsecond line",
    }
    assert "\n" not in JsonFormatter().format(record("held: 2\nsecond line"))


def test_an_object_of_a_run_says_which() -> None:
    formatter = JsonFormatter()
    own = json.loads(formatter.format(of_run("started")))
    run = {"run_id": "r1", "partition": "2024-09-01"}
    assert own.items() >= {"message": "started", "step": "verify", **run}.items()
    other = json.loads(formatter.format(record("slow disk")))
    assert other.items() >= run.items()
    tags = {
        "dagster/asset_partition_range_start": "2024-09-01",
        "dagster/asset_partition_range_end": "2024-09-03",
    }
    assert json.loads(formatter.format(of_run("", job_tags=tags)))["partition"] == "2024-09-01...2024-09-03"
    assert "partition" not in json.loads(formatter.format(of_run("", job_tags={})))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KycError("the lake is full"), "the lake is full"),
        (ValueError("Ann Example"), "unexpected ValueError"),
    ],
)
def test_an_error_shows_no_data(error: Exception, line: str) -> None:
    try:
        raise error
    except type(error):
        said = json.loads(JsonFormatter().format(record("no", exc_info=sys.exc_info())))
    assert said["error"] == line
    assert "test_json_logs.py:" in said["trace"][-1]
    assert "Example" not in str(said)


SET_UP = """
import logging.config, sys
for name in sys.argv[1:]:
    logging.getLogger(name)
from kyc_pipeline.json_logs import log_as_json
log_as_json()
console = {"class": "logging.StreamHandler", "stream": sys.stdout}
logging.setLoggerClass(logging.Logger)
loggers = {name: {"handlers": ["console"], "level": "INFO"} for name in ("dagster", "dagster-webserver")}
logging.config.dictConfig(
    {"version": 1, "disable_existing_loggers": False, "handlers": {"console": console}, "loggers": loggers}
)
for name in loggers:
    logging.getLogger(name).info("hello")
"""


@pytest.mark.parametrize("made_before", [(), ("dagster", "dagster-webserver")])
def test_a_console_that_dagster_adds_later_is_not_used(made_before: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", SET_UP, *made_before]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert [json.loads(line)["logger"] for line in done.stderr.splitlines()] == [
        "dagster",
        "dagster-webserver",
    ]


def test_a_failed_step_says_why() -> None:
    failure = SimpleNamespace(description="2024-09-01: m.csv cannot be read")
    ours = SimpleNamespace(event_specific_data=SimpleNamespace(user_failure_data=failure))
    other = SimpleNamespace(event_specific_data=SimpleNamespace(error=SimpleNamespace(cls_name="OSError")))
    texts = [json.loads(JsonFormatter().format(of_run("", dagster_event=e)))["error"] for e in (ours, other)]
    assert texts == ["2024-09-01: m.csv cannot be read", "OSError"]
