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
PLAYWRIGHT = (sys.executable, "-m", "playwright")
DRIVER_NEEDS = "libatomic1"
"""The package that Playwright's driver, a Node.js, needs and a bare Debian lacks."""
NO_BROWSER = (
    f"no browser: skipping its tests; install chromium and {DRIVER_NEEDS}, "
    f"or set {VARIABLE} to a browser's path"
)


def find() -> Path | None:
    """The browser's executable; None if there is none, or if Playwright's driver does not start.

    Raises FileNotFoundError if `KYC_TEST_BROWSER` is not a file.
    """
    configured = os.environ.get(VARIABLE)
    if configured and not Path(configured).is_file():
        raise FileNotFoundError(f"{VARIABLE} is not a file: {configured}")
    if not _driver_starts():
        return None
    if configured:
        return Path(configured)
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    with sync_playwright() as playwright:
        executable = Path(playwright.chromium.executable_path)
    return executable if executable.is_file() else None


def install() -> Path | None:
    """Installs a browser, and what Playwright's driver needs. Returns None if that fails."""
    is_root = os.geteuid() == 0
    if not _driver_starts() and is_root:
        _install_package(DRIVER_NEEDS)
    if _succeeds([*PLAYWRIGHT, "install", *(["--with-deps"] if is_root else []), "chromium"]) and (
        found := find()
    ):
        return found
    if is_root:
        _install_package("chromium")
    return find()


def _driver_starts() -> bool:
    return _succeeds([*PLAYWRIGHT, "--version"])


def _install_package(name: str) -> None:
    if shutil.which("apt-get") and _succeeds(["apt-get", "update", "-qq"]):
        _succeeds(["apt-get", "install", "-y", "-qq", "--no-install-recommends", name])


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
