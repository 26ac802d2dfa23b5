"""Metadata is removed from images, and nothing else: what is decoded stays the same."""

import contextlib
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from kyc_pipeline.image_metadata import CannotRemove, without_metadata
from kyc_pipeline.ingest.images import image_problem

SECRET = b"Erika Mustermann"
TEXT = SECRET.decode()
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TURNED = 6
"""A quarter turn."""


def removed(content: bytes, media_type: str, chunk: int = 1 << 16) -> bytes:
    chunks = (content[at : at + chunk] for at in range(0, len(content), chunk))
    return b"".join(without_metadata(chunks, media_type))


def picture(mode: str = "RGB") -> Image.Image:
    image = Image.radial_gradient("L").resize((96, 64))
    return Image.merge("RGB", (image, image.rotate(90), image.rotate(180))).convert(mode)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x013B] = TEXT  # Artist
    made.get_ifd(0x8825)[1] = "N"  # GPS
    return made


def jpeg(orientation: int = TURNED, **options: Any) -> bytes:
    target = io.BytesIO()
    picture(options.pop("mode", "RGB")).save(
        target, "JPEG", exif=exif(orientation), comment=SECRET, icc_profile=PROFILE, dpi=(72, 72), **options
    )
    content = target.getvalue()
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x>" + SECRET + b"</x>"
    iptc = b"Photoshop 3.0\0" + SECRET
    segments = b"".join(
        bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data
        for kind, data in ((0xE1, xmp), (0xED, iptc), (0xE2, b"FPXR\0" + SECRET), (0xE0, b"JFXX\0" + SECRET))
    )
    return content[:2] + segments + content[2:] + SECRET  # and after the end mark


def png(orientation: int = TURNED, **options: Any) -> bytes:
    texts = PngInfo()
    texts.add_text("Author", TEXT)
    texts.add_text("Comment", TEXT, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", TEXT)
    target = io.BytesIO()
    picture(options.pop("mode", "RGB")).save(
        target, "PNG", exif=exif(orientation), pnginfo=texts, icc_profile=PROFILE, dpi=(72, 72), **options
    )
    return target.getvalue() + SECRET


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


IMAGES = {
    "baseline": ("image/jpeg", jpeg()),
    "progressive": ("image/jpeg", jpeg(progressive=True)),
    "restart intervals": ("image/jpeg", jpeg(restart_marker_rows=1)),
    "CMYK": ("image/jpeg", jpeg(mode="CMYK")),
    "grey": ("image/jpeg", jpeg(mode="L")),
    "PNG": ("image/png", png()),
    "palette": ("image/png", png(mode="P")),
    "transparent": ("image/png", png(mode="RGBA")),
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_decoded_stays_and_texts_go(name: str) -> None:
    media_type, content = IMAGES[name]
    clean = removed(content, media_type)
    assert opened(clean).tobytes() == opened(content).tobytes()
    assert opened(clean).info["icc_profile"] == PROFILE
    assert opened(clean).mode == opened(content).mode
    assert SECRET in content
    assert SECRET not in clean
    assert dict(opened(clean).getexif()) == {0x0112: TURNED}
    assert not {"comment", "Author", "Comment", "xmp"} & opened(clean).info.keys()
    assert removed(clean, media_type) == clean


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("make", [jpeg, png])
def test_it_is_shown_the_same_way_up(make: Any, orientation: int) -> None:
    content = make(orientation)
    clean = removed(content, "image/png" if make is png else "image/jpeg")
    shown, meant = (ImageOps.exif_transpose(opened(each)) for each in (clean, content))
    assert shown.tobytes() == meant.tobytes()
    assert bool(opened(clean).getexif()) == (orientation > 1)


def test_the_preview_of_a_jfif_header_goes() -> None:
    target = io.BytesIO()
    picture().save(target, "JPEG")
    content = target.getvalue()
    assert content[6:11] == b"JFIF\0"
    with_preview = (
        content[:2] + struct.pack(">BBH", 0xFF, 0xE0, 16 + 3) + content[6:18] + b"\1\1abc" + content[20:]
    )
    assert removed(with_preview, "image/jpeg") == content


def test_an_image_without_metadata_stays_as_it_is() -> None:
    for form in ("JPEG", "PNG"):
        target = io.BytesIO()
        picture().save(target, form)
        assert removed(target.getvalue(), f"image/{form.lower()}") == target.getvalue()


@given(st.data(), st.sampled_from(sorted(IMAGES)))
def test_the_borders_of_chunks_make_no_difference(data: st.DataObject, name: str) -> None:
    media_type, content = IMAGES[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(content)), max_size=40)))
    pieces = [content[a:b] for a, b in itertools.pairwise([0, *cuts, len(content)])]
    assert b"".join(without_metadata(pieces, media_type)) == removed(content, media_type)


