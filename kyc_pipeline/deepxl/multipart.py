"""The multipart body of a verification, streamed from its files. It knows when its end was sent.

httpx can build such a body (`files=`), but does not say when it sends the last byte, and does not notice a
file whose size changes in the meantime. ADR 0009 says what this one saves.
"""

import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple, Self

import httpx

from kyc_pipeline.errors import KycError

Confirm = Callable[[], Awaitable[None]]
"""Raises :class:`KycError` if the request must not be completed."""

# Just below the size from which malloc maps new pages for each buffer, which takes longer than filling it.
_CHUNK_BYTES: Final = 120 * 1024
# Random, so that nobody can put it into a document.
_BOUNDARY: Final = secrets.token_hex(16)
_PART: Final = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
_END: Final = f"\r\n--{_BOUNDARY}--\r\n".encode()

CONTENT_TYPE: Final = f"multipart/form-data; boundary={_BOUNDARY}"

_EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "application/pdf": "pdf",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
}


async def no_objection() -> None:
    """Lets every request be completed."""


class Document(NamedTuple):
    """A file for the form field `field`, sent under a neutral name since the vendor puts it into URLs."""

    field: str
    stem: str
    path: str | os.PathLike[str]
    content_type: str

    def head(self) -> str:
        """The header of its part."""
        file_name = f"{self.stem}.{_EXTENSIONS.get(self.content_type, 'bin')}"
        return f'{_PART}"{self.field}"; filename="{file_name}"\r\nContent-Type: {self.content_type}\r\n\r\n'


class MultipartBody(httpx.AsyncByteStream):
    """The form field `tags` (JSON) and the documents; use it with `with`, which opens and closes them.

    Iterating reads the files in a few large chunks, since each costs a system call. The last chunk, with the
    closing boundary, follows only if every file had exactly the announced size: if one shrank or grew, the
    server never has a whole request.

    The last chunk follows only if `confirm` does not object: the upload may have taken long, or the process
    may have been suspended meanwhile.

    Entering and iterating raise OSError, with `unreadable` set if a document was the cause, and what
    `confirm` raises, which is then in `objection`.
    """

    def __init__(
        self, tags: Mapping[str, str], documents: tuple[Document, ...], confirm: Confirm = no_objection
    ) -> None:
        self._tags = f'{_PART}"tags"\r\n\r\n{json.dumps(tags)}\r\n'
        self._documents = documents
        self._parts: list[tuple[bytes, int, int]] = []  # header, descriptor, size
        self.length = 0
        self.on_end: Callable[[], None] = lambda: None
        self.handed_over = False
        """Whether the transport has the last chunk: from then on the call may be processed."""
        self.unreadable = False
        self.objection: KycError | None = None
        self._confirm = confirm

    def __enter__(self) -> Self:
        head = self._tags
        with ExitStack() as opened, self._reading():
            for document in self._documents:
                file = os.open(document.path, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, file)
                self._parts.append(((head + document.head()).encode(), file, os.fstat(file).st_size))
                head = "\r\n"
            self._opened = opened.pop_all()
        self.length = sum(len(head) + size for head, _, size in self._parts) + len(_END)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunk = b""
        for head, file, size in self._parts:
            chunk += head
            left = size + 1  # the extra byte reveals a file that grew
            while left:
                if len(chunk) >= _CHUNK_BYTES:
                    yield chunk
                    chunk = b""
                wanted = min(left, _CHUNK_BYTES - len(chunk))
                with self._reading():
                    data = os.read(file, wanted)
                chunk += data
                left -= len(data)
                if len(data) < wanted:
                    break  # the file's end
            if left != 1:
                self.unreadable = True
                raise OSError("a document's size changed while it was being sent")
        try:
            await self._confirm()
        except KycError as error:
            self.objection = error
            raise
        self.handed_over = True
        self.on_end()
        yield chunk + _END

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.unreadable = True
            raise
