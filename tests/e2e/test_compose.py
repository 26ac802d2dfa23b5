"""deploy/README.md, "One host: Compose": its commands, on `compose.yaml` as it is.

Each service is a container. This machine's PostgreSQL, SeaweedFS and nginx are in the place of their images.
"""

import http.client
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psycopg
import pytest

from tests.conftest import Landing
from tests.e2e.compose import Compose
from tests.e2e.containers import container_host, private_network
from tests.e2e.servers import REPOSITORY, Webserver, poll
from tests.e2e.sign_on import SIGNED_IN, running_sign_on
from tests.optional import absent, optional_module
from tests.unit.postgres import running_postgres
from tests.unit.seaweed import seaweed_program

pytestmark = [pytest.mark.e2e, pytest.mark.scale]

_, *MORE = DAYS = ("2024-09-01", "2024-09-02", "2024-09-03")
HOST = "kyc.example.com"
SECRET = "0123456789abcdef0123456789abcdef"
OBJECTS = "import s3fs; print(*s3fs.S3FileSystem().find('kyc'), sep='\\n')"
GUIDE = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Those of the guide's section on Compose."""
    section = GUIDE.partition("## One host: Compose")[2].partition("\n## ")[0]
    return re.findall(r"^ *\$ (.+)$", section, re.MULTILINE)


@dataclass(frozen=True)
class Site:
    """A copy of deploy/, and what runs of it."""

    deploy: Path
    compose: Compose

    def type(self, line: str) -> str:
        """Carries out a command of the guide; what it printed."""
        if "docker compose" in line:
            return self.compose.docker(line)
        done = subprocess.run(["sh", "-c", line], cwd=self.deploy, capture_output=True, check=True)
        return done.stdout.decode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """PostgreSQL as its image makes it, and a stand-in for the single sign-on; nothing else runs yet."""
    optional_module("dagster_aws")
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin") or absent("nginx")
    deploy = tmp_path / "deploy"
    own = shutil.ignore_patterns(".secrets", ".env.kyc", "proxy", "landing")
    shutil.copytree(REPOSITORY / "deploy", deploy, ignore=own)
    (tmp_path / "containers").mkdir()
    with ExitStack() as stack:
        stack.enter_context(private_network())
        names = list(re.findall(r"^  ([a-z0-9-]+):$", (deploy / "compose.yaml").read_text(), re.MULTILINE))
        host = stack.enter_context(container_host(tmp_path / "containers", names))
        programs = {"seaweedfs": [seaweed_program()], "nginx": [nginx, "-e", "stderr", "-g", "daemon off;"]}
        compose = Compose(deploy, host, programs)
        stack.enter_context(running_postgres("-h 127.0.0.1"))
        stack.enter_context(running_sign_on(4180))
        environment = compose.services["postgres"]["environment"]
        with psycopg.connect(
            host="127.0.0.1", user=environment["POSTGRES_USER"], dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {environment['POSTGRES_DB']}")
            connection.execute(compose.configs["databases"]["content"].encode())
        yield Site(deploy, compose)


def test_the_guide_leads_to_a_first_backfill(site: Site) -> None:
    landing = Landing(site.deploy / "landing")
    for day in DAYS:
        landing.day(day, 3)
    *before, for_a_team = [line for line in commands() if line != "cd deploy"]
    printed = {}
    for line in before:
        printed[line] = site.type(line)
        if "secrets.example" in line:
            secrets = site.deploy / ".secrets"
            secrets.write_text(secrets.read_text().replace("CHANGE-ME", SECRET))
            assert secrets.stat().st_mode & 0o777 == 0o600
    _, backfill, query = list(printed.values())[-3:]
    assert "3 calls, 0 retries" in backfill
    assert "pass_rate_low" in query

    server = Webserver("http://127.0.0.1:3000", site.compose.containers["daemon"].log, SECRET)
    server.wait_until_loaded()
    two_days = server.start_backfill(MORE)
    server.wait(lambda: server.backfill_ended(two_days), "the end of the backfill")
    [run] = server.runs(dagster__backfill=two_days)
    objects = site.type(f"docker compose exec daemon python -c {shlex.quote(OBJECTS)}").splitlines()
    assert [name for name in objects if name.startswith("kyc/compute-logs/") and run["runId"] in name]
    assert {name.split("/")[4] for name in objects if "/curated/verifications/" in name} == {
        f"date={day}" for day in DAYS
    }

    put_proxy_files(site.deploy / "proxy", site.deploy)
    site.type(for_a_team)
    assert site.compose.services["nginx"]["network_mode"] == "service:webserver"  # as all are here
    assert poll(status, "nginx", log=site.compose.containers["nginx"].log) == 302
    assert status(SIGNED_IN) == 200

    # Not the webserver's: it was replaced, and at its end DuckDB may print lines of its own.
    assert all(
        json.loads(line)["level"] for line in site.compose.containers["daemon"].log.read_text().splitlines()
    )
    codes = site.compose.down()
    assert {code for name, code in codes.items() if name not in ("s3", "nginx")} == {0}, codes


def put_proxy_files(folder: Path, deploy: Path) -> None:
    """What the guide and the comments in nginx.conf ask for."""
    (folder / "tls").mkdir(parents=True)
    certificate = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = [str(folder / "tls" / name) for name in ("key.pem", "cert.pem")]
    files = ["-subj", f"/CN={HOST}", "-keyout", names[0], "-out", names[1]]
    subprocess.run([*certificate.split(), *files], check=True, capture_output=True)
    configuration = (deploy / "nginx.conf").read_text(encoding="utf-8")
    [password] = re.findall(r"^# +(echo .*;\")$", configuration, re.MULTILINE)
    environment = {"KYC_UI_PASSWORD": SECRET, "PATH": os.environ["PATH"]}
    with (folder / "kyc-ui-password.conf").open("wb") as output:
        subprocess.run(["bash", "-c", password], env=environment, stdout=output, check=True)
    configuration = re.sub(r"/etc/ssl/\S+\.pem", "/etc/ssl/kyc/cert.pem", configuration)
    configuration = re.sub(r"/etc/ssl/\S+\.key", "/etc/ssl/kyc/key.pem", configuration)
    (folder / "nginx.conf").write_text(configuration, encoding="utf-8")
    (folder / "oauth2-proxy.env").touch()


def status(headers: Mapping[str, str] = MappingProxyType({})) -> int | None:
    """Of the page of the UI, through nginx; None while it does not listen."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", timeout=60, context=context)
    try:
        connection.request("GET", "/", headers={"Host": HOST, **headers})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
