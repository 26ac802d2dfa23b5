"""The figures and the picture that Dagster shows of each table."""

import base64
import xml.etree.ElementTree as ET
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from kyc_pipeline.analyze.build import open_draft
from kyc_pipeline.analyze.figures import (
    column_types,
    confidence_picture,
    newest_day,
    pass_rates_preview,
    read_figures,
    warehouse_figures,
)
from kyc_pipeline.analyze.sql_models import load_models
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, rejected, write_day

Built = Callable[..., duckdb.DuckDBPyConnection]
DAY, NEXT = "2024-09-08", "2024-09-09"
HEAD = "![Confidences 0 to 1 by check type](data:image/svg+xml;base64,"


def two_days(lake: Lake) -> None:
    held, abandoned = (Submission(outcome=outcome) for outcome in ("uncertain", "abandoned"))
    write_day(lake, DAY, [Submission(True, [Check("LIVENESS")]), held, abandoned])
    passed, failed = Check("LIVENESS", "PASS", 0.95), Check("LIVENESS", "FAIL", 0.25)
    declined = Submission(False, [failed, Check("FACE_MATCH", "PASS", 1.0)])
    write_day(lake, NEXT, [*(Submission(True, [passed]) for _ in range(3)), declined], [rejected()])


def test_figures_are_of_the_newest_day(lake: Lake, built: Built) -> None:
    two_days(lake)
    connection = built(Decimal("0.5"))
    figures = read_figures(connection)
    assert newest_day(connection) == NEXT
    assert figures["pass_rates"] == {"LIVENESS pass_rate": 0.75, "FACE_MATCH pass_rate": 1}
    assert figures["verified_rates"] == {"verified_rate": 0.75, "verifications": 4}
    assert figures["submission_funnel"] == {
        "received": 5,
        "rejected": 1,
        "completed": 4,
        "failed": 0,
        "quarantined": 0,
        "not_attempted": 0,
        "held_all_days": 1,
    }
    assert figures["api_performance"]["estimated_cost"] == 2
    assert figures["api_performance"]["estimated_cost_all_days"] == 3.5
    assert figures["confidence_summary"]["LIVENESS median_confidence"] == 0.95
    assert figures["failure_attribution"]["not_verified"] == 1
    assert warehouse_figures(figures) == {
        "verified_rate": 0.75,
        "verifications": 4,
        "held_all_days": 1,
        "rejected": 1,
        "calls": 4,
        "estimated_cost": 2,
    }
    assert set(figures) <= {model.name for model in load_models()}
    assert {type(value) for values in figures.values() for value in values.values()} <= {int, float}


def test_rates_are_of_the_newest_day_with_a_verdict(lake: Lake, built: Built) -> None:
    two_days(lake)
    names = ("pass_rates", "verified_rates", "verified_rates_by_company")
    before, preview = read_figures(built()), pass_rates_preview(built())
    left = [
        Submission(outcome="not_attempted", attempts=0, tags={"companyId": (company, None)})
        for company in ("a", "b")
    ]
    write_day(lake, "2024-09-10", left)
    connection = built()
    assert [read_figures(connection)[name] for name in names] == [before[name] for name in names]
    assert pass_rates_preview(connection) == preview


def test_an_empty_warehouse_has_no_figures(empty: Path) -> None:
    with open_draft(empty) as connection:
        figures = read_figures(connection)
        assert newest_day(connection) is None
        assert confidence_picture(connection) is None
    assert {value for values in figures.values() for value in values.values()} <= {0}


def test_without_a_price_no_cost_is_shown(lake: Lake, built: Built) -> None:
    two_days(lake)
    assert "estimated_cost" not in read_figures(built())["api_performance"]


def test_types_are_those_of_every_column(empty: Path) -> None:
    with open_draft(empty) as connection:
        types = column_types(connection)
    for model in load_models():
        assert list(types[model.name]) == [name for name, _ in model.columns]
    assert types["pass_rates"]["pass_rate"] == "DOUBLE"


@pytest.mark.parametrize("types", [("LIVENESS", "FACE_MATCH", "ID_QUALITY"), ("<b>&",)])
def test_the_picture_is_a_small_drawing(lake: Lake, computed: Built, types: tuple[str, ...]) -> None:
    checks = [Check(name, "PASS", step / 199) for name in types for step in range(200)]
    write_day(lake, DAY, [Submission(True, [*checks, Check("NO_SCORE", "PASS", None)])])
    picture = confidence_picture(computed("confidence_histogram"))
    assert picture is not None
    assert picture.startswith(HEAD)
    assert len(picture) < 1000  # so that Dagster shows it without a click
    svg = ET.fromstring(base64.b64decode(picture.removeprefix(HEAD).rstrip(")")))
    space = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in svg.findall(f"{space}text")] == sorted(types)
    for path in svg.findall(f"{space}path"):
        assert path.attrib["d"].count("h10") == 20
