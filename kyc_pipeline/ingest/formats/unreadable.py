"""A manifest that cannot be read, and how messages name it."""

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator

from kyc_pipeline.document_store import cause
from kyc_pipeline.errors import KycError
from kyc_pipeline.landing.zone import LABELS_FOLDER, ManifestFile


class ManifestUnreadable(KycError):
    """A manifest file that cannot be read at all."""

    def __init__(self, path: ManifestFile, reason: str) -> None:
        super().__init__(f"{shown_path(path)}: {reason}")


def require_few_malformed(path: ManifestFile, malformed: int, most: int) -> None:
    """Raises :class:`ManifestUnreadable` if there are more malformed rows than `most`."""
    if malformed > most:
        raise ManifestUnreadable(
            path, f"has more than {most} malformed rows: do header and rows belong together?"
        )


def printable(name: str) -> str:
    """A file name that is safe in one line of text and in UTF-8."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_path(path: ManifestFile) -> str:
    """A manifest's path for messages: `manifests/<date>/<name>` or `labels/<name>`."""
    folder = path.parent.name
    place = folder if folder == LABELS_FOLDER else f"manifests/{printable(folder)}"
    return f"{place}/{printable(path.name)}"


@contextlib.contextmanager
def explained(path: ManifestFile) -> Iterator[None]:
    """Names the manifest, and what is wrong with it, in errors of reading its bytes."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestUnreadable(path, f"is a damaged .gz file ({error})") from error
    except UnicodeDecodeError as error:
        raise ManifestUnreadable(path, f"is not {error.encoding} text: save it as UTF-8") from error
    except OSError as error:
        raise ManifestUnreadable(path, f"cannot be read ({cause(error)})") from error


@contextlib.contextmanager
def fails_alone(path: ManifestFile) -> Iterator[None]:
    """Names the manifest in any error that its content causes, so that it fails its own day only.

    Libraries raise errors of many kinds about odd values. Errors of the machine pass.
    """
    try:
        yield
    except (KycError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ManifestUnreadable(path, f"has a value that cannot be read ({type(error).__name__})") from error
