"""The report: complete, self-contained, escaped, and without personal data. A browser looks at it in e2e."""

import base64
import hashlib
import json
import re
from datetime import date, timedelta
from decimal import Decimal
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kyc_pipeline import __version__
from kyc_pipeline.analyze.build import build, open_draft, record_checks
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.publish import publish
from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.analyze.report import write_report
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import (
    Check,
    Submission,
    rejected,
    write_day,
    write_responses,
    write_submissions,
)
from tests.unit.analyze.test_error_rates import label, write_labels

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


def report(lake: Lake, folder: Path, price: Decimal | None = Decimal("0.35")) -> str:
    draft, warehouse, page = folder / "draft", folder / "kyc.duckdb", folder / "report" / "index.html"
    build(lake, draft, run_id="run-1", choices=Choices(price_per_call=price))
    with open_draft(draft) as connection:
        results = check_build(connection)
    record_checks(draft, results)
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
                    tags={
                        "companyId": ("7", None),
                        "companyName": (HOSTILE, None),
                        "customerId": (None, f"person-{failing}"),
                    },
                )
                for failing in (0, 0, 1)
            ],
            [rejected()],
        )


def text_of(page: str) -> str:
    """The page without its scripts and style, tags as spaces."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def data_of(page: str) -> Any:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def tile(page: str, period: str, label: str) -> str:
    """The key figure of a period, as text."""
    part = re.search(rf'<div data-periods="{period}".*?</ul>', page, re.DOTALL)
    assert part is not None
    found = re.search(rf"<li class=\"tile\"><span>{re.escape(label)}</span>(.*?)</li>", part[0])
    assert found is not None
    return " ".join(re.sub(r"<[^>]+>", " ", found[1]).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    lake = Lake(str(folder / "lake"))
    fill(lake, 14)
    return report(lake, folder)


def test_nothing_is_loaded_from_anywhere_and_only_its_own_scripts_run(page: str) -> None:
    elements = Elements(page)
    assert not [tag for tag in elements.tags if tag[1].get("src")]
    assert {link["href"] for link in elements.all("link")} == {"data:,"}
    assert all(str(anchor["href"]).startswith("#") for anchor in elements.all("a"))
    assert not [tag for tag in elements.tags if any(name.startswith("on") for name in tag[1])]
    policy = next(m["content"] for m in elements.all("meta") if m.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    ]
    assert f"script-src {' '.join(hashes)};" in policy


def test_every_chart_has_a_text_alternative_and_a_table(page: str) -> None:
    charts = [div for div in Elements(page).all("div") if div.get("class") == "chart"]
    assert len(charts) >= 14
    assert all(len(str(chart["aria-label"])) > 40 for chart in charts)
    for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        assert figure.count("<table>") == 1
        assert figure.count('<th scope="row">') >= 1


def test_every_section_of_the_mission_is_there_with_its_definitions(page: str) -> None:
    for name, word in (
        ("verdicts", "verified_rates.verified_rate"),
        ("pass-rates", "pass_rates.pass_rate"),
        ("failures", "failure_attribution.sole_blocker"),
        ("threshold-explorer", "threshold_sensitivity.flips_to_fail"),
        ("confidences", "confidence_histogram"),
        ("drift", "confidence_drift.psi_noise_floor"),
        ("funnel", "submission_funnel.quarantined"),
        ("companies", "verified_rates_by_company.company_id"),
        ("api", "api_performance.estimated_cost"),
    ):
        section = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
        assert section is not None, name
        assert re.search(rf"<dt><code>{word}</code></dt><dd>\w[^<]{{20,}}</dd>", section[0]), name


def test_what_tenants_chose_is_escaped_in_text_and_in_scripts(page: str) -> None:
    assert HOSTILE not in page
    assert f"7 · {HOSTILE}" in str(data_of(page)["specs"]["companies"])
    assert f"7 · {escape(HOSTILE)}" in page


def test_figures_on_the_page_are_the_warehouse_s(page: str) -> None:
    assert "42 completed, 28 verified." in page
    assert tile(page, "all", "Received") == "56 14 rejected"
    assert tile(page, "all", "Verified") == "66.7% 95%: 51.6% to 79.0%, of 42"
    assert tile(page, "all", "Estimated cost (EUR)") == "14.70 0.52 EUR for each verified"
    assert tile(page, "7", "Received") == "28 7 rejected"
    assert tile(page, "7", "Verified") == (
        "66.7% 95%: 45.4% to 82.8%, of 21* +0.0 pts against the 7 days before (95%: −26.7 pts to +26.7 pts)"
    )


def test_it_says_when_and_from_what_it_was_built(page: str) -> None:
    text = text_of(page)
    assert "2 Sep 2024 to 15 Sep 2024" in text
    assert "by run run-1" in text
    assert f"kyc-pipeline {__version__}, DuckDB {duckdb.__version__}" in text


def test_it_says_what_stands_out(page: str) -> None:
    text = text_of(page)
    assert (
        "LIVENESS is the most frequent reason for declines: it failed in 100.0% of 14 declined verifications,"
        " and was the only failed check in 14." in text
    )
    assert "The pass rate of" not in text  # both weeks are too small to compare


def test_small_samples_are_marked(page: str) -> None:
    assert re.search(r"<td class=\"n\">3\*</td>", page)
    rows = data_of(page)["specs"]["verified"]["datasets"]["rows"]
    assert all(row["few"] for row in rows)


def test_no_person_is_on_the_page(page: str) -> None:
    assert "person-" not in page
    assert not re.search(r"marked-(id|selfie|name|response|details)", page)
    assert not re.search(r"\bs-\d{6}\b", page)


def test_a_long_history_is_shown_by_week_and_its_end_by_day(lake: Lake, tmp_path: Path) -> None:
    fill(lake, 13, step=10)
    page = report(lake, tmp_path)
    assert "charts by week" in page
    rows = data_of(page)["specs"]["verified"]["datasets"]["rows"]
    weeks = [row for row in rows if row["unit"] == "week"]
    assert len(weeks) == 18  # with those that have no data, which break the line
    assert sum(row["n"] or 0 for row in weeks) == 39
    assert {row["date"] % (7 * 86_400_000) for row in weeks} == {4 * 86_400_000}  # Mondays
    days = [row for row in rows if row["unit"] == "day" and row["n"]]
    assert len(days) == 9  # the last 90 days
    assert list(data_of(page)["periods"]) == ["all", "90", "28", "7"]


def test_the_explorer_s_bins_give_the_warehouse_s_thresholds(page: str, folder: Path) -> None:
    [face, liveness] = data_of(page)["explorer"]
    assert (face["check"], face["oriented"]) == ("FACE_MATCH", False)
    assert (liveness["check"], liveness["oriented"], liveness["auc"]) == ("LIVENESS", True, 1.0)
    with duckdb.connect(folder / "kyc.duckdb", read_only=True) as warehouse:
        for choice in (face, liveness):
            bins = choice["periods"]["all"]
            every = [sum(counts) for counts in zip(bins["pass"], bins["fail"], bins["other"], strict=True)]
            simulated = [
                (sum(every[step:]), sum(bins["pass"][:step]), sum(bins["fail"][step:])) for step in range(100)
            ]
            assert (
                simulated
                == warehouse.execute(
                    "SELECT at_or_above, flips_to_fail, flips_to_pass FROM threshold_sensitivity"
                    " WHERE check_type = $1 AND threshold < 0.995 ORDER BY threshold",
                    [choice["check"]],
                ).fetchall()
            )


def test_an_unflattened_day_is_neither_declined_nor_in_the_cost_of_a_verified(
    lake: Lake, tmp_path: Path
) -> None:
    write_day(lake, "2024-09-08", [Submission(number < 8) for number in range(10)])
    late = [Submission() for _ in range(10)]
    write_submissions(lake, "2024-09-09", late)
    write_responses(lake, "2024-09-09", late)
    page = report(lake, tmp_path)
    assert tile(page, "all", "Verified") == (
        "80.0% 95%: 49.0% to 94.3%, of 10*; 40.0% to 90.0% with 10 undecided"
    )
    assert tile(page, "all", "Estimated cost (EUR)") == "7.00 0.44 EUR for each verified on complete days"
    text = text_of(page)
    assert "– not verified 2 10.0%" in text
    assert "– not in the tables yet 10 50.0%" in text
    assert "80.0% (49.0% to 94.3%) of 10*; 10 undecided: 40.0% to 90.0%" in text


def test_an_empty_warehouse_makes_a_page(lake: Lake, tmp_path: Path) -> None:
    page = report(lake, tmp_path)
    text = text_of(page)
    assert "No submission was received yet." in text
    assert text.count("No verification is completed yet.") >= 5
    assert "No check has failed" not in text
    assert not [div for div in Elements(page).all("div") if div.get("class") == "chart"]


def test_days_that_have_submissions_only_make_a_page(lake: Lake, tmp_path: Path) -> None:
    write_day(lake, "2024-09-08", [Submission(outcome="failed", latency_ms=None, billable_calls=0)])
    page = report(lake, tmp_path)
    assert tile(page, "all", "Completed") == "0 0.0% of 1 accepted"
    assert tile(page, "all", "Verified") == "– nothing completed"


def test_checks_without_decision_or_confidence_make_a_page_which_has_what_failed_before_publication(
    lake: Lake, tmp_path: Path
) -> None:
    day = [Submission(False, [Check(None, "UNKNOWN", None)]), Submission(outcome="uncertain")]
    write_day(lake, "2024-09-08", day)
    text = text_of(report(lake, tmp_path))
    assert "declined, no check failed" in text
    assert "No check has passed or failed yet." in text
    assert "No check has a confidence yet." in text
    assert "submissions uncertain (warning): 1 submission (2024-09-08): decide about them" in text
    assert "submissions quarantined (" not in text
    with duckdb.connect(tmp_path / "kyc.duckdb", read_only=True) as warehouse:
        assert warehouse.execute(
            "SELECT check_name, severity, count FROM build_checks WHERE NOT passed ORDER BY ALL"
        ).fetchall() == [
            ("submissions_uncertain", "warning", 1),
            ("unknown_statuses", "warning", 1),
            ("verdicts_agree_with_checks", "warning", 1),
        ]
        assert warehouse.execute(
            "SELECT count(*), count(c.comment) FROM duckdb_columns() AS c WHERE table_name = 'build_checks'"
        ).fetchall() == [(7, 7)]


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One day without a price: one type in two groups, and more companies than are shown."""
    folder = tmp_path_factory.mktemp("odd")
    lake = Lake(str(folder / "lake"))
    checks = [Check("MATCH", "PASS", 0.9), Check("MATCH", "FAIL", 0.2, group="otherChecks")]
    day = [
        Submission(number % 2 == 0, checks, tags={"companyId": (f"c{number:03d}", None)})
        for number in [*range(25), *range(20)]
    ]
    write_day(lake, "2024-09-08", day)
    return report(lake, folder, price=None)


