"""Settings: names and defaults as promised, one clear line for what is wrong, secrets never shown."""

import errno
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from kyc_pipeline.errors import UsageError, is_outside_fault, plain_line
from kyc_pipeline.ledger.identity import open_ledger, read_identity
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.privacy.pseudonyms import load_pseudonymizer
from kyc_pipeline.settings import Settings, is_loopback, load_settings
from kyc_pipeline.vocabulary import DocumentType

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


def test_document_types_are_media_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(None).deepxl_document_types == {*DocumentType} - {"image/heic"}
    monkeypatch.setenv("DEEPXL_DOCUMENT_TYPES", "image/jpeg, image/heic,")
    assert load_settings(None).deepxl_document_types == {"image/jpeg", "image/heic"}


def test_relative_paths_begin_at_home_and_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = load_settings(None)
    assert here.kyc_ledger_url.get_secret_value() == f"sqlite:///{tmp_path}/data/ledger.sqlite"
    assert (here.kyc_lake, here.kyc_landing) == (f"{tmp_path}/data/lake", tmp_path / "data" / "landing")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("KYC_HOME", "home")
    monkeypatch.setenv("KYC_LAKE", "s3://bucket/prefix")
    monkeypatch.setenv("KYC_REPORT", "/srv/report.html")
    monkeypatch.setenv("KYC_LEDGER_URL", "postgresql+psycopg://kyc@host/kyc")
    there = load_settings(None)
    assert there.kyc_warehouse == tmp_path / "home" / "data" / "warehouse" / "kyc.duckdb"
    assert (there.kyc_lake, there.kyc_report) == ("s3://bucket/prefix", Path("/srv/report.html"))
    assert there.kyc_ledger_url.get_secret_value() == "postgresql+psycopg://kyc@host/kyc"


def test_the_users_home_and_blanks_around_a_path_make_no_second_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kyc").mkdir()
    monkeypatch.setenv("KYC_HOME", " ~/kyc \n")
    monkeypatch.setenv("KYC_LANDING", "~/landing")
    monkeypatch.setenv("KYC_LAKE", "~/lake ")
    settings = load_settings(None)
    assert (settings.kyc_landing, settings.kyc_lake) == (tmp_path / "landing", f"{tmp_path}/lake")
    assert settings.kyc_ledger_url.get_secret_value() == f"sqlite:///{tmp_path}/kyc/data/ledger.sqlite"
    monkeypatch.setenv("KYC_LEDGER_URL", "sqlite:///~/ledger.sqlite")
    assert load_settings(None).kyc_ledger_url.get_secret_value() == f"sqlite:///{tmp_path}/ledger.sqlite"


def test_a_ledger_is_the_same_by_each_name_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    found = set()
    for name in ("real", "./link", "link/../real", str(tmp_path / "link")):
        monkeypatch.setenv("KYC_HOME", name)
        with open_ledger(load_settings(None)) as ledger:
            found.add(read_identity(ledger).ledger_id)
    assert len(found) == 1


def test_a_setting_that_is_there_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("KYC_LAKE=a\nexport kyc_lake=b\n")
    with pytest.raises(UsageError, match=r"\.env has KYC_LAKE and kyc_lake, which are one setting: keep one"):
        load_settings(str(file))
    monkeypatch.setenv("kyc_lake", "b")
    assert load_settings(None).kyc_lake == str(Path("b").absolute())
    monkeypatch.setenv("KYC_LAKE", "a")
    with pytest.raises(UsageError, match=r"^the environment has .*, which are one setting"):
        load_settings(None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('KYC_LEDGER_URL="sqlite:///x', "line 2 is not NAME=value, or its quote has no end"),
        ("DEEPXL_MAX_CALLS_PER_DAY: 10", "line 2 is not NAME=value, or its quote has no end"),
        (
            "DEEPXL_MAX_CALL_PER_DAY=10",
            r"no setting DEEPXL_MAX_CALL_PER_DAY \(is it DEEPXL_MAX_CALLS_PER_DAY",
        ),
        ("kyc_zzz=secretvalue", "there is no setting kyc_zzz: correct or remove it"),
    ],
)
def test_a_line_that_would_be_ignored_is_refused(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / ".env"
    file.write_text(f"# ours\n{line}\nPGHOST=theirs\n")
    with pytest.raises(UsageError, match=rf"\.env: .*{told}") as caught:
        load_settings(str(file))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["KYC_DIMENSION", "kyc_lak", "KYC_LAQE", "DEEPXL_MAX_CALL_PER_RUN"])
