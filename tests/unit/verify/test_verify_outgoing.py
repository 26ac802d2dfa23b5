"""Less is sent than was accepted: some tags only, documents without metadata."""

import asyncio
import hashlib
import io
import json
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.document_store import DocumentFile, DocumentFolder
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.image_metadata import without_metadata
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES, VERIFICATION_TAGS, VERIFICATIONS
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.outgoing import Outgoing
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

COMPANY_ONLY = {"kyc_send_tags": frozenset({"companyId"})}
STRIPPED = {"kyc_strip_metadata": True}
ARTIST = 0x013B


def image(size: tuple[int, int] = (64, 48)) -> bytes:
    """A JPEG with metadata."""
    metadata = Image.Exif()
    metadata[ARTIST] = "Erika Mustermann"
    target = io.BytesIO()
    Image.effect_noise(size, 100).convert("RGB").save(target, "JPEG", exif=metadata, quality=95)
    return target.getvalue()


def accept(world: World, documents: dict[str, bytes]) -> None:
    """Accepts one submission per document, through ingest."""
    landing = world.root / "landing"
    for name, content in documents.items():
        (landing / "documents" / name).write_bytes(content)
    lines = ["submission_id,id_file,selfie_file,tag.companyId,tag.customerId"]
    lines += [f"{Path(name).stem},{name},{name},COMP-001,9999" for name in documents]
    (landing / f"manifests/{DATE}").mkdir(parents=True)
    (landing / f"manifests/{DATE}/m.csv").write_text("\n".join(lines) + "\n")
    ingest_partition(landing=landing, lake=world.lake, date=DATE)


def echoed(world: World, key: str) -> dict[str, Any]:
    result = json.loads(world.responses()[key]["response"])["result"]
    return {
        "tags": {tag["name"]: tag["value"] for tag in result["tags"]},
        "sizes": (result["idFileSize"], result["selfieFileSize"]),
    }


def test_only_listed_tags_are_sent_and_the_lake_keeps_all(world: World) -> None:
    world.submit("a")
    world.submit("b", tags=[("companyId", "COMP-002")])
    world.options = COMPANY_ONLY
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.submit("a")
        assert is_complete(world.verify())
    assert echoed(world, "a")["tags"] == {"companyId": "COMP-001", "submissionId": "a"}
    assert dict(world.submissions()["a"]["tags"])["customerId"] == "9999"
    assert json.loads(world.responses()["a"]["sent"]) == {"tags": ["companyId"]}


