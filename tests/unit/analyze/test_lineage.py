"""Column lineage: from DeepXL's response to each column of the warehouse."""

from pathlib import Path

import dagster as dg
import pytest

from kyc_pipeline.analyze import derived_lineage
from kyc_pipeline.analyze.derived_lineage import derived_sources
from kyc_pipeline.analyze.lineage import Source, column_sources, is_response_field, response_fields
from kyc_pipeline.analyze.sql_models import load_models, load_steps
from kyc_pipeline.deepxl.contract import FIELDS
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import TABLES, Zone
from kyc_pipeline.orchestration.assets.analyze import _model_spec
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.specs import RESPONSE
from kyc_pipeline.settings import Settings

STATUS = ("result.modelResults.*[].status", "result.technicalChecks[].status")
CONFIDENCE = ("result.modelResults.*[].confidence", "result.technicalChecks[].confidence")


def test_a_column_of_the_lake_is_made_from_what_exists() -> None:
    paths = {field.path for field in FIELDS}
    columns = {f"{table.name}.{column.name}" for table in TABLES for column in table.columns}
    for table in TABLES:
        for column in table.columns:
            assert set(column.made_from) <= paths | columns, (table.name, column.name)


def test_every_curated_column_says_what_it_is_made_from() -> None:
    for table in TABLES:
        if table.zone is Zone.CURATED:
            assert [column.name for column in table.columns if not column.made_from] == [], table.name


def test_a_column_of_lake_and_warehouse_has_one_description() -> None:
    lake = {(table.name, column.name): column.description for table in TABLES for column in table.columns}
    warehouse = {(model.name, name): meaning for model in load_models() for name, meaning in model.columns}
    both = lake.keys() & warehouse.keys()
    assert both
    assert {key: warehouse[key] for key in both} == {key: lake[key] for key in both}


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT 1 AS a, 2 AS b, 3 AS c", "the header does not describe the column c"),
        ("SELECT 1 AS a", "the header describes the column b, which the query lacks"),
        ("SELECT 1 AS b, 2 AS a", "the header must describe the columns in the order of the query"),
        ("WITH t AS (SELECT 1 AS a) SELECT a, t.b FROM t", "Unknown column: b"),
    ],
)
def test_a_header_that_does_not_fit_its_query_names_file_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, problem: str
) -> None:
    (tmp_path / "marts").mkdir()
    (tmp_path / "marts" / "m.sql").write_text(f"-- One.\n--\n-- a: A.\n-- b: B.\n{sql}")
    monkeypatch.setattr("kyc_pipeline.analyze.sql_models.sql_folder", lambda: tmp_path)
    monkeypatch.setattr(derived_lineage, "load_steps", load_steps.__wrapped__)
    with pytest.raises(KycError) as raised:
        derived_sources.__wrapped__()
    assert str(raised.value) == f"sql/marts/m.sql: {problem}"


def test_only_constants_are_made_from_nothing() -> None:
    without = {
        (model, column)
        for model, columns in column_sources().items()
        for column, sources in columns.items()
        if not sources
    }
    constants = {("confidence_histogram", column) for column in ("bin", "bin_low", "bin_high")}
    constants |= {("daily_figures", "table_name"), ("daily_figures", "metric")}
    constants |= {("verdict_times", "target_seconds"), ("review_queue", "priority")}
    constants |= {("threshold_sensitivity", "threshold"), ("error_rates", "threshold")}
    of_footers = {("days", "date"), ("days", "accepted")}
    of_the_previous_build = {(model, column) for model, column in without if model == "restatements"}
    of_the_previous_build.add(("daily_figures", "first_seen_build"))
    assert without == constants | of_footers | of_the_previous_build
    assert ("restatements", "is") not in of_the_previous_build
    assert {model.name: [name for name, _ in model.columns] for model in load_models()} == {
        model: list(columns) for model, columns in column_sources().items()
    }


