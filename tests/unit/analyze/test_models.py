"""The SQL files: headers, dependencies, and that the header's columns are the query's."""

import os
import re
import signal
from pathlib import Path
from typing import cast

import duckdb
import pytest

from kyc_pipeline.analyze.sql_models import _reads, load_models, load_steps, parse_header
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import ALL_TABLES

INTERFACE = {
    "pass_rates": "date check_group check_type checks passed failed other pass_rate pass_rate_low"
    " pass_rate_high low_n",
    "verified_rates": "date verifications verified verified_rate verified_rate_low verified_rate_high",
    "verified_rates_by_company": "date company_id verifications verified verified_rate verified_rate_low"
    " verified_rate_high",
    "confidence_histogram": "date check_group check_type normalized_status bin bin_low bin_high checks",
    "confidence_summary": "date check_group check_type checks with_confidence mean stddev min p01 p05 p25 p50"
    " p75 p95 p99 max",
    "threshold_sensitivity": "check_group check_type threshold scored at_or_above rate rate_null_as_fail"
    " flips_to_fail flips_to_pass orientation_verified",
    "confidence_drift": "date check_group check_type checks baseline_checks psi psi_noise_floor ks ks_p_value"
    " js_distance level",
    "failure_combinations": "date failed_checks verifications verified",
    "failure_attribution": "date check_group check_type failing sole_blocker not_verified",
    "submission_funnel": "date received rejected accepted completed refused quarantined uncertain failed"
    " not_attempted verified",
    "api_performance": "date calls retries p50_ms p90_ms p95_ms p99_ms max_ms billable_calls estimated_cost"
    " cost_per_verified",
    "repeat_subjects": "date subjects repeat_subjects first_attempt_passed passed_within_3 shared_documents",
    "subjects": "subject first_date attempts verified attempts_to_success days_to_success billable_calls"
    " estimated_cost",
    "error_rates": "check_group check_type threshold genuine false_rejects frr frr_low frr_high fraud"
    " false_accepts far far_low far_high weighted low_n",
    "error_rates_by_dimension": "dimension value check_group check_type genuine false_rejects frr frr_low"
    " frr_high fraud false_accepts far far_low far_high weighted low_n",
    "review_queue": "submission_id date reason priority",
    "alarms": "kind series check_group check_type dimension value from_date to_date effect effect_low"
    " effect_high evidence explained_by",
    "submissions": "submission_id date outcome",
    "verifications": "date verification_id",
    "model_checks": "date verification_id",
    "verification_tags": "date verification_id",
    "verification_files": "date verification_id",
}


@pytest.mark.parametrize("table", INTERFACE)
def test_promised_tables_have_their_promised_columns(table: str) -> None:
    model = next(model for model in load_models() if model.name == table)
    names = [name for name, _ in model.columns]
    promised = INTERFACE[table].split()
    assert [name for name in names if name in promised] == sorted(promised, key=names.index)
    assert set(promised) <= set(names)


def test_models_come_after_what_they_read() -> None:
    seen: set[str] = set()
    for model in load_steps():
        assert set(model.depends_on) <= seen
        seen.add(model.name)


def test_models_that_read_the_lake_come_first() -> None:
    reads = [model.reads_lake for model in load_models()]
    assert reads == sorted(reads, reverse=True)
    assert {model.name for model in load_steps() if model.sources} <= {
        model.name for model in load_steps() if model.reads_lake
    }


def test_what_is_intermediate_is_no_table_but_what_it_reads_is_read() -> None:
    intermediate = {model.name for model in load_steps() if not model.published}
    assert intermediate
    for model in load_models():
        assert model.name not in intermediate
        assert not intermediate & set(model.depends_on), model.name
    assert "model_checks" in next(m for m in load_models() if m.name == "confidence_drift").depends_on


def test_an_intermediate_model_is_followed_by_those_that_read_it() -> None:
    """It takes memory from its creation to its last reader."""
    steps = [model.name for model in load_steps()]
    readers = [m.name for m in load_steps() if "confidence_counts" in m.depends_on]
    first = steps.index("confidence_counts")
    between = steps[first + 1 : max(steps.index(reader) for reader in readers)]
    assert set(between) <= {*readers, "confidence_histogram"}


def test_sources_are_tables_of_the_lake() -> None:
    lake_tables = {table.name for table in ALL_TABLES} | {"partitions"}
    for model in load_steps():
        assert set(model.sources) <= lake_tables


def test_no_model_reads_a_personal_column() -> None:
    personal = {column.name for table in ALL_TABLES for column in table.columns if column.personal}
    for model in load_steps():
        assert not personal & set(re.findall(r"\w+", model.sql)), model.name


def test_a_header_gives_description_and_columns() -> None:
    description, columns, sql = parse_header(
        "t", "-- One\n-- two.\n--\n-- a: First\n--   line.\n-- b: B.\nSELECT 1"
    )
    assert description == "One two."
    assert columns == (("a", "First line."), ("b", "B."))
    assert sql == "SELECT 1"


def test_parameters_are_filled_in_and_an_unknown_one_names_its_file() -> None:
    description, _, sql = parse_header("t", "-- Below {low_n}.\n--\n-- a: A.\nSELECT n < {low_n} AS a")
    assert (description, sql) == ("Below 30.", "SELECT n < 30 AS a")
    with pytest.raises(KycError, match=r"sql/t\.sql: unknown parameter high_n"):
        parse_header("t", "-- One.\n--\n-- a: A.\nSELECT {high_n} AS a")


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT a FROM", "is not valid: syntax error"),
        ("DROP TABLE a", "is not valid: Only SELECT"),
        ("SELECT 1; SELECT 2", "must be one SELECT"),
        ("", "must be one SELECT"),
    ],
)
def test_sql_that_is_not_one_select_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, problem: str
) -> None:
    (tmp_path / "marts").mkdir()
    (tmp_path / "marts" / "t.sql").write_text(f"-- One.\n--\n-- a: A.\n{sql}")
    monkeypatch.setattr("kyc_pipeline.analyze.sql_models.sql_folder", lambda: tmp_path)
    with pytest.raises(KycError, match=rf"sql/marts/t\.sql {problem}"):
        load_steps.__wrapped__()


def test_ctrl_c_while_sql_is_parsed_is_an_interruption() -> None:
    class Interrupted:
        """DuckDB's connection, with the signal at the worst moment."""

        def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
            self._connection = connection

        def execute(self, *_: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            self._connection.execute(
                "SELECT count(*) FROM range(10_000_000) a, range(10_000_000) b WHERE a <> b"
            )

    with duckdb.connect() as connection, pytest.raises(KeyboardInterrupt):
        _reads(cast("duckdb.DuckDBPyConnection", Interrupted(connection)), "marts/t", "SELECT 1")


def test_a_malformed_header_names_its_file() -> None:
    with pytest.raises(KycError, match=r"sql/t\.sql"):
        parse_header("t", "-- One.\n--\n-- nonsense\nSELECT 1")
