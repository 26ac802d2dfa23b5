"""Debian's Redis on loopback, in memory only."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.optional import absent


class RedisServer:
    """A server that can be killed and started again on the same port; what it had is then gone."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._port = port
        self._log = folder / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        program = shutil.which("redis-server") or absent("redis-server")
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, *options], cwd=self._log.parent, stdout=log, stderr=log
            )
        pause = threading.Event()
        for _ in range(600):
            assert self._process.poll() is None, f"Redis ended early: {self._log.read_text()[-2000:]}"
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=2):
                    return
            except OSError:
                pause.wait(0.05)
        raise AssertionError("Redis does not answer")

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_redis(folder: Path, port: int) -> Iterator[RedisServer]:
    """A server that lives as long as the block."""
    server = RedisServer(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.kill()
