"""What a newcomer gets: the wheel, installed apart from the checkout, runs the demo; a browser opens its UI.

So the wheel has every file that the commands need: SQL, templates, migrations, dagster.yaml, the plotting
library, and the guides.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import FloatRect, Page, expect

from tests.e2e.browser import TIMEOUT_MS, running_browser
from tests.e2e.servers import REPOSITORY, Webserver, clean_environment, free_port, webserver

pytestmark = pytest.mark.e2e

DAYS, PER_DAY = 14, 60
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
PICTURES = REPOSITORY / "docs" / "images"
UPDATE_PICTURES = "KYC_UPDATE_PICTURES"
"""Variable: if it is set, the tests write the README's pictures too (`make pictures`)."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pip(*arguments: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, without its environments and data."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source / name)
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


@dataclass(frozen=True)
class Demo:
    """A demo in a folder of its own, run from an empty working directory by the installed wheel."""

    root: Path
    installed: Path

    @property
    def folder(self) -> Path:
        return self.root / "x"

    @property
    def warehouse(self) -> Path:
        return self.folder / "warehouse" / "kyc.duckdb"

    @property
    def working(self) -> Path:
        return self.root / "cwd"

    def environment(self) -> dict[str, str]:
        # KYC_LAKE is a setting that the demo must ignore.
        return clean_environment(
            self.root, PYTHONPATH=str(self.installed), KYC_LAKE=str(self.root / "real-lake")
        )

    @property
    def program(self) -> str:
        return str(self.installed / "bin" / "kyc-pipeline")

    def command(self, *arguments: str) -> str:
        """Runs the command; returns its standard output."""
        ended = subprocess.run(
            [self.program, *arguments],
            cwd=self.working,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        return ended.stdout

    def calls(self) -> list[str]:
        """The simulator's records, one per call."""
        lines = (self.folder / "simulator.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Demo:
    demo = Demo(tmp_path_factory.mktemp("demo"), installed)
    demo.working.mkdir()
    return demo


@pytest.fixture(scope="module")
def first_output(demo: Demo) -> str:
    return demo.command("demo", "--folder", str(demo.folder))


def test_the_version_names_the_commit_of_the_build(demo: Demo) -> None:
    version = demo.command("--version")
    assert re.fullmatch(rf"kyc-pipeline [0-9.]+\+[0-9a-f]{{16}} \(commit {COMMIT}\)\n", version)


def test_the_guides_are_in_the_wheel_and_their_links_lead_somewhere(wheel: Path, tmp_path: Path) -> None:
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


def test_the_demo_prints_pass_rates_and_pays_each_submission_once(demo: Demo, first_output: str) -> None:
    for check in ("FACE_MATCH", "LIVENESS", "ID_QUALITY"):
        assert re.search(rf"^{check}\s+{DAYS * PER_DAY}\s.*\d%.*–", first_output, re.MULTILINE), first_output
    assert "rejected because" in first_output
    first, again = re.findall(r"^this run   (.*)$", first_output, re.MULTILINE)
    assert first == f"{DAYS * PER_DAY} calls, 0 retries, estimated cost 420.00 EUR"
    assert again == "0 calls, 0 retries, estimated cost 0.00 EUR"
    assert "warehouse and report are up to date" in first_output
    assert first_output.count(f"warehouse  {demo.warehouse}") == 1
    assert len(demo.calls()) == DAYS * PER_DAY
    assert "vegaEmbed" in (demo.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert (demo.folder / "dagster_home" / "dagster.yaml").is_file()


def test_the_demo_writes_nothing_outside_its_folder(demo: Demo, first_output: str) -> None:
    demo.environment()
    assert {path.name for path in demo.root.iterdir()} == {"x", "cwd", "home", "tmp"}
    for name in ("cwd", "home", "tmp"):
        assert list((demo.root / name).rglob("*")) == []


@pytest.fixture(scope="module")
def ui(demo: Demo, first_output: str) -> Iterator[Webserver]:
    port = free_port()
    command = [demo.program, "demo", "--folder", str(demo.folder), "--ui", "--port", str(port)]
    log = demo.root / "ui.log"
    with webserver(command, cwd=demo.working, env=demo.environment(), log=log, port=port) as server:
        yield server


@pytest.fixture(scope="module")
def context_page(ui: Webserver) -> Iterator[tuple[Page, list[str]]]:
    """A browser page, and the errors that it reported."""
    errors: list[str] = []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with running_browser() as browser:
        context = browser.new_context(base_url=ui.url, viewport={"width": 1968, "height": 1010})
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(
            "localStorage.setItem('asset-graph-direction', '\"vertical\"');"
            "localStorage.setItem('large-screen-nav-open', 'false');"
            "localStorage.setItem('dagster-nav-collapsed', 'true');"
        )
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "response",
            lambda response: (
                errors.append(f"{response.status} {response.url}") if response.status >= 400 else None
            ),
        )
        yield page, errors


@pytest.fixture
def page(context_page: tuple[Page, list[str]]) -> Iterator[Page]:
    """The page. The test fails if the page reports an error."""
    page, errors = context_page
    errors.clear()
    yield page
    assert errors == []


def shows(page: Page, *texts: str) -> None:
    """Waits until the page shows each text."""
    for text in texts:
        expect(page.get_by_text(text, exact=True).first).to_be_visible(timeout=TIMEOUT_MS)


def shot(page: Page, name: str) -> None:
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def picture(page: Page, name: str, x: int, y: int, width: int, height: int) -> None:
    """Takes a picture of a part of the page; with `KYC_UPDATE_PICTURES`, it is the README's from now on."""
    clip: FloatRect = {"x": x, "y": y, "width": width, "height": height}
    content = page.screenshot(path=SCREENSHOTS / f"{name}.png", clip=clip)
    if os.environ.get(UPDATE_PICTURES):
        (PICTURES / f"{name}.png").write_bytes(content)


def test_the_ui_shows_every_day_green(ui: Webserver) -> None:
    for asset in ("submissions", "verification_responses", "verifications", "model_checks"):
        stats = ui.partition_stats(asset)
        assert stats == {"numMaterialized": DAYS, "numFailed": 0, "numMaterializing": 0}, asset


@contextmanager
def viewport(page: Page, width: int, height: int) -> Iterator[None]:
    """Dagster fits a graph to the page, and names an asset only if there is room for it."""
    before = page.viewport_size
    page.set_viewport_size({"width": width, "height": height})
    yield
    if before is not None:
        page.set_viewport_size(before)


def test_browser_asset_graph_of_the_daily_assets(page: Page) -> None:
    groups = ",".join(f"global@global:{group}" for group in ("flatten", "ingest", "verify"))
    with viewport(page, 2600, 1300):
        page.goto(f"/asset-groups?expanded={groups}")
        shows(page, "verification_responses", "verifications", "model_checks", "contract_drift", "analyze")
        shows(page, "15 partitions", "93% filled")
        for waiting in ("Loading...", "fetching statuses"):
            expect(page.get_by_text(waiting)).to_have_count(0, timeout=TIMEOUT_MS)
        picture(page, "asset-graph", 405, 205, 2135, 900)  # the graph without the list and the controls


def test_browser_report(demo: Demo, page: Page) -> None:
    with viewport(page, 1280, 1190):
        page.goto((demo.folder / "report" / "index.html").as_uri())
        expect(page.locator("svg, canvas").first).to_be_visible(timeout=TIMEOUT_MS)
        picture(page, "report", 0, 0, 1280, 1190)


def test_browser_partitions(page: Page) -> None:
    page.goto("/assets/verification_responses?view=partitions")
    shows(page, f"Materialized ({DAYS})", "Failed (0)")
    shot(page, "partitions")


def test_browser_executing_the_checks_of_responses_makes_no_call(
    demo: Demo, ui: Webserver, page: Page
) -> None:
    calls, runs = demo.calls(), len(ui.runs())
    page.goto("/assets/verification_responses?view=checks")
    page.get_by_role("button", name="Execute all").click()
    ui.wait(lambda: len(ui.runs()) > runs, "the run of the checks")
    ui.wait(lambda: ui.runs()[0]["status"] == "SUCCESS", "its end")
    assert demo.calls() == calls


def test_browser_resources(page: Page) -> None:
    page.goto("/locations/__repository__@kyc_pipeline/resources/api")
    shows(page, "max_concurrency", "DEEPXL_API_TOKEN")


def test_browser_catalog_page(page: Page) -> None:
    page.goto("/assets/verifications?view=overview")
    shows(page, "One row per completed verification.", "iso_offset_seconds", "zone: curated")
    shot(page, "catalog")


def test_browser_launchpad(page: Page) -> None:
    page.goto("/locations/kyc_pipeline/jobs/verify_and_publish/playground")
    shows(page, "New Run", "Launch Run", "No errors")
    expect(page.locator(".CodeMirror, .cm-editor").first).to_be_visible()
    shot(page, "launchpad")
