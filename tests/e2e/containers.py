"""Containers by runc, without an engine and a registry, in a network of their own.

A container sees this machine's programs and the tests' Python environment, all of it read-only, below folders
that any user may enter. It may write where a mount says so. Its variables are those of `deploy/Dockerfile`.
If `KYC_IMAGE_ROOT` is the root of a built image, the project's containers run that (`make test-image`).
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.servers import REPOSITORY, poll
from tests.optional import absent, denied

USER = 10001
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NAMESPACES = ("pid", "ipc", "uts", "mount")
"""Those of a container; its network is that of the thread that starts it."""
_ROOTS_RIGHTS = [
    f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID", "NET_BIND_SERVICE")
]
"""Less than what engines give to root."""


@contextmanager
def private_network() -> Iterator[None]:
    """This thread, and what it starts in the block, have no network but a loopback interface of their own.

    So every port is free, and nothing can be reached from outside, whatever it listens on. In the block, this
    process must not use clients with threads that outlive it (fsspec, gRPC): a thread keeps its network.
    """
    if os.geteuid() != 0:
        absent("a network namespace (it needs root)")
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result != 0:
            denied(f"a network of its own ({os.strerror(ctypes.get_errno())})")

    with open("/proc/thread-self/ns/net", encoding="ascii") as before:
        checked(libc.unshare(_NEW_NETWORK))
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            checked(libc.setns(before.fileno(), _NEW_NETWORK))


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host in a container; without a source, an empty folder in memory."""

    target: str
    source: Path | None = None
    read_only: bool = False

    def specification(self) -> dict[str, Any]:
        """For runc."""
        if self.source is None:
            options = ["nosuid", "nodev", "mode=1777"]
            return {"destination": self.target, "type": "tmpfs", "source": "tmpfs", "options": options}
        options = ["rbind", "ro" if self.read_only else "rw"]
        return {"destination": self.target, "type": "bind", "source": str(self.source), "options": options}


@dataclass(frozen=True)
class Container:
    """A container that was started."""

    name: str
    log: Path
    _process: subprocess.Popen[bytes] = field(repr=False)
    _runc: Sequence[str] = field(repr=False)
    _id: str = field(repr=False)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 and the number of the signal that ended it."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """To its first process; SIGKILL ends all of them."""
        subprocess.run([*self._runc, "kill", self._id, str(int(number))], capture_output=True, check=False)

    def wait(self) -> int:
        """The exit code."""
        return int(
            poll(lambda: None if (code := self.exit_code) is None else (code,), f"the end of {self.name}")[0]
        )

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in it, with its user and variables."""
        return subprocess.run(
            [*self._runc, "exec", self._id, *command], capture_output=True, text=True, check=False
        )


@dataclass(frozen=True)
class Image:
    """What a container sees before its own mounts, and its variables."""

    root: Path
    mounts: Sequence[Mount]
    environment: Mapping[str, str]


class Host:
    """Where containers run. `names` are host names that mean this machine in each of them."""

    def __init__(self, folder: Path, names: Sequence[str] = ()) -> None:
        self._folder = folder
        self._runc = [shutil.which("runc") or absent("runc"), "--root", str(folder / "runc")]
        self._containers: list[Container] = []
        self._hosts = Mount("/etc/hosts", folder / "hosts", read_only=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n", encoding="ascii")
        self._machine = _machine_as_image(folder / "root")
        built = os.environ.get("KYC_IMAGE_ROOT")
        self._project = Image(Path(built), [], _environment("/opt/kyc")) if built else self._machine

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        mounts: Sequence[Mount] = (),
        is_ours: bool = True,
        user: int = USER,
        read_only: bool = True,
        rights: bool = False,
        memory: int | None = None,
    ) -> Container:
        """Starts `command`, in the project's image if it `is_ours`.

        Root without `rights` has no capability; `memory` is a limit in bytes.
        """
        image = self._project if is_ours else self._machine
        bundle = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        for mount in mounts:
            if mount.source is None:  # runc gives what it mounts the mode of the folder below
                place = image.root / mount.target.lstrip("/")
                place.mkdir(parents=True, exist_ok=True)
                place.chmod(0o1777)
        specification = {
            "ociVersion": "1.0.2",
            "hostname": name,
            "root": {"path": str(image.root), "readonly": read_only},
            "process": {
                "args": list(command),
                "cwd": "/data",
                "env": [f"{key}={value}" for key, value in {**image.environment, **env}.items()],
                "user": {"uid": user, "gid": user},
                "noNewPrivileges": True,
                "capabilities": {
                    kind: _ROOTS_RIGHTS if rights else [] for kind in ("bounding", "effective", "permitted")
                },
            },
            "mounts": [*_SYSTEM, *(mount.specification() for mount in [*image.mounts, self._hosts, *mounts])],
            "linux": {
                "namespaces": [{"type": kind} for kind in _NAMESPACES],
                "resources": {"memory": {"limit": memory}} if memory else {},
            },
        }
        (bundle / "config.json").write_text(json.dumps(specification), encoding="utf-8")
        id_ = f"kyc-{uuid.uuid4().hex}"
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self._runc, "run", "--bundle", str(bundle), id_],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        container = Container(name, log, process, self._runc, id_)
        self._containers.append(container)
        return container

    def kill_all(self) -> None:
        """Ends what still runs."""
        for container in self._containers:
            if container.exit_code is None:
                container.signal(signal.SIGKILL)
                container.wait()


@contextmanager
def container_host(folder: Path, names: Sequence[str] = ()) -> Iterator[Host]:
    """A host whose containers end with the block."""
    host = Host(folder, names)
    try:
        trial = host.start("trial", ["true"], env={})
        if trial.wait():
            denied(f"containers of runc ({trial.log.read_text(encoding='utf-8').strip()})")
        yield host
    finally:
        host.kill_all()


_SYSTEM: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    Mount("/dev/shm").specification(),
]


def _machine_as_image(root: Path) -> Image:
    """This machine's programs, the tests' Python with its packages, and the project, below a new folder."""
    etc = root / "etc"
    for path in (etc / "dagster", root / "data", root / "tmp"):
        path.mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / "deploy" / name, etc / "dagster")
    for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
        if Path("/etc", name).exists():
            shutil.copy(Path("/etc", name), etc)
    python = [Path(sys.base_prefix), Path(sys.prefix).resolve(), REPOSITORY]
    system = [Path(path) for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64")]
    paths = [path for path in system if path.exists()]
    paths += [path for path in python if not path.is_relative_to("/usr")]
    mounts = [Mount(str(path), path, read_only=True) for path in paths]
    return Image(root, mounts, {**_environment(sys.prefix), "PYTHONPATH": str(REPOSITORY)})


def _environment(python: str) -> dict[str, str]:
    """The variables of the image, with another place of Python and its packages."""
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text(encoding="utf-8").rpartition("\nENV ")[2]
    block = re.match(r"(?:.*\\\n)*.*", text)
    assert block
    found = dict(re.findall(r"([A-Z_]+)=(\S+)", block[0]))
    system = "/usr/sbin:/usr/bin:/sbin:/bin"
    return found | {"PATH": found["PATH"].replace("/opt/kyc", python).replace("$PATH", system)}
