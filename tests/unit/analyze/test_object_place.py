"""Warehouse and report in an object store: what readers see, and which writer wins."""

import json
import os
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
import s3fs

from kyc_pipeline.analyze import object_place
from kyc_pipeline.analyze.object_place import ObjectPlace
from kyc_pipeline.analyze.publish import (
    is_published,
    new_draft,
    open_warehouse,
    problems,
    publish,
    published_sequence,
    restricted_path,
    seal,
    size_of,
)
from kyc_pipeline.errors import KycError

FEW, ROWS = 1000, 130_000
"""Rows of a file; `ROWS` is more than one row group has, so that a reader needs several requests."""
GUIDE = (Path(__file__).parents[3] / "docs" / "analysts.md").read_text(encoding="utf-8")


def write_version(draft: Path, version: int, *, exact: bool = False, rows: int = FEW) -> None:
    for path in (draft, *([restricted_path(draft)] if exact else [])):
        name = "submissions" if path == draft else "exact_submissions"
        with duckdb.connect(path, config={"storage_compatibility_version": "v1.5.0"}) as connection:
            connection.execute(
                f"CREATE TABLE {name} AS SELECT $1::INTEGER AS version, uuid()::VARCHAR AS id"
                f" FROM range({rows})",
                [version],
            )


def published(place: str, sequence: int, *, exact: bool = False, rows: int = FEW) -> None:
    with new_draft(place) as draft:
        write_version(draft, sequence, exact=exact, rows=rows)
        publish(draft, place, sequence * 1000, sequence)


def versions_of(connection: duckdb.DuckDBPyConnection) -> list[tuple[int, int]]:
    return connection.execute("SELECT version, count(id) FROM submissions GROUP BY 1").fetchall()


def keys(place: str) -> list[str]:
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    root = place.removeprefix("s3://")
    return sorted(path.removeprefix(f"{root}/") for path in fs.find(root))


def test_a_reader_keeps_its_build_and_a_new_one_gets_the_next(any_s3_root: str) -> None:
    assert not is_published(any_s3_root)
    with pytest.raises(KycError, match=r"there is no warehouse at s3://"), open_warehouse(any_s3_root):
        pass
    published(any_s3_root, 1, exact=True, rows=ROWS)
    with open_warehouse(any_s3_root) as old:
        assert old.execute("SELECT count(*) FROM submissions").fetchall() == [(ROWS,)]
        published(any_s3_root, 2, rows=ROWS)
        assert versions_of(old) == [(1, ROWS)]
        with open_warehouse(any_s3_root) as new:
            assert versions_of(new) == [(2, ROWS)]
    assert keys(any_s3_root) == ["current.json", "kyc-1.duckdb", "kyc-2.duckdb", "restricted/kyc-1.duckdb"]
    assert published_sequence(any_s3_root) == 2
    assert size_of(any_s3_root) > 1_000_000


def test_the_restricted_file_is_of_the_published_build(any_s3_root: str) -> None:
    published(any_s3_root, 1, exact=True)
    with open_warehouse(any_s3_root, exact=True) as connection:
        assert connection.execute("SELECT any_value(version) FROM exact_submissions").fetchall() == [(1,)]
    published(any_s3_root, 2)
    with pytest.raises(KycError, match="has no restricted file"), open_warehouse(any_s3_root, exact=True):
        pass


def test_an_older_build_is_never_published_last(any_s3_root: str) -> None:
    published(any_s3_root, 5)
    with pytest.raises(KycError, match=r"not published: s3://.* has a newer build \(5\)"):
        published(any_s3_root, 4)
    assert keys(any_s3_root) == ["current.json", "kyc-5.duckdb"]


def test_of_several_hosts_that_publish_at_once_the_newest_wins(any_s3_root: str) -> None:
    together = threading.Barrier(6)

    def host(sequence: int) -> bool:
        first = threading.Event()

        def confirm() -> None:
            if not first.is_set():
                first.set()
                together.wait(60)  # all have read the same pointer

        with new_draft(any_s3_root) as draft:
            write_version(draft, sequence)
            try:
                publish(draft, any_s3_root, sequence, sequence, confirm)
            except KycError:
                return False
            return True

    with ThreadPoolExecutor(6) as hosts:
        won = list(hosts.map(host, range(1, 7)))
    assert won[-1]
    assert published_sequence(any_s3_root) == 6
    with open_warehouse(any_s3_root) as connection:
        assert versions_of(connection) == [(6, FEW)]


def test_what_must_not_be_published_leaves_nothing(any_s3_root: str) -> None:
    def refuse() -> None:
        raise KycError("somebody was erased")

    published(any_s3_root, 1)
    with new_draft(any_s3_root) as draft:
        write_version(draft, 2, exact=True)
        with pytest.raises(KycError, match="erased"):
            publish(draft, any_s3_root, 2, 2, refuse)
    assert keys(any_s3_root) == ["current.json", "kyc-1.duckdb"]
    assert published_sequence(any_s3_root) == 1


