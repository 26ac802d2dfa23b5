"""The wheel, installed apart from the checkout: it has every file that the commands need, and the guides."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kyc_pipeline.deepxl.simulator import running_simulator
from tests.conftest import Landing
from tests.e2e.servers import clean_environment

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def pip(*arguments: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, without its environments and data."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    pip("wheel", *options, "--wheel-dir", folder, source, KYC_BUILD_COMMIT=COMMIT)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel alone; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


@pytest.fixture
def command(installed: Path, tmp_path: Path) -> Command:
    def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        environment = clean_environment(
            tmp_path, PYTHONPATH=str(installed), KYC_HOME=str(tmp_path), **settings
        )
        return subprocess.run(
            [installed / "bin" / "kyc-pipeline", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_version_names_the_commit_of_the_build(command: Command) -> None:
    done = command("--version")
    assert re.fullmatch(rf"kyc-pipeline [0-9.]+\+[0-9a-f]{{16}} \(commit {COMMIT}\)\n", done.stdout), (
        done.stderr
    )
    assert command("ui", "--help").returncode == 0


def test_a_day_is_ingested_verified_and_published(command: Command, landing: Landing, tmp_path: Path) -> None:
    """So SQL, templates, migrations, dagster.yaml and the plotting library are there."""
    landing.day("2024-09-01", 2)
    with running_simulator() as simulator:
        done = command(
            *("backfill", "--from", "2024-09-01", "--to", "2024-09-01"),
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_API_TOKEN="any",
            KYC_LANDING=str(landing.root),
        )
        assert done.returncode == 0, done.stderr
        assert len(simulator.records) == 2
    assert (tmp_path / "data" / "warehouse" / "kyc.duckdb").is_file()
    assert "vegaEmbed" in (tmp_path / "data" / "report" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "dagster_home" / "dagster.yaml").is_file()


def test_the_guides_are_in_it_and_their_links_lead_somewhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    [guides] = tmp_path.glob("*.data/data/share/doc/kyc-pipeline")
    files = [guides / "README.md", guides / "CHANGELOG.md", *guides.glob("d*/**/*.md")]
    assert len(files) > 15
    for file in files:
        links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
        assert [link for link in links if not (file.parent / link).exists()] == []
    assert (guides / "deploy" / "chart" / "dagster.yaml").read_text() == (
        guides / "deploy" / "dagster.yaml"
    ).read_text()
