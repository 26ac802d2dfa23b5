"""Decides whether an image can be decoded to its end, in bounded time and memory.

The vendor bills an image that it then cannot read, so a truncated one must not be sent. Only the pixels are
decoded: a large colour profile or text is no fault.
"""

import io
import threading
from contextlib import nullcontext
from typing import BinaryIO, Final

from PIL import Image

from kyc_pipeline.image_metadata import JPEG_MARKER

PILLOW_FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
"""Pillow's name of each media type that is decoded."""
MAX_PIXELS: Final = 89_478_485
"""Pillow's own limit, above which it suspects a decompression bomb."""
MAX_PARTS: Final = 20_000
"""Segments of a JPEG or chunks of a PNG. Real files have up to a few thousand."""
MAX_SKIPPED_BYTES: Final = 10_000
"""Bytes between the segments before a JPEG's first scan: Pillow skips them one by one."""
MAX_SCANS: Final = 100
"""Scans of a progressive JPEG. Encoders make about ten; each costs a pass over the whole image."""
MAX_SCANNED_PIXELS: Final = 1_000_000_000
"""Pixels times scans of a progressive JPEG: a few seconds."""
_LARGE_PIXELS: Final = 16_000_000
_LARGE_BYTES: Final = 10_000_000

# One at a time: an image that cannot be decoded at a reduced size takes up to 360 MB.
_large_image_lock = threading.RLock()

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_END_MARK: Final = b"\xff\xd9"
_PNG_SIGNATURE_BYTES: Final = 8
_PIXEL_CHUNKS: Final = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])


class _Unreadable(Exception):
    """Says why."""


def image_problem(file: BinaryIO, size: int, media_type: str) -> str | None:
    """Why the image cannot be decoded to its end, or None. `media_type` is a key of `PILLOW_FORMATS`."""
    with _large_image_lock if size > _LARGE_BYTES else nullcontext():
        return _problem(file.read(), media_type)


def _problem(content: bytes, media_type: str) -> str | None:
    scans, has_end = 1, True
    try:
        if media_type == "image/jpeg":
            scans, has_end = _jpeg_scans(content)
        elif media_type == "image/png":
            content = _png_pixels(content)
        try:
            _decode(content, PILLOW_FORMATS[media_type], scans)
        except OSError:
            if has_end or not _lacks_only_its_end(content):
                raise
    except _Unreadable as problem:
        return str(problem)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"the image has more than {MAX_PIXELS} pixels"
    except MemoryError:
        raise
    except Exception as error:  # on hostile input, decoders raise errors of any kind
        return f"the image cannot be decoded ({type(error).__name__}): it may be truncated"
    return None


def _decode(content: bytes, image_format: str, scans: int) -> None:
    with Image.open(io.BytesIO(content), formats=[image_format]) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _Unreadable(f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
        if scans > MAX_SCANS or (scans > 1 and width * height * scans > MAX_SCANNED_PIXELS):
            raise _Unreadable(f"the JPEG has {scans} scans of {width} x {height} pixels, too many to decode")
        # Decoding a JPEG at an eighth of its size costs far less and still reads every byte.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        # A JPEG with several scans is kept whole in memory at any size.
        if max(image.size[0] * image.size[1], width * height * (scans > 1)) > _LARGE_PIXELS:
            with _large_image_lock:
                image.load()
        else:
            image.load()


def _jpeg_scans(content: bytes) -> tuple[int, bool]:
    """How many scans a JPEG has, and whether it has an end mark."""
    at = scans = skipped = 0
    for _ in range(MAX_PARTS):
        marker = JPEG_MARKER.search(content, at)
        if marker is None:
            return scans, False
        kind = content[marker.end() - 1]
        if kind == _END_OF_IMAGE:
            return scans, True
        skipped += 0 if scans else marker.end() - 2 - at
        if skipped > MAX_SKIPPED_BYTES:
            raise _Unreadable(f"the JPEG has more than {MAX_SKIPPED_BYTES} bytes outside its segments")
        scans += kind == _START_OF_SCAN
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    raise _Unreadable(f"the JPEG has more than {MAX_PARTS} segments")


def _lacks_only_its_end(content: bytes) -> bool:
    """Whether a JPEG without an end mark has all its pixels.

    Then it makes no difference what stands between its last byte and an end mark. Where pixels are missing,
    the decoder takes them from there.
    """
    pixels = []
    for tail in (_END_MARK, b"\x55" * 64 + _END_MARK):
        with Image.open(io.BytesIO(content + tail), formats=["JPEG"]) as image:
            if image.size[0] * image.size[1] > _LARGE_PIXELS:
                return False
            pixels.append(image.tobytes())
    return pixels[0] == pixels[1]


def _png_pixels(content: bytes) -> bytes:
    """The PNG with those chunks only that make its pixels."""
    kept = [content[:_PNG_SIGNATURE_BYTES]]
    at = _PNG_SIGNATURE_BYTES
    for _ in range(MAX_PARTS):
        if at >= len(content):
            return b"".join(kept)
        end = at + 12 + int.from_bytes(content[at : at + 4])  # its length, kind, data and checksum
        if content[at + 4 : at + 8] in _PIXEL_CHUNKS:
            kept.append(content[at:end])
        at = end
    raise _Unreadable(f"the PNG has more than {MAX_PARTS} chunks")
