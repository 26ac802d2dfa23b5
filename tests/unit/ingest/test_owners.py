"""The ledger decides which day owns an id, whatever ends an ingest, and if days are ingested at once."""

import contextlib
import itertools
import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import ingest_partition, is_ingested
from kyc_pipeline.ingest.owners import Owners, documents_sha256, wait_for_ingests
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import LeaseLost, PartitionBusy, hold
from kyc_pipeline.ledger.owners import Owner, find, forget_versions, reserve
from kyc_pipeline.ledger.schema import ingests, leases, owners
from kyc_pipeline.vocabulary import Outcome, Reason
from tests.effort import tries
from tests.unit.ingest.conftest import ZoneWithLedger
from tests.unit.ingest.killed_ingest import ingest_and_die

DAY, NEXT, THIRD = "2024-09-01", "2024-09-02", "2024-09-03"
DAYS = (DAY, NEXT, THIRD)
TAGGED, OTHER = {"tags": '{"k": "v"}'}, {"tags": '{"k": "other"}'}


@pytest.fixture
def kind_of_zone() -> type[ZoneWithLedger]:
    return ZoneWithLedger


class Killed(BaseException):
    """Ends an ingest as a kill does: nothing is put in order."""


def ingest(zone: Any, day: str, confirm: Callable[[], None] = lambda: None, **options: Any) -> None:
    with Ledger(zone.ledger_url) as ledger, hold(ledger, day, f"run-of-{day}") as held:
        lake = Lake(zone.lake.root)
        ingest_partition(
            landing=zone.landing,
            lake=lake,
            date=day,
            owners=Owners(lake, ledger, held),
            confirm=confirm,
            **options,
        )


def kill(zone: Any, day: str) -> None:
    """Ingests the day, and ends the ingest when its ids are reserved and nothing is published."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        ingest(zone, day, die)


def owned(zone: Any) -> dict[str, str]:
    """The days by the ids that they own, in the ledger."""
    with Ledger(zone.ledger_url) as ledger, ledger.read() as connection:
        rows = connection.execute(sa.select(owners.c.submission_id, owners.c.partition_date))
        return dict(rows.tuples().all())


def accepted(zone: Any) -> list[tuple[str, str]]:
    """Each accepted id with its day, in the lake."""
    return sorted(
        (key, day)
        for day in zone.lake.dates(SUBMISSIONS)
        for key in zone.lake.read(SUBMISSIONS, day)["submission_id"].to_pylist()
    )


@pytest.fixture
def days_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The days whose `submissions` were read."""
    read: list[str] = []
    batches = Lake.batches

    def noted(self: Lake, table: Any, date: str, *arguments: Any, **named: Any) -> Any:
        if table is SUBMISSIONS:
            read.append(date)
        return batches(self, table, date, *arguments, **named)

    monkeypatch.setattr(Lake, "batches", noted)
    return read


# --- what an ingest reads ---------------------------------------------------------------------------------


def test_only_the_days_that_own_an_id_are_read(zone: Any, make_image: Any, days_read: list[str]) -> None:
    days = [f"2024-09-{number:02}" for number in range(1, 8)]
    for day in days:
        zone.document(f"{day}.png", make_image("PNG", colour=f"#0000{day[-2:]}"))
        zone.rows({"submission_id": day, "selfie_file": f"{day}.png"}, day=day)
        zone.ingest(day)
    assert days_read == []
    zone.rows({"submission_id": days[2]}, {"submission_id": "new"}, day=days[-1])
    zone.ingest(days[-1])
    assert set(days_read) == {days[2], days[-1]}, "the day itself, since it gave up an id"
    assert zone.ids(days[-1]) == ["new"]


