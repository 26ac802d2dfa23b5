"""Opening documents: no way out of the folder, nothing but files, and only what was accepted."""

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from kyc_pipeline.document_store import AcceptedDocument, DocumentFolder, DocumentProblem
from kyc_pipeline.vocabulary import Reason

SECRET = b"not for anybody"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.jpg").write_bytes(SECRET)
    documents = tmp_path / "documents"
    (documents / "2024/09").mkdir(parents=True)
    (documents / "2024/09/id.jpg").write_bytes(b"an image")
    (documents / "link").symlink_to("2024/09/id.jpg")
    (documents / "absolute").symlink_to(documents / "link")
    (documents / "month").symlink_to("2024/09")
    (documents / "file-out").symlink_to("../secret.jpg")
    (documents / "folder-out").symlink_to(tmp_path)
    return documents


def read(root: Path, resolved: str) -> bytes:
    with DocumentFolder(root).open(resolved) as file:
        return file.read()


@pytest.mark.parametrize(
    "path",
    ["2024/09/id.jpg", "./2024//09/id.jpg", "month/../09/id.jpg", "link", "absolute", "month/id.jpg"],
)
def test_a_path_may_take_any_way_that_ends_inside(root: Path, path: str) -> None:
    resolved = DocumentFolder(root).resolve(path)
    assert resolved == "2024/09/id.jpg"
    assert read(root, resolved) == b"an image"


def test_the_folder_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(root)
    assert DocumentFolder(tmp_path / "mounted").resolve("link") == "2024/09/id.jpg"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.jpg",
        "file-out",
        "folder-out/secret.jpg",
        "2024/../../secret.jpg",
        "",
        ".",
        "/etc/passwd",
        "a\0b",
    ],
)
def test_no_path_leads_out(root: Path, path: str) -> None:
    with pytest.raises(DocumentProblem, match="inside the documents folder") as caught:
        DocumentFolder(root).resolve(path)
    assert caught.value.reason is Reason.PATH_OUTSIDE_DOCUMENTS


@pytest.mark.parametrize("path", ["link", "file-out", "month/id.jpg", "folder-out/secret.jpg"])
def test_a_link_that_is_there_when_the_file_is_opened_is_not_followed(root: Path, path: str) -> None:
    # As if it took the place of a file or folder after `resolve`.
    with pytest.raises(DocumentProblem, match="does not exist"):
        read(root, path)


def test_no_race_of_links_leads_out(root: Path) -> None:
    folder = DocumentFolder(root)
    enough = threading.Event()

    def swap() -> None:
        while not enough.is_set():
            (root / "next").symlink_to("../secret.jpg")
            os.replace(root / "next", root / "raced")
            (root / "next").write_bytes(b"an image")
            os.replace(root / "next", root / "raced")

    (root / "raced").write_bytes(b"an image")
    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for _ in range(500):
            try:
                with folder.open(folder.resolve("raced")) as file:
                    seen.add(file.read())
            except DocumentProblem:
                seen.add(b"refused")
    finally:
        enough.set()
        swapper.join()
    assert SECRET not in seen


def test_only_regular_files_are_read_and_nothing_waits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe")  # without a writer, so that a plain `open` would wait for one
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name in ("pipe", "socket", "2024", "missing", "2024/09/id.jpg/x", "x" * 300):
            with pytest.raises(DocumentProblem) as caught:
                read(root, name)
            assert caught.value.reason is Reason.FILE_NOT_FOUND


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_file_that_may_not_be_read(root: Path) -> None:
    (root / "2024/09/id.jpg").chmod(0)
    with pytest.raises(DocumentProblem, match="cannot be opened"):
        read(root, "2024/09/id.jpg")


@pytest.fixture
def accepted(root: Path) -> AcceptedDocument:
    (root / "id.jpg").write_bytes(b"0123456789")
    return AcceptedDocument(
        DocumentFolder(root), "id.jpg", 10, hashlib.sha256(b"0123456789").hexdigest(), "image/jpeg"
    )


def test_what_was_accepted_is_read_in_chunks(accepted: AcceptedDocument) -> None:
    assert list(accepted.chunks(4)) == [b"0123", b"4567", b"89"]
    assert list(accepted.chunks(100)) == [b"0123456789"]
    content = bytearray(10)
    accepted.read(memoryview(content))
    assert content == b"0123456789"


def test_no_more_is_read_than_was_accepted(root: Path, accepted: AcceptedDocument) -> None:
    chunks = accepted.chunks(4)
    first = next(chunks)
    with (root / "id.jpg").open("ab") as file:
        file.write(b"and more")
    assert [first, *chunks] == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize("content", [b"", b"012345678", b"0123456789+", b"9876543210"])
@pytest.mark.parametrize("chunk_bytes", [1, 10, 100])
def test_what_was_not_accepted_has_no_end(
    root: Path, accepted: AcceptedDocument, content: bytes, chunk_bytes: int
) -> None:
    (root / "id.jpg").write_bytes(content)
    with pytest.raises(DocumentProblem, match="has changed since it was accepted"):
        list(accepted.chunks(chunk_bytes))
    with pytest.raises(DocumentProblem, match="has changed since it was accepted"):
        accepted.read(memoryview(bytearray(10)))


def test_a_document_may_move_behind_a_link_but_not_change(root: Path, accepted: AcceptedDocument) -> None:
    (root / "id.jpg").rename(root / "moved.jpg")
    (root / "id.jpg").symlink_to("moved.jpg")
    assert b"".join(accepted.chunks(100)) == b"0123456789"
    (root / "other.jpg").write_bytes(b"9876543210")
    (root / "id.jpg").unlink()
    (root / "id.jpg").symlink_to("other.jpg")
    with pytest.raises(DocumentProblem, match="has changed"):
        list(accepted.chunks(100))


def test_no_path_is_shown(root: Path, accepted: AcceptedDocument) -> None:
    assert "id.jpg" not in repr(accepted)
    (root / "id.jpg").unlink()
    with pytest.raises(DocumentProblem) as caught:
        list(accepted.chunks(100))
    assert "id.jpg" not in str(caught.value)
