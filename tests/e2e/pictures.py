"""Takes the picture of the report for the README: `python -m tests.e2e.pictures REPORT PICTURE`."""

import sys
from pathlib import Path

from playwright.sync_api import expect

from tests.e2e.browser import running_browser


def main(report: Path, picture: Path) -> None:
    """Takes a picture of the top of the report, down to the first chart."""
    with running_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1230})
        page.goto(report.resolve().as_uri())
        expect(page.locator("svg, canvas").first).to_be_visible(timeout=120_000)
        page.screenshot(path=picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
