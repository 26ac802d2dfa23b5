"""The multipart body of a verification, made of accepted documents. It knows when its end was sent.

httpx can build such a body (`files=`), but does not say when it sends the last byte, and does not notice a
file that changes in the meantime. ADR 0009 has the speed of both.
"""

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

import httpx

from kyc_pipeline.document_store import DocumentProblem, cause
from kyc_pipeline.errors import KycError

Confirm = Callable[[], Awaitable[None]]
"""Raises :class:`KycError` if the request must not be completed."""

# Just below the size from which malloc maps new pages for each buffer, which takes longer than filling it.
_CHUNK_BYTES: Final = 120 * 1024
# Up to this size a body is read once, by one call in a thread.
_MEMORY_BYTES: Final = 1024 * 1024
# Random, so that nobody can put it into a document.
_BOUNDARY: Final = secrets.token_hex(16)
_PART: Final = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
_END: Final = f"\r\n--{_BOUNDARY}--\r\n".encode()

CONTENT_TYPE: Final = f"multipart/form-data; boundary={_BOUNDARY}"

_EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/heic": "heic",
    "application/pdf": "pdf",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
}


async def no_objection() -> None:
    """Lets every request be completed."""


class Sendable(Protocol):
    """A document to send. Its methods raise as those of `AcceptedDocument` do."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def content_type(self) -> str:
        """Its media type."""

    def read(self, into: memoryview, /) -> None:
        """Fills `into`, which has `size` bytes."""

    def chunks(self, chunk_bytes: int, /) -> Iterator[bytes]:
        """Yields the content in chunks."""


class DocumentPart(NamedTuple):
    """A file for the form field `field`, sent under a neutral name since the vendor puts it into URLs."""

    field: str
    stem: str
    file: Sendable

    def head(self) -> str:
        """The header of its part."""
        kind = self.file.content_type
        file_name = f"{self.stem}.{_EXTENSIONS.get(kind, 'bin')}"
        return f'{_PART}"{self.field}"; filename="{file_name}"\r\nContent-Type: {kind}\r\n\r\n'


class MultipartBody(httpx.AsyncByteStream):
    """The form field `tags` (JSON) and the documents, in a few large chunks: each costs a system call.

    Before anything is sent, `prepare` reads and compares the documents. Small ones stay in memory; large ones
    are read again while they are sent, and compared again. The last chunk, with the closing boundary, follows
    only if every document was the accepted one and `confirm` does not raise: the upload may have taken long,
    or the process may have been suspended meanwhile. `objection` keeps what `confirm` raised.

    Files are opened and read in threads, so a slow disk does not hold up the other calls.
    """

    def __init__(
        self, tags: Mapping[str, str], documents: tuple[DocumentPart, ...], confirm: Confirm = no_objection
    ) -> None:
        heads = [f"\r\n{document.head()}" for document in documents]
        heads[0] = f'{_PART}"tags"\r\n\r\n{json.dumps(tags)}{heads[0]}'
        self._parts = [(head.encode(), document) for head, document in zip(heads, documents, strict=True)]
        self._small: memoryview | None = None
        self.length = sum(len(head) + document.file.size for head, document in self._parts) + len(_END)
        self.on_end: Callable[[], None] = lambda: None
        self.begun = False
        """Whether the transport has the first chunk. It holds the headers back until then."""
        self.handed_over = False
        """Whether the transport has the last chunk, so that the call may be processed."""
        self.problem: str | None = None
        """Why a document cannot be sent, with its field's name."""
        self.objection: KycError | None = None
        self._confirm = confirm

    async def prepare(self) -> None:
        """Reads and compares the documents. Raises :class:`DocumentProblem` or OSError and sets `problem`."""
        self.problem = "the documents could not be read in time"
        if self.length <= _MEMORY_BYTES:
            # Allocated here: malloc returns memory to the system at once if another thread frees it.
            body = memoryview(bytearray(self.length))
            await asyncio.to_thread(self._read, body)
            self._small = body
        else:
            await asyncio.to_thread(deque, self._chunks(), 0)
        self.problem = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        end = _END
        if (small := self._small) is not None:
            last = (self.length - 1) // _CHUNK_BYTES * _CHUNK_BYTES
            for start in range(0, last, _CHUNK_BYTES):
                self.begun = True
                yield bytes(small[start : start + _CHUNK_BYTES])
            end = bytes(small[last:])
        else:
            chunks = self._chunks()
            while chunk := await asyncio.to_thread(next, chunks, b""):
                self.begun = True
                yield chunk
        try:
            await self._confirm()
        except KycError as error:
            self.objection = error
            raise
        self.begun = self.handed_over = True
        self.on_end()
        yield end

    def _read(self, body: memoryview) -> None:
        """Writes the whole body into `body`."""
        at = 0
        for head, document in self._parts:
            body[at : at + len(head)] = head
            at += len(head)
            with self._reading(document):
                document.file.read(body[at : at + document.file.size])
            at += document.file.size
        body[at:] = _END

    def _chunks(self) -> Iterator[bytes]:
        """The body without its end. Ends without an error only if all documents are the accepted ones."""
        for head, document in self._parts:
            yield head
            with self._reading(document):
                yield from document.file.chunks(_CHUNK_BYTES)

    @contextmanager
    def _reading(self, document: DocumentPart) -> Iterator[None]:
        try:
            yield
        except DocumentProblem as problem:
            self.problem = f"{document.field}: {problem}"
            raise
        except OSError as error:
            self.problem = f"{document.field}: the storage failed ({cause(error)})"
            raise
