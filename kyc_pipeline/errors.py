"""The errors that people see.

Every :class:`KycError` carries one line that names the setting, file, row or submission concerned and
says what to do. It never carries personal data or a secret: its text may reach a log, the Dagster event
log and standard error. `exit_code` is what the command line ends with.
"""


class KycError(Exception):
    """A failure with one clear line for the user (exit code 1)."""

    exit_code = 1


class UsageError(KycError):
    """Wrong usage or settings: nothing was started (exit code 2)."""

    exit_code = 2
