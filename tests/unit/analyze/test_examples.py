"""The analysts' examples run unchanged on an empty and on a filled warehouse."""

from collections.abc import Callable

import duckdb

from kyc_pipeline.analyze.sql_models import sql_folder
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, write_day

EXAMPLES = sorted((sql_folder() / "examples").glob("*.sql"))


def test_every_example_says_its_question_and_runs(
    lake: Lake, built: Callable[..., duckdb.DuckDBPyConnection]
) -> None:
    empty = built()
    for number, date in enumerate(("2024-09-02", "2024-09-09")):
        day = [
            Submission(
                failing > number,
                [
                    Check("LIVENESS", "PASS" if failing > number else "FAIL", failing / 4),
                    Check("FACE_MATCH", "PASS" if failing % 2 else "FAIL", 0.9),
                ],
                tags={"companyId": (f"c{failing % 2}", None), "customerId": (None, f"p{failing}")},
                document="d",
            )
            for failing in range(4)
        ]
        write_day(lake, date, [*day, Submission(outcome="uncertain")])
    filled = built()
    assert len(EXAMPLES) >= 12
    with_rows: set[str] = set()
    for example in EXAMPLES:
        text = example.read_text(encoding="utf-8")
        assert text.startswith("-- "), example.name
        columns = [column[0] for column in empty.execute(text).description or []]
        assert len(columns) == len(set(columns)), example.name
        empty.fetchall()
        if filled.execute(text).fetchall():
            with_rows.add(example.stem)
    of_large_samples = {"05_what_changed_this_week", "10_companies_that_stand_out", "11_drift_to_look_at"}
    assert {example.stem for example in EXAMPLES} - with_rows <= of_large_samples
