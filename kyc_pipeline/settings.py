"""The project's settings, read from environment variables and validated once.

A field's name is its variable's in lower case. Variables in `.env` in the working directory count too; the
environment takes precedence. All paths are absolute: relative ones begin at `KYC_HOME`. A test checks that
the README lists every setting.
"""

import difflib
import io
import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, urlsplit

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kyc_pipeline.errors import UsageError
from kyc_pipeline.vocabulary import (
    COMPANY_NAME_TAG,
    COMPANY_TAG,
    DOCUMENT_TYPES,
    SUBJECT_TAGS,
    SUBMISSION_TAG,
    DocumentType,
)
from kyc_pipeline.wording import invisible

MIN_KEY_LENGTH: Final = 32
MIN_KEY_VARIETY: Final = 10
_OTHERS: Final = stat.S_IRWXO
_NAME: Final = re.compile(r"^[^#=\n]+(?==)", re.MULTILINE)
_OURS: Final = re.compile("DEEPXL_|KYC_", re.IGNORECASE)
_CODE_PAGE: Final = re.compile("windows-125[0-8]")
_ADDRESS: Final = r"^[^@\s,;<>]+@[^@\s,;<>]+$"
_S3_URL: Final = re.compile(r"s3://[^/]+(/[^/]+)*/?")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*")
_PLACEHOLDER: Final = re.compile(r"[^A-Za-z0-9]*|<.*>|\[.*\]|\{.*\}|[$%].*")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine (`localhost`, 127.0.0.0/8 or ::1)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_problem(key: str) -> str:
    """Why a pseudonym key could be guessed; empty if it looks random. Never shows the key.

    Whoever has a pseudonym and knows its value can try keys. 32 random hexadecimal digits pass: fewer than
    10 different ones among them are a case of one in ten thousand.
    """
    if len(key) >= MIN_KEY_LENGTH and len(set(key)) >= MIN_KEY_VARIETY:
        return ""
    return (
        f"can be guessed: it must have at least {MIN_KEY_LENGTH} characters, {MIN_KEY_VARIETY} of them "
        "different; `openssl rand -hex 32` makes one"
    )


def require_private(file: Path) -> None:
    """Raises :class:`UsageError` if other users of this machine may read or write a file with a secret."""
    if file.stat().st_mode & _OTHERS:
        raise UsageError(f"{file} holds a secret, but other users may open it: run `chmod o= {file}`")


