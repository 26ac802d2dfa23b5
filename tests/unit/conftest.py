"""An object store and a PostgreSQL server on this machine, for the tests of several packages."""

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import PatienceOfTests
from tests.unit.postgres import PostgresServer, running_postgres
from tests.unit.seaweed import running_seaweed, seaweed_program

BUCKETS = itertools.count(1)
SCHEMAS = itertools.count()
ENDPOINTS: list[str] = []
"""The S3 servers that were used, in order."""
SERVERS = ("postgres", "s3_root", "any_s3_root")
"""A test of these has one of them among its fixtures, or as a parameter that names a fixture."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test-unit` leaves out the tests that start a database or an object store."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if any(name in getattr(item, "fixturenames", ()) or name in parameters.values() for name in SERVERS):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds; fails after two minutes, since the machine may be busy."""
    import threading

    def wait(condition: Callable[[], bool]) -> None:
        tick = threading.Event()
        for _ in range(60_000):
            if condition():
                return
            tick.wait(0.002)
        raise AssertionError("the condition did not come true")

    return wait


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> type[PatienceOfTests]:
    """The client waits until the test says that its time is up, or a server with `NoResponseInTime`."""
    PatienceOfTests.seconds.clear()
    PatienceOfTests.restarts = 0
    monkeypatch.setattr("kyc_pipeline.deepxl.transport.Patience", PatienceOfTests)
    return PatienceOfTests


@pytest.fixture(scope="session")
def descriptions_of_s3() -> Iterator[None]:
    """botocore reads them once, not for each of its sessions in 0.3 s of processor time."""
    loader = importlib.import_module("botocore.loaders").JSONFileLoader
    load = functools.cache(loader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "load_file", lambda _, path: load(path))
        yield


@pytest.fixture(scope="session")
def s3_endpoint(descriptions_of_s3: None) -> Iterator[str]:
    # Here, since few tests need them and their import takes seconds.
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def seaweed_endpoint(descriptions_of_s3: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server by other people than moto's, who took no code from it."""
    with running_seaweed(seaweed_program(), tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture
def s3_root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix` of a new bucket; the environment leads to it, in child processes too."""
    return new_bucket(s3_endpoint, monkeypatch)


@pytest.fixture(params=["s3_endpoint", "seaweed_endpoint"])
def any_s3_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `s3_root`, on each server."""
    return new_bucket(request.getfixturevalue(request.param), monkeypatch)


def new_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    if ENDPOINTS[-1:] != [s3_endpoint]:  # s3fs keeps its clients, each of which takes a second to make
        for kind in (s3fs.S3FileSystem, *s3fs.S3FileSystem.__subclasses__()):
            kind.clear_instance_cache()
        ENDPOINTS.append(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{next(BUCKETS)}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}/prefix"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """A new, empty database."""
    return postgres.create_database(f"ledger{next(SCHEMAS)}")


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that does not exist yet, on each database."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
