"""The project's settings, read from environment variables and validated once.

A field's name is its variable's in lower case. Variables in `.env` in the working directory count too; the
environment takes precedence. All paths are absolute: relative ones begin at `KYC_HOME`. A test checks that
the README lists every setting.
"""

import ipaddress
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kyc_pipeline.errors import UsageError
from kyc_pipeline.vocabulary import SUBMISSION_TAG

MIN_PSEUDONYM_KEY_LENGTH = 16
_NAME: Final = re.compile(r"^[^#=\n]+(?==)", re.MULTILINE)
_PLACEHOLDER: Final = re.compile(r"[^A-Za-z0-9]*|<.*>|\[.*\]|\{.*\}|[$%].*")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine (`localhost`, 127.0.0.0/8 or ::1)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split_url(value: str) -> SplitResult:
    """The parts of an https URL or of an http URL on loopback. Raises :class:`ValueError` for any other."""
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").encode("idna")
        is_url = parts.scheme in {"http", "https"} and host.strip(b".") and parts.port != 0
    except ValueError:  # its message shows the value
        is_url = False
    if not is_url or parts.hostname is None:
        raise ValueError("must be an http(s) URL such as https://api.deepxl.ai")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must use https: http is allowed for loopback hosts only")
    return parts


class Settings(BaseSettings):
    """The settings of one process. Immutable; `repr` masks secrets."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    deepxl_base_url: str = "https://api.deepxl.ai"
    """Base URL of the API. Only loopback hosts may use http."""
    deepxl_api_token: SecretStr | None = None
    """The credential; only calls need it."""
    deepxl_auth_scheme: Literal["bearer", "api_key"] = "bearer"
    """The header that carries the credential: `Authorization: Bearer` or `x-api-key`."""
    deepxl_max_concurrency: int = Field(default=16, ge=1, le=1024)
    """Calls in flight, per run."""
    deepxl_requests_per_second: float = Field(default=10, ge=0)
    """Rate limit across all processes that share the ledger; 0 means none."""
    deepxl_timeout_seconds: float = Field(default=60, gt=0)
    """Timeout of one call."""
    deepxl_max_attempts: int = Field(default=5, ge=1)
    """Maximum attempts per submission and run. The pipeline retries only if that is safe."""
    deepxl_max_calls_per_run: int | None = Field(default=None, ge=0)
    """Budget: a run stops cleanly before exceeding it."""
    deepxl_price_per_call: Decimal | None = Field(default=None, ge=0)
    """Price of one call, for cost figures."""
    deepxl_currency: str = Field(default="EUR", pattern=r"^[A-Z]{3}$")
    """Currency of the price and of all amounts (ISO 4217)."""
    deepxl_uncertain: Literal["hold", "retry"] = "hold"
    """`retry`: send an uncertain submission again, once ever, if a look-up shows no record of it."""
    kyc_home: Path = Field(default=Path(), validate_default=True)
    """Relative paths of the other settings begin here."""
    kyc_landing: Path = Field(default=Path("data/landing"), validate_default=True)
    """Manifests and documents."""
    kyc_lake: str = Field(default="data/lake", validate_default=True)
    """Parquet; a folder or `s3://bucket/prefix`."""
    kyc_ledger_url: str = Field(default="sqlite:///data/ledger.sqlite", validate_default=True)
    """SQLAlchemy URL of the ledger; `postgresql+psycopg://…` for several hosts."""
    kyc_warehouse: Path = Field(default=Path("data/warehouse/kyc.duckdb"), validate_default=True)
    """The DuckDB file that analysts open."""
    kyc_warehouse_memory: str = Field(default="2GB", pattern=r"^[0-9]+(\.[0-9]+)? ?[KMGT]i?B$")
    """DuckDB's memory limit during a build; it spills to disk beside the file."""
    kyc_warehouse_max_fact_rows: int = Field(default=5_000_000, ge=0)
    """A fact with more rows is a view over the lake instead of a table."""
    kyc_report: Path = Field(default=Path("data/report/index.html"), validate_default=True)
    """The report."""
    kyc_pseudonym_key: SecretStr | None = None
    """HMAC key of the pseudonyms. By default, a key file is created on first use: `pseudonym_key_file`."""
    kyc_clear_tags: Annotated[frozenset[str], NoDecode] = frozenset(
        {SUBMISSION_TAG, "companyId", "companyName"}
    )
    """Tags whose values analysts may see (comma-separated)."""
    kyc_start_date: date = date(2024, 9, 1)
    """First daily partition."""
    kyc_catch_up_days: int = Field(default=30, ge=1)
    """How far back the catch-up schedule looks."""
    kyc_alert_webhook: SecretStr | None = None
    """An https URL that receives a JSON POST for each failed run. Secret, because it contains a key."""
    kyc_source_url: str | None = None
    """Base URL of this repository, including the branch; the UI links to its code and docs."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_characters(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.strip()
            if problem := _unprintable(value):
                raise ValueError(f"has {problem}: type it again instead of pasting it")
        return value

    @field_validator("deepxl_api_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        token = value.get_secret_value() if value is not None else "unset"
        if _PLACEHOLDER.fullmatch(token):
            raise ValueError("is a placeholder: put the credential that DeepXL issued in its place")
        if not token.isascii() or " " in token:
            raise ValueError(
                "must be the credential alone, as DeepXL issued it: ASCII characters without blanks"
            )
        return value

    @field_validator("kyc_home")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("kyc_landing", "kyc_warehouse", "kyc_report")
    @classmethod
    def _below_home(cls, value: Path, info: ValidationInfo) -> Path:
        # Absolute, so that a process that changes its folder keeps its ledger. `kyc_home` is there unless it
        # is invalid itself, which is the error that the user sees.
        home: Path = info.data.get("kyc_home", Path())
        return home / value

    @field_validator("kyc_lake")
    @classmethod
    def _lake_below_home(cls, value: str, info: ValidationInfo) -> str:
        return value if "://" in value else str(cls._below_home(Path(value), info))

    @field_validator("kyc_ledger_url")
    @classmethod
    def _ledger_below_home(cls, value: str, info: ValidationInfo) -> str:
        scheme, separator, path = value.partition(":///")
        if not (separator and scheme.startswith("sqlite") and path) or path.startswith((":memory:", "file:")):
            return value
        return f"{scheme}:///{cls._below_home(Path(path), info)}"

    @field_validator("kyc_clear_tags", mode="before")
    @classmethod
    def _split_tags(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("kyc_pseudonym_key")
    @classmethod
    def _check_pseudonym_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < MIN_PSEUDONYM_KEY_LENGTH:
            raise ValueError(f"must have at least {MIN_PSEUDONYM_KEY_LENGTH} characters")
        return value

    @field_validator("deepxl_base_url", "kyc_source_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = _split_url(value)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must not carry a user, a query or a fragment")
        return value.rstrip("/")

    @field_validator("deepxl_base_url")
    @classmethod
    def _cut_version(cls, value: str) -> str:
        """The client adds `/v1/verification`, so what was copied with it is cut."""
        return re.sub(r"/v1(/verification)?$", "", value)

    @field_validator("kyc_alert_webhook")
    @classmethod
    def _check_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _split_url(value.get_secret_value())
        return value

    @property
    def pseudonym_key_file(self) -> Path:
        """The file with the pseudonym key if `KYC_PSEUDONYM_KEY` is not set."""
        return self.data_dir / "pseudonym.key"

    @property
    def data_dir(self) -> Path:
        """The data folder, which holds the landing zone."""
        return self.kyc_landing.parent

    def require_token(self) -> SecretStr:
        """The credential, or :class:`UsageError` if it is missing."""
        if self.deepxl_api_token is None or not self.deepxl_api_token.get_secret_value().strip():
            raise UsageError("DEEPXL_API_TOKEN is not set: put the credential in the environment or in .env")
        return self.deepxl_api_token


def load_settings(env_file: str | None = ".env") -> Settings:
    """The settings from the environment and `env_file`.

    Raises :class:`UsageError` with one line that names the file, or each invalid variable. It never shows a
    value, which may be a misplaced credential.
    """
    if env_file is not None:
        _check_file(Path(env_file))
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        problems = "; ".join(
            f"{str(item['loc'][0]).upper()}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise UsageError(f"wrong settings: {problems}") from None


def _check_file(file: Path) -> None:
    """Raises :class:`UsageError` for a file that would be read wrongly."""
    if not file.is_file():
        return
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without its mark may be valid UTF-8
        raise UsageError(f"{file} is not UTF-8 text (perhaps UTF-16 or Latin-1): save it as UTF-8")
    if problem := _unprintable("".join(_NAME.findall(text)).replace("\t", "")):
        raise UsageError(f"{file}: the name of a setting has {problem}: type it again")


def _unprintable(text: str) -> str:
    """What is unprintable in `text`, such as a zero-width blank; empty if nothing is."""
    found = next((character for character in text if not character.isprintable()), "")
    return f"an invisible character (U+{ord(found):04X})" if found else ""