def test_nothing_is_recorded_where_everything_was_sent(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a", tags=[("companyId", "COMP-001")])
    world.options = COMPANY_ONLY
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    assert world.responses()["a"]["sent"] is None


def test_the_submission_id_alone_can_be_sent(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a")
    world.options = {"kyc_send_tags": frozenset({"submissionId"})}
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    assert echoed(world, "a")["tags"] == {"submissionId": "a"}


@pytest.mark.parametrize("options", [COMPANY_ONLY, STRIPPED, COMPANY_ONLY | STRIPPED])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_change_of_the_settings_changes_nothing_that_was_paid(
    sqlite_world: World, options: dict[str, Any], is_first: bool
) -> None:
    world = sqlite_world
    accept(world, {"a.jpg": image()})
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        for run, changed in enumerate([options, {}] if is_first else [{}, options]):
            world.options = changed
            ingest_partition(landing=world.root / "landing", lake=world.lake, date=DATE)
            summary = world.verify(run_id=f"run-{run}")
            assert (summary.calls, is_complete(summary)) == (1 - run, True)
        assert simulator.received.total() == 1
        [row] = world.responses().values()
        assert (row["sent"] is not None) == is_first


@pytest.mark.parametrize("options", [COMPANY_ONLY, STRIPPED])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_record_is_found_though_the_settings_have_changed(
    sqlite_world: World, options: dict[str, Any], is_first: bool
) -> None:
    world = sqlite_world
    accept(world, {"a.jpg": image()})
    before, after = (options, {}) if is_first else ({}, options)
    lost = {"a": [Responds(500, record=True)]}
    with running_simulator(token=TOKEN, faults=lost, lookup=Responds(500)) as simulator:
        world.server = simulator.url
        world.options = before
        world.verify()
        assert world.outcomes() == {"a": "uncertain"}
        world.options = after
        simulator.lookup = None
        summary = world.verify(run_id="run-2")
        assert (summary.calls, summary.adopted) == (0, 1)
        assert world.outcomes() == {"a": "completed"}
        assert simulator.received.total() == 1
    sent = world.responses()["a"]["sent"]
    assert (sent is not None) == is_first
    flat = flatten_partition(world.lake, DATE, Pseudonymizer("k" * 32), {"companyId"})
    assert not flat.anomalies


def test_another_persons_record_is_still_none(sqlite_world: World) -> None:
    """A withheld tag that comes back shows that the record is of another call."""
    world = sqlite_world
    world.submit("a")
    world.options = COMPANY_ONLY
    lost = {"a": [Responds(500)]}
    with running_simulator(token=TOKEN, faults=lost) as simulator:
        world.server = simulator.url
        other = World(world.root / "other", simulator.url)
        world.verify()
        assert world.outcomes() == {"a": "uncertain"}
        other.submit("a")
        other.verify()
        assert world.verify(run_id="run-2").adopted == 0
    assert world.outcomes() == {"a": "uncertain"}


@pytest.mark.parametrize("size", [(64, 48), (1200, 900)], ids=["in memory", "streamed"])
def test_documents_are_sent_without_metadata(sqlite_world: World, size: tuple[int, int]) -> None:
    world = sqlite_world
    content = image(size)
    clean = b"".join(without_metadata([content], "image/jpeg"))
    accept(world, {"a.jpg": content})
    world.options = STRIPPED
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        assert is_complete(world.verify())
    assert echoed(world, "a")["sizes"] == (len(clean), len(clean))
    assert len(clean) < len(content)
    of_sent = [hashlib.sha256(clean).hexdigest(), len(clean)]
    assert json.loads(world.responses()["a"]["sent"]) == {"id": of_sent, "selfie": of_sent}
    accepted = world.submissions()["a"]
    assert (accepted["id_size"], accepted["id_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (world.root / "landing/documents/a.jpg").read_bytes() == content
    assert not flatten_partition(world.lake, DATE, Pseudonymizer("k" * 32), {"companyId"}).anomalies


def test_a_document_whose_metadata_cannot_be_removed_is_not_sent(sqlite_world: World) -> None:
    world = sqlite_world
    target = io.BytesIO()
    Image.new("RGB", (64, 48)).save(target, "PNG")
    content = target.getvalue()
    head = b"\0\0\0\0SECR"
    odd = content[:8] + head + struct.pack(">I", zlib.crc32(head[4:])) + content[8:]
    accept(world, {"a.jpg": image(), "b.png": odd})
    world.options = STRIPPED
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        summary = world.verify()
        assert dict(simulator.received) == {"a": 1}
    assert summary.calls == 1
    assert world.outcomes() == {"a": "completed", "b": "failed"}
    assert world.responses()["b"]["error"].startswith(
        "submission b: not sent: idFile: its metadata cannot be removed (KYC_STRIP_METADATA): it has a chunk"
    )


def test_a_document_replaced_meanwhile_is_not_sent(sqlite_world: World) -> None:
    world = sqlite_world
    accept(world, {"a.jpg": image()})
    (world.root / "landing/documents/a.jpg").write_bytes(image())
    world.options = STRIPPED
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
        assert not simulator.received
    assert "the file has changed since it was accepted" in world.responses()["a"]["error"]


class SlowFolder(DocumentFolder):
    """Opens every document whose name begins with `slow` only after `released` is set."""

    released = threading.Event()

    def open(self, resolved: str) -> DocumentFile:
        if Path(resolved).name.startswith("slow"):
            assert self.released.wait(300)
        return super().open(resolved)


def test_a_document_does_not_time_out_because_others_hang(tmp_path: Path) -> None:
    content = image()
    names = [f"slow-{n}.jpg" for n in range(2 * SlowFolder.readers)]
    for name in [*names, "good.jpg"]:
        (tmp_path / name).write_bytes(content)
    folder = SlowFolder(tmp_path)
    settings = Settings(_env_file=None, deepxl_timeout_seconds=2, kyc_strip_metadata=True)

    def row(name: str) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        sides = {"file": name, "size": len(content), "sha256": sha256, "content_type": "image/jpeg"}
        return {f"{side}_{key}": value for side in ("id", "selfie") for key, value in sides.items()} | {
            "tags": {}
        }

    async def package_all() -> list[bool]:
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, folder.released.wait, 300) for _ in range(100)]
        outgoing = Outgoing(folder, settings)
        packages = await asyncio.gather(*(outgoing.package(row(name)) for name in [*names, "good.jpg"]))
        folder.released.set()
        await asyncio.gather(*busy)
        return [package.sent.id is not None for package in packages]

    try:
        assert asyncio.run(package_all()) == [*[False] * len(names), True]
    finally:
        folder.released.set()


def test_a_look_up_first_knows_what_may_have_been_sent(tmp_path: Path) -> None:
    content = image()
    with running_simulator(token=TOKEN) as simulator:
        for name, options in (("before", COMPANY_ONLY | STRIPPED), ("after", COMPANY_ONLY | STRIPPED)):
            world = World(tmp_path / name, simulator.url, options=options)
            accept(world, {"a.jpg": content})
            summary = world.verify(look_up_first=name == "after")
            assert world.outcomes() == {"a": "completed"}
            assert json.loads(world.responses()["a"]["sent"])["tags"] == ["companyId"]
        assert (summary.calls, summary.adopted) == (0, 1)
        assert simulator.received.total() == 1


def test_a_ledger_restored_from_the_lake_knows_what_was_sent(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    world.submit("a")
    world.options = COMPANY_ONLY
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify()
    before = world.responses()["a"]["sent"]
    world.ledger.close()
    with Ledger(f"sqlite:///{tmp_path / 'restored.sqlite'}") as restored:
        assert transfer.complete_from_lake(world.lake, restored) == 1
        with restored.read() as connection:
            for table in ("submissions", "attempts"):
                [[sent]] = connection.exec_driver_sql(f"SELECT sent FROM {table}").fetchall()
                assert sent == before


@pytest.mark.parametrize("is_exact", [False, True], ids=["fast path", "exact path"])
def test_withheld_tags_reach_the_curated_tables(sqlite_world: World, is_exact: bool) -> None:
    world = sqlite_world
    world.submit("a", "b")
    world.options = COMPANY_ONLY
    with running_simulator(token=TOKEN, odd_share=0) as simulator:
        world.server = simulator.url
        world.verify()
    if is_exact:
        rows = world.lake.read(VERIFICATION_RESPONSES, DATE).to_pylist()
        for row in rows:
            row["response"] = row["response"].replace('{"result":{', '{"result":{"extra":1,')
        world.lake.write(VERIFICATION_RESPONSES, DATE, rows)
    pseudonymizer = Pseudonymizer("k" * 32)
    flat = flatten_partition(world.lake, DATE, pseudonymizer, {"companyId"})
    assert flat.anomalies == ({"unknown_field": 2} if is_exact else {})
    assert flat.exact == (2 if is_exact else 0)
    rows = world.lake.read(VERIFICATION_TAGS, DATE).to_pylist()
    assert [(row["submission_id"], row["name"], row["value"]) for row in rows] == [
        (key, name, value)
        for key in "ab"
        for name, value in (("companyId", "COMP-001"), ("submissionId", None), ("customerId", None))
    ]
    assert {row["pseudonym"] for row in rows if row["name"] == "customerId"} == {
        pseudonymizer.tag("customerId", "9999")
    }
    assert world.lake.row_count(VERIFICATIONS, DATE) == 2
