"""One process at a time: a file lock in a folder, a lease in an object store.

An object store has no lock that ends with its holder. There it is an object that is created only where none
is and replaced only where it is unchanged (conditional writes, which AWS S3, MinIO and R2 have). Its holder
renews it; who waits takes it once it has not changed for `LEASE_SECONDS`, so that no two clocks are compared.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import filelock

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake

LEASE_SECONDS: Final = 60.0
_FREE: Final = "free"
_REFUSED: Final = 412
"""A store's answer to a conditional write whose condition does not hold."""
_MET_ANOTHER: Final = 409
"""Its answer to one that met another write: to be asked again."""
_TRIES: Final = 5
_RETRY_SECONDS: Final = 0.05


class LockBusy(KycError):
    """Another process has the lock, and had it for as long as was waited."""


class LockLost(KycError):
    """The lease ran out, and another process has it: what was made under it must not be published."""


@contextlib.contextmanager
def exclusive(
    lake: Lake, name: str, *, wait_seconds: float, lease_seconds: float = LEASE_SECONDS
) -> Iterator[Callable[[], None]]:
    """Holds the lock `name` of the lake; yields a function that raises :class:`LockLost` once it is lost.

    Raises :class:`LockBusy`.
    """
    busy = f"another process holds the lake's {name} for {wait_seconds:.0f} s: see what it does"
    if lake.is_local:
        Path(lake.root).mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(f"{lake.root}/{name}", timeout=wait_seconds):
                yield lambda: None
        except filelock.Timeout:
            raise LockBusy(busy) from None
        return
    lease = _Lease(lake.fs, f"{lake.root}/{name}", lease_seconds)
    if not lease.take(wait_seconds):
        raise LockBusy(busy)
    with lease.renewed():
        yield lease.check


class _Lease:
    """A lease on one object, by conditional writes. Every content is new, so an equal tag means no change."""

    def __init__(self, fs: Any, path: str, seconds: float) -> None:
        self._fs = fs
        self._path = path
        self._seconds = seconds
        self._version = ""
        self._is_held = False
        self._one_write = threading.Lock()

    def take(self, wait_seconds: float) -> bool:
        """Takes the lease as soon as it is free or has run out; False if it was neither in time."""
        give_up = time.monotonic() + wait_seconds
        seen, since = "", 0.0
        while not self._write("held", mode="create"):
            try:
                version = self._fs.info(self._path)["ETag"]
                is_free = self._fs.cat_file(self._path).startswith(_FREE.encode())
            except FileNotFoundError:
                version, is_free = "", False  # given up or refused meanwhile: try to create it again
            now = time.monotonic()
            if version != seen:
                seen, since = version, now
            has_run_out = version != "" and now - since >= self._seconds
            if (is_free or has_run_out) and self._write("held", IfMatch=version):
                break
            if now >= give_up:
                return False
            time.sleep(min(1.0, self._seconds / 10))
        self._is_held = True
        return True

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renews the lease in a thread, and frees it at the end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), name="kyc-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            # A store that does not answer now: the lease runs out by itself.
            with contextlib.suppress(Exception):
                self._prolong(_FREE)

    def check(self) -> None:
        """Raises :class:`LockLost` unless the lease is held at this moment."""
        if not self._prolong("held"):
            raise LockLost("the lake's lock was lost to another process: run the day again")

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds / 4):
            # A store that does not answer may answer the next time; `check` finds out what counts.
            with contextlib.suppress(Exception):
                if not self._prolong("held"):
                    return

    def _prolong(self, state: str) -> bool:
        """Writes `state` if the lease is still held; whether it is."""
        with self._one_write:
            self._is_held = self._is_held and self._write(state, IfMatch=self._version)
            return self._is_held

    def _write(self, state: str, **condition: str) -> bool:
        """Writes the object under a condition; False if that does not hold."""
        content = f"{state} {secrets.token_hex(16)}".encode()
        for _ in range(_TRIES):
            try:
                self._version = self._fs.pipe_file(self._path, content, **condition)["ETag"]
            except OSError as error:
                is_gone = isinstance(error, FileNotFoundError) and "IfMatch" in condition
                if is_gone or _status(error) == _REFUSED:
                    return False
                if _status(error) != _MET_ANOTHER:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return True
        return False


def _status(error: OSError) -> int | None:
    """The store's HTTP status behind an error of its file system."""
    response = getattr(error.__cause__, "response", {})
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
