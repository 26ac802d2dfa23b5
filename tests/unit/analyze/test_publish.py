"""Publication: atomic, complete, and never in a reader's way."""

import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Semaphore
from pathlib import Path

import duckdb
import pytest

from kyc_pipeline.analyze.publish import new_draft, open_warehouse, publish
from kyc_pipeline.errors import KycError


def write_version(draft: Path, version: int) -> Path:
    """A file with two tables that agree on `version`."""
    with duckdb.connect(draft) as connection:
        connection.execute("CREATE TABLE one AS SELECT $1::INTEGER AS version", [version])
        connection.execute("CREATE TABLE two AS SELECT version FROM one, range(1000)")
    return draft


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    return tmp_path / "warehouse" / "kyc.duckdb"


def published(warehouse: Path, version: int) -> None:
    with new_draft(warehouse) as draft:
        publish(write_version(draft, version), warehouse)


def version_of(connection: duckdb.DuckDBPyConnection) -> int:
    return int(connection.execute("SELECT version FROM one").fetchall()[0][0])


def test_publication_replaces_the_file_and_leaves_nothing_else(warehouse: Path) -> None:
    published(warehouse, 1)
    published(warehouse, 2)
    assert [path.name for path in warehouse.parent.iterdir()] == ["kyc.duckdb"]
    assert stat.S_IMODE(warehouse.stat().st_mode) == 0o444
    with open_warehouse(warehouse) as connection:
        assert version_of(connection) == 2


def test_only_its_owner_can_open_a_draft(warehouse: Path) -> None:
    with new_draft(warehouse) as draft:
        assert stat.S_IMODE(draft.parent.stat().st_mode) == 0o700


def test_an_open_reader_keeps_its_build_and_a_new_one_sees_the_next(
    warehouse: Path,
) -> None:
    published(warehouse, 1)
    with open_warehouse(warehouse) as old:
        assert version_of(old) == 1
        published(warehouse, 2)
        with open_warehouse(warehouse) as new:
            assert version_of(new) == 2
            assert version_of(old) == 1


def test_a_plain_connection_that_is_still_open_does_not_hide_the_next_build(warehouse: Path) -> None:
    published(warehouse, 1)
    with duckdb.connect(warehouse, read_only=True) as plain:
        published(warehouse, 2)
        with open_warehouse(warehouse) as new:
            assert version_of(new) == 2
        assert version_of(plain) == 1


def test_a_reader_cannot_write(warehouse: Path) -> None:
    published(warehouse, 1)
    with (
        open_warehouse(warehouse) as connection,
        pytest.raises(duckdb.InvalidInputException, match="read-only"),
    ):
        connection.execute("DROP TABLE one")


def test_someone_who_has_the_file_open_for_writing_does_not_stop_publication(warehouse: Path) -> None:
    published(warehouse, 1)
    os.chmod(warehouse, 0o644)
    with duckdb.connect(warehouse) as writer:
        writer.execute("CREATE TABLE mine AS SELECT 1 AS a")
        published(warehouse, 2)
    with open_warehouse(warehouse) as connection:
        assert version_of(connection) == 2


OPEN_FOR_WRITING = """
import os, sys
import duckdb
if os.geteuid() == 0 and sys.argv[2] == "analyst":
    os.setgid(65534)
    os.setuid(65534)
try:
    connection = duckdb.connect(sys.argv[1])
except duckdb.IOException as error:
    print("refused:", error)
else:
    print("open", flush=True)
    sys.stdin.read()
"""


def opened_for_writing(warehouse: Path, who: str) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", OPEN_FOR_WRITING, str(warehouse), who]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_an_analyst_cannot_open_it_for_writing() -> None:
    with tempfile.TemporaryDirectory() as folder:  # reachable for other users, unlike pytest's
        os.chmod(folder, 0o755)
        warehouse = Path(folder) / "warehouse" / "kyc.duckdb"
        published(warehouse, 1)
        with opened_for_writing(warehouse, "analyst") as analyst:
            assert analyst.stdout is not None
            assert "Permission denied" in analyst.stdout.readline()
            with open_warehouse(warehouse) as connection:
                assert version_of(connection) == 1


def test_who_has_it_open_for_writing_all_the_same_is_named(warehouse: Path) -> None:
    published(warehouse, 1)
    os.chmod(warehouse, 0o644)
    with opened_for_writing(warehouse, "owner") as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        assert owner.stdout.readline() == "open\n"
        wanted = rf"kyc\.duckdb is open for writing in .*python.* \(process {owner.pid}\): close it there"
        with pytest.raises(KycError, match=wanted), open_warehouse(warehouse):
            pass
        published(warehouse, 2)
        with open_warehouse(warehouse) as connection:
            assert version_of(connection) == 2
        owner.stdin.close()


