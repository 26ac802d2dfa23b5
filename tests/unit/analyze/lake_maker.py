"""Makes small lakes for the analyze tests: days of submissions with the responses that they received."""

import datetime
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
)

_ids = itertools.count(1)


# Each tag: its clear value, its pseudonym.
Tags = dict[str, tuple[str | None, str | None]]


@dataclass(frozen=True)
class Check:
    """One check of a response."""

    type: str | None = "LIVENESS"
    normalized_status: str = "PASS"
    confidence: float | None = 0.9
    group: str = "technicalChecks"
    confidence_raw: str | None = None


@dataclass(frozen=True)
class Submission:
    """One submission and its outcome."""

    verified: bool = True
    checks: Sequence[Check] = ()
    outcome: str | None = "completed"
    tags: Tags = field(default_factory=dict)
    document: str | None = None
    attempts: int = 1
    latency_ms: float | None = 100.0
    billable_calls: int = 1
    iso_offset_seconds: float | None = 0.0
    anomalies: Sequence[str] = ()
    submitted_at: datetime.datetime | None = None
    model_version: str | None = None
    responded_at: datetime.datetime | None = None
    manifest_tags: dict[str, str] = field(default_factory=dict)
    """Tags of the manifest beside the clear ones of `tags`."""
    id: int = field(default_factory=lambda: next(_ids))

    @property
    def submission_id(self) -> str:
        return f"s-{self.id:06d}"


def rejected(reason: str = "file_not_found", row: int = 1) -> dict[str, Any]:
    return {
        "submission_id": f"r-{row}",
        "reason": reason,
        "detail": "",
        "manifest": "m.csv",
        "manifest_row": row,
    }


def write_submissions(lake: Lake, date: str, day: Iterable[Submission]) -> None:
    lake.write(
        SUBMISSIONS,
        date,
        [
            {
                "submission_id": s.submission_id,
                "submitted_at": s.submitted_at,
                "id_file": "marked-id-file.png",
                "selfie_file": "marked-selfie-file.png",
                "id_sha256": "0" * 64,
                "selfie_sha256": "1" * 64,
                "id_size": 10,
                "selfie_size": 20,
                "id_content_type": "image/png",
                "selfie_content_type": "image/png",
                "tags": [
                    ("customerName", "marked-name"),
                    *((name, value) for name, (value, _) in s.tags.items() if value is not None),
                    *s.manifest_tags.items(),
                ],
                "content_sha256": "2" * 64,
                "manifest": "m.csv",
                "manifest_row": row,
            }
            for row, s in enumerate(day, start=1)
        ],
    )


def write_responses(lake: Lake, date: str, day: Iterable[Submission]) -> None:
    lake.write(
        VERIFICATION_RESPONSES,
        date,
        [
            {
                "submission_id": s.submission_id,
                "outcome": s.outcome,
                "http_status": 200 if s.outcome == "completed" else None,
                "attempts": s.attempts,
                "responded_at": s.responded_at,
                "latency_ms": s.latency_ms,
                "response": '{"marked-response": 1}',
                "billable_calls": s.billable_calls,
                "content_sha256": "2" * 64,
            }
            for s in day
            if s.outcome is not None
        ],
    )


def write_curated(
    lake: Lake,
    date: str,
    day: Iterable[Submission],
    *,
    source: str = "responses",
    drift: Sequence[dict[str, Any]] = (),
) -> None:
    completed = [s for s in day if s.outcome == "completed"]
    metadata = {"source": source}
    lake.write(
        VERIFICATIONS,
        date,
        [
            {
                "verification_id": s.id,
                "submission_id": s.submission_id,
                "verified": s.verified,
                "model": "kyc",
                "model_version": s.model_version,
                "verified_at": datetime.datetime(2024, 9, 8, tzinfo=datetime.UTC),
                "timestamp_iso": "2024-09-08T00:00:00",
                "iso_offset_seconds": s.iso_offset_seconds,
                "check_count": len(s.checks),
                "id_document_pseudonym": s.document,
                "anomalies": list(s.anomalies),
            }
            for s in completed
        ],
        metadata,
    )
    lake.write(
        MODEL_CHECKS,
        date,
        [
            {
                "verification_id": s.id,
                "submission_id": s.submission_id,
                "check_group": check.group,
                "check_index": index,
                "type": check.type,
                "status": check.normalized_status,
                "normalized_status": check.normalized_status,
                "confidence": check.confidence,
                "confidence_raw": check.confidence_raw
                or (None if check.confidence is None else repr(check.confidence)),
                "details": "marked-details",
            }
            for s in completed
            for index, check in enumerate(s.checks)
        ],
        metadata,
    )
    lake.write(
        VERIFICATION_TAGS,
        date,
        [
            {
                "verification_id": s.id,
                "submission_id": s.submission_id,
                "name": name,
                "value": value,
                "pseudonym": pseudonym,
            }
            for s in completed
            for name, (value, pseudonym) in s.tags.items()
        ],
        metadata,
    )
    lake.write(
        VERIFICATION_FILES,
        date,
        [
            {
                "verification_id": s.id,
                "submission_id": s.submission_id,
                "category": category,
                "content_type": "image/png",
                "file_size": 10,
            }
            for s in completed
            for category in ("id", "face")
        ],
        metadata,
    )
    lake.write(CONTRACT_DRIFT, date, list(drift), metadata)


def write_day(
    lake: Lake, date: str, day: Sequence[Submission], rejections: Sequence[dict[str, Any]] = ()
) -> None:
    """All partitions of one day, as a complete run leaves them."""
    write_submissions(lake, date, day)
    lake.write(REJECTED_SUBMISSIONS, date, list(rejections))
    write_responses(lake, date, day)
    write_curated(lake, date, day)
