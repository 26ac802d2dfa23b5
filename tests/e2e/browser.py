"""The browser of the end-to-end tests: found, or installed by `make test`.

`python -m tests.e2e.browser` makes sure that there is one. It looks at `KYC_TEST_BROWSER`, on the path, in
Playwright's own folder, then installs one: by `playwright install`, else, as root, by Debian's package.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

VARIABLE = "KYC_TEST_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_MS = 60_000
INSTALL_SECONDS = 600
NONE = f"no browser: its tests are skipped; install chromium, or name one in {VARIABLE}"


def find() -> Path | None:
    """The browser's program, or None. Raises FileNotFoundError where `KYC_TEST_BROWSER` names no file."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise FileNotFoundError(f"{VARIABLE} names no file: {named}")
        return Path(named)
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    return own if own.is_file() else None


def install() -> Path | None:
    """Installs a browser; None where that is not possible here."""
    playwright = [sys.executable, "-m", "playwright", "install", "chromium"]
    if os.geteuid() == 0:
        playwright.insert(-1, "--with-deps")
    if _succeeds(playwright) and (found := find()):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get") and _succeeds(["apt-get", "update", "-qq"]):
        _succeeds(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"])
    return find()


def _succeeds(command: list[str]) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A headless browser. Skips the test where there is none, and fails it where `CI` is set."""
    program = find()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(NONE)
        pytest.skip(NONE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def main() -> None:
    """Finds or installs a browser. Ends with an error only where `CI` is set and there is none."""
    if find() or install():
        return
    sys.stderr.write(NONE + "\n")
    if os.environ.get("CI"):
        sys.exit(1)


if __name__ == "__main__":
    main()
