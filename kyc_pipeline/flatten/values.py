"""A response's values as columns hold them: NULL unless they have the column's type.

Nothing is converted: a text never becomes a number, nor 97 a confidence of 0.97. The only exception is a
timestamp in milliseconds (`epoch_microseconds`).
"""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from kyc_pipeline.deepxl.contract import (
    CHECK_TYPES,
    FIELDS,
    SECONDS_BELOW,
    Field,
    JsonType,
    integer,
    is_unit_interval,
    normalize_status,
)
from kyc_pipeline.deepxl.jsontext import SURROGATE, Json, Number
from kyc_pipeline.lake.tables import Table
from kyc_pipeline.vocabulary import Anomaly, CheckStatus

MICROSECONDS: Final = 1_000_000
OTHER: Final = "OTHER"
"""Stands for a vendor's text that is not known to be free of personal data; the raw response keeps it."""
_FORMATS: Final = "jpe?g|png|webp|gif|bmp|tiff?|heic|heif|avif|pdf|mp4|m4v|mov|quicktime|webm|3gpp?"
_WORDS: Final = f"(?:(?:image|video|application)/)?(?:{_FORMATS})|id|face|selfie|verification"
_VERSION: Final = (
    r"v?(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){0,3}(?:-?(?:alpha|beta|rc)\.?[0-9]{0,2})?"
)
CODE: Final = rf"(?i)^(?:{_WORDS}|{_VERSION})\z"
"""The known names of models, categories and file types, and the shape of a version such as 1.0.0-rc1.

Any other word may be a person's name or a document's number. (RE2's syntax; Python says `\\Z`.)
"""
_CODE: Final = re.compile(CODE.replace(r"\z", r"\Z"))
MAX_LITERAL: Final = 40
"""The longest literal of a number that is shown, in characters."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ISO: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)


def direct_columns(table: Table, parent: str) -> dict[str, Field]:
    """The columns of `table` that hold one scalar of the object at `parent`, by the data dictionary."""
    fields = {
        field.path: field
        for field in FIELDS
        if field.path.rpartition(".")[0] == parent and field.kind not in (JsonType.LIST, JsonType.OBJECT)
    }
    return {
        column.name: fields[column.made_from[0]]
        for column in table.columns
        if len(column.made_from) == 1 and column.made_from[0] in fields
    }


def valid_unicode(text: str) -> str:
    """`text` with each lone surrogate, which no UTF-8 column can hold, replaced by U+FFFD."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def code(text: str | None) -> str | None:
    """`text` if it is a version or the known name of a model, a category or a file type, else `OTHER`."""
    return text if not text or _CODE.match(text) else OTHER


def check_type(text: str | None) -> str | None:
    """`text` if it is a type of the contract, else `OTHER`."""
    return text if not text or text in CHECK_TYPES else OTHER


def check_status(text: str | None) -> str | None:
    """`text` if the table of statuses has it, else `OTHER`."""
    return text if not text or normalize_status(text) is not CheckStatus.UNKNOWN else OTHER


def number_text(value: Json) -> str:
    """The literal of a number, or `null`; `OTHER` for any other value and for a very long literal."""
    if value is None:
        return "null"
    if isinstance(value, Number) and len(value.literal) <= MAX_LITERAL:
        return value.literal
    return OTHER


def confidence(value: Json) -> tuple[float | None, Anomaly | None]:
    """A JSON number from 0 to 1; otherwise None and the anomaly. null has no anomaly."""
    if value is None:
        return None, None
    if not isinstance(value, Number):
        return None, Anomaly.CONFIDENCE_NOT_A_NUMBER
    if not is_unit_interval(value):
        return None, Anomaly.CONFIDENCE_OUT_OF_RANGE
    return float(value.literal), None


def epoch_microseconds(value: Json) -> tuple[int | None, Anomaly | None]:
    """Microseconds since 1970 of an epoch timestamp, rounded; None if it is no number.

    Below `SECONDS_BELOW` in magnitude it is in seconds; up to 1000 times that, in milliseconds, with an
    anomaly; beyond, None with an anomaly.
    """
    if not isinstance(value, Number):
        return None, None
    whole = integer(value)
    seconds = float(value.literal) if whole is None else whole
    if abs(seconds) < SECONDS_BELOW:
        return round(seconds * MICROSECONDS), None
    if math.isfinite(seconds) and abs(seconds) < SECONDS_BELOW * 1000:
        return round(seconds * (MICROSECONDS // 1000)), Anomaly.TIMESTAMP_MILLISECONDS
    return None, Anomaly.TIMESTAMP_OUT_OF_RANGE


def iso_microseconds(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date and time, read as UTC if it has no time zone."""
    if _ISO.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)
