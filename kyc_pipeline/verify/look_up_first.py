"""Looks up what a run would send, before it sends anything: a restored ledger may not know of earlier calls.

A record in DeepXL's history is adopted, as if the ledger had known the call. If it differs from what would be
sent, the submission is held. A look-up that fails ends the run before it sends anything.
"""

import asyncio
from collections.abc import Iterator, Sequence

from kyc_pipeline.deepxl.call_errors import AccessDenied, LookupFailed, UnexpectedRedirect
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationResponse
from kyc_pipeline.deepxl.echo import echo_mismatches
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.sent import UNCHANGED, SentContent
from kyc_pipeline.ledger.models import Discovery
from kyc_pipeline.ledger.writer import GroupWriter
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.gate import Gate
from kyc_pipeline.verify.outgoing import Outgoing
from kyc_pipeline.verify.partition import Action, Work
from kyc_pipeline.verify.summary import Stopped, Tally


async def look_up_first(
    batches: Iterator[list[Work]],
    *,
    client: DeepXLClient,
    writer: GroupWriter,
    gate: Gate,
    control: RunControl,
    tally: Tally,
    outgoing: Outgoing,
    concurrency: int,
    waits: Sequence[float],
) -> None:
    """Adopts, or holds, the submissions that the history knows and the ledger does not.

    `waits` are the seconds before each further attempt of a look-up that fails. If one keeps failing, the
    control has the error.
    """
    free = asyncio.Semaphore(concurrency)

    async def settle(item: Work) -> None:
        async with free:
            if control.ending:
                return
            try:
                found = await find(item.submission_id)
            except KycError as error:
                denied = isinstance(error, (AccessDenied, UnexpectedRedirect))
                control.end(Stopped.ACCESS_DENIED if denied else Stopped.ERROR, error)
                return
            if found:
                await writer.record(discovery(item, found, await outgoing.possible(item.row)))
                tally.adopted += 1
                tally.settled += 1

    async def find(submission_id: str) -> list[VerificationResponse]:
        for wait in (*waits, None):
            await gate.permit()
            tally.lookups += 1
            try:
                return await client.find(submission_id)
            except LookupFailed as error:
                if wait is None or control.ending:
                    raise KycError(f"nothing was sent, since what DeepXL has is unknown: {error}") from error
                await control.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    while batch := await asyncio.to_thread(next, batches, None):
        # A failed submission may have been sent after the backup; others are looked up anyway.
        await asyncio.gather(*(settle(item) for item in batch if item.action is Action.SEND))


def discovery(
    item: Work, found: Sequence[VerificationResponse], possible: Sequence[SentContent] = (UNCHANGED,)
) -> Discovery:
    """What the history's records of a submission mean for the ledger, if the calls sent one of `possible`."""
    matching = [
        (response, sent) for response in found for sent in possible if not _differs(item, sent, response)
    ]
    best, sent = min(
        matching or [(response, UNCHANGED) for response in found], key=lambda pair: pair[0].verification_id
    )
    notes = [] if matching else ["DeepXL has a record of this submission with other documents or tags"]
    if len(found) > 1:
        notes.append(f"the history has {len(found)} records of this submission")
    return Discovery(
        item.submission_id,
        item.row["content_sha256"],
        best.http_status,
        best.responded_at,
        best.text if matching else None,
        "; ".join(notes) or None,
        sent.text(),
    )


def _differs(item: Work, sent: SentContent, response: VerificationResponse) -> bool:
    mismatches = echo_mismatches(response.echo, **sent.echoed(item.row))
    return any(name is not None for _, name in mismatches)
