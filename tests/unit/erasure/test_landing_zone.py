"""Looking for documents in the landing zone."""

import threading
from pathlib import Path

import pytest

from kyc_pipeline.document_store import DocumentFolder, DocumentProblem, FileIdentity
from kyc_pipeline.erasure.landing_zone import LandingZone


def test_documents_are_looked_up_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In S3 each of them is a request."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("a", "b"):
        (documents / name).write_bytes(name.encode())
    together = threading.Barrier(2, timeout=30)
    look = DocumentFolder.existing

    def look_together(folder: DocumentFolder, path: str) -> FileIdentity | None:
        together.wait()
        return look(folder, path)

    monkeypatch.setattr(DocumentFolder, "existing", look_together)
    monkeypatch.setattr(DocumentFolder, "readers", 2)
    found = LandingZone(tmp_path).existing(["a", "lost", "../a", "b"])
    assert list(found) == ["a", "b"]
    assert found["a"] != found["b"]


@pytest.mark.parametrize("path", ["link", "x/../link", "./link"])
def test_a_link_goes_with_its_document(tmp_path: Path, path: str) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a").write_bytes(b"a")
    (documents / "link").symlink_to("a")
    folder = DocumentFolder(documents)
    folder.delete(path, folder.existing(path))
    assert list(documents.iterdir()) == []


@pytest.mark.parametrize("spelling", ["a", "a/", "./a", "x/../a", "b/../a", "link/../a", "../documents/a"])
def test_a_document_that_can_be_sent_is_found_under_the_same_name(tmp_path: Path, spelling: str) -> None:
    """Else erasure would keep it, or delete one that somebody else uses."""
    documents = tmp_path / "documents"
    (documents / "inner").mkdir(parents=True)
    for name in ("a", "b"):
        (documents / name).write_bytes(name.encode())
    (documents / "link").symlink_to("inner")
    folder = DocumentFolder(documents)
    with folder.open(folder.resolve("a")) as sent:
        expected = sent.read()
    try:
        with folder.open(folder.resolve(spelling)) as sent:
            assert sent.read() == expected
    except DocumentProblem:
        assert folder.existing(spelling) is None
    else:
        assert folder.existing(spelling) == folder.existing("a") is not None
