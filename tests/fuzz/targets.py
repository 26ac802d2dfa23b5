"""What must hold for any input: one clear error of ours, or a right result.

Never another exception, and never a value of a person or the vendor in an error.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa
from hypothesis import strategies as st
from pydantic import SecretStr

from kyc_pipeline.deepxl.call_errors import DeepXLError
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest, VerificationResponse
from kyc_pipeline.deepxl.contract import reread
from kyc_pipeline.document_store import AcceptedDocument, DocumentFolder
from kyc_pipeline.flatten.blocks import WITHHELD, BlockFlattener, select
from kyc_pipeline.flatten.drift import DriftCounter
from kyc_pipeline.flatten.records import FACTS, RecordFlattener, Rows, SentSubmission
from kyc_pipeline.ingest.documents import Documents, Role, examine_file
from kyc_pipeline.ingest.formats import read_manifest
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.ingest.labels import ingest_labels
from kyc_pipeline.ingest.rows import validate_rows
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS, REJECTED_LABELS, STRING_MAP, SUBMISSIONS
from kyc_pipeline.landing.zone import LABELS_FOLDER
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import Attack, Label
from tests.fuzz import examples
from tests.fuzz.examples import ID_FILE, MARK, SELFIE_FILE, SENT_TAGS, SUBMISSION, Example

CLEAR: Final = frozenset({"submissionId", "companyId"})
KEY: Final = "0123456789abcdef" * 2
DAY: Final = "2024-09-01"


class Target(Protocol):
    """Something that takes inputs from outside."""

    strategy: st.SearchStrategy[Example]
    bombs: Callable[[], Iterator[Example]]

    def __call__(self, example: Example) -> bool:
        """Whether the input was accepted. Raises AssertionError, or whatever the code under test raises."""


def require_clear(error: BaseException | str) -> None:
    """Asserts that a message is one line for people, without data."""
    text = str(error)
    assert text.strip(), "the error says nothing"
    assert text.isprintable(), f"not one line of printable text: {text!a}"
    assert MARK not in text.lower(), f"data in the error: {text!a}"


class Manifests:
    """Reads a manifest and validates its rows."""

    strategy = examples.manifests()
    bombs = staticmethod(examples.manifest_bombs)

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "manifests" / DAY
        self._folder.mkdir(parents=True)
        self._documents = Documents(DocumentFolder(_write_documents(folder)))

    def __call__(self, example: Example) -> bool:
        """Reads the manifest; accounts for each of its rows."""
        path = self._folder / f"m.{example.kind}"
        path.write_bytes(example.content)
        seen: list[int | None] = []
        try:
            for chunk in read_manifest(path, Counter()):
                accepted, rejected = validate_rows(chunk, path.name, self._documents, None)
                assert accepted.num_rows + rejected.num_rows == chunk.num_rows
                seen += accepted["manifest_row"].to_pylist() + rejected["manifest_row"].to_pylist()
        except ManifestUnreadable as error:
            require_clear(error)
            return False
        finally:
            path.unlink()
        assert len(set(seen)) == len(seen), "a row counts twice"
        return True


class Labels:
    """Ingests a manifest of labels."""

    strategy = examples.labels()
    bombs = staticmethod(examples.label_bombs)

    def __init__(self, folder: Path) -> None:
        self._landing = folder / "landing"
        self._lake = Lake(str(folder / "lake"))
        (self._landing / LABELS_FOLDER).mkdir(parents=True)

    def __call__(self, example: Example) -> bool:
        """Accounts for each row. An unreadable file is reported, and keeps the labels that it had."""
        path = self._landing / LABELS_FOLDER / f"m.{example.kind}"
        path.write_bytes(example.content)
        try:
            summary = ingest_labels(landing=self._landing, lake=self._lake)
        finally:
            path.unlink()
        accepted = self._lake.read(LABELS, WHOLE)
        rejected = self._lake.read(REJECTED_LABELS, WHOLE)
        assert summary.received == summary.accepted + summary.rejected_rows
        assert accepted.num_rows == summary.accepted + summary.kept
        # Of an unreadable file, the repeats that it had before stay.
        assert summary.unreadable or rejected.num_rows == summary.rejected_rows
        for row in rejected.to_pylist():
            require_clear(str(row["detail"]))
        for row in accepted.to_pylist():
            assert row["label"] in list(Label)
            assert row["attack"] in [None, *Attack]
            assert row["weight"] is None or row["weight"] >= 1
        return summary.accepted > 0


class DocumentContents:
    """Examines a document."""

    strategy = examples.documents()
    bombs = staticmethod(examples.document_bombs)

    def __init__(self, folder: Path) -> None:
        self._file = _write_documents(folder) / "document"
        self._store = DocumentFolder(self._file.parent)

    def __call__(self, example: Example) -> bool:
        """Decides whether it can be sent, and says why not."""
        self._file.write_bytes(example.content)
        document = examine_file(self._store, self._file.name)
        if document.sha256 is not None:
            assert document.sha256 == hashlib.sha256(example.content).hexdigest()
        problems = [document.problem_as(role, "id_file") for role in Role]
        for problem in filter(None, problems):
            require_clear(problem[1])
        return None in problems


class Responses:
    """Sends a submission, or looks it up, and flattens what comes back."""

    strategy = examples.responses()
    bombs = staticmethod(examples.response_bombs)

    def __init__(self, folder: Path) -> None:
        documents = _write_documents(folder)
        store = DocumentFolder(documents)
        id_file, selfie = (_accepted(documents, store, name) for name in (ID_FILE, SELFIE_FILE))
        self._request = VerificationRequest(SUBMISSION, id_file, selfie, SENT_TAGS)
        self._sent = SentSubmission(id_file.sha256, id_file.size, selfie.size, SENT_TAGS)
        self._content = b""
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._connect())
        self._pseudonymizer = Pseudonymizer(KEY)
        self._blocks = BlockFlattener(self._pseudonymizer, CLEAR)

    async def _connect(self) -> DeepXLClient:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    length = next(
                        line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                    )
                    await reader.readexactly(int(length.split(b":")[1]))
                writer.write(self._content)
                await writer.drain()
            writer.close()

        self._server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        client = DeepXLClient(f"http://127.0.0.1:{port}", SecretStr("token"), timeout_seconds=20)
        return await client.__aenter__()

    def __call__(self, example: Example) -> bool:
        """Makes the call; flattens each response by both ways."""
        self._content = example.content
        try:
            if example.kind == "verify":
                found = [self._runner.run(self._client.verify(self._request))]
            else:
                found = self._runner.run(self._client.find(SUBMISSION))
        except DeepXLError as error:
            require_clear(error)
            return False
        for response in found:
            assert MARK not in repr(response)
            self._flatten(response)
        return bool(found)

    def _flatten(self, response: VerificationResponse) -> None:
        received = reread(response.text)
        assert (received.verification_id, received.verified) == (response.verification_id, response.verified)
        response.text.encode()
        rows, drift = Rows(), DriftCounter()
        RecordFlattener(self._pseudonymizer, CLEAR, drift).add(rows, SUBMISSION, received, self._sent)
        exact = {table: rows.table(table) for table in FACTS}
        for table, content in exact.items():
            # `details` keeps the vendor's words, and a clear tag the vendor's value of it.
            shown = content.drop_columns([n for n in ("details", "value") if n in content.column_names])
            assert MARK not in repr(shown.to_pylist()).lower(), f"data in {table.name}"
        sent_row = {**asdict(self._sent), "tags": list(SENT_TAGS.items()), WITHHELD: []}
        sent = pa.Table.from_pylist([sent_row], _SENT_SCHEMA)
        block = select(pa.array([SUBMISSION]), pa.array([response.text]), sent)
        if block.num_rows:
            for table, content in self._blocks.flatten(block).items():
                assert content.to_pylist() == exact[table].to_pylist(), f"two results in {table.name}"


_SENT_SCHEMA: Final = pa.schema(
    [
        (f.name, STRING_MAP if f.name == WITHHELD else SUBMISSIONS.column(f.name).type)
        for f in fields(SentSubmission)
    ]
)


def _write_documents(folder: Path) -> Path:
    documents = folder / "documents"
    for name, seed in ((ID_FILE, 0), (SELFIE_FILE, 3)):
        (documents / name).parent.mkdir(parents=True, exist_ok=True)
        (documents / name).write_bytes(examples.DOCUMENTS[seed])
    return documents


def _accepted(folder: Path, store: DocumentFolder, name: str) -> AcceptedDocument:
    content = (folder / name).read_bytes()
    return AcceptedDocument(store, name, len(content), hashlib.sha256(content).hexdigest(), "image/jpeg")


TARGETS: Final[dict[str, Callable[[Path], Target]]] = {
    "manifests": Manifests,
    "labels": Labels,
    "documents": DocumentContents,
    "responses": Responses,
}
