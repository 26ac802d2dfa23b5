"""The exact path: one response at a time, for every response that meets the hard contract.

It reads JSON exactly (number literals, repeated keys, any depth) and defines the content of the tables. The
fast path (`blocks.py`) must give the same rows for the responses that it takes.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import pyarrow as pa

from kyc_pipeline.deepxl.contract import Received, integer, normalize_status
from kyc_pipeline.deepxl.echo import Echo, echo_mismatches
from kyc_pipeline.deepxl.jsontext import Json, Object, write_json
from kyc_pipeline.flatten.drift import DriftCounter, letters, survey
from kyc_pipeline.flatten.values import (
    MICROSECONDS,
    OTHER,
    check_status,
    check_type,
    code,
    confidence,
    direct_columns,
    epoch_microseconds,
    iso_microseconds,
    number_text,
    valid_unicode,
)
from kyc_pipeline.lake.tables import (
    INT64,
    MODEL_CHECKS,
    STRING,
    TIMESTAMP,
    VERIFICATION_FILES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import SUBMISSION_TAG, TECHNICAL_CHECKS, Anomaly

FACTS: Final = (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES)
"""The tables with rows per response; `contract_drift` has rows per partition."""
SECOND_TECHNICAL_CHECKS: Final = "result.technicalChecks"
"""The group of checks directly under `result` if they differ from those under `modelResults`."""


@dataclass(frozen=True, slots=True)
class SentSubmission:
    """What was sent for one submission, to compare with its response's echo."""

    id_sha256: str
    id_size: int
    selfie_size: int
    tags: dict[str, str]
    """Without `submissionId`."""
    withheld_tags: dict[str, str] = field(default_factory=dict)
    """Tags of the submission that were not sent."""


@dataclass(slots=True)
class Rows:
    """Rows of the fact tables, one list per column."""

    columns: dict[str, dict[str, list[Any]]] = field(
        default_factory=lambda: {table.name: {c.name: [] for c in table.columns} for table in FACTS}
    )

    def append(self, table: Table, values: dict[str, Any]) -> None:
        """Appends one row with all its columns."""
        columns = self.columns[table.name]
        for name, value in values.items():
            columns[name].append(value)

    def table(self, table: Table) -> pa.Table:
        """The rows of `table` as Arrow data."""
        return pa.table(self.columns[table.name], schema=table.schema)


class _Members:
    """The fields of one object. Reading adds anomalies to `odd`."""

    def __init__(self, value: Json, odd: set[Anomaly]) -> None:
        # The last value of a repeated key counts, as in other parsers; the others count as drift.
        self._values = dict(value.members) if isinstance(value, Object) else {}
        self._odd = odd

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, *aliases: str) -> Json:
        """The first non-null value among `name` and `aliases`; else None."""
        if not aliases:
            return self._values.get(name)
        found = [value for key in (name, *aliases) if (value := self._values.get(key)) is not None]
        if any(value != found[0] for value in found):
            self._odd.add(Anomaly.FIELD_CONFLICT)
        return found[0] if found else None

    def text(self, name: str, *aliases: str) -> str | None:
        """A text; None for anything else."""
        value = self.get(name, *aliases)
        if not isinstance(value, str):
            return None
        return value if value.isascii() else self.clean(value)

    def clean(self, text: str) -> str:
        """`text` as valid Unicode."""
        valid = valid_unicode(text)
        if valid != text:
            self._odd.add(Anomaly.INVALID_UNICODE)
        return valid

    def integer(self, name: str, *aliases: str) -> int | None:
        """A 64-bit integer; None for anything else."""
        return integer(self.get(name, *aliases))

    def code(self, name: str, *aliases: str) -> str | None:
        """A known name or a version, or `OTHER`; None for anything else."""
        text = self.text(name, *aliases)
        shown = code(text)
        if shown != text:
            self._odd.add(Anomaly.TEXT_WITHHELD)
        return shown

    def epoch(self, name: str, *aliases: str) -> int | None:
        """An epoch timestamp in microseconds."""
        moment, anomaly = epoch_microseconds(self.get(name, *aliases))
        if anomaly is not None:
            self._odd.add(anomaly)
        return moment

    def objects(self, name: str) -> list[Object]:
        """The objects in a list; none for anything else."""
        value = self.get(name)
        return [item for item in value if isinstance(item, Object)] if isinstance(value, list) else []


