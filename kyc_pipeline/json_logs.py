"""Logs as JSON (`KYC_LOG_FORMAT=json`): one object a line on standard error, also for Dagster's loggers.

An object has `time`, `level`, `logger` and `message`; that of a run also `run_id`, `step` and `partition`.
`error` is our own message, or the class and location of another error, whose message may quote data.
"""

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from kyc_pipeline.errors import plain_line
from kyc_pipeline.vocabulary import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG

_DAGSTER_LOGGERS: Final = ("dagster", "dagster-webserver")
"""The loggers to which Dagster gives a console, after it has changed the class of new loggers."""
_RUN_ATTRIBUTE: Final = "dagster_meta"
"""The attribute of a log record with Dagster's metadata of the run."""


class JsonFormatter(logging.Formatter):
    """One JSON object for each record.

    A process works on one run at a time: records of other loggers belong to the run that Dagster named last.
    """

    def __init__(self) -> None:
        super().__init__()
        self._run: dict[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`, without a line end."""
        dagster: Mapping[str, Any] = getattr(record, _RUN_ATTRIBUTE, None) or {}
        message = str(dagster.get("orig_message") or record.getMessage())
        if dagster.get("run_id"):
            self._run = {"run_id": dagster["run_id"], **_partition(dagster.get("job_tags") or {})}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **self._run,
        }
        if dagster.get("step_key"):
            line["step"] = dagster["step_key"]
        if reason := _failure(dagster.get("dagster_event")):
            line["error"] = reason
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["error"] = plain_line(error)
            line["trace"] = [f"{frame.filename}:{frame.lineno}" for frame in _frames(error)]
        return json.dumps(line, ensure_ascii=False)


def _partition(tags: Mapping[str, str]) -> dict[str, str]:
    names = (PARTITION_TAG,) if PARTITION_TAG in tags else (RANGE_START_TAG, RANGE_END_TAG)
    days = [tags[name] for name in names if name in tags]
    return {"partition": "...".join(dict.fromkeys(days))} if days else {}


def _failure(event: Any) -> str:
    """Why a step or a run failed, as Dagster stores it: our own description, or the error's class."""
    data = getattr(event, "event_specific_data", None)
    own = getattr(getattr(data, "user_failure_data", None), "description", None)
    return str(own or getattr(getattr(data, "error", None), "cls_name", None) or "")


def _frames(error: BaseException) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)


class _Logger(logging.Logger):
    """A logger that leaves the console to the root logger's handler."""

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802 (the base class's name)
        """Adds a handler. One for the console is not needed, unless nothing propagates to the root logger."""
        if _is_console(hdlr):
            if self.parent is not None:
                return
            hdlr.setFormatter(_FORMATTER)  # the logger that Dagster makes for a run
        super().addHandler(hdlr)


_FORMATTER: Final = JsonFormatter()


def log_as_json() -> None:
    """From now on this process logs JSON, whatever Dagster sets up later."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTER)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logging.setLoggerClass(_Logger)
    for name in _DAGSTER_LOGGERS:
        logging.getLogger(name).__class__ = _Logger  # Dagster may have made it already
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.propagate:
            for existing in filter(_is_console, list(logger.handlers)):
                logger.removeHandler(existing)


def logs_json() -> bool:
    """Whether :func:`log_as_json` was called."""
    return any(handler.formatter is _FORMATTER for handler in logging.root.handlers)


def _is_console(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (
        sys.stdout,
        sys.stderr,
        sys.__stdout__,
        sys.__stderr__,
    )
