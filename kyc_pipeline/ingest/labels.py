"""Reads the manifests of labels into `labels` and `rejected_labels`.

Labels come for submissions of any day, in any file, so all files are read whenever one has changed. A file
that cannot be read is reported, and counts as it was when it was last read: one damaged file must neither
change the figures of the others nor stop a publication. So of equal labels in several files, the lake also
keeps the places of those that do not count: such a row comes back when the one before it is gone.
"""

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.formats import read_manifest
from kyc_pipeline.ingest.formats.columns import (
    LABEL_ROWS,
    MALFORMED,
    ROW,
    SUBMISSION_ID,
    SUBMISSION_ID_RULE,
)
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable, fails_alone
from kyc_pipeline.ingest.manifests import READ_ATTEMPTS, DayFolder, Manifest, list_labels
from kyc_pipeline.ingest.rows import Rejections, read_times
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS, REJECTED_LABELS
from kyc_pipeline.landing.opening import Root, open_landing
from kyc_pipeline.landing.zone import LABELS_FOLDER, Landing
from kyc_pipeline.privacy.erased import DETAIL as ERASED_DETAIL
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.vocabulary import LABEL_FIELDS, SUBMISSION_TAG, Attack, Label, LabelReason
from kyc_pipeline.wording import plural

if TYPE_CHECKING:  # imported where it is used: importing it takes a quarter of a second
    import pandas as pd

_IDENTITY_KEY: Final = "manifests"
"""Footer key of both tables: the identity of the manifests, and the encoding of those that needed one."""
_SUMMARY_KEY: Final = "summary"
"""Footer key of `labels`: the :class:`LabelsSummary`."""
_SOURCE: Final = r"[a-z0-9][a-z0-9._-]{0,31}"
_STRATUM: Final = r"[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,63}"
_MAX_WEIGHT: Final = 1e9
_BY_PLACE: Final[list[tuple[str, Literal["ascending", "descending"]]]] = [
    ("manifest", "ascending"),
    ("manifest_row", "ascending"),
]
_ORDER: Final[list[tuple[str, Literal["ascending", "descending"]]]] = [
    ("submission_id", "ascending"),
    ("decided_at", "ascending"),
    *_BY_PLACE,
]
_PLACE: Final = ["manifest", "manifest_row"]
_FIRST: Final = ["first_manifest", "first_row"]
"""The place of the label that a row repeats."""
_NO_LOCK: Final = contextlib.nullcontext(lambda: None)


@dataclass(frozen=True, slots=True)
class LabelsSummary:
    """The counts of a reading. Each row that was read is in `accepted` or in `rejected`.

    `rejected` also counts unreadable files. The rows that these had before are in neither count: `kept` of
    them are in `labels`; those that repeat another label are in `rejected_labels`.
    """

    manifests: int
    received: int
    accepted: int
    kept: int
    rejected: Mapping[LabelReason, int]
    ignored_files: int

    @property
    def rejected_rows(self) -> int:
        """Rows that were rejected."""
        return sum(self.rejected.values()) - self.unreadable

    @property
    def unreadable(self) -> int:
        """Files that cannot be read."""
        return self.rejected.get(LabelReason.UNREADABLE_FILE, 0)

    def __str__(self) -> str:
        return (
            f"{plural(self.received, 'row')} in {plural(self.manifests, 'manifest')} of labels, "
            f"{self.accepted} accepted, {self.rejected_rows} rejected"
            + (f", {plural(self.unreadable, 'file')} unreadable" if self.unreadable else "")
        )


def are_ingested(landing: Root | Landing, lake: Lake, csv_encoding: str | None = None) -> bool:
    """Whether the lake's labels were made from the present manifests.

    Raises :class:`KycError` if the landing zone or the lake cannot be read.
    """
    if not all(lake.exists(table, WHOLE) for table in (LABELS, REJECTED_LABELS)):
        return False
    with contextlib.suppress(ManifestUnreadable):
        return lake.metadata(LABELS, WHOLE).get(_IDENTITY_KEY) == _identity(
            list_labels(landing), csv_encoding
        )
    return False


