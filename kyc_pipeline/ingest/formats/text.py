"""The text of a manifest, whatever its encoding and compression."""

import codecs
import functools
import gzip
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

import filetype

from kyc_pipeline.ingest.formats.size_limits import BLOCK_BYTES, MAX_ROW_BYTES, MAX_TEXT_BYTES
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.landing.zone import ManifestFile

_UTF8: Final = "utf-8-sig"
_CORRECT_SETTING: Final = "correct KYC_CSV_ENCODING, or save the file as UTF-8"
_UTF16_BYTES_PER_ZERO: Final = 50
"""UTF-16 has at least one zero in so many bytes, even with long Chinese texts; damaged UTF-8 has fewer."""
_NO_TEXT: Final = frozenset(
    {
        "7z",
        "bz2",
        "doc",
        "docx",
        "gz",
        "odt",
        "ods",
        "parquet",
        "pdf",
        "rar",
        "xls",
        "xlsx",
        "xz",
        "zip",
        "zst",
    }
)
"""Types of files that are sometimes delivered under the name of a text file."""
_LATER_MARK: Final = re.compile(r"(?<=[\r\n])\ufeff+")


def text_blocks(
    path: ManifestFile, code_page: str | None = None, advice: str = "save it as UTF-8"
) -> Iterator[str]:
    """Yields the file's text in blocks, without a byte order mark and with a line end at the end.

    `code_page` is the encoding of a file that is neither UTF-8 nor UTF-16; without it, such a file is refused
    with `advice`.
    """
    with path.open("rb") as raw:
        source = _unpacked(raw)
        encoding = _encoding_of(source.read(BLOCK_BYTES), path)
        source.seek(0)
        if code_page and encoding == _UTF8 and _has_other_bytes(source, path):
            encoding = code_page
        source.seek(0)
        block = source.read(BLOCK_BYTES)
        decoder = codecs.getincrementaldecoder(encoding)()
        lines = size = 0
        is_line_start = True
        while block:
            following = source.read(BLOCK_BYTES)
            size += len(block)
            if size > MAX_TEXT_BYTES:
                raise ManifestUnreadable(path, f"has more than {MAX_TEXT_BYTES} bytes of text: split it")
            text = _decoded(decoder, block, lines, path, code_page if encoding == code_page else None, advice)
            lines += count_line_ends(text)
            if "\ufeff" in text:
                # Files that were joined have a byte order mark at the start of each.
                text = _LATER_MARK.sub("", text.lstrip("\ufeff") if is_line_start else text)
            if text:
                is_line_start = text[-1] in "\r\n"
            if not following:
                decoder.decode(b"", final=True)
                text += "" if is_line_start else "\n"
            if text:
                yield text
            block = following


def _decoded(
    decoder: codecs.IncrementalDecoder,
    block: bytes,
    lines: int,
    path: ManifestFile,
    code_page: str | None,
    advice: str,
) -> str:
    """The text of a block after `lines` lines, in `code_page` or Unicode."""
    try:
        text = decoder.decode(block)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(error.encoding, "replace")
        line = lines + count_line_ends(before) + 1
        name = error.encoding
        if code_page:
            name, advice = code_page, _CORRECT_SETTING  # Python calls every code page "charmap"
        raise ManifestUnreadable(path, f"is not {name} text (line {line}): {advice}") from error
    if "\0" in text:
        line = lines + count_line_ends(text[: text.index("\0")]) + 1
        raise ManifestUnreadable(path, f"is not text: line {line} has a NUL character")
    return text


def is_unicode(path: ManifestFile) -> bool:
    """Whether a text file is UTF-8 or UTF-16. Raises as `text_blocks` does."""
    with path.open("rb") as raw:
        source = _unpacked(raw)
        encoding = _encoding_of(source.read(BLOCK_BYTES), path)
        source.seek(0)
        return encoding != _UTF8 or not _has_other_bytes(source, path)


def _unpacked(raw: BinaryIO) -> BinaryIO:
    is_zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return cast("BinaryIO", gzip.GzipFile(fileobj=raw) if is_zipped else raw)


def _has_other_bytes(source: BinaryIO, path: ManifestFile) -> bool:
    """Whether a line is not UTF-8. Raises :class:`ManifestUnreadable` if another one has letters in UTF-8."""
    # Latin-1 turns each byte into one character, and back.
    lines = io.TextIOWrapper(source, "latin-1")
    first: dict[bool, int] = {}
    for number, line in enumerate(iter(functools.partial(lines.readline, MAX_ROW_BYTES), ""), 1):
        if not line.isascii():
            first.setdefault(_is_utf8(line.encode("latin-1")), number)
    lines.detach()
    if len(first) == 2:
        raise ManifestUnreadable(
            path, f"is UTF-8 in line {first[True]}, but not in line {first[False]}: save it as UTF-8"
        )
    return False in first


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def count_line_ends(text: str) -> int:
    """How many lines end in `text`, whose line ends are all of one kind."""
    return text.count("\n") or text.count("\r")


def _encoding_of(start: bytes, path: ManifestFile) -> str:
    kind = "parquet" if start.startswith(b"PAR1") else filetype.guess_extension(start)
    if kind in _NO_TEXT:
        raise ManifestUnreadable(path, f"is a .{kind} file by its content: unpack it or correct its name")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # The names of the columns are ASCII. In UTF-16, each of their letters has a byte that is zero.
        if start.count(0) < len(start) // _UTF16_BYTES_PER_ZERO:
            raise ManifestUnreadable(path, "has a UTF-16 byte order mark but other text: save it as UTF-8")
        return "utf-16"
    sample = start[:64]
    # In UTF-16 without a byte order mark, every other byte of an ASCII header is zero.
    if len(sample) >= 4 and len(sample) % 2 == 0:
        if not any(sample[1::2]):
            return "utf-16-le"
        if not any(sample[0::2]):
            return "utf-16-be"
    return _UTF8
