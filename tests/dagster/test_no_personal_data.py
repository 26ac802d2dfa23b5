"""No personal data leaves the restricted zone: the test puts marks in everywhere and searches everywhere.

It marks every tag outside `KYC_CLEAR_TAGS`, names and folders of documents, rejected rows, and everything
that the vendor can send back: tags, file names, URLs, free text, unknown fields, error pages. The plain hash
of a document counts as a mark too. Marks may occur only in the restricted zone, with one documented
exception: the column `details` of `curated/model_checks` keeps the vendor's text.
"""

import contextlib
import hashlib
import json
import logging
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest

from kyc_pipeline.cli.dagster_home import make_home
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import MODEL_CHECKS, TABLES, VERIFICATION_RESPONSES, Zone
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.verify.dispatcher import Timing
from tests.conftest import Landing
from tests.dagster.conftest import TOKEN, make_settings

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
MARK = "zqxmark"
"""The prefix of every mark. Only letters and digits, so that escaping cannot hide it."""
JSON = {"Content-Type": "application/json"}
CLEAR = {"companyId": "COMP-001", "companyName": "Clear Company"}
TAGS = CLEAR | {
    name: f"{MARK}{name.lower()}"
    for name in ("customerId", "customerName", "documentId", "email", "dateOfBirth", "note")
}


def response(submission_id: str, verification_id: int | None) -> bytes:
    """A response about this submission with a mark in every text that is not part of the contract."""
    check = {
        "type": "FACE_MATCH",
        "status": "FAIL",
        "confidence": 0.4,
        "details": f"{MARK}details does not look like the holder",
        "idFaces": [{"landmarks": [f"{MARK}geometry"]}],
    }
    odd = [
        {"type": f"{MARK}type", "status": f"{MARK}status", "confidence": f"{MARK}confidence"},
        {"type": "LIVENESS", "status": "PASS", "confidence": {f"{MARK} of a person": f"{MARK}object"}},
    ]
    files = [
        {
            "category": f"{MARK}{category}",
            "fileName": f"{MARK}filename{category}.jpg",
            "fileSize": 1,
            "contentType": f"image/{MARK}",
            "timestamp": 1725795600,
            "timestampISO": "2024-09-08T11:40:00",
            "url": f"https://api.deepxl.ai/v1/files/{MARK}url{category}",
        }
        for category in ("id", "face")
    ]
    result: dict[str, object] = {
        "idFileType": f"{MARK}type",
        "idFileName": f"{MARK}idfilename.jpg",
        "selfieFileType": f"{MARK}type",
        "selfieFileName": f"{MARK}selfiefilename.jpg",
        "model": f"{MARK}model",
        "verified": False,
        "modelResults": {
            "technicalChecks": [check, {"type": "LIVENESS", "confidence": "0.97"}, *odd],
            f"{MARK} of a person": [check],
        },
        "timestamp": int(time.time()),
        "timestampISO": f"{MARK}iso",
        "modelVersion": f"{MARK}version",
        "tags": [
            {"name": name, "value": value} for name, value in (TAGS | {"submissionId": submission_id}).items()
        ]
        + [{"name": f"{MARK}tagname", "value": f"{MARK}tagvalue"}],
        "files": files,
        "holder": {"name": f"{MARK}unknownfield", TAGS["customerName"]: f"{MARK}unknownvalue"},
    }
    if verification_id is not None:
        result["verificationId"] = verification_id
    return json.dumps({"result": result}).encode()


def marked_responses() -> dict[str, list[Responds]]:
    """By submission; made when the test runs, since a response that is minutes old is not about its call."""
    return {
        "s-marked": [Responds(200, JSON, response("s-marked", 900001))],
        "s-quarantined": [Responds(200, JSON, response("s-quarantined", None))],
        "s-refused": [Responds(400, JSON, json.dumps({"detail": f"{MARK}refusal"}).encode())],
        "s-page": [Responds(422, {"Content-Type": "text/html"}, f"<h1>{MARK}page</h1>".encode())],
        "s-again": [Responds(503, JSON, f'{{"message": "{MARK}busy"}}'.encode())],
    }


