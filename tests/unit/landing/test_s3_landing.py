"""The landing zone in S3, over real HTTP and on two servers: the same promises as in a folder."""

import hashlib
import http.server
import json
import os
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import dagster as dg
import pytest
import s3fs

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.document_store import AcceptedDocument, DocumentProblem, StoreError
from kyc_pipeline.erasure.find import find
from kyc_pipeline.erasure.remove import erase
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.flatten.partition import source_of
from kyc_pipeline.ingest.documents import Documents
from kyc_pipeline.ingest.labels import are_ingested, ingest_labels
from kyc_pipeline.ingest.manifests import (
    ingest_partition,
    is_ingested,
    manifest_dates,
    manifest_identity,
    manifest_signature,
    require_landing,
    strays,
)
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import (
    LABELS,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
)
from kyc_pipeline.landing.bucket import store_errors
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.orchestration.catch_up import due_days
from kyc_pipeline.orchestration.new_manifests import Tick
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.vocabulary import Reason
from tests.conftest import image_bytes
from tests.e2e.servers import clean_environment, script

DAY = "2024-09-01"
TAGS = {"customerId": "9999"}


class Zone:
    """A landing zone in a bucket, a lake in a folder."""

    def __init__(self, root: str, folder: Path) -> None:
        self.fs = s3fs.S3FileSystem(use_listings_cache=False)
        self.root = root
        self.path = root.removeprefix("s3://")
        self.bucket, _, self.prefix = self.path.partition("/")
        self.folder = folder
        self.lake = Lake(str(folder / "lake"))

    def put(self, key: str, content: bytes) -> None:
        """Writes the object with exactly this key below the prefix."""
        self.fs.call_s3("put_object", Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=content)

    def manifest(self, *rows: dict[str, Any], day: str = DAY, name: str = "m.jsonl") -> None:
        self.put(f"manifests/{day}/{name}", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def submission(self, id_: str, shade: int, **changes: Any) -> dict[str, Any]:
        self.put(f"documents/{id_}-id.jpg", image_bytes(shade))
        self.put(f"documents/{id_}-selfie.jpg", image_bytes(shade + 1))
        files = {"id_file": f"{id_}-id.jpg", "selfie_file": f"{id_}-selfie.jpg"}
        return {"submission_id": id_, **files, "tags": TAGS} | changes

    def ingest(self, day: str = DAY) -> Any:
        return ingest_partition(landing=self.root, lake=self.lake, date=day)

    def rejected(self) -> dict[str, tuple[str, str]]:
        rows = self.lake.read(REJECTED_SUBMISSIONS, DAY).to_pylist()
        return {row["submission_id"]: (row["reason"], row["detail"]) for row in rows}

    def settings(self, **changes: Any) -> Settings:
        values: dict[str, Any] = {
            "deepxl_api_token": "test-token",
            "deepxl_requests_per_second": 0,
            "kyc_home": self.folder,
            "kyc_landing": self.root,
            "kyc_lake": self.lake.root,
            "kyc_pseudonym_key": "0123456789abcdef" * 2,
        }
        return Settings(_env_file=None, **values | changes)


@pytest.fixture
def zone(any_s3_root: str, tmp_path: Path) -> Zone:
    return Zone(any_s3_root, tmp_path)


def test_a_day_goes_from_s3_to_responses_and_no_document_touches_the_disk(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = zone.folder / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    large = image_bytes(9) + os.urandom(5_000_000)  # more than one range, and sent in chunks
    zone.manifest(zone.submission("a", 1), zone.submission("b", 5))
    zone.put("documents/b-id.jpg", large)
    opened: list[str] = []
    with running_simulator(token="test-token", seed=7) as simulator:
        settings = zone.settings(deepxl_base_url=simulator.url)
        assert zone.ingest().accepted == 2
        assert is_ingested(zone.root, zone.lake, DAY)
        with Ledger(settings.kyc_ledger_url) as ledger:
            for _ in range(2):
                summary = verify_partition(
                    settings=settings, lake=zone.lake, ledger=ledger, date=DAY, run_id="r", stop=StopFlag()
                )
                opened.append(str(summary.calls))
        assert opened == ["2", "0"]
    rows = zone.lake.read(VERIFICATION_RESPONSES, DAY).to_pylist()
    assert [row["outcome"] for row in rows] == ["completed", "completed"]
    files = {row["submission_id"]: row["id_sha256"] for row in zone.lake.read(SUBMISSIONS, DAY).to_pylist()}
    assert files["b"] == hashlib.sha256(large).hexdigest()
    images = [file for file in zone.folder.rglob("*") if file.is_file() and b"JFIF" in file.read_bytes()]
    assert images == []


def test_days_and_manifests_are_listed_by_page(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ("2024-09-01", "2024-09-02", "2024-09-03"):
        zone.manifest(zone.submission("a", 1), day=day)
        zone.manifest(zone.submission("b", 1), day=day, name="n.jsonl")
    zone.put("manifests/old/x.jsonl", b"{}")
    zone.put("manifests/2024-09-04.jsonl", b"{}")
    zone.put("manifests/notes", b"{}")
    zone.put("manifests/2024-09-03/below/x.jsonl", b"{}")
    call = s3fs.S3FileSystem.call_s3

    def small_pages(fs: Any, method: str, *arguments: Any, **parameters: Any) -> Any:
        if method == "list_objects_v2":
            parameters["MaxKeys"] = 2
        return call(fs, method, *arguments, **parameters)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", small_pages)
    landing = open_landing(zone.root)
    for each in (landing, landing.snapshot()):
        assert manifest_dates(each) == ["2024-09-01", "2024-09-02", "2024-09-03"]
        assert strays(each, date(2024, 9, 1), date(2024, 9, 3)) == ["old", "2024-09-04.jsonl"]
        listed = sorted((file.name, signature is None) for file, signature in each.entries("2024-09-03"))
        assert listed == [("below", True), ("m.jsonl", False), ("n.jsonl", False)]


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "a/../../secret.jpg", "./a-id.jpg", "a//b.jpg", "/a-id.jpg", "a-id.jpg/", "a\0b"],
)
def test_no_path_leads_out_of_the_prefix(s3_root: str, path: str) -> None:
    with pytest.raises(DocumentProblem, match="without empty") as caught:
        open_landing(s3_root).documents.resolve(path)
    assert caught.value.reason is Reason.PATH_OUTSIDE_DOCUMENTS


def test_keys_that_are_no_paths(zone: Zone) -> None:
    zone.put("secret.jpg", image_bytes(1))
    zone.put("documents/folder/", b"")
    zone.put("manifests/2024-09-01/", b"")
    zone.put("documents/Jose\u0301.jpg", image_bytes(3))
    wrong = {
        "out": ("../secret.jpg", Reason.PATH_OUTSIDE_DOCUMENTS),
        "folder": ("folder", Reason.FILE_NOT_FOUND),
        "slash": ("folder/", Reason.PATH_OUTSIDE_DOCUMENTS),
        "missing": ("none.jpg", Reason.FILE_NOT_FOUND),
        "version": ("good-id.jpg?versionId=null", Reason.FILE_NOT_FOUND),
        "long": ("x" * 1100, Reason.FILE_NOT_FOUND),
        "form": ("Jos\u00e9.jpg", Reason.FILE_NOT_FOUND),
    }
    good = [zone.submission("good", 1), zone.submission("decomposed", 1, id_file="Jose\u0301.jpg")]
    zone.manifest(*good, *(zone.submission(name, 1, id_file=path) for name, (path, _) in wrong.items()))
    assert zone.ingest().accepted == 2
    assert {name: reason for name, (reason, _) in zone.rejected().items()} == {
        name: reason.value for name, (_, reason) in wrong.items()
    }
    assert "looks the same" in zone.rejected()["form"][1]


def test_a_document_that_is_replaced_or_deleted_is_never_completed(zone: Zone) -> None:
    content = b"0123456789" * 600_000
    zone.put("documents/a.jpg", content)
    documents = open_landing(zone.root).documents
    sha256 = hashlib.sha256(content).hexdigest()
    accepted = AcceptedDocument(documents, "a.jpg", len(content), sha256, "image/jpeg")
    assert b"".join(accepted.chunks(100_000)) == content
    chunks = accepted.chunks(100_000)
    next(chunks)
    zone.put("documents/a.jpg", b"9" * len(content))
    with pytest.raises(DocumentProblem, match="replaced while it was read"):
        list(chunks)
    with pytest.raises(DocumentProblem, match="has changed since it was accepted"):
        list(accepted.chunks(100_000))
    zone.put("documents/a.jpg", b"shorter")
    with pytest.raises(DocumentProblem, match="has changed since it was accepted"):
        list(accepted.chunks(100_000))
    zone.fs.rm_file(f"{zone.path}/documents/a.jpg")
    with pytest.raises(DocumentProblem, match="does not exist") as caught:
        list(accepted.chunks(100_000))
    assert "a.jpg" not in str(caught.value)


def test_the_sensor_and_the_catch_up_see_what_changed(s3_root: str, tmp_path: Path) -> None:
    zone = Zone(s3_root, tmp_path)
    zone.manifest(zone.submission("a", 1))
    pipeline = Pipeline(zone.settings(kyc_catch_up_days=10_000))
    cursor = ""

    def tick() -> str | None:
        nonlocal cursor
        with dg.DagsterInstance.ephemeral() as instance:
            tick = Tick(pipeline, instance, cursor)
            key = tick.run_key(DAY)
        cursor = tick.new_cursor()
        return key

    assert tick() is None  # perhaps still being delivered
    first = tick()
    assert first is not None
    zone.ingest()
    assert tick() is None
    identity, signature = manifest_identity(s3_root, DAY), manifest_signature(s3_root, DAY)
    zone.manifest(zone.submission("a", 1), zone.submission("b", 1))
    assert manifest_signature(s3_root, DAY) != signature
    assert manifest_identity(s3_root, DAY) != identity
    assert (tick(), due_days(pipeline, until=date(2024, 9, 2)).days) == (None, [DAY])
    assert tick() not in (None, first)


def test_a_tick_of_the_catch_up_makes_as_many_requests_for_three_days_as_for_one(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = Zone(s3_root, tmp_path)
    zone.lake = Lake(f"{s3_root}/lake")
    pipeline = Pipeline(zone.settings(kyc_catch_up_days=10_000, kyc_lake=f"{s3_root}/lake"))
    with Ledger(pipeline.settings.kyc_ledger_url) as ledger, ledger.write():
        pass  # it exists, or the lake's responses would have none
    requests: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        requests.append(method)
        return await call(self, method, *arguments, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    made = []
    for number in (1, 2, 3):
        day = f"2024-09-{number:02}"
        zone.manifest(zone.submission(f"a{number}", number), zone.submission("no", 0, id_file="no"), day=day)
        zone.ingest(day)
        outcome = {"outcome": "completed", "attempts": 1, "billable_calls": 1, "content_sha256": "0" * 64}
        responses = [{"submission_id": f"a{number}", **outcome}]
        zone.lake.write(VERIFICATION_RESPONSES, day, responses, {"state": "complete"})
        zone.lake.write(VERIFICATIONS, day, [], {"source": source_of(zone.lake, day)})
        for _ in range(2):
            requests.clear()
            # A document is missing, which may have arrived since.
            assert due_days(pipeline, until=date(2024, 9, 4)).days[-1] == day
        made.append(sorted(requests))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) < 10


@pytest.mark.parametrize("versioned", [False, True])
def test_erase_deletes_every_version_of_the_documents(zone: Zone, versioned: bool) -> None:
    if versioned:
        zone.fs.call_s3(
            "put_bucket_versioning", Bucket=zone.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
    zone.put("documents/a-id.jpg", b"an older version")
    other = zone.submission("b", 5, tags={"customerId": "1"})
    zone.manifest(zone.submission("a", 1), zone.submission("c", 7, selfie_file="b-selfie.jpg"), other)
    zone.fs.rm_file(f"{zone.path}/documents/c-id.jpg")  # with versioning, the content is still there
    zone.ingest()
    settings = zone.settings()
    with Ledger(settings.kyc_ledger_url) as ledger:
        stores = Stores.of(settings, ledger, Pseudonymizer("k" * 32))
        found = find(stores, "customerId", "9999")
        assert set(found.shared_documents) == {"b-selfie.jpg"}
        erase(stores, found, delete_documents=True)
    kept = zone.fs.call_s3("list_object_versions", Bucket=zone.bucket, Prefix=f"{zone.prefix}/documents/")
    keys = {each["Key"] for kind in ("Versions", "DeleteMarkers") for each in kept.get(kind, ())}
    left = {key.removeprefix(f"{zone.prefix}/documents/") for key in keys}
    # `c-selfie.jpg` is named by no row.
    assert left == {"b-id.jpg", "b-selfie.jpg", "c-selfie.jpg"}


def test_a_bucket_that_is_not_there_or_has_no_documents(zone: Zone) -> None:
    with pytest.raises(UsageError, match=r"KYC_LANDING: s3://no-such-bucket/x cannot be listed: there is no"):
        require_landing("s3://no-such-bucket/x", zone.lake)
    with pytest.raises(UsageError, match="has no manifests"):
        require_landing(zone.root, zone.lake)
    row = zone.submission("a", 1)
    zone.manifest(row)
    for file in ("a-id.jpg", "a-selfie.jpg"):
        zone.fs.rm_file(f"{zone.path}/documents/{file}")
    with pytest.raises(UsageError, match=r"documents/ has no objects"):
        zone.ingest()


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, unless `refuse` says how to answer them."""

    def _pass(self) -> None:
        refused = self.server.refuse(self.path)  # type: ignore[attr-defined]
        if refused:
            status, code = refused
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self._answer(status, {}, b"" if self.command == "HEAD" else body)
            return
        request = urllib.request.Request(
            self.server.target + self.path,  # type: ignore[attr-defined]
            method=self.command,
            headers={name: value for name, value in self.headers.items() if name.lower() != "host"},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                self._answer(answer.status, dict(answer.headers), answer.read())
        except HTTPError as error:
            self._answer(error.code, dict(error.headers), error.read())

    do_GET = do_HEAD = _pass  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length") or str(len(body))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def refusing(target: str, refuse: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server:
        server.target, server.refuse = target, refuse  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            server.shutdown()
            s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_asks_to_slow_down_is_asked_again(
    s3_root: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = Zone(s3_root, tmp_path)
    zone.manifest(zone.submission("a", 1))
    asked: list[str] = []

    def refuse(path: str) -> tuple[int, str] | None:
        asked.append(path)
        return (503, "SlowDown") if asked.count(path) == 1 else None

    with refusing(s3_endpoint, refuse, monkeypatch):
        assert zone.ingest().accepted == 1
    assert any(asked.count(path) > 1 for path in asked if "documents" in path)


def test_what_a_store_said_stays_said() -> None:
    with pytest.raises(StoreError, match="the store refuses access"), store_errors(), store_errors():
        raise PermissionError


def test_a_store_that_keeps_failing_stops_the_day_with_one_line(
    s3_root: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    zone = Zone(s3_root, tmp_path)
    zone.manifest(zone.submission("a", 1))
    part, answer = "", (0, "")
    lines = {
        (503, "SlowDown"): "the store is overloaded",
        (403, "AccessDenied"): "the store refuses access",
        (403, "ExpiredToken"): "the store refuses access",
        (500, "InternalError"): "the store failed",
    }
    with refusing(s3_endpoint, lambda path: answer if part in path else None, monkeypatch):
        for part in ("manifests%2F", "/manifests/", "/documents/"):  # noqa: B007
            for answer, line in lines.items():  # noqa: B007
                with pytest.raises(KycError, match=line) as caught:
                    zone.ingest()
                assert "\n" not in str(caught.value)
                assert "a-id" not in str(caught.value)
                assert not zone.lake.exists(SUBMISSIONS, DAY)


@pytest.mark.parametrize("url", ["s3://", "s3://b/a//b", "s3://b/../c", "s3://b/.", "https://b/x", "s3:///x"])
def test_a_setting_that_names_no_prefix_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be a folder or s3://bucket/prefix"):
        Settings(_env_file=None, kyc_landing=url)


def test_the_setting(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, kyc_landing="s3://bucket/prefix/", kyc_home=tmp_path)
    assert settings.kyc_landing == "s3://bucket/prefix"
    assert settings.pseudonym_key_file == tmp_path / "data" / "pseudonym.key"


def test_an_empty_document_is_no_error_of_the_store(s3_root: str, tmp_path: Path) -> None:
    zone = Zone(s3_root, tmp_path)
    zone.put("documents/a.jpg", image_bytes(1))
    zone.put("documents/empty.jpg", b"")
    with Documents(open_landing(s3_root).documents) as documents:
        found = documents.examine(["a.jpg", "empty.jpg"])
    assert (found["a.jpg"].problem, found["empty.jpg"].problem) == (None, Reason.FILE_EMPTY)


def test_the_commands_take_a_day_from_s3_to_the_lake_and_out_again(s3_root: str, tmp_path: Path) -> None:
    """In processes of their own: a backfill, and the erasure of a person with the documents."""
    zone = Zone(s3_root, tmp_path)
    kept = zone.submission("b", 5, tags={"customerId": "1"})
    zone.manifest(zone.submission("a", 1), kept, zone.submission("c", 9, id_file="none"))
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")

    with running_simulator(token="test-token", seed=7) as simulator:
        environment = clean_environment(
            tmp_path,
            DAGSTER_HOME=str(tmp_path),
            DEEPXL_API_TOKEN="test-token",
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_REQUESTS_PER_SECOND="0",
            KYC_LANDING=s3_root,
        )

        def command(*arguments: str) -> None:
            program = [script("kyc-pipeline"), *arguments]
            done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        lake = Lake(str(tmp_path / "data" / "lake"))
        tables = (REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATIONS)
        command("backfill", "--from", DAY, "--to", DAY, "--no-publish")
        assert [lake.row_count(table, DAY) for table in tables] == [1, 2, 2]
        command("erase", "--tag", "customerId=9999", "--landing", "--reason", "asked")
        assert dict(simulator.received) == {"a": 1, "b": 1}
    documents = {path.rpartition("/")[2] for path in zone.fs.find(f"{zone.path}/documents")}
    assert documents == {"b-id.jpg", "b-selfie.jpg", "c-id.jpg"}
    assert [lake.row_count(table, DAY) for table in tables] == [2, 1, 1]  # the person's row is rejected now
    assert not (tmp_path / "data/landing").exists()


def test_labels_are_read_from_the_bucket(any_s3_root: str, tmp_path: Path) -> None:
    zone = Zone(any_s3_root, tmp_path)
    row = b"s-1,fraud,review,2024-09-01T10:00:00Z\n"
    zone.put("labels/", b"")  # a client's object for the folder
    zone.put("labels/a.csv", b"submission_id,label,source,decided_at\n" + row)
    zone.put("labels/old/b.csv", b"not read")
    zone.put("labels/c.jsonl.tmp", b"not read")
    assert ingest_labels(landing=zone.root, lake=zone.lake).accepted == 1
    assert zone.lake.read(LABELS, WHOLE)["submission_id"].to_pylist() == ["s-1"]
    assert are_ingested(zone.root, zone.lake)
    zone.put("labels/a.csv", b"submission_id,label,source,decided_at\n" + row.replace(b"s-1", b"s-2"))
    assert not are_ingested(zone.root, zone.lake)
