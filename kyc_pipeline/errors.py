"""The errors that people see.

Every :class:`KycError` has one line that names the setting, file, row or submission and says what to do. It
never contains personal data or a secret, because its text may reach a log, the Dagster event log and
standard error. The command line exits with `exit_code`.
"""

import traceback
from typing import Final

WHOLE_ERRORS: Final = "kyc_pipeline.whole_errors"
"""The logger of complete errors, including texts of other packages. `--verbose` shows it."""


class KycError(Exception):
    """A failure with one clear line for the user (exit code 1)."""

    exit_code = 1


class UsageError(KycError):
    """Wrong usage or settings: nothing was started (exit code 2)."""

    exit_code = 2


def plain_line(error: BaseException) -> str:
    """One line that is safe to log: the text of a :class:`KycError`, the class and place of other errors.

    The text of an unexpected error may quote the data that it failed on.
    """
    if isinstance(error, KycError):
        return str(error)
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] == __package__:
            place = f" in {module}, line {line}"
    return f"unexpected {type(error).__name__}{place}"