def _split_url(value: str, http_host: str | None = None) -> SplitResult:
    """The parts of an https URL, or of an http URL on loopback or at `http_host`.

    Raises :class:`ValueError` for any other.
    """
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").encode("idna")
        is_url = parts.scheme in {"http", "https"} and host.strip(b".") and parts.port != 0
    except ValueError:  # its message shows the value
        is_url = False
    if not is_url or parts.hostname is None:
        raise ValueError("must be an http(s) URL such as https://api.deepxl.ai")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and parts.hostname != http_host:
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
        use_attribute_docstrings=True,
    )

    kyc_home: Path = Field(default=Path(), validate_default=True)
    """Relative paths of the other settings begin here."""
    deepxl_http_host: str | None = Field(default=None, pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$")
    """The one host besides loopback that may use http: the simulator's, in a network of containers."""
    deepxl_base_url: str = "https://api.deepxl.ai"
    """Base URL of the API. Only loopback hosts and `DEEPXL_HTTP_HOST` may use http."""
    deepxl_api_token: SecretStr | None = None
    """The credential; only calls need it."""
    deepxl_auth_scheme: Literal["bearer", "api_key"] = "bearer"
    """The header that carries the credential: `Authorization: Bearer` or `x-api-key`."""
    deepxl_proxy: SecretStr | None = None
    """http(s) URL of the proxy to the API; it may contain a user and a password."""
    deepxl_ca_file: Path | None = None
    """PEM file with the only certificate authorities to trust, such as your company's own."""
    deepxl_max_concurrency: int = Field(default=16, ge=1, le=1024)
    """Calls in flight, per run."""
    kyc_shards: int = Field(default=1, ge=1, le=64)
    """Processes that share the calls of a large day."""
    deepxl_requests_per_second: float = Field(default=10, ge=0)
    """Rate limit across all processes that share the ledger; 0 means none."""
    deepxl_timeout_seconds: float = Field(default=60, gt=0)
    """Time limit, in seconds, of each step of a call: reading the documents, the upload, the response."""
    deepxl_max_attempts: int = Field(default=5, ge=1)
    """Maximum attempts per submission and run. The pipeline retries only if that is safe."""
    deepxl_max_calls_per_run: int | None = Field(default=None, ge=0)
    """Budget: a run stops cleanly before exceeding it."""
    deepxl_max_calls_per_day: int | None = Field(default=None, ge=0)
    """Budget of a UTC day, over all runs and hosts that share the ledger. No option of a run raises it."""
    deepxl_price_per_call: Decimal | None = Field(default=None, ge=0)
    """Price of one call, for cost figures."""
    deepxl_currency: str = Field(default="EUR", pattern=r"^[A-Z]{3}$", examples=["EUR"])
    """Currency of the price and of all amounts (ISO 4217)."""
    deepxl_uncertain: Literal["hold", "retry"] = "hold"
    """`retry`: send an uncertain submission again, once ever, if a look-up shows no record of it."""
    deepxl_document_types: Annotated[frozenset[DocumentType], NoDecode, Field(min_length=1)] = DOCUMENT_TYPES
    """Media types of documents that DeepXL accepts (comma-separated)."""
    kyc_landing: Path | str = Field(default=Path("data/landing"), validate_default=True)
    """Manifests and documents; a folder or `s3://bucket/prefix`."""
    kyc_csv_encoding: str | None = None
    """Encoding of CSV manifests that are neither UTF-8 nor UTF-16; without it, these are refused."""
    kyc_duplicate_documents: Literal["warn", "reject"] = "warn"
    """What to do with a new submission that has the two documents of another one."""
    kyc_send_tags: Annotated[frozenset[str], NoDecode] | None = None
    """Tags that are sent (comma-separated), besides `submissionId`; by default all."""
    kyc_strip_metadata: bool = False
    """Remove metadata from JPEG and PNG documents before they are sent."""
    kyc_require_consent: Annotated[frozenset[str], NoDecode] = frozenset()
    """Accepted values of the column `consent` (comma-separated); each row needs one. By default none does."""
    kyc_lake: str = Field(default="data/lake", validate_default=True)
    """Parquet; a folder or `s3://bucket/prefix`."""
    kyc_ledger_url: SecretStr = Field(
        default=SecretStr("sqlite:///data/ledger.sqlite"), validate_default=True
    )
    """SQLAlchemy URL of the ledger; `postgresql+psycopg://…` for several hosts. It may have a password."""
    kyc_offload_after_days: int | None = Field(default=None, ge=1)
    """Days after which `maintenance` removes responses from the ledger; only the lake then has them."""
    kyc_warehouse: Path | str = Field(default=Path("data/warehouse/kyc.duckdb"), validate_default=True)
    """The DuckDB file that analysts open; or `s3://bucket/prefix`, with a pointer to the newest one."""
    kyc_warehouse_memory: str = Field(
        default="2GB", pattern=r"^[0-9]+(\.[0-9]+)? ?[KMGT]i?B$", examples=["2GB"]
    )
    """DuckDB's memory limit during a build; it spills to disk beside the new file."""
    kyc_warehouse_max_fact_rows: int = Field(default=5_000_000, ge=0)
    """A fact with more rows is a view over the lake instead of a table."""
    kyc_report: Path | str = Field(default=Path("data/report/index.html"), validate_default=True)
    """The report: a file; or `s3://bucket/prefix`, where it is `index.html`."""
    kyc_pseudonym_key: SecretStr | None = None
    """HMAC key of the pseudonyms. With SQLite, a key file is created on first use; else it is required."""
    kyc_pseudonym_old_keys: SecretStr | None = None
    """Earlier keys (comma-separated), for `rekey`, and to recognise people who were erased under them."""
    kyc_clear_tags: Annotated[frozenset[str], NoDecode] = frozenset(
        {SUBMISSION_TAG, COMPANY_TAG, COMPANY_NAME_TAG}
    )
    """Tags whose values analysts may see (comma-separated)."""
    kyc_retain_days: int | None = Field(default=None, ge=0)
    """Days after the end of a relationship when `retention` removes rows, responses and ledger bodies."""
    kyc_retain_documents_days: int | None = Field(default=None, ge=0)
    """Days after the end of a relationship when `retention` deletes the documents in the landing zone."""
    kyc_retain_rejected_days: int | None = Field(default=None, ge=0)
    """Days after delivery when `retention` removes id and detail of rejected rows."""
    kyc_retention_apply: bool = False
    """Whether the job `retention` removes what is due, or only reports it."""
    kyc_operator: str | None = None
    """The person who acts, for the audit trail; by default the login name."""
    kyc_dimensions: Annotated[tuple[str, ...], NoDecode] = ()
    """Tags that slice rates and outcomes (comma-separated). Analysts see their values."""
    kyc_subject_tags: Annotated[tuple[str, ...], NoDecode, Field(min_length=1, max_length=3)] = SUBJECT_TAGS
    """Tags that identify a person (comma-separated): the last one, which is unique within the others."""
    kyc_min_cell: int = Field(default=5, ge=1)
    """Companies and values with fewer people on a day are hidden in what is published; 1 hides nothing."""
    kyc_verdict_target_seconds: int = Field(default=86_400, ge=1)
    """Target for the time from a submission to its verdict."""
    kyc_start_date: date = date(2024, 9, 1)
    """First daily partition."""
    kyc_catch_up_days: int = Field(default=30, ge=1)
    """How far back the catch-up schedule looks."""
    kyc_alert_webhook: SecretStr | None = None
    """An https URL that receives alerts as a JSON POST. Secret, because it contains a key."""
    kyc_alert_webhook_form: Literal["json", "slack"] = "json"
    """Format of the JSON: for programs, or that of a Slack incoming webhook."""
    kyc_alert_email_from: str | None = Field(default=None, pattern=_ADDRESS, examples=["kyc@mail.example"])
    """The sender of alerts by e-mail."""
    kyc_alert_email_to: Annotated[
        frozenset[Annotated[str, StringConstraints(pattern=_ADDRESS)]], NoDecode
    ] = Field(default=frozenset(), examples=["me@mail.example,you@mail.example"])
    """The recipients of alerts by e-mail (comma-separated)."""
    kyc_alert_smtp_url: SecretStr | None = None
    """The mail server: `smtp://user:password@host:587` (STARTTLS) or `smtps://…:465`. May have a password."""
    kyc_alert_calls_per_day: int | None = Field(default=None, ge=0)
    """Alert if a UTC day has more billable calls."""
    kyc_ui_url: str | None = None
    """Base URL of the Dagster UI, for the links in alerts."""
    kyc_log_format: Literal["text", "json"] = "text"
    """Format of the logs on standard error: for people, or one JSON object a line."""
    kyc_metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `kyc-pipeline metrics`."""
    kyc_ui_password: SecretStr | None = Field(default=None, min_length=12)
    """The password that `kyc-pipeline ui` asks for. It must be set to listen beyond loopback."""
    kyc_source_url: str | None = None
    """Base URL of this repository, including the branch; the UI links to its code and docs."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_characters(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.strip()
            if problem := invisible(value):
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
    def _check_home(cls, value: Path) -> Path:
        home = _path(value).absolute()
        if not home.is_dir():
            # A mistyped one would otherwise begin an empty lake and ledger, and pay again.
            raise ValueError("must be a folder that exists: create it, or correct the name")
        return home

    @field_validator("deepxl_proxy")
    @classmethod
    def _check_proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parts = urlsplit(value.get_secret_value())
                is_proxy = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
            except ValueError:  # its message shows the value
                is_proxy = False
            if not is_proxy or parts.path not in ("", "/") or parts.query or parts.fragment:
                raise ValueError("must be an http(s) URL without a path, such as http://proxy.example:3128")
        return value

    @field_validator("deepxl_ca_file")
    @classmethod
    def _ca_file_below_home(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else cls._below_home(value, info)

    @field_validator("kyc_landing", "kyc_warehouse", "kyc_report")
    @classmethod
    def _place_below_home(cls, value: Path | str, info: ValidationInfo) -> Path | str:
        place = cls._place(str(value), info)
        return place if place.startswith("s3://") else Path(place)

    @classmethod
    def _below_home(cls, value: Path, info: ValidationInfo) -> Path:
        # Absolute, so that a new working directory does not mean a new ledger.
        return _home(info) / _path(value)

    @field_validator("kyc_csv_encoding")
    @classmethod
    def _check_csv_encoding(cls, value: str | None) -> str | None:
        if value is not None and not _CODE_PAGE.fullmatch(value):
            raise ValueError("must be one of windows-1250 to windows-1258; UTF-8 and UTF-16 need no setting")
        return value

    @field_validator("kyc_warehouse")
    @classmethod
    def _check_warehouse(cls, value: Path | str) -> Path | str:
        if isinstance(value, Path) and "?" in str(value):
            raise ValueError("has a ? in its path (KYC_HOME included), which DuckDB cannot open: rename it")
        return value

    @field_validator("kyc_lake")
    @classmethod
    def _lake_below_home(cls, value: str, info: ValidationInfo) -> str:
        return cls._place(value, info)

    @classmethod
    def _place(cls, value: str, info: ValidationInfo) -> str:
        """An absolute folder or an S3 URL."""
        if not _URL.fullmatch(value):
            return str(cls._below_home(Path(value), info))
        if not _S3_URL.fullmatch(value) or {".", ".."} & set(value.split("/")):
            raise ValueError("must be a folder or s3://bucket/prefix, without empty, . or .. parts")
        return value.rstrip("/")

    @field_validator("kyc_ledger_url")
    @classmethod
    def _ledger_below_home(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        return SecretStr(ledger_below(_home(info), value.get_secret_value()))

    @field_validator(
        "kyc_clear_tags",
        "kyc_send_tags",
        "kyc_require_consent",
        "deepxl_document_types",
        "kyc_dimensions",
        "kyc_subject_tags",
        "kyc_alert_email_to",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        return value

    @field_validator("kyc_dimensions")
    @classmethod
    def _check_dimensions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name, reason in (
            ("model_version", "which is always a dimension"),
            ("company", f"which names the slice by {COMPANY_TAG}: deliver that tag under another name"),
        ):
            if name in value:
                raise ValueError(f"must not contain {name}, {reason}")
        return value

    @field_validator("kyc_pseudonym_key")
    @classmethod
    def _check_pseudonym_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (problem := key_problem(value.get_secret_value())):
            raise ValueError(problem)
        return value

    @field_validator("deepxl_http_host")
    @classmethod
    def _check_http_host(cls, value: str | None) -> str | None:
        if value is not None and (value == "deepxl.ai" or value.endswith(".deepxl.ai")):
            raise ValueError(
                "must not be DeepXL's own: its credential and documents would travel unencrypted"
            )
        return value

    @field_validator("deepxl_base_url", "kyc_source_url", "kyc_ui_url")
    @classmethod
    def _check_base_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        is_api = info.field_name == "deepxl_base_url"
        parts = _split_url(value, info.data.get("deepxl_http_host") if is_api else None)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must not contain a user, a query or a fragment")
        return value.rstrip("/")

    @field_validator("deepxl_base_url")
    @classmethod
    def _cut_version(cls, value: str) -> str:
        """Cuts a copied `/v1/verification`, which the client adds."""
        return re.sub(r"/v1(/verification)?$", "", value)

    @field_validator("kyc_alert_webhook")
    @classmethod
    def _check_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _split_url(value.get_secret_value())
        return value

    @field_validator("kyc_alert_smtp_url")
    @classmethod
    def _check_smtp_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            is_url = parts.scheme in {"smtp", "smtps"} and parts.hostname and parts.port != 0
        except ValueError:  # its message shows the value
            is_url = False
        if not is_url:
            raise ValueError("must be a URL such as smtp://user:password@mail.example:587 or smtps://…")
        if not (info.data.get("kyc_alert_email_from") and info.data.get("kyc_alert_email_to")):
            raise ValueError("needs KYC_ALERT_EMAIL_FROM and KYC_ALERT_EMAIL_TO")
        return value

    @property
    def sends_alerts(self) -> bool:
        """Whether a channel for alerts is configured."""
        return self.kyc_alert_webhook is not None or self.kyc_alert_smtp_url is not None

    @property
    def old_pseudonym_keys(self) -> tuple[str, ...]:
        """The keys of `KYC_PSEUDONYM_OLD_KEYS`."""
        keys = self.kyc_pseudonym_old_keys.get_secret_value() if self.kyc_pseudonym_old_keys else ""
        return tuple(filter(None, map(str.strip, keys.split(","))))

    @property
    def pseudonym_key_file(self) -> Path:
        """The file with the pseudonym key if `KYC_PSEUDONYM_KEY` is not set."""
        return self.data_dir / "pseudonym.key"

    @property
    def data_dir(self) -> Path:
        """The data folder: that of the landing zone, or `data` if that is in S3."""
        return self.kyc_landing.parent if isinstance(self.kyc_landing, Path) else self.kyc_home / "data"

    @property
    def has_token(self) -> bool:
        """Whether there is a credential."""
        return bool(self.deepxl_api_token and self.deepxl_api_token.get_secret_value().strip())

    def require_token(self) -> SecretStr:
        """The credential, or :class:`UsageError` if it is missing."""
        if self.deepxl_api_token is None or not self.has_token:
            raise UsageError("DEEPXL_API_TOKEN is not set: put the credential in the environment or in .env")
        return self.deepxl_api_token


_SECRETS: Final = {
    name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
}
"""A `.env` with one of these must be private."""


def load_settings(env_file: str | None = ".env") -> Settings:
    """The settings from the environment and `env_file`.

    Raises :class:`UsageError` with one line that names the file, or each invalid variable. It never shows a
    value, which may be a misplaced credential.
    """
    if twice := _twice(os.environ):
        raise UsageError(f"the environment has {' and '.join(twice)}, which are one setting: keep one")
    for name in filter(_is_unknown, os.environ):
        if _is_mistyped(name) and not _is_of_another_program(name):
            shown, meant = ascii(name)[1:-1], _meant(name)
            raise UsageError(f"the environment has {shown}, which is no setting{meant}: correct or remove it")
    if env_file is not None:
        _check_file(Path(env_file))
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        problems = "; ".join(
            f"{str(item['loc'][0]).upper()}: {_problem(str(item['loc'][0]), item['type'], item['msg'])}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise UsageError(f"wrong settings: {problems}") from None


def _problem(field: str, kind: str, message: str) -> str:
    """What is wrong with a setting, given pydantic's error. An example says more than a pattern."""
    if kind == "string_pattern_mismatch" and (examples := Settings.model_fields[field].examples):
        return f"must look like {examples[0]}"
    if kind.endswith("_parsing"):
        message = message.partition(", ")[0]
    return message.removeprefix("Value error, ").replace("Input should be", "must be", 1)


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
    if "\0" in text:  # UTF-16 without a byte order mark may be valid UTF-8
        raise UsageError(f"{file} is not UTF-8 text (perhaps UTF-16 or Latin-1): save it as UTF-8")
    if problem := invisible("".join(_NAME.findall(text)).replace("\t", "")):
        raise UsageError(f"{file}: the name of a setting has {problem}: type it again")
    names = list(_names(text, file))
    if twice := _twice(names):
        raise UsageError(f"{file} has {' and '.join(twice)}, which are one setting: keep one")
    if _SECRETS & set(map(str.lower, names)):
        require_private(file)


def _names(text: str, file: Path) -> Iterator[str]:
    """The names in the text of a `.env`. Raises :class:`UsageError` for what would be ignored."""
    for binding in parse_stream(io.StringIO(text)):
        name, line = binding.key or "", binding.original.line
        if binding.error:
            raise UsageError(f"{file}: line {line} is not NAME=value, or its quote has no end: correct it")
        if _is_unknown(name):
            raise UsageError(f"{file}: there is no setting {name}{_meant(name)}: correct or remove it")
        yield name


def _is_unknown(name: str) -> bool:
    return bool(_OURS.match(name)) and name.lower() not in Settings.model_fields


def _is_of_another_program(name: str) -> bool:
    """Whether a name is a setting's with `_` and more after it, or that of a Kubernetes service's address."""
    goes_on = name.lower().startswith(tuple(f"{field}_" for field in Settings.model_fields))
    return goes_on or os.environ[name].startswith("tcp://")


def _is_mistyped(name: str) -> bool:
    """Whether a name differs from a setting's by one letter that is wrong, missing or too much."""
    return any(
        difflib.SequenceMatcher(None, name.lower(), field).ratio() >= (len(field) - 1) / len(field)
        for field in Settings.model_fields
    )


def _meant(name: str) -> str:
    """The setting whose name is nearest to a wrong one, as part of a message; empty if none is near."""
    near = difflib.get_close_matches(name.lower(), Settings.model_fields, n=1)
    return f" (is it {near[0].upper()}?)" if near else ""


def _twice(names: Iterable[str]) -> list[str]:
    """The names of the first setting that is there twice. Upper and lower case make no difference."""
    found: dict[str, list[str]] = {}
    for name in names:
        if name.lower() in Settings.model_fields:
            found.setdefault(name.lower(), []).append(name)
    return next((each for each in found.values() if len(each) > 1), [])


def _home(info: ValidationInfo) -> Path:
    """`kyc_home`, which is missing only if it is invalid itself: then the user sees that error."""
    home: Path = info.data.get("kyc_home", Path())
    return home


def ledger_below(home: Path, url: str) -> str:
    """The URL of a ledger, whose relative path begins in `home`. Raises :class:`ValueError`."""
    scheme, separator, path = url.partition(":///")
    if not (separator and scheme.startswith("sqlite") and path) or path.startswith(":memory:"):
        return url
    if path.startswith("file:"):
        raise ValueError("must be a path, such as sqlite:///data/ledger.sqlite, without file:")
    return f"{scheme}:///{home / _path(Path(path))}"


def _path(value: Path) -> Path:
    """`value` with the home folder for `~`. Raises :class:`ValueError` if it is a URL, or there is none."""
    if _URL.fullmatch(str(value)):
        raise ValueError("must be a path, not a URL")
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, but there is no such home folder") from None