def test_no_warehouse_is_one_clear_line(warehouse: Path) -> None:
    with pytest.raises(KycError, match=r"there is no warehouse at .*kyc\.duckdb"), open_warehouse(warehouse):
        pass


def test_a_file_that_is_no_database_is_one_clear_line(warehouse: Path) -> None:
    warehouse.parent.mkdir()
    warehouse.write_bytes(b"nonsense" * 1000)
    with pytest.raises(KycError, match="cannot be opened"), open_warehouse(warehouse):
        pass


def test_a_draft_that_was_not_closed_is_not_published(warehouse: Path) -> None:
    published(warehouse, 1)
    with new_draft(warehouse) as draft:
        write_version(draft, 2)
        draft.with_name(f"{draft.name}.wal").write_bytes(b"unwritten")
        with pytest.raises(KycError, match="was not closed"):
            publish(draft, warehouse)
    with open_warehouse(warehouse) as connection:
        assert version_of(connection) == 1


def test_a_missing_draft_is_not_published(warehouse: Path) -> None:
    with new_draft(warehouse) as draft, pytest.raises(KycError, match="no draft"):
        publish(draft, warehouse)


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from kyc_pipeline.analyze.publish import new_draft
with new_draft(Path(sys.argv[1])) as draft:
    draft.write_bytes(b"half a build")
    draft.with_name(f"{draft.name}.wal").write_bytes(b"")
    spill = draft.with_name(f"{draft.name}.tmp")
    spill.mkdir()
    (spill / "spilled").write_bytes(b"")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_drafts_of_ended_processes_are_removed_and_those_of_running_ones_are_not(warehouse: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_BUILD, str(warehouse)], check=False)
    assert len(list(warehouse.parent.rglob("*.wal"))) == 1
    with new_draft(warehouse) as mine:
        mine.write_bytes(b"")
        with new_draft(warehouse) as other:
            other.write_bytes(b"")
        assert list(warehouse.parent.glob("*/*")) == [mine]
    assert list(warehouse.parent.iterdir()) == []


def test_a_log_that_someone_left_beside_the_warehouse_does_not_reach_the_next_build(warehouse: Path) -> None:
    published(warehouse, 1)
    os.chmod(warehouse, 0o644)
    crash = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]);"
        "c.execute('SET checkpoint_threshold = \\'1TB\\''); c.execute('CREATE TABLE mine AS SELECT 1');"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", crash, str(warehouse)], check=True)
    assert warehouse.with_name("kyc.duckdb.wal").exists()
    published(warehouse, 2)
    with open_warehouse(warehouse) as connection:
        assert version_of(connection) == 2


READERS, PUBLICATIONS, READS_BETWEEN = 50, 100, 4


@dataclass(frozen=True)
class Audience:
    """What the readers share with the publisher."""

    warehouse: Path
    stop: Path
    started: Barrier
    reads: Semaphore
    results: "multiprocessing.Queue[tuple[int, str]]"


def read_until_stopped(audience: Audience) -> None:
    """Opens, queries and closes the file in a loop; reports the last version seen, and any problem."""
    os.nice(10)  # fifty busy readers leave the publisher its share of a small machine
    last, problem, ending = 0, "", False
    audience.started.wait()
    while not ending and not problem:
        ending = audience.stop.exists()
        try:
            with open_warehouse(audience.warehouse) as connection:
                seen = connection.execute("SELECT DISTINCT one.version, two.version FROM one, two").fetchall()
        except (KycError, duckdb.Error) as error:
            problem = repr(error)
        else:
            if len(seen) != 1 or seen[0][0] != seen[0][1] or seen[0][0] < last:
                problem = f"after {last}: {seen}"
            last = seen[0][0]
        audience.reads.release()
    audience.results.put((last, problem))


def test_fifty_readers_in_a_loop_during_a_hundred_publications(warehouse: Path, tmp_path: Path) -> None:
    published(warehouse, 1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["duckdb", "kyc_pipeline.analyze.publish", "pytest"])
    audience = Audience(
        warehouse, tmp_path / "stop", context.Barrier(READERS + 1), context.Semaphore(0), context.Queue()
    )
    readers = [context.Process(target=read_until_stopped, args=(audience,)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    audience.started.wait()
    for version in range(2, PUBLICATIONS + 2):
        for _ in range(READS_BETWEEN):
            assert audience.reads.acquire(timeout=60)
        published(warehouse, version)
    audience.stop.touch()
    seen = [audience.results.get() for _ in readers]
    for reader in readers:
        reader.join()
    assert [problem for _, problem in seen if problem] == []
    assert {last for last, _ in seen} == {PUBLICATIONS + 1}
