"""A small world to verify in: documents, accepted submissions in a lake, settings and a ledger."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import VerifySummary

DATE = "2024-09-01"
TOKEN = "test-token"
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 600
QUICK = Timing(
    look_ups=(0.0, 0.05), back_off=0.01, back_off_cap=0.05, breaker_waits=(0.05, 0.05), ledger_patience=2.0
)


@lru_cache(maxsize=8)
def settings_of(**values: Any) -> Settings:
    """A test reads them at every step, and pydantic takes longer for them than a small run of the engine."""
    return Settings(_env_file=None, **values)


def is_complete(summary: VerifySummary) -> bool:
    """Whether no submission is held, failed or not attempted."""
    return not (summary.held or summary.left)


@dataclass
class World:
    """Everything under `root`; `server` is the simulator's URL."""

    root: Path
    server: str = "http://127.0.0.1:9"
    ledger_url: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        documents = self.root / "landing" / "documents"
        documents.mkdir(parents=True, exist_ok=True)
        (documents / "id.jpg").write_bytes(JPEG)
        (documents / "selfie.jpg").write_bytes(JPEG + b"selfie")

    @property
    def settings(self) -> Settings:
        values: dict[str, Any] = {
            "deepxl_base_url": self.server,
            "deepxl_api_token": TOKEN,
            "deepxl_requests_per_second": 0,
            "kyc_landing": self.root / "landing",
            "kyc_lake": str(self.root / "lake"),
            "kyc_ledger_url": self.ledger_url or f"sqlite:///{self.root / 'ledger.sqlite'}",
        }
        return settings_of(**(values | self.options))

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.kyc_lake)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.kyc_ledger_url)

    def submit(self, *ids: str, date: str = DATE, content: str = "c", **changes: Any) -> None:
        """Writes the partition of accepted submissions."""
        row = {
            "submitted_at": None,
            "id_file": "id.jpg",
            "selfie_file": "selfie.jpg",
            "id_sha256": sha256(JPEG).hexdigest(),
            "selfie_sha256": sha256(JPEG + b"selfie").hexdigest(),
            "id_size": len(JPEG),
            "selfie_size": len(JPEG) + 6,
            "id_content_type": "image/jpeg",
            "selfie_content_type": "image/jpeg",
            "tags": [("companyId", "COMP-001"), ("customerId", "9999")],
            "manifest": "m.csv",
        }
        rows = [
            row
            | {"submission_id": key, "content_sha256": f"{content}-{key}", "manifest_row": number}
            | changes
            for number, key in enumerate(sorted(ids), 1)  # as ingest writes them
        ]
        self.lake.write(SUBMISSIONS, date, rows)

    def submissions(self, date: str = DATE) -> dict[str, dict[str, Any]]:
        """The accepted rows, by submission id."""
        return {row["submission_id"]: row for row in self.lake.read(SUBMISSIONS, date).to_pylist()}

    def verify(self, date: str = DATE, run_id: str = "run-1", **arguments: Any) -> VerifySummary:
        """Runs the engine over one partition. Raises the error that ended the run, if one did."""
        summary = self.verify_anyway(date, run_id, **arguments)
        if summary.error is not None:
            raise summary.error
        return summary

    def verify_anyway(self, date: str = DATE, run_id: str = "run-1", **arguments: Any) -> VerifySummary:
        """As :meth:`verify`, but returns the summary of a run that an error ended."""
        defaults: dict[str, Any] = {"stop": StopFlag(), "timing": QUICK}
        return verify_partition(
            settings=self.settings,
            lake=self.lake,
            ledger=self.ledger,
            date=date,
            run_id=run_id,
            **(defaults | arguments),
        )

    def responses(self, date: str = DATE) -> dict[str, dict[str, Any]]:
        """The lake's table, by submission id."""
        rows = self.lake.read(VERIFICATION_RESPONSES, date).to_pylist()
        assert [row["submission_id"] for row in rows] == sorted(row["submission_id"] for row in rows)
        return {row["submission_id"]: row for row in rows}

    def outcomes(self, date: str = DATE) -> dict[str, str]:
        """Outcome by submission id, from the lake."""
        return {key: row["outcome"] for key, row in self.responses(date).items()}
