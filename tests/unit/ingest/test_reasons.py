"""Every rejection reason, and rows that only just pass."""

from typing import Any

import pytest

from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import Reason

OFFSET = "2024-09-01T10:00:00+02:00"

BROKEN: list[tuple[str, dict[str, str], Reason]] = [
    ("no id", {"submission_id": ""}, Reason.MISSING_FIELD),
    ("blank id", {"submission_id": "  "}, Reason.MISSING_FIELD),
    ("no id file", {"id_file": ""}, Reason.MISSING_FIELD),
    ("no selfie", {"selfie_file": ""}, Reason.MISSING_FIELD),
    ("id with a space", {"submission_id": "A 1"}, Reason.INVALID_SUBMISSION_ID),
    ("id with a space at the end", {"submission_id": "A1 "}, Reason.INVALID_SUBMISSION_ID),
    ("id with a line end", {"submission_id": "A1\n"}, Reason.INVALID_SUBMISSION_ID),
    ("id not in ASCII", {"submission_id": "Ä1"}, Reason.INVALID_SUBMISSION_ID),
    ("digits that are not ASCII", {"submission_id": "\u0661"}, Reason.INVALID_SUBMISSION_ID),
    ("id too long", {"submission_id": "a" * 65}, Reason.INVALID_SUBMISSION_ID),
    ("tags are no JSON", {"tags": "{"}, Reason.INVALID_TAGS),
    ("tags are a list", {"tags": '["a"]'}, Reason.INVALID_TAGS),
    ("tag is a number", {"tags": '{"a": 1}'}, Reason.INVALID_TAGS),
    ("tag is null", {"tags": '{"a": null}'}, Reason.INVALID_TAGS),
    ("tag is nested", {"tags": '{"a": {"b": "c"}}'}, Reason.INVALID_TAGS),
    ("tag twice", {"tags": '{"a": "1", "a": "2"}'}, Reason.INVALID_TAGS),
    ("tag twice, once escaped", {"tags": '{"a": "1", "\\u0061": "2"}'}, Reason.INVALID_TAGS),
    ("tag without a name", {"tags": '{"": "1"}'}, Reason.INVALID_TAGS),
    ("lone surrogate", {"tags": '{"a": "\\ud800"}'}, Reason.INVALID_TAGS),
    ("cell and object differ", {"tags": '{"a": "1"}', "tag.a": "2"}, Reason.INVALID_TAGS),
    ("column without a name", {"tag.": "2"}, Reason.INVALID_TAGS),
    ("text as a formula of Excel", {"tag.customerId": '="0012"'}, Reason.INVALID_TAGS),
    ("the same in an object", {"tags": '{"a": "=\\"0012\\""}'}, Reason.INVALID_TAGS),
    ("id as a formula of Excel", {"submission_id": '="0012"'}, Reason.INVALID_SUBMISSION_ID),
    ("reserved tag", {"tags": '{"submissionId": "A1"}'}, Reason.RESERVED_TAG),
    ("reserved column", {"tag.submissionId": "A1"}, Reason.RESERVED_TAG),
    ("time in words", {"submitted_at": "yesterday"}, Reason.INVALID_SUBMITTED_AT),
    ("time without an offset", {"submitted_at": "2024-09-01T10:00:00"}, Reason.INVALID_SUBMITTED_AT),
    ("date only", {"submitted_at": "2024-09-01"}, Reason.INVALID_SUBMITTED_AT),
    ("month 13", {"submitted_at": "2024-13-01T10:00:00Z"}, Reason.INVALID_SUBMITTED_AT),
    ("hour 24", {"submitted_at": "2024-09-01T24:00:00Z"}, Reason.INVALID_SUBMITTED_AT),
    ("epoch", {"submitted_at": "1725184800"}, Reason.INVALID_SUBMITTED_AT),
    (
        "offset that does not exist",
        {"submitted_at": "2024-09-01T10:00:00+99:99"},
        Reason.INVALID_SUBMITTED_AT,
    ),
    ("time in year 10000", {"submitted_at": "9999-12-31T23:59:59-01:00"}, Reason.INVALID_SUBMITTED_AT),
    ("time in year 0", {"submitted_at": "0001-01-01T00:00:00+01:00"}, Reason.INVALID_SUBMITTED_AT),
    ("path upwards", {"id_file": "../manifests/2024-09-01/a.csv"}, Reason.PATH_OUTSIDE_DOCUMENTS),
    ("path up and elsewhere", {"id_file": "x/../../secret.jpg"}, Reason.PATH_OUTSIDE_DOCUMENTS),
    ("absolute path", {"id_file": "/etc/hostname"}, Reason.PATH_OUTSIDE_DOCUMENTS),
    ("the folder itself", {"id_file": "."}, Reason.PATH_OUTSIDE_DOCUMENTS),
    ("link to outside", {"id_file": "link-out.jpg"}, Reason.PATH_OUTSIDE_DOCUMENTS),
    (
        "folder that is a link to outside",
        {"selfie_file": "folder-out/secret.jpg"},
        Reason.PATH_OUTSIDE_DOCUMENTS,
    ),
    ("no such file", {"id_file": "lost.jpg"}, Reason.FILE_NOT_FOUND),
    ("no such selfie", {"selfie_file": "lost.jpg"}, Reason.FILE_NOT_FOUND),
    ("a folder", {"id_file": "folder"}, Reason.FILE_NOT_FOUND),
    ("below a file", {"id_file": "id.jpg/x.jpg"}, Reason.FILE_NOT_FOUND),
    ("dangling link", {"id_file": "dangling.jpg"}, Reason.FILE_NOT_FOUND),
    ("link to itself", {"id_file": "loop.jpg"}, Reason.FILE_NOT_FOUND),
    ("name too long", {"id_file": "x" * 300}, Reason.FILE_NOT_FOUND),
    ("a pipe", {"id_file": "pipe"}, Reason.FILE_NOT_FOUND),
    ("empty file", {"id_file": "empty.jpg"}, Reason.FILE_EMPTY),
    ("one byte over 50 MB", {"id_file": "huge.jpg"}, Reason.FILE_TOO_LARGE),
    ("text with an image's name", {"id_file": "text.jpg"}, Reason.UNSUPPORTED_FILE_TYPE),
    ("GIF", {"id_file": "moving.gif"}, Reason.UNSUPPORTED_FILE_TYPE),
    ("PDF as selfie", {"selfie_file": "doc.pdf"}, Reason.UNSUPPORTED_FILE_TYPE),
    ("video as id", {"id_file": "clip.mp4"}, Reason.UNSUPPORTED_FILE_TYPE),
    ("truncated JPEG", {"id_file": "cut.jpg"}, Reason.UNREADABLE_IMAGE),
    ("truncated PNG", {"selfie_file": "cut.png"}, Reason.UNREADABLE_IMAGE),
    ("truncated WebP", {"selfie_file": "cut.webp"}, Reason.UNREADABLE_IMAGE),
    ("decompression bomb", {"id_file": "bomb.png"}, Reason.UNREADABLE_IMAGE),
    ("larger bomb", {"id_file": "bomb2.png"}, Reason.UNREADABLE_IMAGE),
]