def test_the_pair_of_documents_is_the_same_in_duckdb_and_in_python(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    (row,) = zone.accepted()
    with Ledger(zone.ledger_url) as ledger, ledger.read() as connection:
        stored = connection.execute(sa.select(owners.c.documents_sha256)).scalar_one()
    assert stored == documents_sha256(row["id_sha256"], row["selfie_sha256"])


# --- lake and ledger with different histories -------------------------------------------------------------


@pytest.fixture
def without_owners(zone: Any) -> Any:
    """A lake of two days that is older than the ledger's table."""
    for day in (DAY, NEXT):
        zone.rows({"submission_id": day, **TAGGED}, day=day)
        zone.ingest(day)
    Path(zone.ledger_url.removeprefix("sqlite:///")).unlink()
    zone.rows({"submission_id": DAY, **TAGGED}, {"submission_id": NEXT, **OTHER}, {}, day=THIRD)
    return zone


def test_the_first_ingest_learns_what_the_lake_has(without_owners: Any, days_read: list[str]) -> None:
    zone = without_owners
    zone.ingest(THIRD)
    assert zone.ids(THIRD) == ["A1"]
    assert zone.reasons(THIRD) == [(1, "duplicate_submission_id"), (2, "conflicting_submission_id")]
    assert owned(zone) == {DAY: DAY, NEXT: NEXT, "A1": THIRD}
    days_read.clear()
    zone.rows({"submission_id": "A2"}, day=THIRD)
    zone.ingest(THIRD)
    assert set(days_read) == {DAY, THIRD}, "itself, and the first day with the same pair of documents"


def test_an_interrupted_first_ingest_learns_the_rest(
    without_owners: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Lake.batches

    def killed(self: Lake, table: Any, date: str, *arguments: Any, **named: Any) -> Any:
        if date == NEXT:
            raise Killed
        return batches(self, table, date, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "batches", killed)
        patch.setattr("kyc_pipeline.ledger.owners.ROWS", 1)
        with pytest.raises(Killed):
            ingest(without_owners, THIRD)
    assert owned(without_owners) == {DAY: DAY}
    without_owners.ingest(THIRD)
    assert without_owners.ids(THIRD) == ["A1"]


def test_a_plan_learns_nothing_and_sees_the_same(without_owners: Any, tmp_path: Path) -> None:
    zone = without_owners
    with Ledger(zone.ledger_url) as ledger:
        for has_ledger in (False, True):
            summary = ingest_partition(
                landing=zone.landing,
                lake=zone.lake,
                date=THIRD,
                destination=Lake(str(tmp_path / "scratch")),
                owners=Owners(zone.lake, ledger),
            )
            assert dict(summary.rejected) == {
                Reason.CONFLICTING_SUBMISSION_ID: 1,
                Reason.DUPLICATE_SUBMISSION_ID: 1,
            }
            assert ledger.exists() is has_ledger
            with ledger.read() as connection:  # creates it
                assert connection.execute(sa.select(owners)).all() == []


def test_a_restored_ledger_learns_what_was_accepted_since_the_backup(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    file = Path(zone.ledger_url.removeprefix("sqlite:///"))
    backup = file.read_bytes()
    zone.rows({"submission_id": "A2"}, day=NEXT)
    zone.ingest(NEXT)
    file.write_bytes(backup)
    with Ledger(zone.ledger_url) as ledger, ledger.write() as connection:
        forget_versions(connection)
    zone.rows({"submission_id": "A2"}, {"submission_id": "A1"}, {"submission_id": "A3"}, day=THIRD)
    zone.ingest(THIRD)
    assert zone.ids(THIRD) == ["A3"]


def test_a_partition_of_another_history_is_read_even_if_nobody_says_so(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    file = Path(zone.ledger_url.removeprefix("sqlite:///"))
    backup = file.read_bytes()
    zone.rows({}, {"submission_id": "A2"})
    zone.ingest()
    file.write_bytes(backup)
    zone.rows({"submission_id": "A2"}, day=NEXT)
    zone.ingest(NEXT)
    assert zone.ids(NEXT) == []


def test_an_id_is_free_once_its_partition_was_removed_by_hand(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    Path(zone.lake.path(SUBMISSIONS, DAY)).unlink()
    zone.rows({}, day=NEXT)
    zone.ingest(NEXT)
    assert zone.ids(NEXT) == ["A1"]
    assert owned(zone) == {"A1": NEXT}


# --- an ingest that ends in the middle --------------------------------------------------------------------


def test_ids_that_a_killed_ingest_reserved_are_free(zone: Any) -> None:
    zone.rows({}, {"submission_id": "A2"})
    kill(zone, DAY)
    assert owned(zone) == {"A1": DAY, "A2": DAY}
    zone.rows({}, day=NEXT)
    zone.ingest(NEXT)
    assert zone.ids(NEXT) == ["A1"]
    assert owned(zone) == {"A1": NEXT}
    zone.ingest()
    assert accepted(zone) == [("A1", NEXT), ("A2", DAY)]


def test_documents_that_a_killed_ingest_reserved_are_free(zone: Any) -> None:
    zone.rows({})
    kill(zone, DAY)
    zone.rows({"submission_id": "A2"}, day=NEXT)
    assert zone.ingest(NEXT, options=LandingOptions(reject_duplicate_documents=True)).accepted == 1


def test_an_ingest_that_fails_frees_what_it_reserved(zone: Any) -> None:
    def fail() -> None:
        raise KycError("a reason")

    zone.rows({})
    with pytest.raises(KycError, match="a reason"):
        ingest(zone, DAY, fail)
    assert owned(zone) == {}


def test_a_row_that_is_rejected_after_all_leaves_its_id_free(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    zone.rows({"submission_id": "A2"}, day=NEXT)
    zone.ingest(NEXT, options=LandingOptions(reject_duplicate_documents=True))
    assert owned(zone) == {"A1": DAY}


def test_while_a_day_is_published_its_word_counts(zone: Any) -> None:
    zone.rows(TAGGED)
    zone.rows(TAGGED, OTHER, {"submission_id": "A2"}, day=NEXT)

    def ingest_next() -> None:
        zone.ingest(NEXT)
        assert zone.reasons(NEXT) == [(1, "duplicate_submission_id"), (2, "conflicting_submission_id")]
        assert not is_ingested(zone.landing, zone.lake, NEXT), "the other day may still fail"

    ingest(zone, DAY, ingest_next)
    assert is_ingested(zone.landing, zone.lake, NEXT)
    assert accepted(zone) == [("A1", DAY), ("A2", NEXT)]


def test_a_day_whose_owner_was_killed_is_due_again(zone: Any) -> None:
    zone.rows(TAGGED)
    zone.ingest()
    zone.rows(TAGGED, {"submission_id": "A2"})
    zone.rows({"submission_id": "A2"}, day=NEXT)

    def ingest_next() -> None:
        zone.ingest(NEXT)
        raise Killed

    with pytest.raises(Killed):
        ingest(zone, DAY, ingest_next)
    zone.rows(TAGGED)
    assert not is_ingested(zone.landing, zone.lake, NEXT)
    zone.ingest(NEXT)
    assert is_ingested(zone.landing, zone.lake, NEXT)
    assert accepted(zone) == [("A1", DAY), ("A2", NEXT)]


def lose_lease(zone: Any) -> None:
    with Ledger(zone.ledger_url) as ledger, ledger.write() as connection:
        connection.execute(sa.update(leases).values(token="other"))


def test_a_lease_that_is_lost_before_ids_are_reserved_leaves_the_day_as_it_was(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    before = zone.files()
    zone.rows({"submission_id": "A2"})
    with Ledger(zone.ledger_url) as ledger, hold(ledger, DAY, "run") as held:
        lose_lease(zone)
        with pytest.raises(LeaseLost, match="start again"):
            ingest_partition(
                landing=zone.landing, lake=zone.lake, date=DAY, owners=Owners(zone.lake, ledger, held)
            )
    assert zone.files() == before


def test_a_lease_that_is_lost_during_publication_fails_the_day(zone: Any) -> None:
    zone.rows({})
    with pytest.raises(LeaseLost, match="start again"):
        ingest(zone, DAY, lambda: lose_lease(zone))


def test_an_id_that_another_day_took_during_publication_fails_the_day(zone: Any) -> None:
    zone.rows({})

    def take() -> None:
        with Ledger(zone.ledger_url) as ledger, ledger.write() as connection:
            connection.execute(sa.update(owners).values(partition_date=NEXT))

    with pytest.raises(KycError, match=f"another day has accepted 1 id of {DAY}: run {DAY} again"):
        ingest(zone, DAY, take)


def test_a_kill_at_any_step_loses_no_submission_and_accepts_none_twice(zone: Any) -> None:
    """Rows move to the next day, which is ingested after the kill; then the days that are due."""
    zone.rows({}, {"submission_id": "A2"}, {"submission_id": "A3"})
    zone.ingest()
    respond(zone, DAY, "A3")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.ingest.killed_ingest"])
    ledger = Path(zone.ledger_url.removeprefix("sqlite:///"))
    partitions = [Path(zone.lake.path(table, DAY)) for table in (SUBMISSIONS, REJECTED_SUBMISSIONS)]
    before = {path: path.read_bytes() for path in (ledger, *partitions)}
    zone.rows({"submission_id": "A4"}, {"submission_id": "A2"}, {"submission_id": "A3"})
    zone.rows({}, {"submission_id": "A2"}, {"submission_id": "A3"}, {"submission_id": "A4"}, day=NEXT)
    for step in itertools.count(1):
        arguments = zone.landing, zone.lake.root, zone.ledger_url, DAY, step
        process = context.Process(target=ingest_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        zone.ingest(NEXT)
        assert Counter(key for key, _ in accepted(zone)).most_common(1)[0][1] == 1, f"step {step}"
        settle(zone)
        assert [key for key, _ in accepted(zone)] == ["A1", "A2", "A3", "A4"], f"step {step}"
        assert ("A3", DAY) in accepted(zone), "it was sent"
        assert owned(zone) == dict(accepted(zone))
        if process.exitcode == 0:
            break
        for path, content in before.items():
            path.write_bytes(content)
        Path(f"{ledger}-journal").unlink(missing_ok=True)
        Path(zone.lake.path(SUBMISSIONS, NEXT)).unlink()
    assert step > 8


def respond(zone: Any, day: str, *ids: str) -> None:
    """Writes responses of the day: these ids were sent."""
    row = {"outcome": Outcome.COMPLETED.value, "attempts": 1, "billable_calls": 1, "content_sha256": "0" * 64}
    zone.lake.write(VERIFICATION_RESPONSES, day, [row | {"submission_id": key} for key in ids])


def settle(zone: Any) -> None:
    """Ingests the days that are due until none is."""
    for _ in range(6):
        due = [day for day in DAYS if not is_ingested(zone.landing, zone.lake, day)]
        for day in due:
            zone.ingest(day)
        if not due:
            return
    raise AssertionError(f"still due: {due}")


# --- at the same time -------------------------------------------------------------------------------------


def test_one_of_many_gets_an_id(ledger_url: str) -> None:
    """Each day wants the same ids, in its own order."""
    days = [f"2024-09-{number:02}" for number in range(1, 7)]
    ids = [f"A{number}" for number in range(40)]
    start = threading.Barrier(len(days))
    found: dict[str, list[Owner]] = {}
    with Ledger(ledger_url) as ledger:
        assert list(find(ledger, DAY, [Owner("A1", DAY, "c", "d")])) == []

    def work(day: str) -> None:
        with Ledger(ledger_url) as ledger, hold(ledger, day, day) as held:
            start.wait()
            rows = (Owner(key, day, "content", f"documents of {key}") for key in ids)
            found[day] = list(reserve(ledger, held.lease, rows))

    threads = [threading.Thread(target=work, args=(day,)) for day in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger(ledger_url) as ledger, ledger.read() as connection:
        rows = connection.execute(sa.select(owners.c.submission_id, owners.c.partition_date))
        won = dict(rows.tuples().all())
    assert sorted(won) == sorted(ids)
    for day in days:
        theirs = {row.submission_id: row.date for row in found[day] if row.submission_id}
        assert theirs == {key: owner for key, owner in won.items() if owner != day}
        seen = {row.documents_sha256 for row in found[day] if not row.submission_id}
        assert seen == {f"documents of {key}" for key in theirs}


def test_ids_of_any_spelling_are_told_apart(ledger_url: str) -> None:
    ids = ["a", "A", "a.", "a-", "a_", "-", ".", "0", "00", "x" * 64, "x" * 63 + "y"]
    with Ledger(ledger_url) as ledger:
        for day, keys in ((DAY, ids[::2]), (NEXT, ids)):
            with hold(ledger, day, day) as held:
                rows = (Owner(key, day, "c", f"d{len(key)}") for key in keys)
                found = list(reserve(ledger, held.lease, rows))
        assert sorted(row.submission_id for row in found if row.submission_id) == sorted(ids[::2])
        with hold(ledger, THIRD, THIRD) as held:
            sent = [Owner(ids[0], THIRD, "c", "d"), Owner("new", THIRD, "c", "d")]
            assert [row.date for row in reserve(ledger, held.lease, sent, sent=True)] == []
        assert [row.date for row in find(ledger, NEXT, [Owner(ids[0], NEXT, "c", "e")])] == [THIRD]


def test_an_erasure_waits_for_the_ingests_that_began_to_publish(zone: Any, until: Any) -> None:
    zone.rows({})
    is_over = threading.Event()
    waited: list[list[tuple[str, str]]] = []

    def wait() -> None:
        with Ledger(zone.ledger_url) as ledger:
            wait_for_ingests(zone.lake, ledger, "erase")
        waited.append(accepted(zone))
        is_over.set()

    def confirm() -> None:
        with Ledger(zone.ledger_url) as ledger, pytest.raises(PartitionBusy, match=f"run-of-{DAY}"):
            wait_for_ingests(zone.lake, ledger, "erase", wait_seconds=0)
        threading.Thread(target=wait).start()

    ingest(zone, DAY, confirm)
    assert is_over.wait(60)
    assert waited == [[("A1", DAY)]]


def test_an_erasure_settles_the_days_of_killed_ingests(zone: Any) -> None:
    zone.rows({})
    with contextlib.suppress(Killed), Ledger(zone.ledger_url) as ledger:
        kill(zone, DAY)
    with Ledger(zone.ledger_url) as ledger:
        # As a kill leaves it: nobody released the lease of a process that is gone.
        with hold(ledger, DAY, "killed") as held, ledger.write() as connection:
            connection.execute(sa.update(ingests).values(publishing=held.lease.token))
            kept = dict(connection.execute(sa.select(leases)).mappings().one()) | {"pid_started": "0"}
        with ledger.write() as connection:
            connection.execute(sa.insert(leases).values(kept))
        wait_for_ingests(zone.lake, ledger, "erase", wait_seconds=0)
    assert owned(zone) == {}


# --- any history ------------------------------------------------------------------------------------------

IDS = ("A1", "A2", "A3")
DELIVERY = st.tuples(
    st.just("deliver"), st.sampled_from(DAYS), st.dictionaries(st.sampled_from(IDS), st.sampled_from("vw"))
)
STEPS = st.lists(
    st.one_of(
        DELIVERY,
        st.tuples(st.just("ingest"), st.lists(st.sampled_from(DAYS), min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("kill"), st.sampled_from(DAYS)),
        st.tuples(st.just("send"), st.sampled_from(DAYS)),
        st.tuples(st.just("lose the ledger")),
    ),
    min_size=3,
    max_size=10,
)


@given(STEPS)
@settings(max_examples=tries(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_id_has_one_day_whatever_happens(make_zone: Callable[[], Any], steps: list[Any]) -> None:
    zone = make_zone()
    sent: dict[str, str] = {}
    wanted: dict[str, dict[str, str]] = {}

    def deliver(day: str, contents: dict[str, str]) -> None:
        wanted[day] = contents
        rows = ({"submission_id": key, "tags": f'{{"k": "{text}"}}'} for key, text in contents.items())
        zone.rows(*rows, day=day)

    def ingest_at_once(days: list[str]) -> None:
        threads = [threading.Thread(target=zone.ingest, args=(day,)) for day in days]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def send(day: str) -> None:
        keys = zone.ids(day) if zone.lake.exists(SUBMISSIONS, day) else []
        respond(zone, day, *keys)
        sent.update(dict.fromkeys(keys, day))

    def lose_ledger() -> None:
        Path(zone.ledger_url.removeprefix("sqlite:///")).unlink(missing_ok=True)

    do: dict[str, Callable[..., object]] = {
        "deliver": deliver,
        "ingest": ingest_at_once,
        "kill": lambda day: kill(zone, day),
        "send": send,
        "lose the ledger": lose_ledger,
    }
    for what, *arguments in steps:
        do[what](*arguments)
        found = accepted(zone)
        assert len(dict(found)) == len(found), "an id has two days"
        assert sent.items() <= dict(found).items(), "what was sent stays"
    settle(zone)
    delivered = {key for contents in wanted.values() for key in contents}
    assert dict(accepted(zone)).keys() == delivered | sent.keys()
    assert accepted(zone) == sorted(dict(accepted(zone)).items())
    assert dict(accepted(zone)).items() <= owned(zone).items()
