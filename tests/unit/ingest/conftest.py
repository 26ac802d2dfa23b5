"""A landing zone and a lake for one test."""

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import IngestSummary, ingest_partition
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DAY = "2024-09-01"
DEFAULTS = LandingOptions()


def image(image_format: str = "JPEG", size: tuple[int, int] = (64, 48), colour: str = "teal") -> bytes:
    """A small image with some detail in it."""
    target = io.BytesIO()
    picture = Image.new("RGB", size, colour)
    picture.paste("white", (4, 4, 20, 20))
    picture.save(target, image_format)
    return target.getvalue()


class NoDocuments(ErasedSubjects):
    """People who are recognised by a function of their tags, and by no document."""

    def __init__(self, recognise: Callable[[Mapping[str, str]], bool]) -> None:
        super().__init__([], Pseudonymizer("k" * 32))
        self._recognise = recognise

    def __call__(self, tags: Mapping[str, str]) -> bool:
        return self._recognise(tags)


class Zone:
    """A landing zone with one good pair of documents, and the lake beside it.

    Without a ledger, which takes a third of the time of an ingest and matters only if several days compete.
    """

    def __init__(self, folder: Path) -> None:
        self.landing = folder / "landing"
        self.lake = Lake(str(folder / "lake"))
        self.document("id.jpg", image())
        self.document("selfie.png", image("PNG", colour="olive"))

    def document(self, name: str, content: bytes) -> Path:
        path = self.landing / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def manifest(self, name: str, content: bytes | str, day: str = DAY) -> Path:
        path = self.landing / "manifests" / day / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self, *rows: Mapping[str, str], name: str = "a.csv", day: str = DAY) -> Path:
        """Writes a CSV of rows; a field that a row leaves out has the value of a good row."""
        header = list(
            dict.fromkeys(["submission_id", "id_file", "selfie_file", *(k for row in rows for k in row)])
        )
        return self.manifest(
            name, csv_text(header, [[{**GOOD, **row}.get(k, "") for k in header] for row in rows]), day
        )

    def ingest(
        self,
        day: str = DAY,
        erased: Callable[[Mapping[str, str]], bool] | None = None,
        options: LandingOptions = DEFAULTS,
    ) -> IngestSummary:
        if erased is not None and not isinstance(erased, ErasedSubjects):
            erased = NoDocuments(erased)
        with self.owners(day) as owners:
            summary = ingest_partition(
                landing=self.landing,
                lake=self.lake,
                date=day,
                erased=erased,
                owners=owners,
                options=options,
            )
        # In every test: no row is ever lost.
        assert summary.received == summary.accepted_rows + sum(summary.rejected.values())
        assert len(self.accepted(day)) == summary.accepted
        assert len(self.rejected(day)) == sum(summary.rejected.values())
        return summary

    def owners(self, day: str) -> contextlib.AbstractContextManager[Owners | None]:
        """What the day's ingest gets."""
        return contextlib.nullcontext()

    def accepted(self, day: str = DAY) -> list[dict[str, Any]]:
        return self.lake.read(SUBMISSIONS, day).to_pylist()

    def rejected(self, day: str = DAY) -> list[dict[str, Any]]:
        return self.lake.read(REJECTED_SUBMISSIONS, day).to_pylist()

    def ids(self, day: str = DAY) -> list[str]:
        return [row["submission_id"] for row in self.accepted(day)]

    def reasons(self, day: str = DAY) -> list[tuple[int, str]]:
        return [(row["manifest_row"], row["reason"]) for row in self.rejected(day)]

    def files(self, day: str = DAY) -> list[bytes]:
        """The bytes of both partitions."""
        return [
            Path(self.lake.path(table, day)).read_bytes() for table in (SUBMISSIONS, REJECTED_SUBMISSIONS)
        ]


class ZoneWithLedger(Zone):
    """Ingests as production does: the ledger decides which day owns an id."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ledger_url = f"sqlite:///{folder / 'ledger.sqlite'}"

    @contextlib.contextmanager
    def owners(self, day: str) -> Iterator[Owners]:
        with Ledger(self.ledger_url) as ledger, hold(ledger, day, "run") as held:
            yield Owners(self.lake, ledger, held)


GOOD = {"submission_id": "A1", "id_file": "id.jpg", "selfie_file": "selfie.png"}


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    target = io.StringIO(newline="")
    csv.writer(target, lineterminator="\n").writerows([header, *rows])
    return target.getvalue()


@pytest.fixture
def kind_of_zone() -> type[Zone]:
    """A module about the ledger overrides it."""
    return Zone


@pytest.fixture
def zone(kind_of_zone: type[Zone], tmp_path: Path) -> Zone:
    return kind_of_zone(tmp_path)


@pytest.fixture
def make_zone(kind_of_zone: type[Zone], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Zone]:
    """For property tests: a new landing zone for each example."""
    return lambda: kind_of_zone(tmp_path_factory.mktemp("zone"))


@pytest.fixture
def make_image() -> Callable[..., bytes]:
    return image
