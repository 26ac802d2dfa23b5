"""A stand-in for Docker Compose: what `deploy/compose.yaml` and the guide's commands use of it.

Services are containers (:mod:`tests.e2e.containers`) that share one network, in which the name of each means
this machine. The images of others are programs of this machine. A service whose image has none is the test's
own business. Nothing is restarted, and `init` is ignored.
"""

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from typing import Any

import yaml

from tests.e2e.containers import USER, Container, Host, Mount
from tests.e2e.servers import poll

PROJECT = "${KYC_IMAGE:-kyc-pipeline}"
NGINX = """\
error_log stderr; pid /run/nginx.pid; events {}
http {
    access_log off;
    client_body_temp_path /var/cache/nginx/body; proxy_temp_path /var/cache/nginx/proxy;
    fastcgi_temp_path /var/cache/nginx/fastcgi; uwsgi_temp_path /var/cache/nginx/uwsgi;
    scgi_temp_path /var/cache/nginx/scgi;
    include /etc/nginx/conf.d/*.conf;
}
"""
"""What matters of the configuration in the image of nginx."""


class Compose:
    """A copy of deploy/ as a project. `programs` are the commands of images, by name without a tag."""

    def __init__(self, deploy: Path, host: Host, programs: Mapping[str, Sequence[str]]) -> None:
        self.containers: dict[str, Container] = {}
        self._deploy = deploy
        self._host = host
        self._programs = programs
        file = yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))
        self.services: dict[str, dict[str, Any]] = file["services"]
        self.configs: dict[str, dict[str, str]] = file["configs"]
        self._variables: dict[str, str] = {}
        self._commands: dict[str, list[str]] = {}
        """What the containers were started with."""
        (deploy.with_name("nginx.conf")).write_text(NGINX, encoding="utf-8")
        self._volumes = deploy.with_name("volumes")
        self._volumes.mkdir()

    def docker(self, command: str) -> str:
        """Carries out `[NAME=VALUE] docker compose …`; what it printed."""
        words = shlex.split(command)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            self._variables[name] = value
        assert words[:2] == ["docker", "compose"], command
        parser = argparse.ArgumentParser()
        parser.add_argument("--profile", action="append", default=[])
        actions = parser.add_subparsers(dest="action", required=True)
        up = actions.add_parser("up")
        for option in ("--detach", "--wait"):
            up.add_argument(option, action="store_true", required=True)
        run = actions.add_parser("run")
        run.add_argument("--rm", action="store_true", required=True)
        run.add_argument("--volume", action="append", default=[])
        for each in (run, actions.add_parser("exec")):
            each.add_argument("service")
            each.add_argument("command", nargs=argparse.REMAINDER)
        arguments = parser.parse_args(words[2:])
        if arguments.action == "up":
            self._up(set(arguments.profile))
            return ""
        if arguments.action == "exec":
            done = self.containers[arguments.service].run(*arguments.command)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
        volumes = [volume.replace("$PWD", str(self._deploy)) for volume in arguments.volume]
        container = self._start(f"{arguments.service}-run", arguments.service, arguments.command, volumes)
        assert container.wait() == 0, container.log.read_text()
        return container.log.read_text()

    def down(self) -> dict[str, int]:
        """Stops all containers; their exit codes."""
        for container in self.containers.values():
            if container.exit_code is None:
                container.signal(SIGTERM)
        return {name: container.wait() for name, container in self.containers.items()}

    def _up(self, profiles: set[str]) -> None:
        wanted = [
            name
            for name, service in self.services.items()
            if not service.get("profiles") or profiles & set(service["profiles"])
        ]
        for name in wanted:
            if name in self.containers and self._command(name) != self._commands[name]:
                self.containers[name].signal(SIGTERM)  # a variable has changed
                assert self.containers.pop(name).wait() == 0, name
            self._require(name, "service_started")
        for name in wanted:
            if name in self.containers and "healthcheck" in self.services[name]:
                self._await_health(name)

    def _require(self, name: str, condition: str) -> None:
        """Starts a service after those that it depends on, and waits for the condition."""
        service = self.services[name]
        if name not in self.containers and self._program(name) is not None:
            needs = service.get("depends_on", {})
            for other in needs:
                self._require(
                    other, needs[other]["condition"] if isinstance(needs, dict) else "service_started"
                )
            self._commands[name] = self._command(name)
            self.containers[name] = self._start(name, name, self._commands[name])
        if name not in self.containers:
            return
        if condition == "service_healthy":
            self._await_health(name)
        elif condition == "service_completed_successfully":
            assert self.containers[name].wait() == 0, self.containers[name].log.read_text()

    def _await_health(self, name: str) -> None:
        container = self.containers[name]
        kind, *test = self.services[name]["healthcheck"]["test"]
        command = test if kind == "CMD" else ["sh", "-c", *test]

        def is_healthy() -> bool:
            assert container.exit_code is None, f"{name} ended:\n{container.log.read_text()[-4000:]}"
            return container.run(*command).returncode == 0

        poll(is_healthy, f"{name} to be healthy", log=container.log)

    def _program(self, name: str) -> Sequence[str] | None:
        """How the image of a service starts; None if there is none on this machine."""
        image = self.services[name]["image"]
        return [] if image == PROJECT else self._programs.get(image.rpartition(":")[0].rpartition("/")[2])

    def _command(self, name: str) -> list[str]:
        program = self._program(name)
        assert program is not None
        return [*program, *map(self._interpolated, self.services[name].get("command", []))]

    def _start(
        self, as_name: str, name: str, command: Sequence[str], volumes: Sequence[str] = ()
    ) -> Container:
        service = self.services[name]
        is_ours = service["image"] == PROJECT
        env: dict[str, str] = {}
        for file in service.get("env_file", []):
            lines = (self._deploy / file).read_text(encoding="utf-8").splitlines()
            env |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        mounts = [Mount(path) for path in service.get("tmpfs", [])]
        mounts += [self._mount(volume, is_ours) for volume in [*service.get("volumes", []), *volumes]]
        if name == "nginx":
            mounts.append(
                Mount("/etc/nginx/nginx.conf", self._deploy.with_name("nginx.conf"), read_only=True)
            )
        return self._host.start(
            as_name,
            command,
            env=env,
            mounts=mounts,
            is_ours=is_ours,
            user=USER if is_ours else 0,
            read_only=service.get("read_only", False),
            rights="cap_drop" not in service,
        )

    def _mount(self, volume: str, is_ours: bool) -> Mount:
        source, target, *options = volume.split(":")
        path = self._deploy / source if source.startswith((".", "/")) else self._volumes / source
        if not source.startswith((".", "/")) and not path.exists():
            path.mkdir()
            os.chown(path, *(2 * [USER if is_ours else 0]))  # as the folder of the image
        return Mount(target, path, read_only="ro" in options)

    def _interpolated(self, word: str) -> str:
        pattern = r"\$\{([A-Z_]+):-([^}]*)\}"
        return re.sub(pattern, lambda found: self._variables.get(found[1], found[2]), word)
