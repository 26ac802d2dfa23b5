"""The step that builds, checks and publishes, through Dagster, over a lake that is already there."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import s3fs
from pydantic import SecretStr

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.publish import open_warehouse, published_sequence
from kyc_pipeline.analyze.quality import check_build
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.publications import list_copies
from kyc_pipeline.orchestration.assets import analyze as assets
from kyc_pipeline.orchestration.assets.analyze import build_warehouse, report
from kyc_pipeline.orchestration.checks.analyze import check_yesterday
from kyc_pipeline.orchestration.publication import Publication
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings
from tests import quick_dagster
from tests.unit.analyze.lake_maker import Check, Submission, write_curated, write_day

DAY = "2024-09-08"


@pytest.fixture(scope="module", autouse=True)
def quick_storage() -> Iterator[None]:
    with quick_dagster.storage():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,
        kyc_landing=tmp_path / "landing",
        kyc_lake=str(tmp_path / "lake"),
        kyc_warehouse=tmp_path / "warehouse" / "kyc.duckdb",
        deepxl_price_per_call=Decimal("0.5"),
        kyc_warehouse_max_fact_rows=0,
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def publish(
    settings: Settings, instance: dg.DagsterInstance, *others: dg.AssetsDefinition
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [build_warehouse, *others],
        instance=instance,
        resources={"pipeline": Pipeline(settings)},
        raise_on_error=False,
    )


def with_key(settings: Settings, key: str, folder: Path) -> Settings:
    """A deployment with a pseudonym key, and a ledger that knows it."""
    ledger = SecretStr(f"sqlite:///{folder / f'{key[:4]}.sqlite'}")
    return settings.model_copy(update={"kyc_pseudonym_key": SecretStr(key), "kyc_ledger_url": ledger})


def test_a_build_is_published_with_its_figures_and_as_the_settings_and_the_key_say(
    settings: Settings, instance: dg.DagsterInstance, computed: Any, tmp_path: Path
) -> None:
    keyless, settings = settings, with_key(settings, "0123456789abcdef" * 2, tmp_path)
    named = Submission(True, [Check()], tags={"customerId": (None, "p-1")})
    write_day(Lake(settings.kyc_lake), DAY, [named, Submission(outcome="uncertain")])
    result = publish(settings, instance)
    assert result.success
    evaluations = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
    held = evaluations["submissions_uncertain"]
    assert (held.passed, held.severity, held.metadata["count"].value) == (
        False,
        dg.AssetCheckSeverity.WARN,
        1,
    )
    assert not evaluations["yesterday_is_included"].passed
    metadata = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    rates: Any = metadata["pass_rates"]
    assert rates["dagster/row_count"].value == 1
    assert rates["LIVENESS pass_rate %"].value == 100
    assert f"| {DAY} | LIVENESS | 1 | 1 | 0 | 0 | 100.00% |" in rates["preview"].value
    columns = rates["dagster/column_schema"].value.columns
    assert {column.name: column.type for column in columns}["pass_rate"] == "DOUBLE"
    assert "pass_rate" in rates["dagster/column_lineage"].value.deps_by_column
    assert metadata["warehouse"]["estimated_cost EUR"].value == 1
    assert metadata["warehouse"]["path"].value == str(settings.kyc_warehouse)
    assert metadata["warehouse"]["held_all_days"].value == 1
    with duckdb.connect(settings.kyc_warehouse, read_only=True) as connection:
        assert {row[0] for row in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()} >= {
            "verifications",
            "model_checks",
        }
        assert connection.execute("SELECT count(*) FROM model_checks").fetchall() == [(1,)]
        assert connection.execute(
            "SELECT check_name FROM build_checks WHERE NOT passed ORDER BY check_name"
        ).fetchall() == [("submissions_uncertain",)]
        subjects = "SELECT subject FROM subjects"
        published = connection.execute(subjects).fetchall()
    # The key makes the pseudonyms of people.
    assert len(published) == 1
    for each in (settings, with_key(keyless, "fedcba9876543210" * 2, tmp_path)):
        found = computed("subjects", subject_secret=Pipeline(each).subject_secret())
        assert (found.execute(subjects).fetchall() == published) == (each is settings)


def test_tables_without_yesterday_are_not_fresh_though_they_were_just_published(settings: Settings) -> None:
    lake = Lake(settings.kyc_lake)
    write_day(lake, DAY, [Submission(True, [Check()])])
    for now, is_fresh in (("2024-09-09T08", True), ("2024-09-10T06", True), ("2024-09-10T08", False)):
        result = check_yesterday(lake, datetime.fromisoformat(now).replace(tzinfo=UTC))
        assert result.passed == is_fresh, now
    assert "2024-09-09 is not included: run it" in result.description


def test_a_day_that_changes_during_the_checks_is_built_again_and_an_error_of_a_check_publishes_nothing(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, day = Lake(settings.kyc_lake), [Submission(True, [Check()]), Submission(True, [Check()])]
    write_day(lake, DAY, day[:1])
    builds: list[int] = []

    def checked(connection: duckdb.DuckDBPyConnection) -> Any:
        if not builds:
            write_day(lake, DAY, day)
        builds.append(1)
        return check_build(connection)

    monkeypatch.setattr(assets, "check_build", checked)
    assert publish(settings, instance).success
    with duckdb.connect(settings.kyc_warehouse, read_only=True) as connection:
        assert connection.execute("SELECT sum(checks) FROM pass_rates").fetchall() == [(2,)]
    assert len(builds) == 2
    before = Path(settings.kyc_warehouse).read_bytes()
    write_curated(lake, DAY, day[:1])
    result = publish(settings, instance)
    assert not result.success
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "not published: completed_submissions_have_verifications: 1 row (" in str(
        failure.user_failure_data.description
    )
    assert Path(settings.kyc_warehouse).read_bytes() == before
    assert sorted([path.name for path in Path(settings.kyc_warehouse).parent.iterdir()]) == [
        "kyc.duckdb",
        "kyc_restricted.duckdb",
    ]


@pytest.fixture
def in_s3(settings: Settings, s3_root: str, tmp_path: Path) -> Settings:
    """Warehouse and report in an object store, with a ledger that knows an erased person."""
    places = {"kyc_warehouse": s3_root, "kyc_report": s3_root, "kyc_warehouse_max_fact_rows": 10}
    ledger = SecretStr(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    return settings.model_copy(update={**places, "kyc_ledger_url": ledger})


def objects(place: Path | str) -> list[str]:
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    return sorted(path.rpartition("/prefix/")[2] for path in fs.find(str(place).removeprefix("s3://")))


def test_an_object_store_gets_warehouse_and_report_and_keeps_no_build_from_before_an_erasure(
    in_s3: Settings, instance: dg.DagsterInstance
) -> None:
    lake = Lake(in_s3.kyc_lake)
    write_day(lake, DAY, [Submission(True, [Check()])])
    result = publish(in_s3, instance, report)
    assert result.success
    assert objects(in_s3.kyc_warehouse) == [
        "current.json",
        "index.html",
        "kyc-1.duckdb",
        "restricted/kyc-1.duckdb",
    ]
    [page] = result.asset_materializations_for_node("report")
    assert page.metadata["url"].value == f"{in_s3.kyc_report}/index.html"
    with open_warehouse(in_s3.kyc_warehouse) as connection:
        assert connection.execute("SELECT sequence FROM build_info").fetchall() == [(1,)]
    again = publish(in_s3, instance, report)
    assert again.success
    assert not again.get_asset_materialization_events()
    assert "kyc-2.duckdb" not in objects(in_s3.kyc_warehouse)
    write_day(lake, DAY, [Submission(True, [Check()]) for _ in range(2)])
    assert publish(in_s3, instance).success
    assert len(objects(in_s3.kyc_warehouse)) == 6
    tombstone = Tombstone.of_tag(Pseudonymizer("0123456789abcdef" * 2), "customerId", "3")
    with Ledger(in_s3.kyc_ledger_url) as ledger:
        LedgerErasure(ledger).remember([tombstone])
        write_day(lake, DAY, [Submission(True, [Check()])])
        assert publish(in_s3, instance).success
        assert [copy.place for copy in list_copies(ledger)] == [in_s3.kyc_warehouse]
    assert objects(in_s3.kyc_warehouse) == [
        "current.json",
        "index.html",
        "kyc-3.duckdb",
        "restricted/kyc-3.duckdb",
    ]


@pytest.mark.parametrize("where", ["file", "s3_root"])
def test_of_two_publications_at_once_the_second_has_nothing_to_build(
    where: str,
    settings: Settings,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    ledger = SecretStr(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    place = settings.kyc_warehouse if where == "file" else request.getfixturevalue(where)
    settings = settings.model_copy(update={"kyc_warehouse": place, "kyc_ledger_url": ledger})
    with Ledger(ledger) as made, made.write():
        pass
    write_day(Lake(settings.kyc_lake), DAY, [Submission(True, [Check()])])
    monkeypatch.setattr(Publication, "reasons", _reasons_without_dagster)
    builds: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        builds.append(options["run_id"])
        return build(*arguments, **options)

    monkeypatch.setattr(assets, "build", counted)
    with ThreadPoolExecutor(2) as hosts, dg.DagsterInstance.ephemeral() as other:
        assert all(
            result.success for result in hosts.map(lambda each: publish(settings, each), (instance, other))
        )
    assert len(builds) == 1
    assert published_sequence(place) == 1


def _reasons_without_dagster(publication: Publication) -> list[str]:
    """Two hosts share Dagster's storage, which two instances in memory do not."""
    published = publication._published
    return published.differences(publication._partitions, publication.inputs) if published else ["none"]