def test_one_type_in_two_groups_is_two_checks(odd_page: str) -> None:
    explorer = data_of(odd_page)["explorer"]
    assert [choice["check"] for choice in explorer] == ["MATCH (otherChecks)", "MATCH (technicalChecks)"]


def test_beyond_the_largest_companies_the_others_are_one(odd_page: str) -> None:
    rows = data_of(odd_page)["specs"]["companies"]["datasets"]["rows"]
    assert len(rows) == 21
    assert (rows[-1]["company"], rows[-1]["n"]) == ("5 others together", 5)
    assert "25 companies, the 20 largest shown" in odd_page


def test_without_a_price_the_page_says_so(odd_page: str) -> None:
    assert tile(odd_page, "all", "Estimated cost (EUR)") == "– no price is set"
    assert "That setting has no value" in odd_page
    assert "cost" not in data_of(odd_page)["specs"]


def test_a_warehouse_without_check_results_says_what_to_do(empty: Path, tmp_path: Path) -> None:
    with pytest.raises(KycError, match="older version"):
        write_report(empty, tmp_path / "index.html")


def test_without_a_warehouse_the_page_stays_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("old")
    with pytest.raises(KycError, match="there is no warehouse"):
        write_report(tmp_path / "kyc.duckdb", page)
    assert page.read_text() == "old"


def test_the_explorer_shows_error_rates_where_there_are_labels(lake: Lake, tmp_path: Path, page: str) -> None:
    assert {choice["errors"] for choice in data_of(page)["explorer"]} == {None}
    day = [Submission(score >= 0.5, [Check("FACE", "PASS", score)]) for score in (0.2, 0.6, 0.9)]
    write_day(lake, "2024-09-02", day)
    truth = ("fraud", "genuine", "genuine")
    write_labels(lake, [label(each.submission_id, what) for each, what in zip(day, truth, strict=True)])
    (choice,) = data_of(report(lake, tmp_path))["explorer"]
    errors = choice["errors"]
    assert (errors["weighted"], errors["genuine"], errors["fraud"]) == (False, 2, 1)
    assert len(errors["rates"]) == 100
    assert [(rates[0], rates[3]) for rates in (errors["rates"][step] for step in (0, 21, 61, 91))] == [
        (0, 1),
        (0, 0),
        (0.5, 0),
        (1, 0),
    ]