_Read: TypeAlias = Callable[..., str | int | None]
_WORD: Final = re.compile(r"[^\W_]{3,}")
_READERS: Final[dict[pa.DataType, _Read]] = {
    STRING: _Members.code,
    INT64: _Members.integer,
    TIMESTAMP: _Members.epoch,
}


def _readers(table: Table, parent: str) -> list[tuple[str, _Read, tuple[str, ...]]]:
    """How to read each direct column of `table`: its name, the reader, and the field's names."""
    return [
        (name, _Members.text if name == "timestamp_iso" else _READERS[table.column(name).type], field.names)
        for name, field in direct_columns(table, parent).items()
        if name not in _HARD_COLUMNS
    ]


_HARD_COLUMNS: Final = {"verification_id", "verified"}
"""Read by the hard contract, which accepts more forms than the soft one: an id may be a string."""
_OF_RESULT: Final = _readers(VERIFICATIONS, "result")
_OF_FILE: Final = _readers(VERIFICATION_FILES, "result.files[]")


class RecordFlattener:
    """Turns responses into rows, one by one in the order of their submissions."""

    def __init__(
        self, pseudonymizer: Pseudonymizer, clear_tags: Collection[str], drift: DriftCounter
    ) -> None:
        self._pseudonymizer = pseudonymizer
        self._clear_tags = frozenset(clear_tags)
        self._drift = drift

    def add(self, rows: Rows, submission_id: str, received: Received, sent: SentSubmission | None) -> None:
        """Appends the rows of one response; `sent` is None if no accepted submission has its id."""
        odd = set(self._survey(received.parsed, submission_id, sent))
        result = _Members(_Members(received.parsed, odd).get("result"), odd)
        key = {"verification_id": received.verification_id, "submission_id": submission_id}
        check_count = 0
        for group, index, check in _checks(result, odd):
            check_count += 1
            rows.append(MODEL_CHECKS, key | _check(check, odd) | {"check_group": group, "check_index": index})
        tags = list(_tags(result.get("tags"), odd))
        sent_names = self._clear_tags | {SUBMISSION_TAG} | (sent.tags.keys() if sent else set())
        for name, value in tags:
            shown_name = valid_unicode(name) if name in sent_names else OTHER
            if shown_name is OTHER:
                odd.add(Anomaly.TEXT_WITHHELD)
            rows.append(VERIFICATION_TAGS, key | self._tag(name, value) | {"name": shown_name})
        for name, value in (sent.withheld_tags if sent else {}).items():
            rows.append(VERIFICATION_TAGS, key | self._tag(name, value) | {"name": name})
        for item in result.objects("files"):
            rows.append(VERIFICATION_FILES, key | _read(_Members(item, odd), _OF_FILE))
        verification = _read(result, _OF_RESULT)
        iso_offset = _iso_offset_seconds(verification, odd)
        if Anomaly.TIMESTAMP_ISO_UNREADABLE in odd:
            verification["timestamp_iso"] = OTHER
        if sent is None:
            odd.add(Anomaly.SUBMISSION_MISSING)
        else:
            mismatches = echo_mismatches(
                Echo(verification["id_file_size"], verification["selfie_file_size"], tags),
                id_size=sent.id_size,
                selfie_size=sent.selfie_size,
                tags={**sent.tags, SUBMISSION_TAG: submission_id},
            )
            odd.update(anomaly for anomaly, _ in mismatches)
        rows.append(
            VERIFICATIONS,
            key
            | verification
            | {
                "verified": received.verified,
                "iso_offset_seconds": iso_offset,
                "check_count": check_count,
                "id_document_pseudonym": sent and self._pseudonymizer.document(sent.id_sha256),
                "anomalies": sorted(odd),
            },
        )

    def _survey(self, response: Json, submission_id: str, sent: SentSubmission | None) -> Iterator[Anomaly]:
        @functools.cache  # few responses have an unknown key
        def personal() -> frozenset[str]:
            return frozenset(
                letters(word)
                for name, value in (sent.tags | sent.withheld_tags if sent else {}).items()
                if name not in self._clear_tags
                for word in (value, *_WORD.findall(value))
            )

        for path, kind in survey(response, personal):
            self._drift.add(path, kind, submission_id)
            yield Anomaly[kind.name]

    def _tag(self, name: str, value: str | None) -> dict[str, Any]:
        return {
            "value": valid_unicode(value) if value is not None and name in self._clear_tags else None,
            # A blank value identifies nobody.
            "pseudonym": self._pseudonymizer.tag(name, value) if value and value.strip() else None,
        }


