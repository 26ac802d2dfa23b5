"""Undoes the compression of a body, within limits.

What counts is how the bytes begin, not what `Content-Encoding` says: gateways misname encodings, repeat them
or leave them out, and no JSON text begins as gzip does.
"""

import zlib
from typing import Final

ACCEPT: Final = "gzip, identity"
"""The `Accept-Encoding` of requests; aiohttp would accept more."""
_GZIP: Final = b"\x1f\x8b"
_READABLE: Final = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
_MAX_LAYERS: Final = 4
_MAX_MEMBERS: Final = 64


class Unusable(Exception):
    """The body cannot be used. The message completes "the response is", without the vendor's words."""


class TooLarge(Unusable):
    """The body exceeds the limit, as received or decompressed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"larger than {limit >> 20} MiB")


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The plain bytes of `body`, at most `limit`. Raises :class:`Unusable`.

    `encoding` is the header `Content-Encoding`. Never holds more than `limit` bytes of a
    layer, and gives up after a few layers.
    """
    names = {name.strip() for name in encoding.lower().split(",")}
    for _ in range(_MAX_LAYERS):
        if len(body) > limit:
            raise TooLarge(limit)
        mode = _compression(body, names)
        if mode is None:
            break
        body = _inflate(body, mode, limit)
    else:
        raise Unusable(f"compressed more than {_MAX_LAYERS - 1} times")
    if not names <= _READABLE and not _is_plain(body):
        raise Unusable("compressed in a way that was not asked for")
    return body


def _is_plain(body: bytes) -> bool:
    return body.lstrip()[:1] == b"{"


def _compression(body: bytes, names: set[str]) -> int | None:
    """How the outermost layer of `body` is compressed, as zlib's `wbits`; None if it is not."""
    if body.startswith(_GZIP):
        return 16 + zlib.MAX_WBITS
    if "deflate" not in names or not body or _is_plain(body):
        return None
    has_header = body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS  # many servers leave the header out


def _inflate(body: bytes, mode: int, limit: int) -> bytes:
    pieces = b""
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(mode)
        try:
            pieces += member.decompress(body, limit + 1 - len(pieces))
        except zlib.error:
            raise Unusable("compressed, and damaged") from None
        if len(pieces) > limit:
            raise TooLarge(limit)
        if not member.eof:
            raise Unusable("compressed, and cut off")
        body = member.unused_data
        if not body.startswith(_GZIP):
            return pieces
    raise Unusable("compressed in too many pieces")