def test_single_bytes_give_the_same() -> None:
    for media_type, content in IMAGES.values():
        assert removed(content, media_type, 1) == removed(content, media_type)


@pytest.mark.parametrize("then", [b"\0", b""], ids=["pixels", "fill bytes"])
def test_a_long_run_of_ff_in_the_pixels_is_read_at_once(then: bytes) -> None:
    """As of a damaged memory card. To look for the marker at the end of each rest would take hours."""
    content = removed(jpeg(), "image/jpeg")
    content = content[:-2] + b"\xff" * 1_000_000 + then + content[-2:]
    assert image_problem(io.BytesIO(content), len(content), "image/jpeg") is None
    assert removed(content, "image/jpeg") == content


def test_it_reads_to_the_end_so_that_the_reader_can_compare_the_hash() -> None:
    read = 0

    def chunks(content: bytes) -> Iterator[bytes]:
        nonlocal read
        for at in range(0, len(content), 100):
            read += len(content[at : at + 100])
            yield content[at : at + 100]

    for media_type, content in IMAGES.values():
        read = 0
        list(without_metadata(chunks(content + bytes(5000)), media_type))
        assert read == len(content) + 5000


@given(st.data(), st.sampled_from(sorted(IMAGES)))
def test_damaged_files_give_an_image_or_one_error(data: st.DataObject, name: str) -> None:
    media_type, content = IMAGES[name]
    at = data.draw(st.integers(0, len(content)))
    damaged = content[:at] + data.draw(st.binary(max_size=8)) + content[at + 4 :]
    with contextlib.suppress(CannotRemove):  # no other error
        assert len(removed(damaged, media_type)) <= len(damaged) + 36  # bytes of an orientation


def test_a_jpeg_without_an_end_mark_is_no_problem() -> None:
    content = removed(jpeg(), "image/jpeg")
    assert removed(content[:-2], "image/jpeg") == content[:-2]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = removed(png(), "image/png")
JPEG = removed(jpeg(), "image/jpeg")


@pytest.mark.parametrize(
    ("media_type", "content", "why"),
    [
        ("image/jpeg", b"", "it ends within a part"),
        ("image/jpeg", PNG, "it does not begin as a JPEG"),
        ("image/jpeg", b"\xff\xd8", "it has no pixels"),
        ("image/jpeg", JPEG[:300], "it ends within a part"),
        ("image/jpeg", b"\xff\xd8\xff\xfe\0\1" + JPEG[2:], "a segment has no length"),
        ("image/png", JPEG, "it does not begin as a PNG"),
        ("image/png", PNG[:-4], "it ends within a part"),
        ("image/png", PNG[:8] + chunk(b"SECR", SECRET) + PNG[8:], "a chunk that only special decoders know"),
        ("image/png", PNG[:8] + chunk(b"eXIf", bytes((1 << 20) + 1)) + PNG[8:], "more than 1048576 bytes"),
    ],
)
def test_a_broken_structure_is_refused(media_type: str, content: bytes, why: str) -> None:
    with pytest.raises(CannotRemove, match=why):
        removed(content, media_type)
