"""The errors that users see.

The message of a :class:`KycError` is one line that names the setting, file, row or submission and says what
to do. It never contains personal data or a secret, because it may reach logs, the Dagster event log and
standard error. The command line exits with `exit_code`.
"""

import errno
import traceback
from collections.abc import Iterable
from typing import Final, TypeGuard

FULL_ERRORS: Final = "kyc_pipeline.full_errors"
"""The logger for unredacted errors, with tracebacks. Only `--verbose` shows it."""
FAILED: Final = 1
"""Exit code of the command line after a fault."""
WRONG_USAGE: Final = 2
UNFINISHED: Final = 3
"""Exit code after work that left something for the user, such as submissions that are held."""
LISTED: Final = 3
"""How many messages a line lists; further ones are only counted."""
_DISK_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
_NO_ACCESS: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
"""Closed, or a folder where a file should be, or the other way round."""
_STORE_PACKAGES: Final = frozenset({"aiobotocore", "aiohttp", "botocore"})


class KycError(Exception):
    """A failure with one clear line for the user (exit code 1)."""

    exit_code = FAILED


class UsageError(KycError):
    """Wrong usage or invalid settings: nothing was started (exit code 2)."""

    exit_code = WRONG_USAGE


def missing_extra(what: str, extra: str) -> UsageError:
    """The error for `what` (a setting, a command), which needs packages that are not installed."""
    return UsageError(f"{what} needs the extra `{extra}`: pip install 'kyc-pipeline[{extra}]'")


def in_one_line(messages: Iterable[str]) -> str:
    """The distinct messages in one line: the first few, and the number of the others."""
    found = list(dict.fromkeys(messages))
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return "; ".join(found[:LISTED]) + more


def is_disk_fault(error: BaseException) -> TypeGuard[OSError]:
    """Whether a disk was full, failed or was read-only."""
    return isinstance(error, OSError) and error.errno in _DISK_FAULTS


def is_outside_fault(error: BaseException) -> bool:
    """Whether a disk, a file's access rights or an object store is at fault: `plain_line` says what to do."""
    return is_disk_fault(error) or _is_without_access(error) or _store_fault(error) is not None


def plain_line(error: BaseException) -> str:
    """One line that is safe to log: a :class:`KycError`'s message, or the class and location of other errors.

    The message of an unexpected error may quote the data that caused it.
    """
    if isinstance(error, KycError):
        return str(error)
    location = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] == __package__:
            location = f" in {module}, line {line}"
    if store_fault := _store_fault(error):
        return (
            f"the object store cannot be used ({store_fault}{location}): check AWS_ENDPOINT_URL, the "
            "network, the credentials and the policy, then run again"
        )
    if is_disk_fault(error):
        return f"a disk cannot be used ({error.strerror}{location}): free space or repair it, then run again"
    if _is_without_access(error):
        return (
            f"a file or folder cannot be used ({error.strerror}{location}): correct its access rights, or "
            "KYC_HOME and the settings of paths"
        )
    return f"unexpected {type(error).__name__}{location}"


def reason(error: OSError) -> str:
    """What the system says, or the error's class: those of an object store may have no text."""
    return error.strerror or type(error).__name__


def store_code(error: BaseException | None) -> str | None:
    """The code with which an object store refused, such as `AccessDenied`; None if it did not respond."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return None if code is None else str(code)


def _is_without_access(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in _NO_ACCESS


def _store_fault(error: BaseException) -> str | None:
    """The code with which an object store refused, or the class of the error if it did not respond."""
    for each in (error, error.__cause__):
        if type(each).__module__.partition(".")[0] in _STORE_PACKAGES:
            return store_code(each) or type(each).__name__
    return None