def write_landing(landing: Landing) -> None:
    def row(submission_id: str, shade: int) -> dict[str, object]:
        plain = landing.submission(submission_id, shade, TAGS)
        for column in ("id_file", "selfie_file"):
            path = f"{MARK}folder/{MARK}{submission_id}{column}.jpg"
            content = (landing.root / "documents" / str(plain[column])).read_bytes()
            plain[column] = landing.document(path, content)
        return plain

    good = [
        row(submission_id, 20 * shade) for shade, submission_id in enumerate(["s-plain", *marked_responses()])
    ]
    rejected = [
        good[0] | {"submission_id": "r-1", "id_file": f"{MARK}nowhere.jpg"},
        good[0] | {"submission_id": "r-2", "id_file": f"../{MARK}outside.jpg"},
        good[0] | {"submission_id": f"{MARK} not an id"},
        good[0] | {"submission_id": "r-4", "tags": {"customerName": [f"{MARK}list"]}},
        good[0] | {"submission_id": "r-5", "tags": f"{MARK}notjson"},
        good[0] | {"submission_id": "r-6", "submitted_at": f"{MARK}date"},
        good[0] | {"submission_id": "s-plain", "tags": TAGS | {"note": f"{MARK}conflict"}},
    ]
    landing.manifest(DAY, [*(row | {f"{MARK}key": f"{MARK}value"} for row in good), *rejected])
    (landing.root / "manifests" / f"{MARK}folder").mkdir()
    # A file without a header, whose first row is read as one: no error message may quote it.
    headless = landing.root / "manifests" / NEXT_DAY / "headless.csv"
    headless.parent.mkdir()
    line = f"s-nine,{MARK}name,{MARK}surname,tag.{MARK}\n"
    headless.write_text(2 * line, encoding="utf-8")


def marks(landing: Landing) -> list[bytes]:
    """What to search for: the prefix of the marks, and the plain hash of each document."""
    documents = [path for path in (landing.root / "documents").rglob("*") if path.is_file()]
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in documents}
    return [MARK.encode(), *(digest.encode() for digest in sorted(hashes))]


