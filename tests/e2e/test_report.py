"""The report in a real browser: it draws without console messages or requests, filters, explores, prints."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pypdfium2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from kyc_pipeline.analyze.build import build, open_draft, record_checks
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.publish import publish
from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.analyze.report import write_report
from kyc_pipeline.lake.storage import Lake
from tests.e2e.browser import TIMEOUT_MS, running_browser
from tests.e2e.test_demo import SCREENSHOTS
from tests.unit.analyze.lake_maker import Check, Submission, rejected, write_day

pytestmark = pytest.mark.e2e

CHECKS = ("FACE_MATCH", "LIVENESS", "ID_QUALITY", "DOCUMENT  FORGERY")
HOSTILE = "</script><img src=x onerror=document.title='hit'>"
FIRST = date(2024, 9, 2)
DAYS, A_DAY, BUSY_DAYS, A_BUSY_DAY = 30, 8, 2, 210
DATED_TABLES = (
    *("submission_funnel", "rejected_by_reason", "verified_rates", "verified_rates_by_company", "pass_rates"),
    *("confidence_histogram", "confidence_summary", "confidence_drift", "failure_attribution"),
    *("failure_combinations", "repeat_subjects", "api_performance", "submissions"),
)
DESKTOP, PHONE = (1280, 900), (390, 844)
DRAWN = r"""
() => [...document.querySelectorAll('.chart')].filter((chart) => chart.checkVisibility()).map((chart) => {
  const kinds = ['rect path', 'symbol path', 'line path', 'rule line'].map((kind) => `svg .mark-${kind}`);
  const marks = [...chart.querySelectorAll(kinds.join())];
  const box = chart.querySelector('svg')?.getBoundingClientRect();
  return [chart.id, marks.filter((mark) => mark.getBBox().width + mark.getBBox().height > 0).length,
          box ? box.width : 0, box ? box.height : 0];
})
"""


def submission(chance: random.Random, day: int) -> Submission:
    checks = []
    for place, check in enumerate(CHECKS):
        failed = chance.random() < 0.06
        score = chance.random() * 0.6 if failed else 1 - chance.random() ** 2 * (0.1 + 0.005 * day)
        status = "FAIL" if failed else "REVIEW" if chance.random() < 0.01 else "PASS"
        checks.append(
            Check(check, status, None if place == 0 and chance.random() < 0.05 else round(score, 4))
        )
    company = chance.randrange(5)
    return Submission(
        all(check.normalized_status != "FAIL" for check in checks),
        checks,
        tags={
            "companyId": (str(100 + company), None),
            "companyName": (HOSTILE if company == 0 else f"Company {company}", None),
            "customerId": (None, f"person-{chance.randrange(300)}"),
        },
        attempts=1 if chance.random() < 0.95 else 2,
        latency_ms=250 + 300 * chance.random(),
    )


def make_warehouse(lake: Lake, warehouse: Path, price: Decimal | None = Decimal("0.35")) -> Path:
    draft = warehouse.with_suffix(".draft")
    build(lake, draft, run_id="run-1", choices=Choices(price_per_call=price))
    with open_draft(draft) as connection:
        results = check_build(connection)
    record_checks(draft, results)
    publish(draft, warehouse)
    return warehouse


def make_page(warehouse: Path) -> Path:
    page = warehouse.with_suffix(".html")
    write_report(warehouse, page)
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page_file(folder: Path) -> Path:
    """A month with one day without data; its last days have enough data for drift."""
    lake, chance = Lake(str(folder / "lake")), random.Random(7)
    for number in range(DAYS):
        if number == 20:
            continue
        count = A_BUSY_DAY if number >= DAYS - BUSY_DAYS else A_DAY
        day = [submission(chance, number) for _ in range(count)]
        if number == 5:
            day.append(Submission(outcome="uncertain", latency_ms=None))
        write_day(lake, (FIRST + timedelta(days=number)).isoformat(), day, [rejected()])
    return make_page(make_warehouse(lake, folder / "main.duckdb"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with running_browser() as browser:
        yield browser


@contextmanager
def opened(browser: Browser, file: Path, size: tuple[int, int], scheme: str) -> Iterator[Page]:
    """The page, drawn. The block fails if the page sent a request or wrote to the console."""
    messages: list[str] = []
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    yield page
    assert [message for message in messages if message not in (file.as_uri(), "data:,")] == []
    context.close()


@pytest.fixture(scope="module")
def desktop(browser: Browser, page_file: Path) -> Iterator[Page]:
    with opened(browser, page_file, DESKTOP, "light") as page:
        yield page


def violations(page: Page, *rules: str) -> list[str]:
    """The serious and critical violations that axe finds; with `rules`, only of these rules."""
    options = {"resultTypes": ["violations"]} | (
        {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    )
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{violation['id']}: {[node['target'] for node in violation['nodes']][:5]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


def marks(page: Page, figure: str, kind: str = "mark-symbol") -> int:
    return page.locator(f"#chart-{figure} svg .{kind} path").count()


def test_every_chart_is_drawn(desktop: Page) -> None:
    drawn = desktop.evaluate(DRAWN)
    assert len(drawn) >= 22
    assert [chart for chart in drawn if chart[1] < 3 or chart[2] < 250 or chart[3] < 100] == []
    assert desktop.locator(".chart:visible").count() == len(drawn)
    desktop.screenshot(path=SCREENSHOTS / "report-light.png")


def test_bars_have_width_on_every_day(desktop: Page) -> None:
    widths = desktop.evaluate(
        "[...document.querySelectorAll('#chart-calls svg .mark-rect path')].map((bar) => bar.getBBox().width)"
    )
    assert min(widths) > 5
    assert max(widths) - min(widths) < 0.01


def test_ticks_of_an_axis_differ(desktop: Page) -> None:
    for period in ("7", "all"):
        desktop.select_option("#period", period)
        for axis in desktop.evaluate(
            "[...document.querySelectorAll('.role-axis-label')].map((axis) =>"
            " [...axis.querySelectorAll('text')].map((label) => label.textContent).filter(Boolean))"
        ):
            if not any("%" in label for label in axis):  # mirrored axes repeat their labels
                assert len(set(axis)) == len(axis)


def test_text_of_a_tenant_is_escaped(desktop: Page) -> None:
    assert desktop.title().startswith("KYC verification report")
    assert desktop.locator("img").count() == 0
    assert desktop.locator("#figure-companies tbody th", has_text=HOSTILE).count() >= 1


def test_the_period_filter_changes_charts_and_text(desktop: Page) -> None:
    # A point per day, except the day without data.
    assert marks(desktop, "verified") == DAYS - 1
    unfiltered = desktop.locator("#figure-verified .note").text_content()
    desktop.select_option("#period", "7")
    expect(desktop.locator("#chart-verified svg .mark-symbol path")).to_have_count(7)
    expect(desktop.locator("#figure-verified .note")).not_to_have_text(str(unfiltered))
    assert desktop.locator("#figure-verified tbody tr:not([hidden])").count() == 7
    assert desktop.locator("#key-figures .tiles:visible").count() == 1
    expect(desktop.locator("#key-figures .tile:visible").first).to_contain_text("against the 7 days before")
    desktop.select_option("#period", "all")
    expect(desktop.locator("#chart-verified svg .mark-symbol path")).to_have_count(DAYS - 1)
    expect(desktop.locator("#figure-verified .note")).to_have_text(str(unfiltered))


def test_the_check_filter_shows_one_check(desktop: Page) -> None:
    assert desktop.locator("#pass-rates figure:visible").count() == len(CHECKS)
    desktop.select_option("#check", "LIVENESS")
    expect(desktop.locator("#pass-rates figure:visible")).to_have_count(1)
    expect(desktop.locator("#pass-rates figure:visible h3")).to_have_text("LIVENESS")
    expect(desktop.locator("#explorer-check")).to_have_value("LIVENESS")
    desktop.select_option("#check", CHECKS[-1])  # with two blanks
    expect(desktop.locator("#pass-rates figure:visible")).to_have_count(1)
    expect(desktop.locator("#explorer-check")).to_have_value(CHECKS[-1])
    desktop.select_option("#check", "")
    expect(desktop.locator("#pass-rates figure:visible")).to_have_count(len(CHECKS))


def test_the_threshold_explorer_agrees_with_the_warehouse(desktop: Page, folder: Path) -> None:
    desktop.select_option("#explorer-check", "FACE_MATCH")
    slider = desktop.locator("#explorer-threshold")
    slider.focus()
    desktop.keyboard.press("Home")
    expect(desktop.locator("#explorer-to-fail")).to_have_text("0")
    before = desktop.locator("#chart-threshold-rate svg .mark-rule line").last.get_attribute("transform")
    for _ in range(80):
        desktop.keyboard.press("ArrowRight")
    expect(desktop.locator("#explorer-value")).to_have_text("0.80")
    with duckdb.connect(folder / "main.duckdb", read_only=True) as warehouse:
        [(scored, rate, of_all, to_fail, to_pass)] = warehouse.execute(
            "SELECT scored, rate, rate_null_as_fail, flips_to_fail, flips_to_pass FROM threshold_sensitivity"
            " WHERE check_type = 'FACE_MATCH' AND abs(threshold - 0.8) < 0.001"
        ).fetchall()
        [(low, high)] = warehouse.execute(
            "SELECT wilson_low(k, n), wilson_high(k, n) FROM (SELECT $1::BIGINT AS k, $2::BIGINT AS n)",
            [round(rate * scored), scored],
        ).fetchall()
    expect(desktop.locator("#explorer-rate")).to_have_text(f"{rate:.1%}")
    expect(desktop.locator("#explorer-of")).to_contain_text(f"95%: {low:.1%} to {high:.1%}, of {scored}")
    expect(desktop.locator("#explorer-of")).to_contain_text(f"{of_all:.1%} of all")
    expect(desktop.locator("#explorer-to-fail")).to_have_text(f"{to_fail:,}")
    expect(desktop.locator("#explorer-to-pass")).to_have_text(f"{to_pass:,}")
    after = desktop.locator("#chart-threshold-rate svg .mark-rule line").last.get_attribute("transform")
    assert before != after


def test_details_and_tables_work_with_the_keyboard(desktop: Page) -> None:
    desktop.locator("#figure-verified summary").focus()
    desktop.keyboard.press("Enter")
    expect(desktop.locator("#figure-verified table")).to_be_visible()
    desktop.keyboard.press("Tab")
    assert desktop.evaluate("document.activeElement.className") == "scroll"
    desktop.locator("#figure-verified summary").press("Enter")


def test_axe_finds_no_serious_violation(desktop: Page) -> None:
    for details in desktop.locator("#verdicts details").all():
        details.locator("summary").click()
    assert violations(desktop) == []


def test_on_a_phone_in_dark_mode_nothing_is_wider_than_the_screen(browser: Browser, page_file: Path) -> None:
    with opened(browser, page_file, PHONE, "dark") as page:
        for details in page.locator("#pass-rates details").all():
            details.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        drawn = page.evaluate(DRAWN)
        assert [chart for chart in drawn if chart[1] < 3 or not 200 < chart[2] <= PHONE[0]] == []
        colours = page.evaluate(
            "['background-color', 'stroke'].map((name, place) => getComputedStyle(document.querySelector("
            " place ? '#chart-verified svg .mark-line path' : 'body')).getPropertyValue(name))"
        )
        assert colours == ["rgb(15, 20, 26)", "rgb(111, 177, 245)"]
        assert violations(page, "color-contrast", "target-size") == []
        page.screenshot(path=SCREENSHOTS / "report-phone-dark.png")


def test_printed_pages_have_charts_and_open_tables(browser: Browser, page_file: Path, folder: Path) -> None:
    with opened(browser, page_file, DESKTOP, "dark") as page:
        page.select_option("#period", "7")
        width = "document.querySelector('#chart-verified svg').getBoundingClientRect().width"
        before = page.evaluate(width)
        page.pdf(path=folder / "report.pdf", format="A4", print_background=True)
        expect(page.locator("details[open]")).to_have_count(0)
        assert page.evaluate(width) == before
    with pypdfium2.PdfDocument(folder / "report.pdf") as document:
        assert 8 <= len(document) <= 40
        texts, light = [], []
        for sheet in document:
            image = sheet.render(scale=0.5).to_pil().convert("L")
            lowest, highest = image.getextrema()
            assert lowest < 160, "a page is blank"
            assert highest == 255
            light.append(image.getpixel((2, 2)))
            texts.append(sheet.get_textpage().get_text_range())
    assert set(light) == {255}  # paper stays white in dark mode
    text = " ".join(" ".join(texts).split())
    assert "Key figures" in text
    assert text.count("Day or week from") >= 8
    assert "All checks" not in text


def test_an_empty_warehouse_makes_a_page_without_console_messages(browser: Browser, tmp_path: Path) -> None:
    warehouse = make_warehouse(Lake(str(tmp_path / "lake")), tmp_path / "empty.duckdb")
    with opened(browser, make_page(warehouse), PHONE, "light") as page:
        assert page.locator(".chart").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_one_day_makes_a_page_without_console_messages(browser: Browser, tmp_path: Path) -> None:
    """One day, no price, a check that neither passed nor failed, and a check without a type."""
    lake = Lake(str(tmp_path / "lake"))
    day = [
        Submission(True, [Check(), Check("AGE", "REVIEW", 0.4)]),
        Submission(False, [Check(None, "FAIL", 0.1)]),
    ]
    write_day(lake, "2024-09-08", day)
    page_file = make_page(make_warehouse(lake, tmp_path / "day.duckdb", None))
    with opened(browser, page_file, PHONE, "light") as page:
        assert [chart for chart in page.evaluate(DRAWN) if chart[1] < 1] == []
        assert page.locator("#chart-verified svg .role-axis-label text").first.text_content() == "8 Sep"
        expect(page.locator("#confidences .nothing:visible")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_three_years_make_a_page_of_reasonable_size(browser: Browser, tmp_path: Path) -> None:
    lake, chance = Lake(str(tmp_path / "lake")), random.Random(7)
    write_day(lake, FIRST.isoformat(), [submission(chance, 0) for _ in range(60)], [rejected()])
    file = make_warehouse(lake, tmp_path / "long.duckdb")
    with duckdb.connect(file) as warehouse:
        # Repeats the first day instead of building a lake of three years.
        for table in DATED_TABLES:
            warehouse.execute(
                f"INSERT INTO {table} SELECT t.* REPLACE (date + later::INTEGER AS date)"
                f" FROM {table} AS t, range(1, 1100) AS r(later)"
            )
    page_file = make_page(file)
    scripts = sum(map(len, page_file.read_text(encoding="utf-8").split("<script>")[1:]))
    assert page_file.stat().st_size - scripts < 5_000_000
    with opened(browser, page_file, DESKTOP, "light") as page:
        assert [chart for chart in page.evaluate(DRAWN) if chart[1] < 1] == []
        assert page.locator("#figure-verified tbody tr:not([hidden])").count() == 158  # weeks
        page.select_option("#period", "90")
        expect(page.locator("#chart-verified svg .mark-symbol path")).to_have_count(90)
