"""Types of documents as devices and tools write them, and images made to keep a decoder busy."""

import dataclasses
import hashlib
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms

from kyc_pipeline.document_store import DocumentFolder
from kyc_pipeline.ingest import documents as module
from kyc_pipeline.ingest.documents import Document, Documents, Role
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.media_types import media_type
from kyc_pipeline.vocabulary import DocumentType, Reason


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def brands(major: bytes, *others: bytes) -> bytes:
    return box(b"ftyp", major + bytes(4) + b"".join(others)) + box(b"free", bytes(64))


TYPES = [
    ("fragmented MP4", brands(b"iso5", b"iso5", b"dash"), "video/mp4"),
    ("MP4 of iso6", brands(b"iso6"), "video/mp4"),
    ("MP4 of avc1", brands(b"avc1", b"avc1"), "video/mp4"),
    ("MP4 of an unknown major brand", brands(b"abcd", b"mp41"), "video/mp4"),
    ("MOV of an iPhone", brands(b"qt  ", b"qt  "), "video/quicktime"),
    ("QuickTime without ftyp", box(b"wide") + box(b"mdat", bytes(99)), "video/quicktime"),
    ("QuickTime with a large box", box(b"moov", bytes(20_000)), "video/quicktime"),
    ("QuickTime with a 64-bit size", b"\0\0\0\1mdat" + bytes(99), "video/quicktime"),
    ("a box of another kind", box(b"free") + box(b"abcd"), None),
    ("unknown brands", brands(b"abcd", b"efgh"), None),
    ("HEIC", brands(b"heic", b"mif1", b"heic"), "image/heic"),
    ("HEIC whose codec is a compatible brand", brands(b"mif1", b"mif1", b"heic"), "image/heic"),
    ("AVIF whose codec is a compatible brand", brands(b"mif1", b"miaf", b"avif"), "image/avif"),
    ("a still image of an unknown codec", brands(b"mif1", b"mif1", b"mp42"), None),
    ("AVIF", brands(b"avif", b"mif1"), "image/avif"),
    ("sound", brands(b"M4A ", b"isom", b"mp42"), "audio/mp4"),
    ("3GP", brands(b"3gp4", b"isom"), "video/3gpp"),
    ("3GP of CDMA telephones", brands(b"3g2a", b"isom"), "video/3gpp2"),
    ("MP4 for streaming alone", brands(b"cmfc"), "video/mp4"),
    ("PDF after a line break", b"\r\n%PDF-1.4\n", "application/pdf"),
    ("PDF after a byte order mark", b"\xef\xbb\xbf%PDF-1.4\n", "application/pdf"),
    ("PDF after text", b"<html>%PDF-1.4\n", None),
    ("nothing", b"", None),
    ("seven bytes", b"\0\0\0\x14fty", None),
]


@pytest.mark.parametrize(
    ("content", "expected"), [case[1:] for case in TYPES], ids=[case[0] for case in TYPES]
)
def test_the_type_is_in_the_content(content: bytes, expected: str | None) -> None:
    assert media_type(content) == expected


HEIC = brands(b"heic", b"mif1", b"heic")


def test_heic_is_sent_only_if_deepxl_takes_it(zone: Any) -> None:
    zone.document("iphone.heic", HEIC)
    zone.document("clip.mp4", brands(b"mp42"))
    zone.rows(
        {"selfie_file": "iphone.heic"},
        {"submission_id": "A2", "id_file": "clip.mp4"},
        {"submission_id": "A3", "id_file": "iphone.heic"},
    )
    zone.ingest()
    heic = "the content is image/heic, which is not among DEEPXL_DOCUMENT_TYPES"
    video = "id_file: the content is video/mp4, which is not accepted"
    assert [row["detail"] for row in zone.rejected()] == [f"selfie_file: {heic}", video, f"id_file: {heic}"]
    zone.ingest(options=LandingOptions(document_types={*DocumentType}))
    assert zone.ids() == ["A1", "A3"]
    assert [row["detail"] for row in zone.rejected()] == [video]
    assert zone.accepted()[0]["selfie_content_type"] == "image/heic"


def jpeg(**options: Any) -> bytes:
    """A photo-like image: its last rows are not those that a decoder fills in."""
    target = io.BytesIO()
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(target, "JPEG", **options)
    return target.getvalue()


def png(*chunks: bytes) -> bytes:
    target = io.BytesIO()
    Image.radial_gradient("L").save(target, "PNG")
    content = target.getvalue()
    return content[:33] + b"".join(chunks) + content[33:]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.fixture
def examine(zone: Any) -> Any:
    def examine(content: bytes) -> Document:
        zone.document("document", content)
        with Documents(DocumentFolder(zone.landing / "documents")) as documents:
            return documents.examine(["document"])["document"]

    return examine