def test_a_mistyped_variable_of_the_environment_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "secretvalue")
    told = rf"^the environment has {name}, which is no setting \(is it [A-Z_]+\?\): correct or remove it$"
    with pytest.raises(UsageError, match=told):
        load_settings(None)


def test_a_variable_of_another_program_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets such variables for each service."""
    for name in ("KYC_PIPELINE_PORT", "KYC_METRICS_UI_PORT", "KYC_REPORTS"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
    for name in ("KYC_PORT", "KYC_HOST", "KYC_ALERT_WEBHOOK_PORT", "KYC_LEDGER_URL_2"):
        monkeypatch.setenv(name, "8080")
    load_settings(None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DEEPXL_CURRENCY", "euro", "must look like EUR"),
        ("KYC_WAREHOUSE_MEMORY", "2 gigabytes", "must look like 2GB"),
        ("KYC_ALERT_EMAIL_FROM", "me", "must look like kyc@mail.example"),
        ("KYC_ALERT_EMAIL_TO", "me@x,you", "must look like me@mail.example,you@mail.example"),
        ("KYC_CSV_ENCODING", "cp1252", "must be one of windows-1250 to windows-1258; .*"),
        ("DEEPXL_MAX_CALLS_PER_DAY", "many", "must be a valid integer"),
        ("DEEPXL_PRICE_PER_CALL", "0,30", "must be a valid decimal"),
        ("KYC_START_DATE", "1.9.24", "must be a valid date or datetime"),
        ("KYC_MIN_CELL", "0", "must be greater than or equal to 1"),
        ("DEEPXL_UNCERTAIN", "maybe", "must be 'hold' or 'retry'"),
    ],
)
def test_a_value_of_another_form_is_answered_with_what_it_must_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^wrong settings: {name}: {told}$"):
        load_settings(None)


def test_a_question_mark_in_the_warehouses_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "what?").mkdir()
    monkeypatch.setenv("KYC_HOME", str(tmp_path / "what?"))
    with pytest.raises(UsageError, match=r"^wrong settings: KYC_WAREHOUSE: has a \? in its path"):
        load_settings(None)


def test_a_folder_without_access_is_told_in_one_line() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/a/person.jpg")
    line = plain_line(error)
    assert is_outside_fault(error)  # so that nobody is asked to report it
    assert line.startswith("a file or folder cannot be used (Permission denied): correct its access rights")
    assert "person" not in line


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
        ("DEEPXL_HTTP_HOST", "http://secretvalue"),
        ("DEEPXL_HTTP_HOST", "api.deepxl.ai"),
        ("DEEPXL_AUTH_SCHEME", "secretvalue"),
        ("DEEPXL_PROXY", "secretvalue:3128"),
        ("DEEPXL_PROXY", "socks5://user:secretvalue@proxy.example"),
        ("DEEPXL_PROXY", "http://proxy.example/secretvalue"),
        ("KYC_UI_PASSWORD", "secretvalue"),
        ("DEEPXL_MAX_CONCURRENCY", "0"),
        ("DEEPXL_REQUESTS_PER_SECOND", "-1"),
        ("DEEPXL_TIMEOUT_SECONDS", "secretvalue"),
        ("DEEPXL_UNCERTAIN", "ignore"),
        ("DEEPXL_DOCUMENT_TYPES", "image/jpg"),
        ("DEEPXL_DOCUMENT_TYPES", ","),
        ("KYC_CSV_ENCODING", "secretvalue"),
        ("KYC_DIMENSIONS", "country,model_version"),
        ("KYC_DIMENSIONS", "country,company"),
        ("KYC_HOME", "/nowhere/secretvalue"),
        ("KYC_HOME", __file__),
        ("KYC_HOME", "s3://bucket/secretvalue"),
        ("KYC_HOME", "~nobody-secretvalue/kyc"),
        ("KYC_LANDING", "~nobody-secretvalue/landing"),
        ("KYC_LANDING", "s3:/bucket/secretvalue"),
        ("KYC_LAKE", "S3://bucket/secretvalue"),
        ("KYC_LAKE", "s3://bucket//secretvalue"),
        ("KYC_LAKE", "file:///secretvalue/lake"),
        ("KYC_LEDGER_URL", "sqlite:///~nobody-secretvalue/ledger.sqlite"),
        ("KYC_LEDGER_URL", "sqlite:///file:secretvalue?uri=true"),
        ("KYC_WAREHOUSE", "s3://bucket//secretvalue"),
        ("KYC_MIN_CELL", "0"),
        ("KYC_VERDICT_TARGET_SECONDS", "0"),
        ("KYC_START_DATE", "01.09.2024"),
        ("KYC_WAREHOUSE_MEMORY", "secretvalue"),
        ("KYC_WAREHOUSE_MAX_FACT_ROWS", "-1"),
        ("KYC_ALERT_WEBHOOK", "http://hooks.example/secretvalue"),
        ("KYC_ALERT_WEBHOOK", "secretvalue"),
        ("KYC_ALERT_WEBHOOK_FORM", "secretvalue"),
        ("KYC_ALERT_SMTP_URL", "https://kyc:secretvalue@mail.example"),
        ("KYC_ALERT_SMTP_URL", "smtp://kyc:secretvalue@[mail"),
        ("KYC_ALERT_SMTP_URL", "smtp://kyc:secretvalue@mail.example"),  # without sender and recipients
        ("KYC_ALERT_EMAIL_TO", "a@team.example, secretvalue"),
        ("KYC_ALERT_EMAIL_FROM", "secretvalue"),
        ("KYC_ALERT_CALLS_PER_DAY", "secretvalue"),
        ("KYC_UI_URL", "https://user:secretvalue@dagster.example"),
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


def test_http_is_allowed_to_one_host_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPXL_HTTP_HOST", "simulator")
    monkeypatch.setenv("DEEPXL_BASE_URL", "http://simulator:8417")
    assert load_settings(None).deepxl_base_url == "http://simulator:8417"
    for name, url in (
        ("DEEPXL_BASE_URL", "http://simulator.example"),
        ("KYC_UI_URL", "http://simulator:8417"),
    ):
        with monkeypatch.context() as other:
            other.setenv(name, url)
            with pytest.raises(UsageError, match=name):
                load_settings(None)


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
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "secretvalue-0123456789-of-the-key")
    monkeypatch.setenv("KYC_ALERT_WEBHOOK", "https://hooks.example/secretvalue")
    monkeypatch.setenv("KYC_LEDGER_URL", "postgresql+psycopg://kyc:secretvalue@host/kyc")
    monkeypatch.setenv("KYC_ALERT_EMAIL_FROM", "kyc@team.example")
    monkeypatch.setenv("KYC_ALERT_EMAIL_TO", "a@team.example,b@team.example")
    monkeypatch.setenv("KYC_ALERT_SMTP_URL", "smtps://kyc:secretvalue@mail.example")
    settings = load_settings(None)
    assert "secretvalue" not in f"{settings!r} {settings.model_dump_json()} {Pipeline(settings)!r}"


@pytest.mark.parametrize(
    "key",
    ["", "k" * 64, "changeme-changeme-changeme-changeme", "0123456789abcdef", "secretvalue secret"],
)
def test_a_key_that_can_be_guessed_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    file = Settings(_env_file=None, kyc_landing=tmp_path / "landing").pseudonym_key_file
    file.write_text(key)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="openssl rand") as caught:
        load_pseudonymizer(Settings(_env_file=None, kyc_landing=tmp_path / "landing"))
    messages = [str(caught.value)]
    if key:
        monkeypatch.setenv("KYC_PSEUDONYM_KEY", key)
        with pytest.raises(UsageError, match="KYC_PSEUDONYM_KEY: can be guessed") as caught:
            load_settings(None)
        messages.append(str(caught.value))
        assert key not in " ".join(messages)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_file_with_a_secret_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    env, settings = tmp_path / ".env", Settings(_env_file=None, kyc_landing=tmp_path / "landing")
    load_pseudonymizer(settings)
    for file in (env, settings.pseudonym_key_file):
        text = "DEEPXL_API_TOKEN=secretvalue\n" if file is env else "0123456789abcdef" * 4
        for allowed in (0o600, 0o640, mode):
            file.write_text(text)
            file.chmod(allowed)
            if allowed != mode:
                assert load_settings(str(env)).require_token()
                load_pseudonymizer(settings)
                continue
            with pytest.raises(UsageError, match=rf"^{file} holds a secret.*chmod o= ") as caught:
                load_settings(str(env)) if file is env else load_pseudonymizer(settings)
            assert "secretvalue" not in str(caught.value)
        file.chmod(0o600)
    env.write_text("KYC_CATCH_UP_DAYS=7\n")
    env.chmod(mode)
    assert load_settings(str(env)).kyc_catch_up_days == 7, "nothing in it is secret"


def test_a_missing_token_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="DEEPXL_API_TOKEN is not set"):
        load_settings(None).require_token()


MAIN = "from kyc_pipeline.cli import main; main()"
ENV = "# Schlüssel\nDEEPXL_API_TOKEN=secretvalue\nDEEPXL_MAX_CONCURRENCY=4\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"])
def test_an_env_file_that_is_not_utf_8_is_named(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / ".env"
    for text in (ENV, ENV.replace("ü", "u")):
        file.write_bytes(text.encode(encoding))
        if encoding in ("latin-1", "cp1252") and text.isascii():
            continue
        with pytest.raises(UsageError, match=r"\.env is not UTF-8 text .*: save it as UTF-8$") as caught:
            load_settings(str(file))
        assert "secretvalue" not in str(caught.value)


@pytest.mark.parametrize("text", ["\ufeff" + ENV, ENV.replace("\n", "\r\n"), ENV.replace("value", "value  ")])
def test_an_env_file_as_windows_writes_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / ".env"
    file.write_bytes(text.encode())
    file.chmod(0o600)
    settings = load_settings(str(file))
    assert settings.require_token().get_secret_value() == "secretvalue"
    assert settings.deepxl_max_concurrency == 4


@pytest.mark.parametrize(
    "mark", ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e", "\x1b", "\u00a0", "\0"]
)
def test_an_invisible_character_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    file = tmp_path / ".env"
    file.touch(0o600)
    for name in ("DEEPXL_API_TOKEN", "DEEPXL_CURRENCY", "KYC_LANDING", "KYC_PSEUDONYM_KEY", "KYC_START_DATE"):
        file.write_text(f"{name}='secret{mark}value'\n", encoding="utf-8")
        with pytest.raises(UsageError) as caught:
            load_settings(str(file))
        line = str(caught.value)
        assert (
            "UTF-8" in line
            if mark == "\0"
            else f"{name}: has an invisible character (U+{ord(mark):04X})" in line
        )
        assert "secret" not in line
        assert "\n" not in line
    file.write_text(f"DEEPXL_API_TOKEN{mark}=secretvalue\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"\.env"):
        load_settings(str(file))


@pytest.mark.parametrize(
    "token", ["…", "...", "<token>", "***", "$TOKEN", "${TOKEN}", "{{ token }}", "[token]"]
)
def test_a_placeholder_is_no_credential(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("DEEPXL_API_TOKEN", token)
    with pytest.raises(UsageError, match=r"^wrong settings: DEEPXL_API_TOKEN: is a placeholder"):
        load_settings(None)


@pytest.mark.parametrize(
    "token", ["Bearer secretvalue", "secretvalue…", "sécretvalue", "secretvalue make dev"]
)
def test_what_no_header_can_carry_is_no_credential(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("DEEPXL_API_TOKEN", token)
    with pytest.raises(UsageError, match="DEEPXL_API_TOKEN: must be the credential alone") as caught:
        load_settings(None)
    assert "cret" not in str(caught.value).replace("credential", "")


@pytest.mark.parametrize(
    "url", ["https://…", "https://us℀er:secretvalue@host", "https://[secretvalue", "https://host:secretvalue"]
)
def test_an_odd_url_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("DEEPXL_BASE_URL", "KYC_ALERT_WEBHOOK"):
        monkeypatch.setenv(name, url)
        with pytest.raises(
            UsageError, match=rf"^wrong settings: {name}: must be an http\(s\) URL such as"
        ) as caught:
            load_settings(None)
        assert "secretvalue" not in str(caught.value)
        monkeypatch.delenv(name)


def test_a_blank_line_end_in_the_environment_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPXL_API_TOKEN", "secretvalue\n")
    assert load_settings(None).require_token().get_secret_value() == "secretvalue"


def test_no_document_has_a_token_to_paste() -> None:
    root = README.parent
    for file in (README, *root.glob("*.md"), *root.glob("docs/**/*.md")):
        assert not re.findall(r"DEEPXL_API_TOKEN=(?![\"$ ])\S+", file.read_text(encoding="utf-8")), file.name


def test_the_command_line_names_the_file_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(ENV.encode("utf-16"))
    command = [sys.executable, "-c", MAIN, "query", "SELECT 1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "kyc-pipeline: .env is not UTF-8 text (perhaps UTF-16 or Latin-1): save it as UTF-8"
    ]
