"""Documents to send, and clients with a credential that must never show."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr

from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest
from kyc_pipeline.document_store import AcceptedDocument, DocumentFolder

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def token() -> str:
    return "token-that-must-not-show"


@pytest.fixture
def make_request(tmp_path: Path) -> Callable[..., VerificationRequest]:
    """Makes a request for a submission, with documents of a given size."""

    def make(submission_id: str = "2024-09-03-0001", *, size: int = 20_000) -> VerificationRequest:
        paths = [tmp_path / f"{submission_id}-{kind}" for kind in ("passport Jane Doe", "selfie Jane Doe")]
        for path in paths:
            with path.open("wb") as file:
                file.write(JPEG)
                file.truncate(size)
        id_file, selfie_file = (
            AcceptedDocument(
                DocumentFolder(tmp_path),
                path.name,
                size=size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                content_type=content_type,
            )
            for path, content_type in zip(paths, ("image/jpeg", "image/png"), strict=True)
        )
        return VerificationRequest(
            submission_id=submission_id,
            id_file=id_file,
            selfie_file=selfie_file,
            tags={"customerName": "Jane Doe", "companyId": "COMP-001"},
        )

    return make


@pytest.fixture
def connect(token: str) -> Callable[..., DeepXLClient]:
    """Makes a client for a URL."""

    def make(
        url: str,
        *,
        auth_scheme: Literal["bearer", "api_key"] = "bearer",
        timeout_seconds: float = 30,
        max_connections: int = 16,
    ) -> DeepXLClient:
        return DeepXLClient(
            url,
            SecretStr(token),
            auth_scheme=auth_scheme,
            timeout_seconds=timeout_seconds,
            max_connections=max_connections,
        )

    return make
