"""DeepXL, simulated with all that can go wrong on the way: it keeps the truth about what was billed.

A record is billed when the whole request has arrived and the vendor processes it, whatever becomes of the
response. The history shows it after a while, sooner than the pipeline stops looking.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.simulation.kernel import START, Kernel, Process
from tests.simulation.network import Connection, Request

SIZES = 70_000, 70_006
"""Of every ID and selfie, in bytes."""
_REFUSAL = b'{"detail": [{"loc": ["body", "idFile"], "msg": "no face"}]}'
HTML = b"<html><body>Maintenance</body></html>"
BASE_URL = "http://127.0.0.1:9"
SLOWEST = 9.0
"""Seconds after which the history surely shows a record: less than the waits of a look-up together."""


class Fault(StrEnum):
    """What can go wrong."""

    REFUSED_CONNECTION = "a connection is refused or hangs"
    CUT_UPLOAD = "the server hangs up during the upload"
    LOST = "the response is lost: the server hangs up, or is silent"
    TRUNCATED = "the connection is cut within the response"
    LATE = "the response comes after the time-out"
    SERVER_ERROR = "500, 502 or 504, processed or not"
    BUSY = "408, 425, 429 or 503 during the upload or after it, not processed"
    BUSY_BUT_PROCESSED = "408, 425, 429 or 503 after the whole body, processed"
    SURPLUS = "a second response follows on the same connection"
    EARLY = "a response comes before the body's end"
    SWAPPED = "the response is another submission's"
    GATEWAY = "a gateway responds: a web page with 200, 404 or 405, or an empty 2xx"
    HISTORY_FAILS = "the history responds with an error, in another shape or not at all"
    FOREIGN_RECORD = "the history has an older record with the same tag"
    CRASH = "kill -9"
    FREEZE = "a process is stopped for a while, some for longer than its lease"
    SLEEP = "the machine sleeps for longer than a lease"
    STOP = "a run is asked to stop"
    CLOCK_STEP = "the wall clock is stepped"
    LEDGER_FAILS = "a transaction of the ledger fails, some of them after its commit"
    MOVES = "rows move between days and are corrected, before they are sent and after"


SHARE_OF_MOVES = 0.1
"""How much rarer moves are than other faults: with ingest, a world costs five times as much."""
PROCESSED = {
    Fault.LOST: 0.6,
    Fault.TRUNCATED: 1.0,
    Fault.LATE: 1.0,
    Fault.SERVER_ERROR: 0.6,
    Fault.BUSY: 0.0,
    Fault.BUSY_BUT_PROCESSED: 1.0,
    Fault.SURPLUS: 1.0,
    Fault.SWAPPED: 1.0,
    Fault.GATEWAY: 0.5,
}
"""What can happen to a response, and how often the call was processed all the same."""


@dataclass(frozen=True)
class Record:
    """A billed verification."""

    number: int
    submission_id: str
    billed_at: float
    visible_at: float
    result: dict[str, Any]

    @property
    def response(self) -> bytes:
        """The body of its response."""
        return json.dumps({"result": self.result}).encode()


@dataclass(frozen=True)
class Handover:
    """The last byte of a paid call left the client."""

    submission_id: str
    moment: float
    process: Process


class Vendor:
    """The server behind every connection of one simulation."""

    def __init__(
        self, rng: random.Random, faults: frozenset[Fault], rate: float, refused: frozenset[str]
    ) -> None:
        self._rng = rng
        self._kernel = Kernel.current_kernel
        self.faults, self._rate = faults, rate
        self._refused = refused
        """The submissions that the vendor refuses for good."""
        self.records: list[Record] = []
        self.foreign: list[Record] = []
        self.handovers: list[Handover] = []
        self.truthful_look_ups: list[tuple[float, str]] = []
        self.denied: set[str] = set()
        """The submissions that met a gateway's 404 or 405."""
        self.responded: set[str] = set()
        """Those that had a response of DeepXL's on the usual way."""
        self._history_is_down_until = -1.0
        self.on_handover: Callable[[Handover], None] = lambda _: None

    def _happens(self, *faults: Fault) -> Fault | None:
        """One of these faults, if it happens now."""
        possible = [fault for fault in faults if fault in self.faults]
        return self._rng.choice(possible) if possible and self._rng.random() < self._rate else None

    # --- the network ----------------------------------------------------------------------------------

    def connects(self) -> float | None:
        """Seconds until a connection is accepted; None if it is refused."""
        if self._happens(Fault.REFUSED_CONNECTION):
            return self._rng.choice([None, 60.0])
        return self._rng.uniform(0.001, 0.05)

    def leaves(self, connection: Connection, request: Request) -> None:
        """The client has written the last byte of a request."""
        if request.method == "POST":
            handover = Handover(_form(request)[0]["submissionId"], self._kernel.now, connection.process)
            self._kernel.note(f"sends {handover.submission_id}")
            self.handovers.append(handover)
            self.on_handover(handover)

    def arrives(self, connection: Connection, request: Request, *, is_first: bool) -> None:
        """Serves a request once it is whole; before that, only what goes wrong during an upload."""
        if request.method == "GET":
            self._look_up(connection, request)
            return
        if is_first:
            fault = self._happens(Fault.CUT_UPLOAD, Fault.EARLY, Fault.BUSY)
            if fault in (Fault.CUT_UPLOAD, Fault.BUSY):
                self._kernel.note(f"the server hangs up during an upload, {fault!s}")
                if fault is Fault.BUSY:
                    self._error(connection, self._rng.choice([408, 429, 503]))
                connection.cut()
                return
            if fault is Fault.EARLY:
                connection.upload_delay = self._rng.uniform(0.0, self._rng.choice([0.05, 3.0]))
                moment = self._kernel.now + connection.delay()
                self._kernel.at(moment, self._response_early, connection, request)
        if request.is_whole:
            self._verify(connection, request)

    # --- the API --------------------------------------------------------------------------------------

    def _verify(self, connection: Connection, request: Request) -> None:
        tags, id_size, selfie_size = _form(request)
        submission_id = tags["submissionId"]
        fault = self._happens(*PROCESSED)
        is_processed = submission_id not in self._refused and (
            fault is None or self._rng.random() < PROCESSED[fault]
        )
        if is_processed:
            status, body = 200, self._bill(tags, id_size, selfie_size).response
        else:
            status, body = 422, _REFUSAL
        self._kernel.note(f"{submission_id} arrives: {'billed' if is_processed else 'not billed'}, {fault!s}")
        if fault is None:
            self.responded.add(submission_id)
        self._response(connection, fault, submission_id, status, body)

    def _response(
        self, connection: Connection, fault: Fault | None, submission_id: str, status: int, body: bytes
    ) -> None:
        """Sends the response, or what the fault makes of it."""
        think = self._rng.uniform(0.05, 3.0)
        if fault is Fault.LOST:
            if self._rng.random() < 0.7:
                connection.cut(think)
        elif fault is Fault.TRUNCATED:
            connection.send(_http(status, body)[: -len(body) // 2], think)
            connection.cut(think)
        elif fault is Fault.LATE:
            connection.send(_http(status, body), 60.0 + think)
        elif fault is Fault.SERVER_ERROR:
            self._error(connection, self._rng.choice([500, 502, 504]), think)
        elif fault in (Fault.BUSY, Fault.BUSY_BUT_PROCESSED):
            self._error(connection, self._rng.choice([408, 425, 429, 503]), think)
        elif fault is Fault.GATEWAY:
            self._gateway(connection, submission_id, think, is_processed=status == 200)
        elif fault is Fault.SWAPPED:
            connection.send(_http(200, self._somebody_elses(body).response), think)
        else:
            connection.send(_http(status, body), think)
            if fault is Fault.SURPLUS:
                surplus = self._somebody_elses().response
                connection.send(_http(200, surplus), self._rng.choice([0.0, 0.1, 1.0]))

    def _response_early(self, connection: Connection, request: Request) -> None:
        """Responds before anybody can have read the documents."""
        tags = bytes(request.body).partition(b'name="tags"\r\n\r\n')[2].partition(b"\r\n")[0]
        kind = self._rng.choice(["stranger", "own", "own", "refusal"])
        if kind == "refusal" and not connection.is_fresh:  # it was meant for an earlier request
            response = _http(422, _REFUSAL)
        elif kind == "own" and tags:  # a result that nobody will ever find in the history
            result = _result(8, START + self._kernel.now, json.loads(tags), *SIZES)
            response = _http(200, json.dumps({"result": result}).encode())
        else:
            kind, response = "stranger", _http(200, self._somebody_elses().response)
        if connection.interject(response):
            self._kernel.note(f"the server responds {connection.process.name} early: {kind}")

    def _gateway(
        self, connection: Connection, submission_id: str, think: float, *, is_processed: bool
    ) -> None:
        status = self._rng.choice([200, 200, 202, 204] if is_processed else [200, 204, 404, 405])
        if status in (404, 405):
            self.denied.add(submission_id)
        connection.send(_http(status, b"" if status in (202, 204) else HTML, "text/html"), think)

    def _bill(self, tags: dict[str, str], id_size: int, selfie_size: int) -> Record:
        number = 100 + len(self.records)
        now = self._kernel.now
        result = _result(number, START + now, tags, id_size, selfie_size)
        visible_at = now + (self._rng.uniform(0.0, SLOWEST) if self._rng.random() < 0.5 else 0.0)
        record = Record(number, tags["submissionId"], now, visible_at, result)
        self.records.append(record)
        return record

    def _somebody_elses(self, own: bytes = b"") -> Record:
        """A record that another submission was billed for, or a stranger's."""
        others = [record for record in self.records if record.response != own]
        if others and self._rng.random() < 0.5:
            return self._rng.choice(others)
        result = _result(7, START + self._kernel.now, {"submissionId": "stranger"}, 71_000, SIZES[1])
        return Record(7, "stranger", self._kernel.now, 0.0, result)

    def _error(self, connection: Connection, status: int, after: float = 0.0) -> None:
        body = HTML if self._rng.random() < 0.5 else b'{"detail": "try again"}'
        connection.send(_http(status, body, "text/html" if body is HTML else "application/json"), after)

    def _look_up(self, connection: Connection, request: Request) -> None:
        query = parse_qs(urlsplit(request.target).query)
        wanted = query.get("tagFilter", [""])[0].removeprefix("submissionId=")
        think = self._rng.uniform(0.01, 1.0)
        if self._happens(Fault.HISTORY_FAILS):
            self._history_is_down_until = self._kernel.now + self._rng.choice([0.0, 100.0])
        if wanted and self._kernel.now <= self._history_is_down_until and Fault.HISTORY_FAILS in self.faults:
            self._kernel.note(f"look-up of {wanted}: fails")
            what = self._rng.randrange(4)
            if what == 0:
                self._error(connection, self._rng.choice([429, 500, 503]), think)
            elif what == 1:
                connection.send(_http(200, self._rng.choice([b"[]", b'{"data": []}', HTML])), think)
            elif what == 2:
                connection.cut(think)
            return  # what == 3: no response
        now = self._kernel.now
        found = [
            record.result
            for record in (*reversed(self.records), *self.foreign)
            if record.visible_at <= now and (not wanted or record.submission_id == wanted)
        ]
        start, limit = int(query.get("offset", ["0"])[0]), int(query.get("limit", ["100"])[0])
        page = found[start : start + limit]
        body = json.dumps({"totalCount": len(found), "count": len(page), "data": page}).encode()
        if wanted:
            self._kernel.note(f"look-up of {wanted}: {len(found)} records")
            self.truthful_look_ups.append((now, wanted))
        connection.send(_http(200, body), think)

    def add_foreign_record(self, submission_id: str) -> None:
        """Another environment on the same account once used this id."""
        tags = {"submissionId": submission_id, "customerId": "somebody else"}
        number = 1 + len(self.foreign)
        self.foreign.append(
            Record(number, submission_id, 0.0, 0.0, _result(number, START - 1e7, tags, 11, 12))
        )


def _result(
    number: int, moment: float, tags: dict[str, str], id_size: int, selfie_size: int
) -> dict[str, Any]:
    return {
        "verificationId": number,
        "verified": number % 3 != 0,
        "model": "verification",
        "idFileSize": id_size,
        "selfieFileSize": selfie_size,
        "timestamp": int(moment),
        "timestampISO": datetime.fromtimestamp(int(moment), UTC).isoformat(),
        "modelResults": {"technicalChecks": []},
        "tags": [{"name": name, "value": value} for name, value in tags.items()],
        "files": [],
    }


def _parts(request: Request) -> Iterator[tuple[str, bytes]]:
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    for part in bytes(request.body).split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        yield name, content.removesuffix(b"\r\n")


def _form(request: Request) -> tuple[dict[str, str], int, int]:
    """Tags and sizes of a verification's request."""
    parts = dict(_parts(request))
    return json.loads(parts["tags"]), len(parts["idFile"]), len(parts["selfieFile"])


def _http(status: int, body: bytes, kind: str = "application/json") -> bytes:
    date = format_datetime(datetime.fromtimestamp(START + Kernel.current_kernel.now, UTC), usegmt=True)
    head = (
        f"HTTP/1.1 {status} X\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
