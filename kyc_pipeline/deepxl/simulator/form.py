"""Reads a verification's multipart form as a stream: counts the files' bytes and discards them.

Memory does not grow with the documents. It keeps only the head of each part: enough to detect a file's type
by content, and all of `tags`.
"""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from python_multipart.multipart import MultipartParser, parse_options_header

MAX_PART_HEAD_BYTES: Final = 64 * 1024


class BadForm(ValueError):
    """The body is not a complete multipart form."""


@dataclass(slots=True)
class Part:
    """One part: its `size` in bytes, and its first bytes in `head`."""

    name: str = ""
    file_name: str | None = None
    size: int = 0
    head: bytearray = field(default_factory=bytearray)


class FormReader:
    """A push parser over python-multipart. `parts` holds the complete parts by name."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadForm("the body is not multipart/form-data")
        self.parts: dict[str, Part] = {}
        self._part = Part()
        self._header = b""
        self._value = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    async def read(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[None]:
        """Parses `chunks` and yields after each, so that the caller can inspect the parts so far.

        Raises :class:`BadForm` for a malformed or incomplete form.
        """
        async for chunk in chunks:
            try:
                self._parser.write(chunk)
            except ValueError as error:
                raise BadForm("the form is malformed") from error
            yield
        if not self._ended:
            raise BadForm("the form is incomplete")

    def _begin(self) -> None:
        self._part = Part()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._part.name = options.get(b"name", b"").decode(errors="replace")
            if b"filename" in options:
                self._part.file_name = options[b"filename"].decode(errors="replace")
        self._header = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.size += end - start
        if len(part.head) < MAX_PART_HEAD_BYTES:
            part.head += data[start : min(end, start + MAX_PART_HEAD_BYTES - len(part.head))]

    def _end(self) -> None:
        self.parts.setdefault(self._part.name, self._part)

    def _finish(self) -> None:
        self._ended = True