def _read(members: _Members, readers: list[tuple[str, _Read, tuple[str, ...]]]) -> dict[str, Any]:
    return {column: read(members, *names) for column, read, names in readers}


def _iso_offset_seconds(verification: dict[str, Any], odd: set[Anomaly]) -> float | None:
    """The ISO text, read as UTC, minus the epoch timestamp."""
    text, verified_at = verification["timestamp_iso"], verification["verified_at"]
    iso_moment = iso_microseconds(text) if text else None
    if text and iso_moment is None:
        odd.add(Anomaly.TIMESTAMP_ISO_UNREADABLE)
    return None if verified_at is None or iso_moment is None else (iso_moment - verified_at) / MICROSECONDS


def _checks(result: _Members, odd: set[Anomaly]) -> Iterator[tuple[str, int, _Members]]:
    """Every check with its group and its index in the group."""
    model_results = result.get("modelResults")
    groups = dict(model_results.members) if isinstance(model_results, Object) else {}
    found = [(key if key == TECHNICAL_CHECKS else OTHER, value) for key, value in groups.items()]
    elsewhere = result.get(TECHNICAL_CHECKS)
    if not groups.get(TECHNICAL_CHECKS):
        found.append((TECHNICAL_CHECKS, elsewhere))
    elif elsewhere != groups[TECHNICAL_CHECKS]:
        found.append((SECOND_TECHNICAL_CHECKS, elsewhere))
    for group, checks in found:
        for index, check in enumerate(checks if isinstance(checks, list) else []):
            if isinstance(check, Object):
                if group is OTHER:
                    odd.add(Anomaly.TEXT_WITHHELD)
                yield group, index, _Members(check, odd)


def _check(check: _Members, odd: set[Anomaly]) -> dict[str, Any]:
    status = check.text("status")
    given = check.get("confidence")
    score, anomaly = confidence(given)
    if anomaly is not None:
        odd.add(anomaly)
    return {
        "type": check_type(check.text("type", "checkType")),
        "status": check_status(status),
        "normalized_status": normalize_status(status),
        "confidence": score,
        "confidence_raw": number_text(given) if "confidence" in check else None,
        "details": check.text("details"),
    }


def _tags(tags: Json, odd: set[Anomaly]) -> Iterator[tuple[str, str | None]]:
    """Every tag's name and value: a non-text value as JSON text, None for null or an absent value.

    Responses have a list of `{name, value}`; an object, as in requests, is read too.
    """
    pairs: list[tuple[Json, Json]] = []
    if isinstance(tags, Object):
        pairs = [(name, value) for name, value in tags.members]
    elif isinstance(tags, list):
        items = [_Members(item, odd) for item in tags if isinstance(item, Object)]
        pairs = [(item.get("name"), item.get("value")) for item in items]
    seen: set[str] = set()
    for name, value in pairs:
        if not isinstance(name, str):
            odd.add(Anomaly.TAG_WITHOUT_NAME)
            continue
        if name in seen:
            odd.add(Anomaly.TAG_REPEATED)
        seen.add(name)
        text = value if isinstance(value, str) or value is None else write_json(value)
        if valid_unicode(name + (text or "")) != name + (text or ""):
            odd.add(Anomaly.INVALID_UNICODE)
        yield name, text
