"""Settings: names and defaults as promised, one clear line for what is wrong, secrets never shown."""

from decimal import Decimal
from pathlib import Path

import pytest

from kyc_pipeline.errors import UsageError
from kyc_pipeline.settings import Settings, is_loopback, load_settings

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_setting_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    assert not [name for name in Settings.model_fields if f"`{name.upper()}`" not in text]


def test_environment_wins_over_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("DEEPXL_MAX_CONCURRENCY=4\nDEEPXL_PRICE_PER_CALL=0.75\nKYC_CLEAR_TAGS=a, b,\n")
    monkeypatch.setenv("DEEPXL_MAX_CONCURRENCY", "8")
    settings = load_settings(str(file))
    assert settings.deepxl_max_concurrency == 8
    assert settings.deepxl_price_per_call == Decimal("0.75")
    assert settings.kyc_clear_tags == {"a", "b"}


def test_relative_paths_begin_at_home_and_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = load_settings(None)
    assert here.kyc_ledger_url == f"sqlite:///{tmp_path}/data/ledger.sqlite"
    assert (here.kyc_lake, here.kyc_landing) == (f"{tmp_path}/data/lake", tmp_path / "data" / "landing")
    monkeypatch.setenv("KYC_HOME", "home")
    monkeypatch.setenv("KYC_LAKE", "s3://bucket/prefix")
    monkeypatch.setenv("KYC_REPORT", "/srv/report.html")
    monkeypatch.setenv("KYC_LEDGER_URL", "postgresql+psycopg://kyc@host/kyc")
    there = load_settings(None)
    assert there.kyc_warehouse == tmp_path / "home" / "data" / "warehouse" / "kyc.duckdb"
    assert (there.kyc_lake, there.kyc_report) == ("s3://bucket/prefix", Path("/srv/report.html"))
    assert there.kyc_ledger_url == "postgresql+psycopg://kyc@host/kyc"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPXL_MAX_CALLS_PER_RUN", "")
    assert load_settings(None).deepxl_max_calls_per_run is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEEPXL_BASE_URL", "http://api.deepxl.ai"),
        ("DEEPXL_BASE_URL", "ftp://api.deepxl.ai"),
        ("DEEPXL_BASE_URL", "https://user:secretvalue@api.deepxl.ai"),
        ("DEEPXL_BASE_URL", "api.deepxl.ai"),
        ("DEEPXL_AUTH_SCHEME", "secretvalue"),
        ("DEEPXL_MAX_CONCURRENCY", "0"),
        ("DEEPXL_REQUESTS_PER_SECOND", "-1"),
        ("DEEPXL_TIMEOUT_SECONDS", "secretvalue"),
        ("DEEPXL_UNCERTAIN", "ignore"),
        ("KYC_START_DATE", "01.09.2024"),
        ("KYC_WAREHOUSE_MEMORY", "secretvalue"),
        ("KYC_WAREHOUSE_MAX_FACT_ROWS", "-1"),
        ("KYC_ALERT_WEBHOOK", "http://hooks.example/secretvalue"),
        ("KYC_ALERT_WEBHOOK", "secretvalue"),
        ("KYC_SOURCE_URL", "https://user:secretvalue@git.example/kyc"),
    ],
)
def test_a_wrong_value_names_the_variable_and_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name) as caught:
        load_settings(None)
    assert "\n" not in str(caught.value)
    assert "secretvalue" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_http_is_allowed_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPXL_BASE_URL", "http://127.0.0.1:8080/")
    assert load_settings(None).deepxl_base_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize("suffix", ["/v1", "/v1/", "/v1/verification", "/v1/verification/"])
def test_the_version_is_cut_off_the_base_url(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    for base in ("https://api.deepxl.ai", "https://gateway.example/deepxl"):
        monkeypatch.setenv("DEEPXL_BASE_URL", base + suffix)
        assert load_settings(None).deepxl_base_url == base
    monkeypatch.setenv("KYC_SOURCE_URL", "https://git.example/kyc/tree/v1")
    assert load_settings(None).kyc_source_url == "https://git.example/kyc/tree/v1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPXL_API_TOKEN", "secretvalue")
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "secretvalue-of-the-key")
    monkeypatch.setenv("KYC_ALERT_WEBHOOK", "https://hooks.example/secretvalue")
    assert "secretvalue" not in repr(load_settings(None))


def test_a_missing_token_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="DEEPXL_API_TOKEN is not set"):
        load_settings(None).require_token()
