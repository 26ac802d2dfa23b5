"""What makes a new build necessary, and what does not."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kyc_pipeline.analyze import up_to_date
from kyc_pipeline.analyze.build import build, list_partitions, open_draft, record_checks
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.publish import new_draft, open_warehouse, publish, restricted_path
from kyc_pipeline.analyze.quality import check_build, recorded_checks
from kyc_pipeline.analyze.sql_models import sql_folder
from kyc_pipeline.analyze.up_to_date import build_inputs, read_published
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import MODEL_CHECKS, TABLES
from kyc_pipeline.settings import Settings
from kyc_pipeline.wording import plural
from tests.unit.analyze.lake_maker import Check, Submission, write_day, write_responses, write_submissions

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
KEY_ID = "0123abcd"
PEOPLE = [Submission(True, [Check()]), Submission(outcome="uncertain")]


@dataclass(frozen=True)
class Deployment:
    """A lake and a warehouse in one folder."""

    folder: Path

    def settings(self, **changes: Any) -> Settings:
        return Settings(
            _env_file=None,
            kyc_lake=str(self.folder / "lake"),
            kyc_warehouse=self.folder / "warehouse" / "kyc.duckdb",
            **changes,
        )

    @property
    def lake(self) -> Lake:
        return Lake(str(self.folder / "lake"))

    @property
    def warehouse(self) -> Path:
        return Path(self.settings().kyc_warehouse)

    def publish(self) -> None:
        with new_draft(self.warehouse) as draft:
            inputs = build_inputs(self.settings(), KEY_ID)
            choices = Choices.of(self.settings())
            summary = build(self.lake, draft, run_id="run", choices=choices, inputs=inputs)
            with open_draft(draft) as connection:
                results = check_build(connection)
            record_checks(draft, results)
            publish(draft, self.warehouse, summary.built_ns)

    def differences(self, *, key_id: str = KEY_ID, **changes: Any) -> list[str] | None:
        """Why to build again; None if there is no readable build."""
        published = read_published(self.warehouse)
        if not published:
            return None
        return published.differences(
            list_partitions(self.lake), build_inputs(self.settings(**changes), key_id)
        )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    deployment = Deployment(tmp_path_factory.mktemp("published"))
    write_day(deployment.lake, DAY, PEOPLE)
    deployment.publish()
    return deployment


def test_nothing_new_is_no_reason_to_build(published: Deployment) -> None:
    assert published.differences() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"deepxl_price_per_call": Decimal("0.50")}, "DEEPXL_PRICE_PER_CALL has changed"),
        ({"deepxl_currency": "CHF"}, "DEEPXL_CURRENCY has changed"),
        ({"kyc_clear_tags": "companyId"}, "KYC_CLEAR_TAGS has changed"),
        ({"kyc_min_cell": 3}, "KYC_MIN_CELL has changed"),
        ({"kyc_warehouse_max_fact_rows": 1}, "KYC_WAREHOUSE_MAX_FACT_ROWS has changed"),
        ({"key_id": "ffffffff"}, "pseudonym_key has changed"),
    ],
)
def test_a_changed_setting_is_a_reason(published: Deployment, changes: dict[str, Any], reason: str) -> None:
    assert published.differences(**changes) == [reason]


def test_a_setting_without_effect_on_the_content_is_none(published: Deployment) -> None:
    assert published.differences(kyc_warehouse_memory="4GB", deepxl_max_concurrency=1) == []


def test_changed_sql_is_a_reason(
    published: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = shutil.copytree(sql_folder(), tmp_path / "sql")
    with (changed / "checks" / "large_drift.sql").open("a") as file:
        file.write("-- changed\n")
    monkeypatch.setattr(up_to_date, "sql_folder", lambda: changed)
    assert published.differences() == ["code has changed"]


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)


def add_a_table(path: Path) -> None:
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS one")


def drop_the_inputs(path: Path) -> None:
    """As a build of an older version, which recorded none."""
    with duckdb.connect(path) as connection:
        connection.execute("DROP TABLE build_inputs")


@pytest.fixture
def copy(published: Deployment, tmp_path: Path) -> Path:
    """A copy of the warehouse, which is up to date."""
    copy = Path(shutil.copy2(published.warehouse, tmp_path / "kyc.duckdb"))
    copy.chmod(0o644)
    shutil.copy2(restricted_path(published.warehouse), restricted_path(copy))
    assert differences_of(copy, published) == []
    return copy


def differences_of(warehouse: Path, published: Deployment) -> list[str] | None:
    found = read_published(warehouse)
    now = list_partitions(published.lake)
    return found.differences(now, build_inputs(published.settings(), KEY_ID)) if found else None


@pytest.mark.parametrize("damage", [rewrite, truncate, overwrite, add_a_table, drop_the_inputs, Path.unlink])
def test_a_damaged_warehouse_is_a_reason(
    published: Deployment, copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy)
    assert differences_of(copy, published) != []


@pytest.mark.parametrize("damage", [rewrite, truncate, Path.unlink])
def test_a_damaged_restricted_file_is_a_reason(
    published: Deployment, copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(restricted_path(copy))
    assert differences_of(copy, published) == ["its restricted file is missing or of another build"]


def decide(lake: Lake) -> None:
    """A late decision: the uncertain submission is completed."""
    write_responses(lake, DAY, [PEOPLE[0], Submission(id=PEOPLE[1].id)])


def write_the_same_again(lake: Lake) -> None:
    write_submissions(lake, DAY, PEOPLE)


def remove_a_partition(lake: Lake) -> None:
    Path(lake.path(MODEL_CHECKS, DAY)).unlink()


def add_a_day(lake: Lake) -> None:
    write_day(lake, NEXT_DAY, [])


def test_a_changed_lake_is_a_reason(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    write_day(deployment.lake, DAY, PEOPLE)
    deployment.publish()
    assert deployment.differences() == []
    changed = 0
    for change, partitions in (
        (decide, 1),
        (write_the_same_again, 1),
        (remove_a_partition, 1),
        (add_a_day, len(TABLES)),
    ):
        change(deployment.lake)
        changed += partitions
        assert deployment.differences() == [f"{plural(changed, 'partition')} new, changed or gone"], change


def test_the_results_of_the_checks_can_be_read_back(published: Deployment) -> None:
    with open_warehouse(published.warehouse) as connection:
        recorded = recorded_checks(connection)
        assert recorded == check_build(connection)
    assert [result.sample for result in recorded if not result.passed]
