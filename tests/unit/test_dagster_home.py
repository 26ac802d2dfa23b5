"""`dagster.yaml` and the database that it names, when they are not as they should be."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from kyc_pipeline.cli.dagster_home import HomeUnusable, open_instance
from kyc_pipeline.errors import UsageError

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
IN_POSTGRES = "storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is Dagster's home."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    return tmp_path


def test_tables_that_another_process_creates_at_the_same_moment(
    home: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_url.replace("+psycopg", "")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    (home / "dagster.yaml").write_text(IN_POSTGRES)
    open_instance().dispose()
    with (
        psycopg.connect(url) as other,
        psycopg.connect(url, autocommit=True) as watch,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        watch.execute("DROP TABLE instance_info")
        other.execute("CREATE TABLE instance_info (run_storage_id TEXT PRIMARY KEY)")
        opened = pool.submit(lambda: open_instance().dispose())
        while watch.execute(WAITING, [other.info.backend_pid]).fetchone() != (1,):
            assert not opened.done()
        other.commit()
        opened.result()


def test_a_database_that_is_away(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "dagster.yaml").write_text(IN_POSTGRES)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://kyc:any@hidden-word/kyc?host=/hidden-word")
    with pytest.raises(HomeUnusable, match=r"check the database if its dagster\.yaml names one") as caught:
        open_instance()
    assert "hidden-word" not in str(caught.value) + caplog.text
    assert "Dagster's database cannot be reached: trying again" in caplog.text


def test_the_ledgers_driver_is_not_dagsters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg://kyc:hidden-word@host/kyc")
    with pytest.raises(UsageError, match="DAGSTER_POSTGRES_URL: write postgresql:// ") as caught:
        open_instance()
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (IN_POSTGRES, "DAGSTER_POSTGRES_URL is not set"),
        ("storage: {postgres: {postgres_uri: hidden-word}}", "at storage: postgres"),
        ("storage: {sqlite: {base_dir: [hidden-word]}}", "at storage: sqlite: base_dir"),
        ("strage: {}", "at the top level"),
        ("storage: {sqlite: {base_dir: a}, postgres: {postgres_url: a}}", "DagsterInvalidConfigError"),
        ("storage: [", "ParserError in line 1"),
        ("hidden-word", "CheckError"),
    ],
)
def test_a_dagster_yaml_that_is_not_valid(home: Path, text: str, fault: str) -> None:
    (home / "dagster.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        open_instance()
    assert str(caught.value) == (
        f"DAGSTER_HOME: {home}/dagster.yaml is not valid ({fault}): correct it; "
        "`dagster instance info` shows more"
    )
