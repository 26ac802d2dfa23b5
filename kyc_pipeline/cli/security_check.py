"""`kyc-pipeline security-check`: what the operator must still do to protect the data."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import click

from kyc_pipeline.cli.options import format_table
from kyc_pipeline.errors import UNFINISHED
from kyc_pipeline.lake.tables import Zone
from kyc_pipeline.ledger.database import checked_url
from kyc_pipeline.settings import Settings, is_loopback, load_settings

_BLOCK_DEVICES: Final = Path("/sys/dev/block")
_VERIFIED: Final = frozenset({"verify-ca", "verify-full"})


class Answer(StrEnum):
    """Whether a duty is met."""

    YES = "yes"
    NO = "NO"
    UNKNOWN = "unknown"


class Duty(NamedTuple):
    """One duty. `advice` says what to do if it is not met, or what to check if that is unknown."""

    what: str
    answer: Answer
    advice: str


@click.command("security-check")
def security_check() -> None:
    """Check what you must do to protect the data: encryption at rest, access by others, the day's budget.

    Changes nothing, and makes no call. Exit code 3: you must do something. Check yourself what is "unknown":
    the command cannot see the disks of a database server, or below a container's file system.
    """
    duties = list(duties_of(load_settings()))
    rows = [(duty.what, duty.answer, "" if duty.answer is Answer.YES else duty.advice) for duty in duties]
    click.echo(format_table(("duty", "met", ""), rows))
    if any(duty.answer is Answer.NO for duty in duties):
        sys.exit(UNFINISHED)


def duties_of(settings: Settings) -> Iterator[Duty]:
    """The duties under these settings."""
    url = checked_url(settings.kyc_ledger_url.get_secret_value())
    ledger = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    places = {
        "KYC_LANDING": str(settings.kyc_landing),
        "KYC_LAKE": settings.kyc_lake,
        "KYC_WAREHOUSE": str(settings.kyc_warehouse),
        "TMPDIR": tempfile.gettempdir(),
    }
    for name, place in places.items():
        yield _encrypted(name, place)
    if isinstance(settings.kyc_report, str):
        yield _encrypted("KYC_REPORT", settings.kyc_report)
    if isinstance(settings.kyc_warehouse, str) and settings.kyc_min_cell > 1:
        advice = f"deny analysts s3:GetObject below {settings.kyc_warehouse}/restricted/"
        yield Duty("KYC_WAREHOUSE: restricted/ is closed to analysts", Answer.UNKNOWN, advice)
    if ledger is not None:
        yield _encrypted("KYC_LEDGER_URL", str(ledger))
        yield _closed("the ledger", ledger)
        if settings.kyc_pseudonym_key is None:
            yield _encrypted("the pseudonym key", str(settings.pseudonym_key_file))
    else:
        advice = "encrypt the volumes and backups of the PostgreSQL server"
        yield Duty("KYC_LEDGER_URL is encrypted at rest", Answer.UNKNOWN, advice)
        hosts = [url.host] if url.host else url.normalized_query.get("host", ["localhost"])
        is_near = all(is_loopback(host) or host.startswith("/") for host in hosts)
        is_safe = is_near or url.query.get("sslmode") in _VERIFIED
        yield Duty("KYC_LEDGER_URL has verified TLS", _yes(is_safe), "add ?sslmode=verify-full&sslrootcert=…")
    if isinstance(settings.kyc_landing, Path):
        yield _closed("the landing zone", settings.kyc_landing)
    if "://" not in settings.kyc_lake:
        yield _closed("restricted/", Path(settings.kyc_lake) / Zone.RESTRICTED)
    yield Duty(
        "a budget per day",
        _yes(settings.deepxl_max_calls_per_day is not None),
        "set DEEPXL_MAX_CALLS_PER_DAY",
    )
    yield Duty(
        "a password for the UI",
        _yes(settings.kyc_ui_password is not None),
        "set KYC_UI_PASSWORD, unless nobody else has an account on this machine",
    )


def _yes(is_met: bool) -> Answer:
    return Answer.YES if is_met else Answer.NO


def _encrypted(name: str, place: str) -> Duty:
    what = f"{name} is encrypted at rest"
    if not place.startswith("s3://"):
        return Duty(what, _on_encrypted_disk(Path(place)), "put it on an encrypted disk, such as LUKS")
    # s3fs takes half a second to import, and is an extra.
    from kyc_pipeline.landing.bucket import Bucket

    bucket, _ = Bucket.at(place)
    try:
        answer = _yes(bucket.encrypts())
    except OSError as error:
        return Duty(what, Answer.UNKNOWN, f"{error.strerror}; needs s3:GetEncryptionConfiguration")
    return Duty(what, answer, "give the bucket default encryption, with a KMS key of your own (SSE-KMS)")


def _on_encrypted_disk(path: Path) -> Answer:
    """Whether the file system of `path`, or of the folder that will hold it, is on a dm-crypt device."""
    there = next(each for each in (path, *path.parents) if each.exists())
    number = there.stat().st_dev
    device = _BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}"
    return _yes(_is_crypt(device)) if device.exists() else Answer.UNKNOWN


def _is_crypt(device: Path) -> bool:
    """Whether a block device, or each one below it, encrypts."""
    uuid = device / "dm" / "uuid"
    if uuid.is_file() and uuid.read_text().startswith("CRYPT-"):
        return True
    below = list((device / "slaves").glob("*"))
    return bool(below) and all(map(_is_crypt, below))


def _closed(name: str, path: Path) -> Duty:
    is_open = path.exists() and bool(path.stat().st_mode & stat.S_IRWXO)
    return Duty(f"{name} is closed to other users", _yes(not is_open), f"run: chmod -R o= {path}")
