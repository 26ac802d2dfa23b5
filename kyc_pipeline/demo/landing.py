"""Creates the demo's landing zone: daily submissions of made-up people, as partners deliver them.

Manifests come as CSV, JSON Lines and Parquet. Some people try again on a later day, several people share a
document, and every rejection reason occurs except `erased_subject` (nobody was erased), `duplicate_documents`
and `missing_consent` (rejected only if a setting says so). The same arguments give the same bytes, and
existing files are not written again.
"""

import csv
import gzip
import io
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from kyc_pipeline.days import day_range
from kyc_pipeline.demo.drawing import Face, id_card, selfie
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.vocabulary import (
    COMPANY_NAME_TAG,
    COMPANY_TAG,
    MANIFEST_FIELDS,
    REQUIRED_FIELDS,
    SUBMISSION_TAG,
    Reason,
)

COMPANIES: Final = {
    "101": "Alder Bank",
    "102": "Birch Pay",
    "103": "Cedar Mobility",
    "104": "Dogwood Insurance",
    "105": "Elm Exchange",
}
_FIRST_NAMES: Final = (
    "Ada",
    "Bruno",
    "Chiara",
    "David",
    "Elif",
    "Femi",
    "Grace",
    "Hugo",
    "Ines",
    "Jun",
    "Kofi",
    "Lena",
)
_LAST_NAMES: Final = (
    "Abel",
    "Brandt",
    "Costa",
    "Dahl",
    "Eriksen",
    "Ferrari",
    "Gruber",
    "Haddad",
    "Ito",
    "Jansen",
)
_OVERSIZE: Final = 50_000_001
_RETRY_SHARE: Final = 0.15
_SHARED_DOCUMENT_SHARE: Final = 0.01
_PNG_SHARE: Final = 0.15
_FIELDS: Final = MANIFEST_FIELDS[: MANIFEST_FIELDS.index("consent")]
"""The demo does not require consent."""


@dataclass(frozen=True, slots=True)
class DemoLanding:
    """What was written: the number of valid rows, and of rows that ingest must reject, by reason."""

    folder: Path
    dates: tuple[str, ...]
    accepted: int
    rejected: Mapping[Reason, int]


@dataclass(frozen=True, slots=True)
class _Person:
    customer_id: str
    name: str
    document_id: str
    company_id: str
    id_file: str