def ingest_labels(
    *,
    landing: Root | Landing,
    lake: Lake,
    erased: ErasedSubjects | None = None,
    csv_encoding: str | None = None,
    lock: AbstractContextManager[Callable[[], None]] = _NO_LOCK,
    confirm: Callable[[], None] = lambda: None,
) -> LabelsSummary:
    """Reads all manifests of labels and replaces `labels` and `rejected_labels`.

    Rows about `erased` subjects are rejected. `lock` keeps erasures out while the tables are replaced;
    `confirm` is called while it is held, and raises if somebody was erased meanwhile.

    Raises :class:`KycError` if the landing zone cannot be read, if a manifest is still being written, or if
    all manifests are gone although the lake has labels.
    """
    zone = open_landing(landing)
    if problem := zone.problem():
        raise KycError(f"KYC_LANDING: {landing} {problem}")
    for _ in range(READ_ATTEMPTS):
        folder = list_labels(zone)
        read = _Reading(lake)
        for manifest in folder.manifests:
            read.add(manifest, csv_encoding, erased)
        changed = [m.name for m in folder.manifests if not _is_unchanged(m, zone)]
        if not changed:
            break
    else:
        raise KycError(f"{LABELS_FOLDER}/{changed[0]}: is still being written: try again once it is complete")
    labels, rejected = read.result()
    is_kept, was_rejected = read.are_kept(labels), read.are_kept(rejected)
    if not folder.manifests and lake.exists(LABELS, WHOLE) and lake.row_count(LABELS, WHOLE):
        raise KycError(
            f"{LABELS_FOLDER}/ has no manifests, but the lake has labels: mount its volume, or put one file "
            "with only the names of the columns there if all were removed"
        )
    reasons = Counter(rejected.filter(pc.invert(was_rejected))["reason"].to_pylist())
    kept = int(pc.sum(is_kept).as_py() or 0)
    summary = LabelsSummary(
        manifests=len(folder.manifests),
        received=read.received,
        accepted=labels.num_rows - kept,
        kept=kept,
        rejected={LabelReason(str(reason)): count for reason, count in sorted(reasons.items())},
        ignored_files=len(folder.ignored),
    )
    identity = {_IDENTITY_KEY: _identity(folder, csv_encoding)}
    metadata = identity | {_SUMMARY_KEY: msgspec.json.encode(summary).decode()}
    with lock as check_lock:
        confirm()
        # The inner table is published first. The footer of the outer one says what both were made from.
        with (
            lake.writer(LABELS, WHOLE, metadata, keep_identical=True) as accepted_rows,
            lake.writer(REJECTED_LABELS, WHOLE, identity, keep_identical=True) as rejected_rows,
        ):
            accepted_rows.write(labels)
            rejected_rows.write(rejected)
            check_lock()
    return summary


def stored_summary(lake: Lake) -> LabelsSummary:
    """The counts of the reading that made the labels in the lake."""
    return msgspec.json.decode(lake.metadata(LABELS, WHOLE)[_SUMMARY_KEY], type=LabelsSummary)


def _identity(folder: DayFolder, csv_encoding: str | None) -> str:
    return f"{folder.identity} {csv_encoding or ''}".strip()


def _is_unchanged(manifest: Manifest, landing: Landing) -> bool:
    try:
        return manifest.is_unchanged(landing)
    except ManifestUnreadable:
        return True


