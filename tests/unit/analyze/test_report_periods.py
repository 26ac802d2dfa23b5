"""The periods of the report's filter."""

from datetime import date, timedelta
from typing import Any

import pytest

from kyc_pipeline.analyze.report.periods import Period, choose_periods

SUNDAY = date(2024, 12, 1)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (1, [("all", "day", 1)]),
        (7, [("all", "day", 7)]),
        (8, [("all", "day", 8), ("7", "day", 7)]),
        (120, [("all", "day", 120), ("90", "day", 90), ("28", "day", 28), ("7", "day", 7)]),
        (121, [("all", "week", 18), ("90", "day", 90), ("28", "day", 28), ("7", "day", 7)]),
        (364, [("all", "week", 52), ("90", "day", 90), ("28", "day", 28), ("7", "day", 7)]),
        (
            1100,
            [
                ("all", "week", 158),
                ("weeks", "week", 52),
                ("90", "day", 90),
                ("28", "day", 28),
                ("7", "day", 7),
            ],
        ),
    ],
)
def test_longer_data_offer_more_periods_and_are_drawn_by_week(
    days: int, expected: list[tuple[str, str, int]]
) -> None:
    periods = choose_periods(SUNDAY - timedelta(days=days - 1), SUNDAY)
    assert [(period.key, period.unit, len(period.starts)) for period in periods] == expected
    for period in periods:
        assert period.until == SUNDAY
        assert period.days == (SUNDAY - period.since).days + 1
        shown: Any = period.shown
        assert len(shown["ticks"]) <= 7
        assert shown["from"] < shown["ticks"][0] < shown["to"]


def test_weeks_begin_on_monday_before_the_first_day() -> None:
    period = Period("all", "All days", date(2024, 9, 5), date(2024, 9, 10), "week")
    assert list(period.starts) == [date(2024, 9, 2), date(2024, 9, 9)]
    assert period.first_start == period.starts[0]
