"""The columns of a manifest: what their names mean, and the chunks of rows in which they are passed on."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from kyc_pipeline.ingest.formats.size_limits import MAX_COLUMNS, MAX_IGNORED_NAMES
from kyc_pipeline.ingest.formats.typed_values import ArrowColumn
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable, printable
from kyc_pipeline.landing.zone import ManifestFile
from kyc_pipeline.vocabulary import LABEL_FIELDS, MANIFEST_FIELDS, REQUIRED_FIELDS
from kyc_pipeline.wording import invisible, plural

TAG_PREFIX: Final = "tag."
ROW: Final = "manifest_row"
MALFORMED: Final = "malformed"
SUBMISSION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
SUBMISSION_ID_RULE: Final = "submission_id must be 1 to 64 of A-Z a-z 0-9 . _ -"
ABSENT_ID: Final = re.compile(r"(?i)-?nan|null|none|na|nat|nil|undefined|-+")
"""What spreadsheets, databases and programs write for a value that is not there."""
_BLANKS: Final = re.compile(r"[\s_-]+")


def count_ignored(ignored: Counter[str], name: str, rows: int) -> None:
    """Adds `rows` to the count of an unused column."""
    # A file with a million different keys must not fill memory or the run's metadata.
    known = name in ignored or len(ignored) < MAX_IGNORED_NAMES
    ignored[printable(name)[:64] if known else "(others)"] += rows


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one kind of manifest, and what their names mean."""

    fields: tuple[str, ...]
    required: tuple[str, ...]
    """Columns that the header must name."""
    time: str
    """The field that may be a typed time."""
    number: str | None = None
    """The field that may be a number."""
    has_tags: bool = False
    """Whether there may be columns `tag.<name>`."""

    def count_unused(
        self, ignored: Counter[str], header: Iterable[str], rows: int, unnamed_cells: int
    ) -> None:
        """Counts the rows of each unused column; of columns without a name, only the cells with a value."""
        for column in header:
            if column and not self.is_used(column):
                count_ignored(ignored, column, rows)
        if unnamed_cells:
            count_ignored(ignored, "", unnamed_cells)

    def column_of(self, name: str) -> str:
        """The field or tag that a name in a manifest means.

        Upper and lower case, blanks and hyphens make no difference to a field. The name of a tag is kept,
        without blanks around it.
        """
        name = name.strip()
        if name in self.fields:
            return name
        field = _BLANKS.sub("_", name).lower()
        if field in self.fields:
            return field
        prefix, dot, tag = name.partition(".")
        is_tag = self.has_tags and dot and prefix.strip().lower() == "tag"
        return TAG_PREFIX + tag.strip() if is_tag else name

    def is_used(self, column: str) -> bool:
        """Whether the column is a field or a tag."""
        return column in self.fields or (self.has_tags and column.startswith(TAG_PREFIX))

    def chunk_of(
        self, columns: Mapping[str, ArrowColumn], rows: ArrowColumn, malformed: "ArrowColumn | None" = None
    ) -> pa.Table:
        """Builds a chunk from the columns that the file has; the fields that it lacks are null."""
        nulls = pa.nulls(len(rows), pa.string())
        fields = {name: columns.get(name, nulls) for name in (*self.fields, *columns)}
        return pa.table({ROW: rows, MALFORMED: nulls if malformed is None else malformed, **fields})

    def check_header(self, columns: list[str], path: ManifestFile) -> None:
        """Raises :class:`ManifestUnreadable` unless each required column is there once, with few others."""
        if len(columns) > MAX_COLUMNS:
            raise ManifestUnreadable(path, f"has {len(columns)} columns, more than {MAX_COLUMNS}")
        missing = [column for column in self.required if column not in columns]
        if missing:
            raise ManifestUnreadable(
                path,
                f"has no column {', '.join(missing)}: the first row must name them; "
                f"{self._described(columns)}",
            )
        twice = sorted(column for column, n in Counter(columns).items() if n > 1 and self.is_used(column))
        if twice:
            raise ManifestUnreadable(path, f"has the column {self.shown(twice[0])} twice")

    def _described(self, columns: list[str]) -> str:
        """Describes a wrong header without repeating what it does not know: that may be data of a person."""
        known = [column for column in columns if column in self.fields]
        others = plural(len(columns) - len(known), "other")
        named = f"{', '.join(known)} and {others}" if known else f"none of the fields, but {others}"
        hidden = invisible("".join("".join(columns).split()))
        return f"it names {named}" + (f"; a name has {hidden}: type it again" if hidden else "")

    def shown(self, name: str) -> str:
        """A column's name for messages. A tag's name may be data of a person."""
        return name if name in self.fields else f"{TAG_PREFIX}…"

    def must_be_text(self, name: str) -> str:
        """What is wrong with a cell of column `name` that has no text."""
        return f"{name if name in self.fields else 'a tag'} must be text"


SUBMISSION_ROWS: Final = Layout(MANIFEST_FIELDS, REQUIRED_FIELDS, time="submitted_at", has_tags=True)
"""Manifests of submissions."""
LABEL_ROWS: Final = Layout(LABEL_FIELDS, LABEL_FIELDS[:4], time="decided_at", number="weight")
"""Manifests of labels."""
