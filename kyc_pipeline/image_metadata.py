"""Removes metadata from JPEG and PNG without decoding an image: its pixels stay the same bit for bit.

It keeps the segments of a JPEG and the chunks of a PNG that a decoder needs, and the colour profile.
Everything else goes: EXIF, XMP, IPTC, comments, texts, previews, and all bytes after the end mark. Only the
orientation of EXIF stays, without which the image would lie on its side. Pillow would encode the pixels
again, and `piexif` removes only EXIF.
"""

import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

MAX_EXIF_BYTES: Final = 1 << 20
"""Of a PNG. In a JPEG, a segment has at most 64 KB."""

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_APP0, _EXIF, _ICC, _ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
_OF_DECODER: Final = frozenset([*range(0xC0, 0xD0), *range(0xDA, 0xE0)])
"""Frames, tables, scans."""
JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker with a segment, or the end mark: not a stuffed byte and no restart. FF may precede it.

It has no repetition: in a long run of FF, the search would take hours, and it holds the GIL.
"""
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = frozenset(
    [
        *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"),
        *(b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"bKGD", b"pHYs"),
    ]
)
_PNG_EXIF: Final = b"eXIf"
_EXIF_HEADER: Final = b"Exif\0\0"
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = 1
_ORIENTATIONS: Final = range(1, 9)


class CannotRemove(Exception):
    """The file's structure is broken, so its metadata cannot be told from its pixels. The text says where."""


def without_metadata(chunks: Iterable[bytes], media_type: str) -> Iterator[bytes]:
    """Yields the image without metadata. Reads `chunks` to their end, one at a time.

    `media_type` is a key of :data:`REMOVERS`. Raises :class:`CannotRemove`, perhaps after some output.
    """
    source = _Source(chunks)
    yield from REMOVERS[media_type](source)
    source.read_rest()


class _Source:
    """Reads chunks of any size as a stream of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._has_exif = False

    def _fill(self) -> bool:
        """Adds a chunk to the buffer; False at the end."""
        chunk = next(self._chunks, None)
        self._buffer += chunk or b""
        return chunk is not None

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces."""
        while size:
            if not self._buffer and not self._fill():
                raise CannotRemove("it ends within a part")
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Drops the next `size` bytes."""
        deque(self.pieces(size), maxlen=0)

    def until_marker(self) -> Iterator[bytes]:
        """The bytes up to the next JPEG marker, or to the end."""
        while not (found := JPEG_MARKER.search(self._buffer)):
            # A marker may lie across the border of two chunks.
            end = len(self._buffer) - self._buffer.endswith(b"\xff")
            yield self._buffer[:end]
            self._buffer = self._buffer[end:]
            if not self._fill():
                yield self._buffer
                self._buffer = b""
                return
        yield self._buffer[: found.start()]
        self._buffer = self._buffer[found.start() :]

    def marker(self) -> int | None:
        """The kind of the marker here; None at the end."""
        while self._buffer or self._fill():
            (kind,) = self.take(1)
            if kind != 0xFF:
                return kind
        return None

    def orientation(self, tiff: bytes) -> bytes:
        """EXIF (its TIFF part) with nothing but the orientation of `tiff`; empty if the image is upright.

        Also empty for every EXIF after the first: decoders read only that.
        """
        if self._has_exif or (orientation := _orientation(tiff)) == _UPRIGHT:
            self._has_exif = True
            return b""
        self._has_exif = True
        entry = _ORIENTATION.to_bytes(2) + b"\0\3\0\0\0\1" + orientation.to_bytes(2) + b"\0\0"
        return b"MM\0*\0\0\0\x08" + b"\0\1" + entry + b"\0\0\0\0"

    def read_rest(self) -> None:
        """Drops everything left."""
        self._buffer = b""
        deque(self._chunks, maxlen=0)


def _jpeg(source: _Source) -> Iterator[bytes]:
    if source.take(2) != bytes([0xFF, _START]):
        raise CannotRemove("it does not begin as a JPEG")
    yield bytes([0xFF, _START])
    kind: int | None = _START
    has_scan = False
    while True:
        for piece in source.until_marker():
            if kind == _SCAN:  # its pixels; a decoder skips bytes elsewhere
                yield piece
        kind = source.marker()
        if kind is None or kind == _END:
            break
        has_scan = has_scan or kind == _SCAN
        yield from _segment(source, kind)
    if kind == _END:
        yield bytes([0xFF, _END])
    elif not has_scan:  # with one, only the end mark is missing, which some cameras leave out
        raise CannotRemove("it has no pixels")


def _segment(source: _Source, kind: int) -> Iterator[bytes]:
    size = int.from_bytes(source.take(2)) - 2
    if size < 0:
        raise CannotRemove("a segment has no length")
    if kind in _OF_DECODER:
        yield _segment_head(kind, size)
        yield from source.pieces(size)
    elif kept := _kept_of_application(kind, source.take(size), source):
        yield _segment_head(kind, len(kept)) + kept


def _segment_head(kind: int, size: int) -> bytes:
    return bytes([0xFF, kind]) + (size + 2).to_bytes(2)


def _kept_of_application(kind: int, content: bytes, source: _Source) -> bytes:
    """What to keep of a segment that no decoder needs for the pixels."""
    if kind == _EXIF and content.startswith(_EXIF_HEADER):
        orientation = source.orientation(content[len(_EXIF_HEADER) :])
        return _EXIF_HEADER + orientation if orientation else b""
    if kind == _APP0 and content.startswith(b"JFIF\0") and len(content) >= 14:
        return content[:12] + b"\0\0"  # without the preview, which may show more than the image
    if kind == _ICC and content.startswith(b"ICC_PROFILE\0"):
        return content
    if kind == _ADOBE and content.startswith(b"Adobe"):
        return content[:12]  # names the colour model
    return b""


def _png(source: _Source) -> Iterator[bytes]:
    if source.take(8) != _PNG_SIGNATURE:
        raise CannotRemove("it does not begin as a PNG")
    yield _PNG_SIGNATURE
    kind = b""
    while kind != b"IEND":
        head = source.take(8)
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind in _PNG_KEPT:
            yield head
            yield from source.pieces(size + 4)  # with the checksum
        elif kind == _PNG_EXIF:
            if size > MAX_EXIF_BYTES:
                raise CannotRemove(f"its EXIF has more than {MAX_EXIF_BYTES} bytes")
            if orientation := source.orientation(source.take(size + 4)[:-4]):
                yield _png_chunk(_PNG_EXIF, orientation)
        elif kind[0] & 0x20:  # a lower-case first letter: a decoder may ignore the chunk
            source.skip(size + 4)
        else:
            raise CannotRemove("it has a chunk that only special decoders know")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def _orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8; 1 (upright) if there is none that a decoder would read."""
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return _UPRIGHT

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if tiff[:1] == b"I" else "big")

    start = number(4, 4)
    for entry in range(start + 2, min(start + 2 + 12 * number(start, 2), len(tiff) - 11), 12):
        if number(entry, 2) == _ORIENTATION:
            value = number(entry + 8, 2)
            return value if value in _ORIENTATIONS else _UPRIGHT
    return _UPRIGHT


REMOVERS: Final[dict[str, Callable[[_Source], Iterator[bytes]]]] = {
    "image/jpeg": _jpeg,
    "image/png": _png,
}
"""The media types from which metadata can be removed."""