def test_replaced_builds_stay_for_a_day_unless_somebody_was_erased(
    any_s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ObjectPlace(any_s3_root)
    for sequence in (1, 2, 3):
        published(any_s3_root, sequence, exact=sequence == 1)
    assert place.remove_old() == 0
    assert place.remove_old(datetime.now(UTC) - timedelta(days=2)) == 0
    monkeypatch.setattr(object_place, "KEPT", timedelta(seconds=-60))
    assert place.remove_old() == 3
    assert keys(any_s3_root) == ["current.json", "kyc-3.duckdb"]
    monkeypatch.undo()
    published(any_s3_root, 4)
    assert place.remove_old(datetime.now(UTC) + timedelta(minutes=1)) == 1
    published(any_s3_root, 5)
    assert place.remove_old(at_once=True) == 1
    assert keys(any_s3_root) == ["current.json", "kyc-5.duckdb"]


def test_a_bucket_with_versions_keeps_nothing_of_who_was_erased(s3_root: str) -> None:
    bucket = ObjectPlace(s3_root)._bucket
    bucket.call("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
    for sequence in (1, 2):
        published(s3_root, sequence)
        with ObjectPlace(s3_root).new_page() as write:
            write(b"<p>%d</p>" % sequence, sequence)
    place = ObjectPlace(s3_root)
    place.remove_old(at_once=True)
    place.remove_old_pages()
    assert [len(list(bucket.versions(f"prefix/{name}"))) for name in ("kyc-1.duckdb", "index.html")] == [0, 1]


def test_a_build_that_was_changed_is_noticed(any_s3_root: str) -> None:
    published(any_s3_root, 1, exact=True)
    assert problems(any_s3_root, 1000, is_restricted=True) == []
    assert problems(any_s3_root, 1001, is_restricted=True) != []
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.pipe_file(f"{any_s3_root}/kyc-1.duckdb", b"other")
    fs.rm_file(f"{any_s3_root}/restricted/kyc-1.duckdb")
    assert len(problems(any_s3_root, 1000, is_restricted=True)) == 2
    with pytest.raises(KycError, match="cannot be opened: build it again"), open_warehouse(any_s3_root):
        pass


def test_sealed_sql_reads_the_published_build_and_nothing_else(any_s3_root: str, tmp_path: Path) -> None:
    published(any_s3_root, 1, exact=True)
    with open_warehouse(any_s3_root) as connection:
        seal(connection, "s3://lake", str(tmp_path))
        assert versions_of(connection) == [(1, FEW)]
        root = any_s3_root.removeprefix("s3://")
        for scheme in ("published", "s3"):
            for key in ("current.json", "restricted/kyc-1.duckdb"):
                with pytest.raises(duckdb.Error):
                    connection.execute(f"SELECT size FROM read_blob('{scheme}://{root}/{key}')").fetchall()
        with pytest.raises(duckdb.Error):
            connection.execute(f"ATTACH 'published://{root}/restricted/kyc-1.duckdb' AS r (READ_ONLY)")


def test_the_report_is_replaced_by_one_request(any_s3_root: str) -> None:
    place = ObjectPlace(any_s3_root)
    assert not place.has_page()
    with place.new_page() as write, place.new_page() as late:
        write(b"<p>one</p>", 1)
        with pytest.raises(KycError, match="replaced meanwhile"):
            late(b"<p>old</p>", 0)
    assert (place.has_page(), place.has_page(1), place.has_page(2)) == (True, True, False)
    with place.new_page() as write:
        write(b"<p>two</p>", 2)
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    assert fs.cat_file(f"{any_s3_root}/index.html") == b"<p>two</p>"
    assert fs.info(f"{any_s3_root}/index.html")["ContentType"] == "text/html; charset=utf-8"


DUCKDB_1_5 = """
import json, os, pathlib, sys, urllib.parse
import duckdb, duckdb_extension_httpfs
assert duckdb.__version__.startswith("1.5"), duckdb.__version__
extension = next(pathlib.Path(duckdb_extension_httpfs.__file__).parent.rglob("*.duckdb_extension"))
endpoint = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
connection = duckdb.connect()
connection.execute(f"LOAD '{extension}'")
connection.execute(
    "CREATE SECRET (TYPE s3, KEY_ID 'test', SECRET 'test', REGION 'us-east-1', USE_SSL false,"
    f" URL_STYLE 'path', ENDPOINT '{endpoint}')"
)
exec(sys.argv[1])
read = lambda: connection.execute("SELECT version, count(id) FROM submissions GROUP BY 1").fetchall()
print(json.dumps(connection.execute("SELECT count(*) FROM submissions").fetchall()), flush=True)
sys.stdin.readline()
print(json.dumps(read()), flush=True)
"""


def test_duckdb_1_5_with_httpfs_reads_through_the_pointer_and_keeps_its_build(any_s3_root: str) -> None:
    """An analyst's DuckDB does what the guide says.

    It cannot be installed beside ours, so `KYC_DUCKDB_1_5` names a Python that has it and its extension.
    """
    python = os.environ.get("KYC_DUCKDB_1_5")
    if python is None:
        pytest.skip("KYC_DUCKDB_1_5: the path of a Python with duckdb 1.5 and duckdb-extension-httpfs")
    published(any_s3_root, 1, rows=ROWS)
    [code] = re.findall(r"^```python\n([^`]*current\.json.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    code = code.replace("s3://bucket/published", any_s3_root)
    command = [python, "-c", DUCKDB_1_5, code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as analyst:
        assert analyst.stdout is not None
        assert analyst.stdin is not None
        assert json.loads(analyst.stdout.readline()) == [[ROWS]]
        published(any_s3_root, 2, rows=ROWS)
        analyst.stdin.write("\n")
        analyst.stdin.flush()
        assert json.loads(analyst.stdout.readline()) == [[1, ROWS]]
