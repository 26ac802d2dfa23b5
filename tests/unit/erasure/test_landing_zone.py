"""Looking for documents in the landing zone."""

import threading
from pathlib import Path

import pytest

from kyc_pipeline.document_store import DocumentFolder, FileIdentity
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
