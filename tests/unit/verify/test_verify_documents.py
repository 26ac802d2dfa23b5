"""What is sent is what was accepted: documents that are replaced before or during a run."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.errors import UsageError
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.ledger.models import Spend
from kyc_pipeline.ledger.queries import read_spend, read_spend_of_runs
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Progress, Stopped
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def documents(sqlite_world: World) -> Path:
    return sqlite_world.root / "landing/documents"


def submit(world: World, ids: list[str]) -> None:
    """Accepts one submission per id, each with an image of its own, through ingest."""
    from PIL import Image

    landing = world.root / "landing"
    lines = ["submission_id,id_file,selfie_file"]
    for number, key in enumerate(ids):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(landing / f"documents/{key}.jpg")
        lines.append(f"{key},{key}.jpg,{key}.jpg")
    (landing / f"manifests/{DATE}").mkdir(parents=True)
    (landing / f"manifests/{DATE}/m.csv").write_text("\n".join(lines) + "\n")
    ingest_partition(landing=landing, lake=world.lake, date=DATE)


def replace(documents: Path) -> None:
    """Puts something else in the place of b to f."""
    from PIL import Image

    size = (documents / "b.jpg").stat().st_size
    Image.new("RGB", (64, 48), "white").save(documents / "b.jpg")
    (documents / "c.jpg").write_bytes(b"<html>".ljust(size))
    (documents.parent / "secret").write_bytes((documents / "d.jpg").read_bytes())
    (documents / "d.jpg").unlink()
    (documents / "d.jpg").symlink_to("../secret")
    (documents / "e.jpg").unlink()
    os.mkfifo(documents / "e.jpg")
    (documents / "f.jpg").unlink()


def test_only_what_was_accepted_is_sent(sqlite_world: World, documents: Path) -> None:
    world = sqlite_world
    submit(world, [*"abcdefg"])
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        replace(documents)
        summary = world.verify()
        assert dict(simulator.received) == {"a": 1, "g": 1}
    assert summary.stopped.value == "none"
    rows = world.responses()
    assert {key: row["outcome"] for key, row in rows.items()} == {
        "a": "completed",
        **dict.fromkeys("bcdef", "failed"),
        "g": "completed",
    }
    advice = "; put the accepted file back, or run its day again, which ingests the file that is there now"
    assert {key: rows[key]["error"].removesuffix(advice) for key in "bcdef"} == {
        "b": "submission b: not sent: idFile: the file has changed since it was accepted",
        "c": "submission c: not sent: idFile: the file has changed since it was accepted",
        "d": "submission d: not sent: idFile: the path must lead to a file inside the documents folder",
        "e": "submission e: not sent: idFile: the path is not a file",
        "f": "submission f: not sent: idFile: the file does not exist",
    }
    assert {rows[key]["billable_calls"] for key in "bcdef"} == {0}


def test_what_was_not_sent_is_no_call(sqlite_world: World, documents: Path) -> None:
    world = sqlite_world
    submit(world, [*"abcdefg"])
    world.options = {"deepxl_max_calls_per_run": 2, "deepxl_max_concurrency": 1}
    seen: list[Progress] = []
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        replace(documents)
        summary = world.verify(progress=seen.append)
        assert simulator.received.total() == 2
    assert (summary.calls, summary.retries, summary.stopped) == (2, 0, Stopped.NONE)
    assert "5 failed), 2 calls, 0 retries" in str(summary)
    assert (seen[-1].calls, seen[-1].done) == (2, 7)
    spend = Spend(calls=2, billable_calls=2, retries=0)
    assert read_spend(world.ledger, DATE) == read_spend_of_runs(world.ledger, ["run-1"]) == spend
    assert {key: row["attempts"] for key, row in world.responses().items()} == {
        **dict.fromkeys("ag", 1),
        **dict.fromkeys("bcdef", 0),
    }


def test_documents_that_are_not_mounted_fail_the_day_before_anything_is_claimed(
    sqlite_world: World, documents: Path
) -> None:
    world = sqlite_world
    submit(world, ["a", "b"])
    documents.rename(documents.with_name("unmounted"))
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        with pytest.raises(UsageError, match="documents is not a folder: mount its volume"):
            world.verify()
        assert not simulator.received
        assert world.outcomes() == {"a": "not_attempted", "b": "not_attempted"}
        documents.with_name("unmounted").rename(documents)
        assert is_complete(world.verify())
        documents.rename(documents.with_name("unmounted"))
        assert world.verify().calls == 0  # nothing to send


def test_the_advice_works(sqlite_world: World, documents: Path) -> None:
    world = sqlite_world
    submit(world, [*"abcdef"])
    accepted = {key: (documents / f"{key}.jpg").read_bytes() for key in "abcdef"}
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        replace(documents)
        world.verify()
        (documents / "f.jpg").write_bytes(accepted["f"])
        world.verify(run_id="put back")
        assert world.outcomes()["f"] == "completed"
        ingest_partition(landing=documents.parent, lake=world.lake, date=DATE)
        world.verify(run_id="ingested again")
        # The new image is sent as what it is; what cannot be sent was rejected by ingest.
        assert world.outcomes() == dict.fromkeys("abf", "completed")
        assert dict(simulator.received) == dict.fromkeys("abf", 1)
    assert (
        world.submissions()["b"]["id_sha256"]
        == hashlib.sha256((documents / "b.jpg").read_bytes()).hexdigest()
    )


def test_a_pipe_does_not_keep_a_run_from_stopping(sqlite_world: World, documents: Path, until: Until) -> None:
    world = sqlite_world
    ids = [f"s-{number}" for number in range(8)]
    submit(world, ids)
    for key in ids[1::2]:
        (documents / f"{key}.jpg").unlink()
        os.mkfifo(documents / f"{key}.jpg")
    world.options = {"deepxl_max_concurrency": 1}
    stop = StopFlag()
    result: dict[str, Any] = {}

    with running_simulator(token=TOKEN, latency_ms=200) as simulator:
        world.server = simulator.url
        run = threading.Thread(target=lambda: result.update(summary=world.verify(stop=stop)))
        run.start()
        until(lambda: simulator.received.total() >= 2)
        stop.drain()
        run.join(120)
        assert not run.is_alive()
        sent = simulator.received.total()
    assert result["summary"].stopped.value == "cancelled"
    assert [*world.outcomes().values()].count("completed") == sent
