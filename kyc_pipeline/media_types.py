"""Detects a document's media type from the first bytes of its content, never from its name."""

import re
from typing import Final

import filetype

HEAD_BYTES: Final = 8192
"""How many bytes `media_type` looks at."""

# A video names its format in the first box, `ftyp`: its major brand, then all that it is compatible with.
_MAJOR_BRANDS: Final = {
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "image/heic"),
}
_ANY_CODEC: Final = (b"mif1", b"msf1")  # a still image: its compatible brands name the codec
_MP4_BRANDS: Final = frozenset(
    (
        *(b"isom", b"iso2", b"iso3", b"iso4", b"iso5", b"iso6", b"iso7", b"iso8", b"iso9"),
        *(b"mp41", b"mp42", b"mp4v", b"avc1", b"hvc1", b"dash", b"msdh", b"cmfc", b"cmf2"),
        *(b"M4V ", b"M4VH", b"M4VP", b"F4V ", b"MSNV", b"XAVC"),
    )
)
# QuickTime files from before `ftyp` begin with one of these boxes.
_QUICKTIME_BOXES: Final = frozenset([b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"])
_PDF: Final = re.compile(rb"(\xef\xbb\xbf)?[\0\t\n\f\r ]*%PDF-")


def media_type(head: bytes) -> str | None:
    """The media type of a file that begins with `head`; None if it is unknown."""
    if _PDF.match(head):
        return "application/pdf"
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    if _is_old_quicktime(head):
        return "video/quicktime"
    kind: str | None = filetype.guess_mime(head)
    return kind


def _by_brand(head: bytes) -> str | None:
    major = head[8:12]
    if major[:3] in (b"3gp", b"3g2"):
        return "video/3gpp2" if major[:3] == b"3g2" else "video/3gpp"
    if kind := _MAJOR_BRANDS.get(major):
        return kind
    end = int.from_bytes(head[:4])
    compatible = [head[at : at + 4] for at in range(16, min(end, len(head)), 4)]
    if major in _ANY_CODEC:
        return next(filter(None, map(_MAJOR_BRANDS.get, compatible)), None)
    brands = {major, *compatible}
    return None if brands.isdisjoint(_MP4_BRANDS) else "video/mp4"


def _is_old_quicktime(head: bytes) -> bool:
    """Whether every box that begins in `head` is one of QuickTime's."""
    at = 0
    while at + 8 <= len(head):
        if head[at + 4 : at + 8] not in _QUICKTIME_BOXES:
            return False
        size = int.from_bytes(head[at : at + 4])
        if size < 8:  # 0: up to the end of the file; 1: a 64-bit size follows
            return size <= 1
        at += size
    return at > 0
