"""Values of an answer as columns hold them: of the column's type where they have it, else NULL.

Values are not converted: a text never becomes a number, nor 97 a confidence of 0.97. The one exception is
time stamps in milliseconds (`epoch_microseconds`).
"""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from kyc_pipeline.deepxl.contract import FIELDS, Field, Kind, integer, is_unit_interval
from kyc_pipeline.deepxl.jsontext import SURROGATE, Json, Number
from kyc_pipeline.lake.tables import Table
from kyc_pipeline.vocabulary import Anomaly

MICROSECONDS: Final = 1_000_000
SECONDS_BELOW: Final = 10**11
"""A time stamp is in seconds below this (the year 5138), and in milliseconds from here up to 1000 times it:
read as milliseconds it lies between 1973 and 5138, read as seconds it would lie beyond."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ISO: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)


def direct_columns(table: Table, parent: str) -> dict[str, Field]:
    """Columns of `table` that hold one scalar of the object at the path `parent`, by the data dictionary."""
    fields = {
        field.path: field
        for field in FIELDS
        if field.path.rpartition(".")[0] == parent and field.kind not in (Kind.LIST, Kind.OBJECT)
    }
    return {
        column.name: fields[column.made_from[0]]
        for column in table.columns
        if len(column.made_from) == 1 and column.made_from[0] in fields
    }


def valid_unicode(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, which no UTF-8 column can hold."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def confidence(value: Json) -> tuple[float | None, Anomaly | None]:
    """A JSON number from 0 to 1; else None and why. Neither for null."""
    if value is None:
        return None, None
    if not isinstance(value, Number):
        return None, Anomaly.CONFIDENCE_NOT_A_NUMBER
    if not is_unit_interval(value):
        return None, Anomaly.CONFIDENCE_OUT_OF_RANGE
    return float(value.literal), None


def epoch_microseconds(value: Json) -> tuple[int | None, Anomaly | None]:
    """Microseconds since 1970 of an epoch time stamp, rounded to the nearest; None if it is no number.

    Seconds below `SECONDS_BELOW` in magnitude; milliseconds up to 1000 times that, with an anomaly;
    beyond, None with an anomaly.
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
    """Microseconds since 1970 of an ISO 8601 date and time, read as UTC where it names no zone."""
    if _ISO.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)
