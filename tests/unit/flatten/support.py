"""A lake with one day of responses, for the tests of `flatten`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kyc_pipeline.flatten.partition import FlattenSummary, flatten_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    SUBMISSIONS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DAY = "2024-09-08"
CURATED = (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES, CONTRACT_DRIFT)
SEED_TEXT = (Path(__file__).parents[2] / "fixtures" / "seed_response.json").read_text()
SEED: dict[str, Any] = json.loads(SEED_TEXT)["result"]
SEED_TAGS = {tag["name"]: tag["value"] for tag in SEED["tags"]}
PSEUDONYMS = Pseudonymizer("a key for the tests only")
CLEAR = frozenset({"submissionId", "companyId", "companyName"})
SHA = hashlib.sha256(b"document").hexdigest()


def response_row(submission_id: str, response: str | None, outcome: str = "completed") -> dict[str, Any]:
    return {
        "submission_id": submission_id,
        "outcome": outcome,
        "http_status": 200,
        "attempts": 1,
        "requested_at": datetime(2024, 9, 8, tzinfo=UTC),
        "responded_at": datetime(2024, 9, 8, tzinfo=UTC),
        "latency_ms": 1.0,
        "response": response,
        "error": None,
        "billable_calls": 1,
        "content_sha256": SHA,
    }


def submission_row(submission_id: str, tags: Mapping[str, str] = SEED_TAGS) -> dict[str, Any]:
    return {
        "submission_id": submission_id,
        "submitted_at": None,
        "id_file": "a.jpg",
        "selfie_file": "b.jpg",
        "id_sha256": SHA,
        "selfie_sha256": SHA,
        "id_size": SEED["idFileSize"],
        "selfie_size": SEED["selfieFileSize"],
        "id_content_type": "image/jpeg",
        "selfie_content_type": "image/jpeg",
        "tags": list(tags.items()),
        "content_sha256": SHA,
        "manifest": "m.csv",
        "manifest_row": 1,
    }


def echo(submission_id: str, **changes: Any) -> dict[str, Any]:
    """The seed's result as the response to one of our submissions, with changes."""
    tags = [*SEED["tags"], {"name": "submissionId", "value": submission_id}]
    return {**SEED, "tags": tags, **changes}


def text_of(result: Mapping[str, Any]) -> str:
    return json.dumps({"result": result})


class Day:
    """A lake with one day of responses."""

    def __init__(self, root: Path | str) -> None:
        self.lake = Lake(str(root))

    def write(self, responses: list[dict[str, Any]], submissions: list[dict[str, Any]] | None = None) -> None:
        if submissions is None:
            submissions = [submission_row(row["submission_id"]) for row in responses]
        self.lake.write(VERIFICATION_RESPONSES, DAY, responses)
        self.lake.write(SUBMISSIONS, DAY, submissions)

    def flatten(self, *texts: str | None) -> FlattenSummary:
        """Flattens `texts` as the responses of the submissions s-0, s-1, ..., even if nothing has changed."""
        if texts:
            self.write([response_row(f"s-{index}", text) for index, text in enumerate(texts)])
        return flatten_partition(self.lake, DAY, PSEUDONYMS, CLEAR, force=True)

    def update(self) -> FlattenSummary:
        """Flattens the day if it is not up to date."""
        return flatten_partition(self.lake, DAY, PSEUDONYMS, CLEAR)

    def flatten_each(self, texts: Sequence[str]) -> FlattenSummary:
        """Flattens `texts`, all written as responses to s-0, as the responses to s-0000, s-0001, ..."""
        ids = [f"s-{index:04}" for index in range(len(texts))]
        own = '{"name": "submissionId", "value": "%s"}'
        self.write(
            [
                response_row(id_, text.replace(own % "s-0", own % id_))
                for id_, text in zip(ids, texts, strict=True)
            ]
        )
        return self.flatten()

    def rows(self, table: Table) -> list[dict[str, Any]]:
        return self.lake.read(table, DAY).to_pylist()

    def rows_of_drift(self) -> list[dict[str, Any]]:
        return self.rows(CONTRACT_DRIFT)

    def drift(self) -> dict[tuple[str, str], int]:
        return {(row["path"], row["kind"]): row["occurrences"] for row in self.rows(CONTRACT_DRIFT)}

    def anomalies(self) -> list[str]:
        (row,) = self.rows(VERIFICATIONS)
        anomalies: list[str] = row["anomalies"]
        return anomalies
