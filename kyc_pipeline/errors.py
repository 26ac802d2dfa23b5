"""The errors that people see.

Every :class:`KycError` carries one line that names the setting, file, row or submission concerned and
says what to do. It never carries personal data or a secret: its text may reach a log, the Dagster event
log and standard error. `exit_code` is what the command line ends with.
"""

import traceback
from typing import Final

WHOLE_ERRORS: Final = "kyc_pipeline.whole_errors"
"""The logger that is told whole errors, other people's texts included. `--verbose` listens to it."""


class KycError(Exception):
    """A failure with one clear line for the user (exit code 1)."""

    exit_code = 1


class UsageError(KycError):
    """Wrong usage or settings: nothing was started (exit code 2)."""

    exit_code = 2


def plain_line(error: BaseException) -> str:
    """One line that may be logged anywhere: our own text, of any other error only its class and place.

    The text of an error that nobody foresaw may quote the very data it failed on.
    """
    if isinstance(error, KycError):
        return str(error)
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] == __package__:
            place = f" in {module}, line {line}"
    return f"unexpected {type(error).__name__}{place}"
