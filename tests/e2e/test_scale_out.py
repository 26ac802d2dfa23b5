"""The commands of docs/scale-out.md take a host to shared stores, and nothing is paid again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs

from kyc_pipeline.deepxl.simulator import running_simulator
from tests.conftest import Landing
from tests.e2e.servers import REPOSITORY, clean_environment
from tests.unit.postgres import running_postgres
from tests.unit.seaweed import running_seaweed, seaweed_program

pytestmark = [pytest.mark.e2e, pytest.mark.scale]
GUIDE = (REPOSITORY / "docs" / "scale-out.md").read_text(encoding="utf-8")
DAY, NEXT_DAY = "2024-09-01", "2024-09-02"
KEYS = {"AWS_ACCESS_KEY_ID": "kyc", "AWS_SECRET_ACCESS_KEY": "kyc", "AWS_DEFAULT_REGION": "us-east-1"}


def typed() -> str:
    """The commands of the guide, as a script."""
    [block] = re.findall(r"<!-- test: steps -->\n```console\n(.*?)```", GUIDE, re.DOTALL)
    return "\n".join(line.removeprefix("$ ") for line in block.splitlines())


def backfill(last: str) -> str:
    return f"kyc-pipeline backfill --from {DAY} --to {last}"


def test_the_steps_from_one_host_to_shared_stores(tmp_path: Path, landing: Landing) -> None:
    (tmp_path / "data").mkdir()
    landing.day(DAY, 3)
    later = Landing(tmp_path / "later")
    landing.root.rename(tmp_path / "data" / "landing")
    for name in ("weed", "later/manifests", "later/documents"):
        (tmp_path / name).mkdir(parents=True)
    later.day(NEXT_DAY, 2)
    with (
        running_postgres() as postgres,
        running_seaweed(seaweed_program(), tmp_path / "weed") as url,
        running_simulator() as simulator,
    ):
        s3fs.S3FileSystem(endpoint_url=url, key="kyc", secret="kyc", skip_instance_cache=True).mkdir("kyc")
        environment = clean_environment(
            tmp_path,
            **KEYS,
            AWS_ENDPOINT_URL=url,
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_API_TOKEN="any",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        )

        def run(script: str) -> str:
            command = ["bash", "-euo", "pipefail", "-c", script]
            ended = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            return ended.stdout

        run(backfill(DAY))
        assert simulator.received.total() == 3
        steps = typed().replace("postgresql+psycopg://kyc@host/kyc", f"'{postgres.create_database('kyc')}'")
        [put] = re.findall(r"^\$ (python .*landing/', recursive=True\)\")$", GUIDE, re.MULTILINE)
        more = put.replace("data/landing/", "later/")
        shown = run("\n".join([steps, more, backfill(NEXT_DAY)]))
        assert shown.count("knows every outcome in the lake") == 2
        assert re.search(rf"{DAY}\W+3\b", shown), "the query, from the warehouse in S3"
        assert dict(simulator.received) == {
            **{f"{DAY}-000{n}": 1 for n in range(3)},
            **{f"{NEXT_DAY}-000{n}": 1 for n in range(2)},
        }
