"""The report: complete, self-contained, escaped, and without personal data. A browser looks at it in e2e."""

import json
import re
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.publish import publish
from kyc_pipeline.analyze.report import write_report
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, rejected, write_day

HOSTILE = "</script><img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(lake: Lake, folder: Path) -> str:
    draft, warehouse, page = folder / "draft", folder / "kyc.duckdb", folder / "report" / "index.html"
    build(lake, draft, run_id="run-1", price_per_call=Decimal("0.35"))
    publish(draft, warehouse)
    write_report(warehouse, page)
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    return page.read_text(encoding="utf-8")


def fill(lake: Lake, days: int, step: int = 1) -> None:
    for number in range(days):
        day = (date(2024, 9, 2) + timedelta(days=number * step)).isoformat()
        write_day(
            lake,
            day,
            [
                Submission(
                    failing == 0,
                    [
                        Check("LIVENESS", "FAIL" if failing else "PASS", 0.3 if failing else 0.97),
                        Check("FACE_MATCH", "PASS", 0.9 + number % 10 / 100),
                    ],
                    tags={"companyId": (HOSTILE, None), "customerId": (None, f"person-{failing}")},
                )
                for failing in (0, 0, 1)
            ],
            [rejected()],
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    lake = Lake(str(folder / "lake"))
    fill(lake, 14)
    return report(lake, folder)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    elements = Elements(page)
    assert not [tag for tag in elements.tags if tag[1].get("src")]
    assert {link["href"] for link in elements.all("link")} == {"data:,"}
    assert all(str(anchor["href"]).startswith("#") for anchor in elements.all("a"))
    policy = next(m["content"] for m in elements.all("meta") if m.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_every_chart_has_a_text_alternative_and_a_table(page: str) -> None:
    charts = [div for div in Elements(page).all("div") if div.get("class") == "chart"]
    assert len(charts) >= 9
    assert all(len(str(chart["aria-label"])) > 40 for chart in charts)
    for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        assert figure.count("<table>") == 1
        assert figure.count('<th scope="row">') >= 1


def test_every_section_of_the_mission_is_there(page: str) -> None:
    sections = {section["id"] for section in Elements(page).all("section")}
    assert {
        "verdicts",
        "pass-rates",
        "failures",
        "confidences",
        "drift",
        "threshold-explorer",
        "funnel",
        "companies",
        "api",
    } <= sections


def test_what_tenants_chose_is_escaped_in_text_and_in_scripts(page: str) -> None:
    assert HOSTILE not in page
    specs = re.search(r'<script id="specs" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert specs is not None
    assert HOSTILE in json.dumps(json.loads(specs[1]))


def test_figures_on_the_page_are_the_warehouse_s(page: str) -> None:
    assert "42 completed, 28 verified." in page
    assert re.search(r"<span>Received</span><strong>56</strong><span>14 rejected</span>", page)
    assert re.search(r"<span>Verified</span><strong>66\.7 %</strong>", page)
    assert "<strong>14.70</strong><span>0.52 for each verified</span>" in page


def test_no_person_is_on_the_page(page: str) -> None:
    assert "person-" not in page
    assert "marked" not in page
    assert not re.search(r"\bs-\d{6}\b", page)


def test_a_long_history_is_shown_by_week(lake: Lake, tmp_path: Path) -> None:
    fill(lake, 13, step=10)
    text = report(lake, tmp_path)
    assert "by week" in text
    assert '<tr data-date="2024-09-09">' in text
    assert '<tr data-date="2024-09-12">' not in text


def test_an_empty_warehouse_makes_a_page(lake: Lake, tmp_path: Path) -> None:
    text = report(lake, tmp_path)
    assert "There are no data yet." in text
    assert not [div for div in Elements(text).all("div") if div.get("class") == "chart"]


def test_days_that_have_submissions_only_make_a_page(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, "2024-09-08", [Submission(outcome="failed", latency_ms=None, billable_calls=0)])
    assert "<span>Completed</span><strong>0</strong>" in report(lake, tmp_path)


def test_checks_without_decision_or_confidence_make_a_page(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, "2024-09-08", [Submission(False, [Check(None, "UNKNOWN", None)])])
    assert "declined, no check failed" in report(lake, tmp_path)


def test_without_a_warehouse_the_page_stays_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("old")
    with pytest.raises(KycError, match="there is no warehouse"):
        write_report(tmp_path / "kyc.duckdb", page)
    assert page.read_text() == "old"
