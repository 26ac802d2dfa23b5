"""Finds or installs the browser of the end-to-end tests.

`make test` calls `python -m tests.e2e.browser`. It looks for a browser in `KYC_TEST_BROWSER`, on the path and
in Playwright's folder. If there is none, it installs one with `playwright install` or, as root, with apt-get.
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
NO_BROWSER = f"no browser: skipping its tests; install chromium, or set {VARIABLE} to a browser's path"


def find() -> Path | None:
    """The browser's executable, or None. Raises FileNotFoundError if `KYC_TEST_BROWSER` is not a file."""
    if configured := os.environ.get(VARIABLE):
        if not Path(configured).is_file():
            raise FileNotFoundError(f"{VARIABLE} is not a file: {configured}")
        return Path(configured)
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    with sync_playwright() as playwright:
        executable = Path(playwright.chromium.executable_path)
    return executable if executable.is_file() else None


def install() -> Path | None:
    """Installs a browser. Returns None if that fails."""
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
    """A headless browser. If there is none, skips the test, or fails it if `CI` is set."""
    executable = find()
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def main() -> None:
    """Finds or installs a browser. Fails only if there is none and `CI` is set."""
    if find() or install():
        return
    sys.stderr.write(NO_BROWSER + "\n")
    if os.environ.get("CI"):
        sys.exit(1)


if __name__ == "__main__":
    main()