FINE: list[tuple[str, dict[str, str]]] = [
    ("longest id", {"submission_id": "a" * 64}),
    ("odd id", {"submission_id": "._-"}),
    ("no tags", {"tags": ""}),
    ("no tags but spaces", {"tags": "  "}),
    ("empty tags", {"tags": "{}"}),
    ("tag with an empty value", {"tags": '{"a": ""}'}),
    ("cell and object agree", {"tags": '{"a": "1"}', "tag.a": "1"}),
    ("tags beyond ASCII", {"tags": '{"größe": "\\u00fc \\"x\\""}'}),
    ("time with offset", {"submitted_at": OFFSET}),
    ("time in UTC", {"submitted_at": "2024-09-01 10:00Z"}),
    ("time with a fraction", {"submitted_at": "2024-09-01T10:00:00.123456789-0330"}),
    ("time with a comma", {"submitted_at": "2024-09-01T10:00:00,5Z"}),
    ("last time", {"submitted_at": "9999-12-31T23:59:59Z"}),
    ("link inside", {"id_file": "link-in.jpg"}),
    ("up and back", {"id_file": "folder/../id.jpg"}),
    ("below a folder", {"id_file": "folder/id.webp"}),
    ("PDF as id", {"id_file": "doc.pdf"}),
    ("MP4 as selfie", {"selfie_file": "clip.mp4"}),
    ("MOV as selfie", {"selfie_file": "clip.mov"}),
    ("WebM as selfie", {"selfie_file": "clip.webm"}),
    ("exactly 50 MB", {"id_file": "full.pdf"}),
]


