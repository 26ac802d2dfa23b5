"""Reads when relationships with people ended: `<landing>/relationships/*.csv`, from the data's owner.

Columns: `submission_id` or `tag.<name>` (each row has a value in exactly one of these), and `ended_at`: a
date, or a time with an offset (ISO 8601). If it is empty, the relationship continues.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Final

from kyc_pipeline.document_store import cause
from kyc_pipeline.errors import KycError
from kyc_pipeline.landing.opening import Root, open_landing
from kyc_pipeline.landing.zone import Landing, ManifestFile
from kyc_pipeline.privacy.erased import Tombstone, one_name
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import SUBMISSION_TAG

FOLDER: Final = "relationships"
_ID, _TAG, _END = "submission_id", "tag.", "ended_at"


class Relationships:
    """The ends of relationships. Call it with a submission's tags, including `submissionId`.

    Raises :class:`KycError` with file and row if one cannot be read: then nothing may be removed.
    """

    def __init__(self, landing: Root, pseudonymizer: Pseudonymizer) -> None:
        self._pseudonymizer = pseudonymizer
        self._ends: dict[Tombstone, date | None] = {}
        for file in _files(open_landing(landing)):
            for name, value, end in _rows(file):
                subject = Tombstone.of_tag(pseudonymizer, name, value)
                known = self._ends.get(subject, end)
                self._ends[subject] = max(known, end) if known and end else None
        self._names = {subject.name for subject in self._ends}

    def __len__(self) -> int:
        return len(self._ends)

    def __call__(self, tags: Mapping[str, str]) -> date | None:
        """The last day of the relationship; None if it is unknown, or if one of the tags continues."""
        ends = [
            self._ends[subject]
            for name, value in tags.items()
            if one_name(name) in self._names
            and (subject := Tombstone.of_tag(self._pseudonymizer, name, value)) in self._ends
        ]
        known = [end for end in ends if end is not None]
        return max(known) if known and len(known) == len(ends) else None


def _files(landing: Landing) -> list[ManifestFile]:
    try:
        return landing.relationships()
    except OSError as error:
        raise KycError(f"{FOLDER}: cannot be listed ({cause(error)}): nothing was removed") from None


def _rows(file: ManifestFile) -> Iterator[tuple[str, str, date | None]]:
    """The tag's name, its value and the end of each row."""
    where = f"{FOLDER}/{file.name}"
    try:
        with file.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, strict=True)
            names = {
                column: SUBMISSION_TAG if column == _ID else column.removeprefix(_TAG)
                for column in rows.fieldnames or ()
                if column == _ID or column.startswith(_TAG)
            }
            if not names or _END not in (rows.fieldnames or ()):
                raise KycError(
                    f"{where}: needs the columns {_END} and {_ID} or {_TAG}<name>: nothing was removed"
                )
            for number, row in enumerate(rows, 1):
                given = [(name, row[column]) for column, name in names.items() if (row[column] or "").strip()]
                if len(given) != 1 or None in row or row[_END] is None:
                    raise KycError(
                        f"{where}: row {number} must have one of {', '.join(names)}, and as many cells as "
                        "the header: nothing was removed"
                    )
                yield *given[0], _date(row[_END].strip(), f"{where}: row {number}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = cause(error) if isinstance(error, OSError) else type(error).__name__
        raise KycError(f"{where}: cannot be read ({why}): nothing was removed") from None


def _date(text: str, where: str) -> date | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if len(text) == len("2024-09-01"):
            return moment.date()
        if moment.tzinfo is not None:
            return moment.astimezone(UTC).date()
    except (ValueError, OverflowError):
        pass
    raise KycError(
        f"{where}: {_END} must be a date such as 2024-09-01, or a time with an offset: nothing was removed"
    )
