"""A real Patroni cluster on loopback: two PostgreSQL servers, and a third vote.

Patroni keeps its leader lock by Raft among the three, so that no etcd is needed. Each runs in namespaces
of its own. There, root is another user, because PostgreSQL refuses to run as root. Killing the first process
kills all of them at once, as a power cut would.
"""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.e2e.servers import free_port, script
from tests.optional import absent, denied
from tests.unit.postgres import find_binaries, new_folder

NAMESPACES = (
    "--user",
    "--map-user=1000",
    "--map-group=1000",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
PASSWORD = "hidden-word"
TTL_SECONDS = 20
"""How long a dead leader keeps its lock; Patroni's minimum."""


@dataclass
class Member:
    """A vote. With PostgreSQL, its ports are those of PostgreSQL and of Patroni's REST API."""

    folder: Path
    raft: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    api: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    def configure(self, partners: Sequence["Member"], **config: Any) -> None:
        self.folder.mkdir()
        raft = {
            "data_dir": str(self.folder / "raft"),
            "self_addr": f"127.0.0.1:{self.raft}",
            "partner_addrs": [f"127.0.0.1:{each.raft}" for each in partners],
        }
        (self.folder / "config.yml").write_text(json.dumps({"raft": raft, **config}), encoding="utf-8")

    def start(self, program: str = "patroni") -> None:
        command = ["unshare", *NAMESPACES, script(program), str(self.folder / "config.yml")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kills everything of this member."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def role(self) -> str | None:
        """Such as `primary` or `sync_standby`; None if Patroni or PostgreSQL does not run."""
        connection = HTTPConnection("127.0.0.1", self.api, timeout=5)
        try:
            connection.request("GET", "/patroni")
            state = json.loads(connection.getresponse().read())
        except OSError:
            return None
        finally:
            connection.close()
        if state.get("state") != "running":
            return None
        return "sync_standby" if state.get("sync_standby") else str(state["role"])


def _patroni(member: Member, name: str, binaries: Path) -> Mapping[str, Any]:
    address, api = f"127.0.0.1:{member.port}", f"127.0.0.1:{member.api}"
    return {
        "scope": "kyc",
        "name": name,
        "restapi": {"listen": api, "connect_address": api},
        "bootstrap": {
            "dcs": {
                "ttl": TTL_SECONDS,
                "loop_wait": 1,
                "retry_timeout": 3,
                "synchronous_mode": True,
                "postgresql": {"use_pg_rewind": True},
            },
            "initdb": [{"encoding": "UTF8"}, "no-sync"],
        },
        "postgresql": {
            "listen": address,
            "connect_address": address,
            "data_dir": str(member.folder / "data"),
            "bin_dir": str(binaries),
            "pgpass": str(member.folder / "pgpass"),
            "authentication": {
                "superuser": {"username": "kyc", "password": PASSWORD},
                "replication": {"username": "standby", "password": PASSWORD},
            },
            "pg_hba": [
                "local all all trust",
                "host all all 127.0.0.1/32 scram-sha-256",
                "host replication standby 127.0.0.1/32 scram-sha-256",
            ],
            "parameters": {"unix_socket_directories": str(member.folder)},
        },
    }


@dataclass
class PatroniCluster:
    """Two members with PostgreSQL."""

    members: tuple[Member, Member]

    @property
    def url(self) -> str:
        ports = ",".join(str(member.port) for member in self.members)
        hosts = f"host=127.0.0.1,127.0.0.1&port={ports}"
        return f"postgresql+psycopg://kyc:{PASSWORD}@/postgres?{hosts}&target_session_attrs=read-write"

    def find(self, role: str) -> Member | None:
        return next((member for member in self.members if member.role() == role), None)

    def has_synchronous_standby(self) -> bool:
        return bool(self.find("primary") and self.find("sync_standby"))


@contextmanager
def running_patroni() -> Iterator[PatroniCluster]:
    """A cluster that lives as long as the block."""
    if not Path(script("patroni")).exists():
        absent("patroni")
    if subprocess.run(["unshare", *NAMESPACES, "true"], check=False, capture_output=True).returncode:
        denied("user namespaces")
    with contextlib.ExitStack() as stack:
        binaries = find_binaries(stack.enter_context(new_folder()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kyc-pg-")))
        members = [Member(folder / str(number)) for number in range(3)]
        for number, member in enumerate(members):
            partners = [each for each in members if each is not member]
            config = _patroni(member, f"member{number}", binaries) if number < 2 else {}
            member.configure(partners, **config)
            member.start("patroni" if number < 2 else "patroni_raft_controller")
            stack.callback(member.kill)
        yield PatroniCluster((members[0], members[1]))
