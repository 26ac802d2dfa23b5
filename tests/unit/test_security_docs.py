"""The documents about security and privacy name tests, commands and pages that exist."""

import re
from pathlib import Path

import pytest

from kyc_pipeline.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["SECURITY.md", "docs/privacy.md", "docs/erasure.md", "docs/dpia-template.md"]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^):\s]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"kyc-pipeline ([a-z-]+)", text)) <= COMMANDS.keys()
