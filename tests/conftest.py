"""Helpers for every test: a landing zone made of real small images."""

import io
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

from tests import new_ledgers
from tests.effort import tries

# On a busy machine an example may take any time; `pytest-timeout` finds what hangs. The same examples run
# each time, so that a change fails for what it changes. `--hypothesis-profile=random` looks for new ones.
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=tries(100))
hypothesis.settings.load_profile("repeatable")


LONGEST = {
    "test_automation.py",
    "test_cli.py",
    "test_compose.py",
    "test_demo.py",
    "test_erasure.py",
    "test_formats.py",
    "test_fuzz.py",
    "test_kubernetes.py",
    "test_publication.py",
    "test_shards.py",
    "test_up_to_date.py",
    "test_verify_faults.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path.parent.name != "e2e"))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """SIGINT is taken, by children too, also where a shell runs the tests in its background, ignoring it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quick_ledgers() -> Iterator[None]:
    """A new ledger in this process takes milliseconds."""
    with new_ledgers.quickly_made():
        yield


@pytest.fixture
def real_migrations(quick_ledgers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new ledger is made as in production, by Alembic."""
    monkeypatch.setattr("kyc_pipeline.ledger.database._migrate", new_ledgers.really_migrate)


def image_bytes(shade: int, kind: str = "JPEG") -> bytes:
    """A small image whose bytes differ with `shade`."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade % 256, shade // 256 % 256, 7)).save(buffer, kind)
    return buffer.getvalue()


class Landing:
    """A landing zone: `add` writes documents and one JSONL manifest of a day."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def document(self, name: str, content: bytes) -> str:
        path = self.root / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name

    def submission(
        self, submission_id: str, shade: int, tags: Mapping[str, str] | None = None
    ) -> dict[str, object]:
        """A manifest row whose documents exist."""
        row: dict[str, object] = {
            "submission_id": submission_id,
            "id_file": self.document(f"{submission_id}-id.jpg", image_bytes(shade)),
            "selfie_file": self.document(f"{submission_id}-selfie.jpg", image_bytes(shade + 1)),
        }
        return row | ({"tags": dict(tags)} if tags else {})

    def manifest(self, day: str, rows: Sequence[Mapping[str, object]], name: str = "m.jsonl") -> Path:
        path = self.root / "manifests" / day / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def day(self, day: str, count: int, tags: Callable[[int], Mapping[str, str]] | None = None) -> list[str]:
        """A day of `count` good submissions; their ids."""
        ids = [f"{day}-{n:04d}" for n in range(count)]
        self.manifest(
            day, [self.submission(id_, 2 * n, tags(n) if tags else None) for n, id_ in enumerate(ids)]
        )
        return ids


@pytest.fixture
def landing(tmp_path: Path) -> Landing:
    (tmp_path / "landing" / "manifests").mkdir(parents=True)
    (tmp_path / "landing" / "documents").mkdir()
    return Landing(tmp_path / "landing")