@dataclass(frozen=True, slots=True)
class _Row:
    submission_id: str
    id_file: str
    selfie_file: str
    submitted_at: str
    tags: Mapping[str, str]

    def cells(self) -> dict[str, str]:
        """The row as it appears in a manifest."""
        tags = msgspec.json.encode(self.tags).decode()
        values = (self.submission_id, self.id_file, self.selfie_file, tags, self.submitted_at)
        return dict(zip(_FIELDS, values, strict=True))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes each file once and atomically, so that an interrupted demo leaves no partial file."""

    documents: Path
    manifests: Path

    def document(self, name: str, make: Callable[[], bytes], *, size: int | None = None) -> str:
        path = self.documents / name
        if not path.exists():
            _write(path, make(), size)
        return name

    def manifest(self, day: str, name: str, content: bytes) -> None:
        path = self.manifests / day / name
        if not path.exists() or path.read_bytes() != content:
            _write(path, content)


def _write(path: Path, content: bytes, size: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as file:
        file.write(content)
        if size is not None:
            file.truncate(size)


def write_landing(folder: Path, *, days: int = 14, per_day: int = 60, start: date, seed: int) -> DemoLanding:
    """Writes `per_day` submissions for each of `days` days from `start` into the landing zone `folder`.

    Rows that must be rejected are added to these. Submission ids start with the day: `2024-09-03-0012`.
    """
    writer = _Writer(folder / "documents", folder / "manifests")
    people = _People(writer, seed)
    dates = day_range(start, start + timedelta(days=days - 1))
    rejected: Counter[Reason] = Counter()
    for number, day in enumerate(dates):
        rows = [people.submission(day, place) for place in range(1, per_day + 1)]
        late = max(1, per_day // 15)
        name, encode = _FORMATS[number % len(_FORMATS)]
        writer.manifest(day, name, encode(rows[:-late]))
        lines = [_csv_line(row) for row in rows[-late:]]
        for place, reason in enumerate(_PLAN[number::days]):
            row = rows[place % per_day]
            fresh = replace(row, submission_id=f"{day}-{per_day + place + 1:04d}")
            lines.append(_DEFECTS[reason](fresh, row, writer))
            rejected[reason] += 1
        # This name sorts last, so if a row occurs twice, the one in this file is rejected.
        writer.manifest(day, "late.csv", (_CSV_HEADER + "".join(lines)).encode())
    return DemoLanding(folder, tuple(dates), days * per_day, dict(rejected))


class _People:
    """Makes submissions one at a time, and remembers earlier people."""

    def __init__(self, writer: _Writer, seed: int) -> None:
        self._writer = writer
        self._seed = seed
        self._chance = random.Random(f"landing/{seed}")
        self._known: list[_Person] = []
        self._today: list[_Person] = []
        self._day = ""

    def submission(self, day: str, place: int) -> _Row:
        if day != self._day:
            self._known += self._today
            self._today, self._day = [], day
        chance, submission_id = self._chance, f"{day}-{place:04d}"
        if self._known and chance.random() < _RETRY_SHARE:
            person = chance.choice(self._known)
            if chance.random() < 0.5:
                person = replace(person, id_file=self._photograph(person, submission_id))
        else:
            person = self._newcomer(submission_id)
            self._today.append(person)
        moment = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(seconds=chance.randrange(86_400))
        face = Face.of(person.customer_id)
        return _Row(
            submission_id,
            person.id_file,
            self._document(f"{submission_id}_selfie", lambda kind: selfie(face, submission_id, kind)),
            moment.isoformat(),
            {
                "customerId": person.customer_id,
                "customerName": person.name,
                "documentId": person.document_id,
                COMPANY_TAG: person.company_id,
                COMPANY_NAME_TAG: COMPANIES[person.company_id],
            },
        )

    def _newcomer(self, submission_id: str) -> _Person:
        chance = self._chance
        number = len(self._known) + len(self._today)
        person = _Person(
            customer_id=str(10_000 + number),
            name=f"{chance.choice(_FIRST_NAMES)} {chance.choice(_LAST_NAMES)}",
            document_id=f"X{self._seed % 1000:03d}{number:05d}",
            company_id=chance.choices(list(COMPANIES), weights=(30, 25, 20, 15, 10))[0],
            id_file="",
        )
        if self._known and chance.random() < _SHARED_DOCUMENT_SHARE:
            return replace(person, id_file=chance.choice(self._known).id_file)
        return replace(person, id_file=self._photograph(person, submission_id))

    def _photograph(self, person: _Person, submission_id: str) -> str:
        face, lines = Face.of(person.customer_id), [person.name, f"No. {person.document_id}"]
        return self._document(f"{submission_id}_id", lambda kind: id_card(face, lines, submission_id, kind))

    def _document(self, name: str, draw: Callable[[str], bytes]) -> str:
        kind, suffix = ("PNG", "png") if self._chance.random() < _PNG_SHARE else ("JPEG", "jpg")
        return self._writer.document(f"{self._seed}/{self._day}/{name}.{suffix}", lambda: draw(kind))


# --- manifests --------------------------------------------------------------------------------------------


def _line(values: Iterable[str], separator: str = ",") -> str:
    target = io.StringIO(newline="")
    csv.writer(target, delimiter=separator, lineterminator="\n").writerow(values)
    return target.getvalue()


def _csv_line(row: _Row) -> str:
    return _line(row.cells().values())


_CSV_HEADER: Final = _line(_FIELDS)


def _csv(rows: Sequence[_Row]) -> bytes:
    return (_CSV_HEADER + "".join(map(_csv_line, rows))).encode()


def _excel_csv(rows: Sequence[_Row]) -> bytes:
    """As a German Excel writes it: semicolons, a byte order mark, one column per tag, and an extra column."""
    names = list(rows[0].tags) if rows else []
    lines = [_line((*REQUIRED_FIELDS, "submitted_at", *(f"tag.{name}" for name in names), "branch"), ";")]
    for row in rows:
        cells = (row.submission_id, row.id_file, row.selfie_file, row.submitted_at)
        lines.append(_line((*cells, *row.tags.values(), "online"), ";"))
    return "".join(lines).replace("\n", "\r\n").encode("utf-8-sig")


def _jsonl(rows: Sequence[_Row]) -> bytes:
    return b"".join(msgspec.json.encode({**row.cells(), "tags": row.tags}) + b"\n" for row in rows)


def _parquet(rows: Sequence[_Row]) -> bytes:
    target = io.BytesIO()
    schema = pa.schema([(name, pa.string()) for name in _FIELDS])
    pq.write_table(pa.Table.from_pylist([row.cells() for row in rows], schema), target)
    return target.getvalue()


def _zipped(encode: Callable[[Sequence[_Row]], bytes]) -> Callable[[Sequence[_Row]], bytes]:
    return lambda rows: gzip.compress(encode(rows), mtime=0)


_FORMATS: Final[tuple[tuple[str, Callable[[Sequence[_Row]], bytes]], ...]] = (
    ("app.csv", _csv),
    ("app.jsonl.gz", _zipped(_jsonl)),
    ("app.parquet", _parquet),
    ("branches.csv", _excel_csv),
    ("app.jsonl", _jsonl),
    ("app.csv.gz", _zipped(_csv)),
)

# --- what goes wrong --------------------------------------------------------------------------------------

_Defect = Callable[[_Row, _Row, _Writer], str]
"""Makes a CSV line that must be rejected. Takes a fresh row, another row of the day and the writer."""


def _changed(**cells: str) -> _Defect:
    return lambda fresh, other, writer: _line({**fresh.cells(), **cells}.values())


def _with_document(suffix: str, content: Callable[[bytes], bytes], size: int | None = None) -> _Defect:
    def defect(fresh: _Row, other: _Row, writer: _Writer) -> str:
        good = (writer.documents / fresh.id_file).read_bytes()
        name = f"{os.path.dirname(fresh.id_file)}/{fresh.submission_id}_{suffix}"
        return _csv_line(replace(fresh, id_file=writer.document(name, lambda: content(good), size=size)))

    return defect


_DEFECTS: Final[dict[Reason, _Defect]] = {
    Reason.MALFORMED_ROW: lambda fresh, other, writer: _line([fresh.submission_id, fresh.id_file]),
    Reason.MISSING_FIELD: _changed(selfie_file=""),
    Reason.INVALID_SUBMISSION_ID: _changed(submission_id="number 12/b"),
    Reason.DUPLICATE_SUBMISSION_ID: lambda fresh, other, writer: _csv_line(other),
    Reason.CONFLICTING_SUBMISSION_ID: lambda fresh, other, writer: _csv_line(
        replace(other, tags={"customerId": "99999"})
    ),
    Reason.INVALID_TAGS: _changed(tags='["customerId"]'),
    Reason.RESERVED_TAG: _changed(tags=f'{{"{SUBMISSION_TAG}":"1"}}'),
    Reason.INVALID_SUBMITTED_AT: _changed(submitted_at="yesterday"),
    Reason.PATH_OUTSIDE_DOCUMENTS: _changed(id_file="../manifests/late.csv"),
    Reason.FILE_NOT_FOUND: _changed(id_file="lost.jpg"),
    Reason.FILE_EMPTY: _with_document("empty.jpg", lambda good: b""),
    # A sparse file: it takes no disk space.
    Reason.FILE_TOO_LARGE: _with_document("scan.jpg", lambda good: good, size=_OVERSIZE),
    Reason.UNSUPPORTED_FILE_TYPE: _with_document("letter.jpg", lambda good: b"This is a letter, no image.\n"),
    Reason.UNREADABLE_IMAGE: _with_document("upload.jpg", lambda good: good[: len(good) // 2]),
}

_PLAN: Final = (
    *_DEFECTS,
    Reason.FILE_NOT_FOUND,
    Reason.DUPLICATE_SUBMISSION_ID,
    Reason.MISSING_FIELD,
    Reason.UNREADABLE_IMAGE,
    Reason.FILE_NOT_FOUND,
    Reason.DUPLICATE_SUBMISSION_ID,
    Reason.UNREADABLE_IMAGE,
    Reason.FILE_NOT_FOUND,
)
"""Reasons of the rejected rows, spread over the days in this order; some are more common than others."""