class _Reading:
    """The rows of the manifests so far."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._labels: list[pa.Table] = []
        self._rejected: list[pa.Table] = []
        self._unreadable: list[str] = []
        self.received = 0

    def add(self, manifest: Manifest, csv_encoding: str | None, erased: ErasedSubjects | None) -> None:
        """Adds the rows of a manifest, or the valid ones that it had before if it cannot be read."""
        labels, rejected, received = [], [], 0
        try:
            for chunk in read_manifest(manifest.path, Counter(), csv_encoding, LABEL_ROWS):
                with fails_alone(manifest.path):
                    accepted_rows, rejected_rows = validate_labels(chunk, manifest.name, erased)
                labels.append(accepted_rows)
                rejected.append(rejected_rows)
                received += chunk.num_rows
        except ManifestUnreadable as error:
            detail, _, _ = str(error).partition("\n")
            row = {
                "reason": LabelReason.UNREADABLE_FILE.value,
                "detail": detail,
                "manifest": manifest.name,
                "manifest_row": 0,
            }
            labels = [self._before.filter(pc.equal(self._before["manifest"], pa.scalar(manifest.name)))]
            received = 0
            rejected = [pa.Table.from_pylist([row], REJECTED_LABELS.schema)]
            self._unreadable.append(manifest.name)
        self._labels += labels
        self._rejected += rejected
        self.received += received

    @functools.cached_property
    def _before(self) -> pa.Table:
        """The valid rows of the reading before, repeats included: rows of `labels`."""
        if not self._lake.exists(LABELS, WHOLE):
            return LABELS.schema.empty_table()
        labels = self._lake.read(LABELS, WHOLE).select(LABELS.schema.names).cast(LABELS.schema)
        # A crash may have left the tables of two readings: then a place in one means nothing in the other.
        if not self._lake.exists(REJECTED_LABELS, WHOLE) or (
            self._lake.metadata(REJECTED_LABELS, WHOLE).get(_IDENTITY_KEY)
            != self._lake.metadata(LABELS, WHOLE).get(_IDENTITY_KEY)
        ):
            return labels
        places = self._lake.read(REJECTED_LABELS, WHOLE, [*_PLACE, *_FIRST])
        repeats = places.join(labels, _FIRST, _PLACE, "inner").select(LABELS.schema.names)
        return pa.concat_tables([labels, repeats.cast(LABELS.schema)])

    def are_kept(self, rows: pa.Table) -> Any:
        """A Boolean array: which rows were not read, but are those of an unreadable file before."""
        theirs = pc.is_in(rows["manifest"], pa.array(self._unreadable, pa.string()))
        return pc.and_(theirs, pc.greater(rows["manifest_row"], pa.scalar(0)))

    def result(self) -> tuple[pa.Table, pa.Table]:
        """Accepted and rejected rows, in order. The first of equal labels counts; the others are rejected."""
        labels = pa.concat_tables([LABELS.schema.empty_table(), *self._labels]).sort_by(_ORDER)
        rejected = pa.concat_tables([REJECTED_LABELS.schema.empty_table(), *self._rejected])
        if labels.num_rows:
            fields, numbers = list(LABEL_FIELDS), range(labels.num_rows)
            frame = labels.select(fields).to_pandas().assign(number=numbers)
            firsts = frame.groupby(fields, dropna=False, sort=False)["number"].transform("min")
            first = pa.array(firsts.to_numpy())
            is_repeat = pc.not_equal(first, pa.array(numbers))
            repeated = labels.select(_PLACE).take(first.filter(is_repeat)).rename_columns(_FIRST)
            repeats = _rejected_as(labels.filter(is_repeat), LabelReason.DUPLICATE_LABEL, repeated)
            labels = labels.filter(pc.invert(is_repeat))
            rejected = pa.concat_tables([rejected, repeats])
        return labels, rejected.sort_by(_BY_PLACE)


def _rejected_as(rows: pa.Table, reason: LabelReason, repeated: pa.Table | None = None) -> pa.Table:
    """Rows of `rejected_labels`. `repeated` has the places of the labels that they repeat."""
    details = {
        LabelReason.DUPLICATE_LABEL: "the same label was delivered before",
        LabelReason.ERASED_SUBJECT: ERASED_DETAIL,
    }
    columns: dict[str, Any] = {
        "reason": [reason.value] * rows.num_rows,
        "detail": [details[reason]] * rows.num_rows,
        "manifest": rows["manifest"],
        "manifest_row": rows["manifest_row"],
        **{name: [None] * rows.num_rows if repeated is None else repeated[name] for name in _FIRST},
    }
    return pa.table(columns, schema=REJECTED_LABELS.schema)


def reject_labels(lake: Lake, erased: Callable[[str], bool]) -> None:
    """Rejects the labels whose submission id is `erased`, as the next reading would. Keep the ingest lock."""
    if not lake.exists(LABELS, WHOLE):
        return
    labels = lake.read(LABELS, WHOLE)
    theirs = is_erased(labels, erased)
    if not pc.any(theirs).as_py():
        return
    exists = lake.exists(REJECTED_LABELS, WHOLE)
    before = lake.read(REJECTED_LABELS, WHOLE) if exists else REJECTED_LABELS.schema.empty_table()
    rejected = pa.concat_tables(
        [
            before.select(REJECTED_LABELS.schema.names).cast(REJECTED_LABELS.schema),
            _rejected_as(labels.filter(theirs), LabelReason.ERASED_SUBJECT),
        ]
    )
    # Rejected rows first: a crash in between leaves a row in both tables, never in none.
    metadata = lake.metadata(REJECTED_LABELS, WHOLE) if exists else {}
    lake.write(REJECTED_LABELS, WHOLE, rejected.sort_by(_BY_PLACE), metadata)
    lake.write(LABELS, WHOLE, labels.filter(pc.invert(theirs)), lake.metadata(LABELS, WHOLE))


def is_erased(rows: Any, erased: Callable[[str], bool]) -> Any:
    """A Boolean array for a table or batch: which rows have an `erased` submission id."""
    known = {each: erased(each) for each in pc.unique(rows["submission_id"]).to_pylist()}
    return pa.array([known[each] for each in rows["submission_id"].to_pylist()], pa.bool_())


def validate_labels(
    chunk: pa.Table, manifest: str, erased: ErasedSubjects | None
) -> tuple[pa.Table, pa.Table]:
    """Splits a chunk of `read_manifest` into rows of `labels` and of `rejected_labels`.

    Every row is in exactly one of them. The first rule that a row breaks gives the reason.
    """
    import pandas as pd

    frame = chunk.to_pandas(types_mapper=pd.ArrowDtype)
    rejections = Rejections(len(frame))
    ids = frame["submission_id"].str.strip()
    texts = {name: _lower(frame[name]) for name in ("label", "source", "attack")}
    texts["stratum"] = _stripped(frame["stratum"])

    if erased is not None:
        for index, key in enumerate(ids):
            if isinstance(key, str) and erased.has(SUBMISSION_TAG, key):
                rejections.reject_one(index, LabelReason.ERASED_SUBJECT, ERASED_DETAIL)
    rejections.reject(frame[MALFORMED].notna(), LabelReason.MALFORMED_ROW, frame[MALFORMED])
    for name in LABEL_ROWS.required:
        rejections.reject(_stripped(frame[name]).isna(), LabelReason.MISSING_FIELD, f"{name} is empty")
    rejections.reject(
        ~ids.str.fullmatch(SUBMISSION_ID.pattern).fillna(False),
        LabelReason.INVALID_SUBMISSION_ID,
        SUBMISSION_ID_RULE,
    )
    rejections.reject(
        ~texts["label"].isin(list(Label)).fillna(False),
        LabelReason.INVALID_LABEL,
        f"label must be {_one_of(Label)}",
    )
    rejections.reject(
        ~texts["source"].str.fullmatch(_SOURCE).fillna(False),
        LabelReason.INVALID_SOURCE,
        "source must be 1 to 32 of a-z 0-9 . _ -: what decided, never a person's name",
    )
    decided_at = read_times(frame["decided_at"].str.strip(), LabelReason.INVALID_DECIDED_AT, rejections)
    is_fraud = (texts["label"] == Label.FRAUD).fillna(False)
    rejections.reject(
        texts["attack"].notna() & ~(is_fraud & texts["attack"].isin(list(Attack)).fillna(False)),
        LabelReason.INVALID_ATTACK,
        f"attack must be {_one_of(Attack)}, or empty, and belongs to a fraud only",
    )
    weights = [_weight(text) for text in frame["weight"].tolist()]
    rejections.reject(
        pd.Series([weight is not None and math.isnan(weight) for weight in weights], dtype=bool),
        LabelReason.INVALID_WEIGHT,
        "weight must be a number of at least 1: how many submissions this one stands for",
    )
    no_weight = pd.Series([weight is None for weight in weights], dtype=bool)
    stratum = texts["stratum"]
    rejections.reject(
        stratum.notna() & (no_weight | ~stratum.str.fullmatch(_STRATUM).fillna(False)),
        LabelReason.INVALID_STRATUM,
        "stratum must be 1 to 64 of A-Z a-z 0-9 . _ : + / = -, and belongs to a weight",
    )

    passed, failed = rejections.passed(), rejections.failed()
    accepted: dict[str, Any] = {
        "submission_id": pa.array(ids.iloc[passed], pa.string()),
        **{name: pa.array(values.iloc[passed], pa.string()) for name, values in texts.items()},
        "decided_at": pa.array(decided_at.iloc[passed], pa.timestamp("us", "UTC"), from_pandas=True),
        "weight": pa.array([weights[index] for index in passed], pa.float64()),
        "manifest": pa.array([manifest] * len(passed), pa.string()),
        "manifest_row": pa.array(frame[ROW].iloc[passed], pa.int64()),
    }
    rejected: dict[str, Any] = {
        "reason": [rejections.reasons[index] for index in failed],
        "detail": [rejections.details[index] for index in failed],
        "manifest": [manifest] * len(failed),
        "manifest_row": [int(row) for row in frame[ROW].iloc[failed]],
        **{name: [None] * len(failed) for name in _FIRST},
    }
    return (
        pa.table({name: accepted[name] for name in LABELS.schema.names}, schema=LABELS.schema),
        pa.table(rejected, schema=REJECTED_LABELS.schema),
    )


def _stripped(values: "pd.Series[str]") -> "pd.Series[str]":
    """The texts without surrounding blanks; null if nothing is left."""
    stripped = values.str.strip()
    return stripped.where((stripped != "").fillna(False))


def _lower(values: "pd.Series[str]") -> "pd.Series[str]":
    return _stripped(values).str.lower()


def _weight(text: str | None) -> float | None:
    """The weight; None if there is none, NaN if it is invalid."""
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        weight = float(text)
    except ValueError:
        return math.nan
    is_number = text.strip().isascii() and "_" not in text
    return weight if is_number and 1 <= weight <= _MAX_WEIGHT else math.nan


def _one_of(words: type[Label] | type[Attack]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"