@pytest.mark.parametrize(
    ("role", "content", "problem"),
    [
        (Role.ID, b"%PDF-1.7\n", None),
        (Role.SELFIE, b"%PDF-1.7\n", "selfie_file: the content is application/pdf, which is not accepted"),
        (Role.SELFIE, b"only text", "selfie_file: the content is an unknown type, which is not accepted"),
        (Role.SELFIE, b"", "selfie_file: the file has no content"),
    ],
)
def test_what_a_role_does_not_accept_is_named(
    examine: Any, role: Role, content: bytes, problem: str | None
) -> None:
    found = examine(content).problem_as(role, "selfie_file")
    assert (found and found[1]) == problem


def test_a_document_is_described_whole(examine: Any) -> None:
    pdf = b"%PDF-1.7\n" + bytes(100_000)
    assert examine(b"") == Document(size=0, problem=Reason.FILE_EMPTY, detail="the file has no content")
    assert examine(pdf) == Document(hashlib.sha256(pdf).hexdigest(), len(pdf), "application/pdf")
    cut = jpeg()[:-500]
    described = Document(hashlib.sha256(cut).hexdigest(), len(cut), "image/jpeg", Reason.UNREADABLE_IMAGE)
    assert dataclasses.replace(examine(cut), detail=None) == described


def test_a_file_that_is_too_large_is_not_read(zone: Any) -> None:
    with zone.document("document", b"%PDF-1.7\n").open("rb+") as file:
        file.truncate(50_000_001)
    with Documents(DocumentFolder(zone.landing / "documents")) as documents:
        found = documents.examine(["document"])["document"]
    detail = "the file has 50000001 bytes, more than 50000000"
    assert found == Document(size=50_000_001, problem=Reason.FILE_TOO_LARGE, detail=detail)


def test_the_results_of_the_newest_files_are_kept(zone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_SIZE", 2)
    for name in "abc":
        zone.document(name, b"%PDF-1.7\n")
    with Documents(DocumentFolder(zone.landing / "documents")) as documents:
        for name in "abc":
            documents.examine([name])
        for name in "abc":
            zone.document(name, b"%PDF-1.7\nand more")
        found = documents.examine("abc")
    assert {name: document.size for name, document in found.items()} == {"a": 17, "b": 9, "c": 9}


MEGABYTES = bytes(3_000_000)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FINE = [
    ("JPEG without its end mark", jpeg()[:-2]),
    ("JPEG without its end mark, with zeros", jpeg()[:-2] + bytes(500)),
    ("progressive JPEG", jpeg(progressive=True)),
    ("progressive JPEG without its end mark", jpeg(progressive=True)[:-2]),
    ("JPEG with bytes after its end", jpeg() + b"\xff\xda" * 500),
    ("JPEG with some fill bytes", jpeg()[:2] + b"\xff" * 2000 + jpeg()[2:]),
    ("JPEG with a thumbnail", jpeg(exif=b"Exif\0\0" + jpeg()[:2000])),
    (
        "PNG with a colour profile of 3 MB",
        png(chunk(b"iCCP", b"p\0\0" + zlib.compress(PROFILE + MEGABYTES))),
    ),
    ("PNG with a text of 3 MB", png(chunk(b"zTXt", b"k\0\0" + zlib.compress(MEGABYTES)))),
    ("PNG with many texts", png(chunk(b"tEXt", b"k\0v") * 5000)),
]


@pytest.mark.parametrize("content", [case[1] for case in FINE], ids=[case[0] for case in FINE])
def test_an_odd_image_with_all_its_pixels_is_taken(examine: Any, content: bytes) -> None:
    assert examine(content).detail is None


def with_scans(number: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    content = jpeg(progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * number + content[-2:]


BROKEN = [
    *[(f"JPEG cut at {part}", jpeg()[: int(len(jpeg()) * part)], "truncated") for part in (0.5, 0.9, 0.99)],
    ("progressive JPEG cut", jpeg(progressive=True)[: len(jpeg(progressive=True)) * 9 // 10], "truncated"),
    ("PNG cut", png()[:-300], "truncated"),
    ("PNG cut in its text", png(chunk(b"tEXt", b"k\0" + bytes(99)))[:80], "truncated"),
    ("JPEG of 2,000 scans", with_scans(2000), "scans"),
    (
        "JPEG of many segments",
        b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000 + jpeg()[2:],
        "more than 20000 segments",
    ),
    ("JPEG of fill bytes", b"\xff\xd8" + b"\xff" * 2_000_000 + jpeg()[2:], "outside its segments"),
    ("JPEG of stray bytes", jpeg()[:20] + bytes(2_000_000) + jpeg()[20:], "outside its segments"),
    ("PNG of many chunks", png(chunk(b"tEXt") * 1_000_000), "more than 20000 chunks"),
]


@pytest.mark.parametrize(("content", "why"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_cut_image_or_a_bomb_is_refused(examine: Any, content: bytes, why: str) -> None:
    document = examine(content)
    assert document.problem == "unreadable_image"
    assert why in document.detail
