"""`kyc-pipeline security-check`: it finds what is open, and says what to do."""

import os
from pathlib import Path

import pytest
import s3fs
from click.testing import CliRunner

from kyc_pipeline.cli import security_check
from kyc_pipeline.cli.security_check import Answer, duties_of
from kyc_pipeline.cli.security_check import security_check as command
from kyc_pipeline.settings import Settings, load_settings


def answers(settings: Settings) -> dict[str, Answer]:
    return {duty.what: duty.answer for duty in duties_of(settings)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KYC_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("landing", "lake/restricted"):
        (tmp_path / "data" / folder).mkdir(parents=True, mode=0o755)
    (tmp_path / "data" / "ledger.sqlite").touch(0o644)
    return tmp_path


def test_what_is_open_is_named_with_advice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("landing", "lake/restricted", "ledger.sqlite"):
        (home / "data" / path).chmod(0o755)
    result = CliRunner().invoke(command)
    assert result.exit_code == 3
    for advice in (f"chmod -R o= {home}/data/landing", "DEEPXL_MAX_CALLS_PER_DAY", "KYC_UI_PASSWORD"):
        assert advice in result.stdout
    for path in ("landing", "lake/restricted", "ledger.sqlite"):
        (home / "data" / path).chmod(0o750)
    monkeypatch.setenv("DEEPXL_MAX_CALLS_PER_DAY", "100")
    monkeypatch.setenv("KYC_UI_PASSWORD", "correct horse battery")
    found = answers(load_settings())
    assert {what for what, answer in found.items() if answer is not Answer.YES} <= {
        f"{name} is encrypted at rest"
        for name in (
            "KYC_LANDING",
            "KYC_LAKE",
            "KYC_LEDGER_URL",
            "KYC_WAREHOUSE",
            "TMPDIR",
            "the pseudonym key",
        )
    }


@pytest.mark.parametrize(
    ("query", "answer"),
    [("", Answer.NO), ("?sslmode=require", Answer.NO), ("?sslmode=verify-full", Answer.YES)],
)
def test_a_database_of_another_host_needs_verified_tls(
    home: Path, monkeypatch: pytest.MonkeyPatch, query: str, answer: Answer
) -> None:
    monkeypatch.setenv("KYC_LEDGER_URL", f"postgresql+psycopg://kyc:secret@db.example/kyc{query}")
    found = answers(load_settings())
    assert found["KYC_LEDGER_URL has verified TLS"] is answer
    assert found["KYC_LEDGER_URL is encrypted at rest"] is Answer.UNKNOWN
    assert "secret" not in CliRunner().invoke(command).stdout


def test_a_bucket_needs_default_encryption(home: Path, monkeypatch: pytest.MonkeyPatch, s3_root: str) -> None:
    monkeypatch.setenv("KYC_LAKE", s3_root)
    monkeypatch.setenv("KYC_LANDING", "s3://no-such-bucket/prefix")
    bucket = s3_root.removeprefix("s3://").partition("/")[0]
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.call_s3("delete_bucket_encryption", Bucket=bucket)
    found = answers(load_settings())
    assert found["KYC_LAKE is encrypted at rest"] is Answer.NO
    assert found["KYC_LANDING is encrypted at rest"] is Answer.UNKNOWN
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
    store.call_s3("put_bucket_encryption", Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert answers(load_settings())["KYC_LAKE is encrypted at rest"] is Answer.YES


def test_what_is_published_to_a_bucket_is_checked_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, s3_root: str
) -> None:
    for name in ("KYC_WAREHOUSE", "KYC_REPORT"):
        monkeypatch.setenv(name, s3_root)
        duties = [duty for duty in duties_of(load_settings()) if duty.what == f"{name} is encrypted at rest"]
        assert len(duties) == 1
        assert "disk" not in duties[0].advice
    assert f"deny analysts s3:GetObject below {s3_root}/restricted/" in CliRunner().invoke(command).stdout


def test_a_disk_is_encrypted_if_all_devices_below_it_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's view of block devices, as a folder."""
    devices, number = home / "block", home.stat().st_dev
    monkeypatch.setattr(security_check, "_BLOCK_DEVICES", devices)
    what = "KYC_LAKE is encrypted at rest"
    assert answers(load_settings())[what] is Answer.UNKNOWN
    volume = devices / f"{os.major(number)}:{os.minor(number)}"
    (volume / "dm").mkdir(parents=True)
    (volume / "dm" / "uuid").write_text("LVM-1\n")
    assert answers(load_settings())[what] is Answer.NO
    for name, uuid in (("dm-1", "CRYPT-LUKS2-1\n"), ("dm-2", "CRYPT-LUKS2-2\n")):
        (volume / "slaves" / name / "dm").mkdir(parents=True)
        (volume / "slaves" / name / "dm" / "uuid").write_text(uuid)
    assert answers(load_settings())[what] is Answer.YES
    (volume / "slaves" / "sdb").mkdir()
    assert answers(load_settings())[what] is Answer.NO