def everything_in_sqlite(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every value in every database in `folder`, decompressed."""
    for path in folder.rglob("*.db"):
        connection = sqlite3.connect(path)
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    content = value if isinstance(value, bytes) else str(value).encode()
                    with contextlib.suppress(zlib.error):
                        content = zlib.decompress(content)
                    yield f"{path.name} {table}", content
        connection.close()


def everything_curated(lake: Lake) -> Iterator[tuple[str, bytes]]:
    """Every column and footer of the curated tables."""
    for table in TABLES:
        if table.zone is not Zone.CURATED:
            continue
        for column in table.columns:
            if (table, column.name) != (MODEL_CHECKS, "details"):
                values = lake.read(table, DAY, [column.name])[column.name].to_pylist()
                yield f"{table.name}.{column.name}", repr(values).encode()
        yield f"footer of {table.name}", repr(pq.read_metadata(lake.path(table, DAY)).metadata).encode()


def everything_in_warehouse(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every table, and the bytes of the file."""
    yield "warehouse file", path.read_bytes()
    with duckdb.connect(path, read_only=True) as connection:
        for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            yield table, repr(connection.execute(f"FROM {table}").fetchall()).encode()


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        yield f"name of {path}", str(path.relative_to(folder)).encode()
        if path.is_file():
            yield str(path), path.read_bytes()


def found(places: Iterator[tuple[str, bytes]], needles: list[bytes]) -> dict[str, set[bytes]]:
    """The marks found in each place."""
    hits: dict[str, set[bytes]] = {}
    for place, content in places:
        lower = content.lower()
        if present := {mark for mark in needles if mark in lower}:
            hits[place] = present
    return hits


def readable_by_others(folder: Path) -> set[str]:
    """The files below `folder` that another user of this machine could read."""
    if not folder.stat().st_mode & stat.S_IXOTH:
        return set()
    readable = set()
    for path in folder.iterdir():
        if path.is_dir():
            readable |= readable_by_others(path)
        elif path.stat().st_mode & stat.S_IROTH:
            readable.add(str(path))
    return readable


def metadata_of(instance: dg.DagsterInstance, asset: str) -> Mapping[str, dg.MetadataValue]:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization.metadata


def test_marks_are_only_in_the_restricted_zone(
    landing: Landing,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    write_landing(landing)
    needles = marks(landing)
    assert len(needles) > len(marked_responses())
    home = tmp_path / "dagster_home"
    make_home(home)
    with (
        running_simulator(token=TOKEN, seed=7, faults=marked_responses()) as simulator,
        dg.DagsterInstance.local_temp(str(home)) as instance,
    ):
        settings = make_settings(tmp_path, simulator.url)
        controls = CallControls(timing=Timing(look_ups=(0.0,)))
        job = build_defs(Pipeline(settings), controls).resolve_job_def("verify_and_publish")
        assert job.execute_in_process(instance=instance, partition_key=DAY).success
        bad_day = job.execute_in_process(
            instance=instance,
            partition_key=NEXT_DAY,
            asset_selection=[dg.AssetKey("submissions"), dg.AssetKey("rejected_submissions")],
            raise_on_error=False,
        )
        assert not bad_day.success
        # Dagster's metadata exists, so the search covers it.
        shown = metadata_of(instance, "pass_rates")
        assert {"dagster/row_count", "dagster/column_lineage", "FACE_MATCH pass_rate %"} <= set(shown)
        assert "confidences" in metadata_of(instance, "confidence_histogram")
        assert metadata_of(instance, "warehouse")["rejected"].value == 7
        assert instance.get_run_records()

    lake = Lake(settings.kyc_lake)
    responses = lake.read(VERIFICATION_RESPONSES, DAY, ["submission_id", "outcome", "response"]).to_pylist()
    assert {row["submission_id"]: row["outcome"] for row in responses} == {
        "s-plain": "completed",
        "s-marked": "completed",
        "s-again": "completed",
        "s-quarantined": "quarantined",
        "s-refused": "refused",
        "s-page": "refused",
    }
    # The marks did get in: the restricted zone and the vendor's `details` contain them.
    assert MARK in repr(responses)
    assert MARK in repr(lake.read(MODEL_CHECKS, DAY, ["details"]).to_pylist())
    # Geometry is not stored anywhere.
    assert "zqxmarkgeometry" not in repr(responses)

    assert found(everything_curated(lake), needles) == {}
    assert found(everything_in_warehouse(Path(settings.kyc_warehouse)), needles) == {}
    assert found(files(Path(settings.kyc_report).parent), needles) == {}
    assert found(everything_in_sqlite(home), needles) == {}
    assert found(files(home), needles) == {}
    output = capfd.readouterr()
    logs = {"log": caplog.text, "stdout": output.out, "stderr": output.err}
    assert found(iter((name, text.encode()) for name, text in logs.items()), needles) == {}
    assert "RUN_SUCCESS" in logs["stderr"] + logs["log"]

    tmp_path.chmod(0o755)
    readable = {Path(path).relative_to(tmp_path).parts[:2] for path in readable_by_others(tmp_path)}
    meant = (settings.kyc_warehouse, settings.kyc_report)
    assert readable == {
        *(("landing", name) for name in ("manifests", "documents")),
        ("lake", "curated"),
        ("lake", "identity.json"),  # an id and no more
        *(Path(path).relative_to(tmp_path).parts for path in meant),
    }