@pytest.mark.parametrize(
    ("model", "column", "sources"),
    [
        ("model_checks", "check_type", {Source(True, "model_checks", "type")}),
        ("pass_rates", "pass_rate", {Source(False, "model_checks", "normalized_status")}),
        (  # a bare count is of what groups it
            "pass_rates",
            "checks",
            {Source(False, "model_checks", name) for name in ("date", "check_group", "check_type")},
        ),
        ("confidence_histogram", "checks", {Source(False, "model_checks", "confidence")}),
        ("confidence_summary", "distinct_values", {Source(False, "model_checks", "confidence")}),
        (  # through an intermediate model, which is no table
            "confidence_drift",
            "psi",
            {Source(False, "model_checks", "confidence"), Source(False, "model_checks", "date")},
        ),
        (  # through a UNION, and a CTE that chooses the rows
            "failure_attribution",
            "failing",
            {
                Source(False, "model_checks", "normalized_status"),
                Source(False, "verifications", "verified"),
            },
        ),
        (  # what is joined by LEFT chooses no rows
            "failure_attribution",
            "not_verified",
            {Source(False, "verifications", "verified")},
        ),
        (  # through USING
            "submission_funnel",
            "date",
            {
                Source(False, table, "date")
                for table in ("days", "submissions", "rejected_by_reason", "verifications")
            },
        ),
        ("submissions", "outcome", {Source(True, "verification_responses", "outcome")}),
    ],
)
def test_sources_are_one_step_back(model: str, column: str, sources: set[Source]) -> None:
    assert set(column_sources()[model][column]) == sources


@pytest.mark.parametrize(
    ("model", "column", "fields"),
    [
        ("pass_rates", "pass_rate", STATUS),
        ("pass_rate_changes", "change", (STATUS[0], STATUS[1], "result.verified")),
        ("confidence_summary", "p50", CONFIDENCE),
        ("verifications", "verified_at", ("result.timestamp",)),
        ("verified_rates_by_company", "company_id", ()),
        ("verification_files", "uploaded_at", ("result.files[].timestamp",)),
        ("rejected_by_reason", "rejected", ()),
    ],
)
def test_fields_are_all_the_way_back(model: str, column: str, fields: tuple[str, ...]) -> None:
    assert response_fields(column_sources())[model][column] == fields


@pytest.mark.parametrize(
    ("asset", "column", "fields"),
    [
        ("pass_rates", "pass_rate", set(STATUS)),
        ("failure_attribution", "failing", {*STATUS, "result.verified"}),
        ("threshold_sensitivity", "flips_to_pass", {*STATUS, *CONFIDENCE}),
        ("repeat_subjects", "repeat_subjects", {"result.tags[].name", "result.tags[].value"}),
    ],
)
def test_dagsters_lineage_leads_to_the_response(
    tmp_path: Path, asset: str, column: str, fields: set[str]
) -> None:
    definitions = build_defs(Pipeline(Settings(_env_file=None, kyc_landing=tmp_path)))
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    seen: set[tuple[dg.AssetKey, str]] = set()
    ends: set[str] = set()
    to_do = [(dg.AssetKey(asset), column)]
    while to_do:
        key, name = step = to_do.pop()
        if key == RESPONSE:
            ends.add(name)
        elif step not in seen:
            seen.add(step)
            deps = specs[key].metadata["dagster/column_lineage"].deps_by_column
            # `date` is of the partition, no column of the lake's files.
            to_do += [(dep.asset_key, dep.column_name) for dep in deps.get(name, [])]
    assert ends == fields
    assert (dg.AssetKey("model_checks" if asset != "repeat_subjects" else "verification_tags")) in {
        key for key, _ in seen
    }


@pytest.mark.parametrize(
    "content", [None, "", "[", "[]", '{"days": {"date": 5}}', '{"days": {"date": ["date"]}}']
)
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "lineage.json").write_text(content)
    monkeypatch.setattr("kyc_pipeline.analyze.lineage.sql_folder", lambda: tmp_path)
    with pytest.raises(KycError, match=r"lineage\.json is missing or damaged: install the package again"):
        column_sources.__wrapped__()


def test_a_model_that_is_not_in_the_file_yet_has_no_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyc_pipeline.orchestration.assets.analyze.column_sources", dict)
    [spec, *_] = map(_model_spec, load_models())
    assert "dagster/column_schema" in spec.metadata
    assert "dagster/column_lineage" not in spec.metadata


def test_a_field_of_the_response_is_distinguished_from_a_column() -> None:
    assert is_response_field("result.verified")
    assert is_response_field("result")
    assert not is_response_field("submissions.id_sha256")