@pytest.fixture
def full_zone(zone: Any, make_image: Any) -> Any:
    import os

    documents = zone.landing / "documents"
    zone.document("folder/id.webp", make_image("WEBP"))
    (zone.landing / "secret.jpg").write_bytes(make_image())
    (documents / "link-out.jpg").symlink_to("../secret.jpg")
    (documents / "folder-out").symlink_to(zone.landing)
    (documents / "link-in.jpg").symlink_to("folder/../id.jpg")
    (documents / "dangling.jpg").symlink_to("lost.jpg")
    (documents / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(documents / "pipe")
    zone.document("empty.jpg", b"")
    for name, size in (("huge.jpg", 50_000_001), ("full.pdf", 50_000_000)):
        start = make_image() if name == "huge.jpg" else b"%PDF-1.7\n"
        with zone.document(name, start).open("rb+") as file:
            file.truncate(size)
    zone.document("text.jpg", b"no image at all")
    zone.document("moving.gif", make_image("GIF"))
    zone.document("doc.pdf", b"%PDF-1.7\n%%EOF\n")
    zone.document("clip.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(64))
    zone.document("clip.mov", b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(64))
    zone.document("clip.webm", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm" + bytes(64))
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        whole = make_image(kind, size=(300, 200))
        zone.document(f"cut.{suffix}", whole[: len(whole) * 2 // 3])
    # For a decompression bomb, a header that claims many pixels is enough.
    import struct
    import zlib

    for name, side in (("bomb.png", 10_000), ("bomb2.png", 30_000)):
        body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
        pixels = b"IDAT" + zlib.compress(bytes(1000))
        zone.document(
            name, header + struct.pack(">I", len(pixels) - 4) + pixels + struct.pack(">I", zlib.crc32(pixels))
        )
    return zone


def test_each_broken_row_has_its_reason_and_stops_no_other(full_zone: Any) -> None:
    rows = [{"submission_id": f"bad-{n}", **cells} for n, (_, cells, _) in enumerate(BROKEN)]
    full_zone.rows(*rows, {"submission_id": "good"})
    summary = full_zone.ingest()
    found = {row["manifest_row"]: row for row in full_zone.rejected()}
    wrong = {
        name: (found[n]["reason"] if n in found else "accepted")
        for n, (name, _, reason) in enumerate(BROKEN, 1)
        if n not in found or found[n]["reason"] != reason
    }
    assert wrong == {}
    assert full_zone.ids() == ["good"]
    assert summary.received == len(BROKEN) + 1
    assert all(row["detail"] and row["manifest"] == "a.csv" for row in found.values())
    assert found[1]["submission_id"] is None
    assert found[5]["submission_id"] == "A 1"


LOOKS_THE_SAME = "a file exists whose name looks the same (Unicode NFC and NFD): use its exact name"

LOWER_CASE = "a file exists whose name is in lower case: use its exact name"


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("folder\\é.jpg", "separate folders by / and not by a backslash"),
        (" id.jpg", "the path begins or ends with a blank"),
        ("id.jpg\u00a0", "the path begins or ends with a blank"),
        ("folder/é.jpg", LOOKS_THE_SAME),
        ("u\u0308/\u00e9.jpg", LOOKS_THE_SAME),
        ("folder/e\u0301.jpg\u200b", "the path has an invisible character (U+200B)"),
        ("folder/è.jpg", None),
        ("Plain.JPG", LOWER_CASE),
        ("plain.JPG", LOWER_CASE),
        ("documents/plain.jpg", "the path is relative to the documents folder: leave out documents/"),
        ("documents/other.jpg", None),
    ],
)
def test_a_path_that_only_looks_right_is_explained(
    zone: Any, make_image: Any, path: str, detail: str | None
) -> None:
    zone.document("folder/e\u0301.jpg", make_image())
    zone.document("\u00fc/e\u0301.jpg", make_image())
    zone.document("plain.jpg", make_image())
    zone.rows({"id_file": path}, {"submission_id": "A2", "id_file": "folder/e\u0301.jpg"})
    zone.ingest()
    assert zone.ids() == ["A2"]
    expected = "id_file: the file does not exist" + (f": {detail}" if detail else "")
    assert [(row["reason"], row["detail"]) for row in zone.rejected()] == [("file_not_found", expected)]


def test_details_repeat_no_path_and_no_tag(full_zone: Any) -> None:
    full_zone.rows(
        {"id_file": "../secret-name.jpg"}, {"submission_id": "A2", "tags": '{"a": "secret-name", "a": ""}'}
    )
    full_zone.ingest()
    assert len(full_zone.rejected()) == 2
    assert not any("secret" in row["detail"] for row in full_zone.rejected())


def test_rows_that_only_just_pass_are_accepted(full_zone: Any) -> None:
    full_zone.rows(*({"submission_id": f"ok-{n:02}", **cells} for n, (_, cells) in enumerate(FINE)))
    full_zone.ingest()
    assert [(FINE[row - 1][0], reason) for row, reason in full_zone.reasons()] == []


def test_the_accepted_row_is_complete(zone: Any) -> None:
    zone.rows({"tags": '{"b": "2"}', "tag.a": "1", "submitted_at": OFFSET})
    zone.ingest()
    (row,) = zone.accepted()
    assert row["submitted_at"].isoformat() == "2024-09-01T08:00:00+00:00"
    assert row["tags"] == [("a", "1"), ("b", "2")]
    assert (row["id_content_type"], row["selfie_content_type"]) == ("image/jpeg", "image/png")
    assert row["id_size"] == (zone.landing / "documents/id.jpg").stat().st_size
    assert len(row["id_sha256"]) == len(row["selfie_sha256"]) == len(row["content_sha256"]) == 64
    assert (row["manifest"], row["manifest_row"]) == ("a.csv", 1)


def test_a_row_that_was_fixed_passes_in_the_next_run(zone: Any, make_image: Any) -> None:
    zone.rows({"id_file": "late.jpg"})
    zone.ingest()
    assert zone.reasons() == [(1, "file_not_found")]
    zone.document("late.jpg", make_image())
    zone.ingest()
    assert zone.ids() == ["A1"]
    assert zone.reasons() == []


def test_erased_subjects_are_not_read_again(zone: Any) -> None:
    zone.rows(
        {"tag.customerId": "9"}, {"submission_id": "A2", "tag.customerId": "8"}, {"submission_id": "A3"}
    )
    key = Pseudonymizer("k" * 32)
    people = [Tombstone.of_tag(key, "customerId", "9"), Tombstone.of_tag(key, "submissionId", "A3")]
    zone.ingest(erased=ErasedSubjects(people, key))
    assert zone.ids() == ["A2"]
    assert zone.reasons() == [(1, "erased_subject"), (3, "erased_subject")]
