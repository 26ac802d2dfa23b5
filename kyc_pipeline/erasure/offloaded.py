"""Responses that only the lake has: see `ledger/offload.py`."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.erasure.ledger_store import has_tag, plain_run
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES


def offloaded_with(
    lake: Lake, dates: Collection[str], value: str, has: Callable[[str, str], bool]
) -> Iterator[str]:
    """As :meth:`LedgerErasure.responded_with`, for the responses of these days in the lake."""
    run = plain_run(value)
    for rows in _rows(lake, dates):
        found = rows.filter(_may_have(rows["response"], run)) if run else rows
        for key, text in _pairs(found):
            if has_tag(text, has):
                yield key


def offloaded_of(lake: Lake, dates: Collection[str], submission_ids: Collection[str]) -> Iterator[str]:
    """The responses of these submissions in the lake."""
    wanted = pa.array(sorted(submission_ids), pa.string())
    for rows in _rows(lake, dates):
        for _, text in _pairs(rows.filter(pc.is_in(rows["submission_id"], value_set=wanted))):
            yield text


def _rows(lake: Lake, dates: Collection[str]) -> Iterator[pa.RecordBatch]:
    for date in sorted(dates):
        if lake.exists(VERIFICATION_RESPONSES, date):
            for batch in lake.batches(VERIFICATION_RESPONSES, date, ["submission_id", "response"]):
                yield batch.filter(batch["response"].is_valid())


def _may_have(texts: Any, run: str) -> Any:
    """Mask of the texts that have the plain characters, or that may hide them."""
    return pc.or_(
        pc.match_substring(texts, run, ignore_case=True),
        pc.or_(
            pc.match_substring(texts, "\\u"), pc.not_equal(pc.binary_length(texts), pc.utf8_length(texts))
        ),
    )


def _pairs(rows: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    yield from zip(rows["submission_id"].to_pylist(), rows["response"].to_pylist(), strict=True)
