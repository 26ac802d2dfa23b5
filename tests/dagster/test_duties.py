"""Duties towards people and regulators on the command line, one deployment for each test."""

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sqlalchemy import text

from kyc_pipeline.erasure.find import ID_COLUMN
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, TABLES
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DAY = "2024-09-08"
MARK = "Zq7mark"
CUSTOMER = f"{MARK}-9999"
TAG = f"customerId={CUSTOMER}"
OTHER = "customerId=other"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def pseudonym_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "0123456789abcdef" * 2)


@pytest.fixture
def day(landing: Any, run: Run) -> str:
    """An ingested day of the person and somebody else."""
    theirs = landing.submission(f"{MARK}-0", 11, {"customerId": CUSTOMER, "companyId": "COMP-001"})
    landing.manifest(DAY, [theirs, landing.submission("a", 20, {"customerId": "other"})])
    ingest_partition(landing=landing.root, lake=Lake("lake"), date=DAY)
    return DAY


def test_the_audit_trail_says_who_erased_whom_and_why(day: str, run: Run) -> None:
    assert run("audit", "list")[:2] == (0, "no entries\n")
    code, _, err = run("erase", "--tag", TAG, "--reason", f"{CUSTOMER} asked for it")
    assert (code, "must not name the person" in err) == (2, True)
    assert Lake("lake").row_count(SUBMISSIONS, DAY) == 2, "nothing was erased"
    why = ("--reason", "asked for it", "--request", "R-7")
    assert run("erase", "--tag", TAG, "--dry-run", *why, KYC_OPERATOR="Ann")[0] == 0
    assert run("erase", "--tag", TAG, *why, KYC_OPERATOR="Ann")[0] == 0
    assert run("erase", "--tag", OTHER, "--request", "R-8", KYC_OPERATOR="Bob")[0] == 0
    code, out, _ = run("audit", "list", "--tag", TAG, "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    assert (code, [entry["action"] for entry in entries]) == (0, ["erase", "erased"])
    for entry in entries:
        assert (entry["operator"], entry["reason"], entry["request"]) == ("Ann", "asked for it", "R-7")
    assert entries[0]["details"]["submissions"] == 1
    _, out, _ = run("audit", "list")
    assert [line.split()[3] for line in out.splitlines()[1:]] == ["Ann", "Ann", "Bob", "Bob"]
    assert MARK not in out


def test_audit_verify_finds_what_somebody_changed(day: str, run: Run) -> None:
    assert run("erase", "--tag", TAG)[0] == 0
    code, out, _ = run("audit", "verify")
    assert (code, "2 entries, none changed, removed or inserted" in out) == (0, True)
    seen = out.split()[-1]
    assert run("erase", "--tag", OTHER)[0] == 0
    assert run("audit", "verify", "--seen", seen)[0] == 0
    with Ledger("sqlite:///ledger.sqlite") as ledger, ledger.write() as connection:
        for change in ("DROP TRIGGER audit_no_delete", "DELETE FROM audit WHERE number = 2"):
            connection.execute(text(change))
    assert run("audit", "verify", "--seen", seen) == (
        3,
        "",
        f"entry 2 is missing\nno entry has the hash {seen}\n",
    )


def test_an_export_has_all_of_one_person_and_nothing_of_anybody_else(
    day: str, landing: Any, run: Run, tmp_path: Path
) -> None:
    rejected = {"submission_id": f"{MARK}-1", "tags": {"customerId": CUSTOMER}}
    landing.manifest(DAY, [rejected, {"submission_id": "a-2", "id_file": "a-id.jpg"}], name="more.jsonl")
    assert run("backfill", "--no-publish", "--from", DAY, "--to", DAY)[0] == 0
    for folder in ("out", "again", "none"):
        (tmp_path / folder).mkdir()
    code, out, err = run("export", "--tag", TAG, "--output", "out", "--request", "R-9")
    assert (code, err) == (0, "")
    assert MARK not in out
    [file] = (tmp_path / "out").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert MARK not in file.name
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().split()
    assert any(file.match(pattern.lstrip("/")) for pattern in ignored)
    exported = json.loads(file.read_bytes())
    assert [(row["manifest"], row["row"]) for row in exported["landing"]] == [
        ("m.jsonl", 1),
        ("more.jsonl", 1),
    ]
    documents = {each["path"]: (each["sha256"], each["size"]) for each in exported["documents"]}
    assert documents == {
        name: (hashlib.sha256(content).hexdigest(), len(content))
        for name in (f"{MARK}-0-id.jpg", f"{MARK}-0-selfie.jpg")
        for content in [(landing.root / "documents" / name).read_bytes()]
    }
    lake = Lake("lake")
    for table in TABLES:
        column = ID_COLUMN[table]
        theirs = [row for row in lake.read(table, DAY).to_pylist() if str(row[column]).startswith(MARK)]
        assert len(exported["lake"].get(table.name, [])) == len(theirs), table.name
    assert exported["lake"]["submissions"][0]["tags"] == {"customerId": CUSTOMER, "companyId": "COMP-001"}
    [paid] = exported["ledger"]["submissions"]
    assert (paid["submission_id"], paid["state"], paid["updated_at"][:2]) == (f"{MARK}-0", "completed", "20")
    assert len(exported["ledger"]["attempts"]) == 1
    for mark in ('"a"', "a-id.jpg", '"other"', "a-2"):
        assert mark not in file.read_text()
    before = file.read_bytes()
    # In another spelling it is the same person.
    assert run("export", "--tag", f"customer_id={CUSTOMER.upper()}", "--output", "again")[0] == 0
    [again] = (tmp_path / "again").iterdir()
    assert again.name == file.name
    assert again.read_bytes() == before.replace(b'"customerId",', b'"customer_id",', 1).replace(
        CUSTOMER.encode(), CUSTOMER.upper().encode(), 1
    )
    code, out, _ = run("export", "--tag", "customerId=nobody", "--output", "none", "--request", "R-10")
    nothing = "nothing is stored: no submission and no manifest has this tag with this value\n"
    assert (code, out) == (3, nothing)
    assert not list((tmp_path / "none").iterdir())
    code, _, err = run("export", "--tag", TAG, "--output", "out/person.json")
    assert (code, "Directory 'out/person.json' does not exist" in err) == (2, True)
    assert not (tmp_path / "out" / "person.json").exists()
    code, out, _ = run("export", "--tag", f"custmerId={CUSTOMER}")
    nothing = "nothing is stored: no submission and no manifest has a tag of this name; submissions have "
    assert (code, out) == (3, f"{nothing}companyId, customerId\n")
    _, out, _ = run("audit", "list", "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    assert [(entry["action"], entry["request"], entry["details"]["landing"]) for entry in entries] == [
        ("export", "R-9", 2),
        ("export", None, 2),
        ("export", "R-10", 0),
        ("export", None, 0),
    ]


def test_an_export_of_unreadable_manifests_is_incomplete_and_says_so(
    day: str, landing: Any, run: Run
) -> None:
    (landing.root / "manifests" / DAY / "new.parquet").write_bytes(b"PAR1 damaged")
    code, _, err = run("export", "--tag", TAG)
    assert (
        code,
        "incomplete: 1 unreadable manifest not searched (manifests/2024-09-08/new.parquet: is not" in err,
    ) == (3, True)


def test_an_erasure_names_a_manifest_that_it_could_not_search_and_is_not_done(
    day: str, landing: Any, run: Run
) -> None:
    manifest = landing.root / "manifests" / DAY / "new.parquet"
    manifest.write_bytes(b"PAR1 damaged")
    code, out, _ = run("erase", "--tag", TAG, "--landing")
    assert (code, "1 unreadable manifest not searched (manifests/2024-09-08/new.parquet" in out) == (3, True)
    manifest.unlink()
    assert run("erase", "--tag", TAG, "--landing")[0] == 0


@pytest.mark.parametrize(
    "command",
    [("erase", "--tag", TAG), ("erase", "--tag", TAG, "--dry-run"), ("export", "--tag", TAG), ("retention",)],
    ids=" ".join,
)
def test_no_duty_is_done_while_the_landing_zone_is_away(
    day: str, landing: Any, run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Else the person's documents, and the ends of relationships, would look as if there were none."""
    landing.root.rename(tmp_path / "away")
    landing.root.mkdir()  # where the volume is mounted
    code, out, err = run(*command, KYC_RETAIN_DAYS="30")
    assert (code, out, "mount its volume" in err) == (2, "", True), err
    assert Lake("lake").row_count(SUBMISSIONS, DAY) == 2
    assert run("audit", "list")[:2] == (0, "no entries\n")


def test_an_erasure_respects_a_legal_hold_and_names_it(day: str, run: Run) -> None:
    assert run("legal-hold", "list")[:2] == (0, "no legal holds\n")
    # On another tag of the person than the one by which they are erased.
    hold = ("legal-hold", "add", "--tag", "company_id=COMP-001")
    assert run(*hold)[0] == 2
    assert run(*hold, "--reason", "case 4/26", KYC_OPERATOR="Ann") == (0, "hold set\n", "")
    code, _, err = run(*hold, "--reason", "again")
    assert (code, "there is a legal hold on this tag already" in err) == (2, True)
    _, out, _ = run("legal-hold", "list")
    assert out.split()[-6:] == [datetime.now(UTC).date().isoformat(), "Ann", "companyid", *out.split()[-3:]]
    assert "case 4/26" in out
    code, out, _ = run("erase", "--tag", TAG, "--dry-run")
    assert (code, "refused: legal hold on a companyid since 20" in out) == (3, True)
    assert out.startswith("dry run: nothing changes. The erasure would be refused:\n")
    for tag in (TAG, f"submissionId={MARK}-0"):
        code, _, err = run("erase", "--tag", tag)
        assert code == 1
        assert "nothing was erased: legal hold on a companyid since 20" in err
        assert "case 4/26" in err
        assert len(err.splitlines()) == 1
    assert Lake("lake").row_count(SUBMISSIONS, DAY) == 2
    assert run("audit", "list", "--tag", TAG)[:2] == (0, "no entries\n"), "there was no erasure"
    assert run("erase", "--tag", OTHER)[0] == 0, "somebody else"
    lift = ("legal-hold", "remove", "--tag", "companyId=COMP-001", "--reason", "closed")
    assert run(*lift)[:2] == (0, "hold lifted\n")
    assert run(*lift)[0] == 2
    assert run("erase", "--tag", TAG)[0] == 0
    assert Lake("lake").row_count(SUBMISSIONS, DAY) == 0
    _, out, _ = run("audit", "list", "--tag", "companyId=COMP-001", "--json")
    assert [json.loads(line)["action"] for line in out.splitlines()] == [
        "legal-hold-add",
        "legal-hold-remove",
    ]


def test_a_hold_may_come_before_anything_is_delivered(run: Run, landing: Any) -> None:
    code, _, err = run("legal-hold", "add", "--tag", TAG, "--reason", "case 4/26")
    assert (code, "If --tag has a typing error, remove this hold" in err) == (0, True)
    landing.manifest(DAY, [landing.submission(f"{MARK}-0", 11, {"customerId": CUSTOMER})])
    code, out, err = run("erase", "--tag", TAG)
    assert (code, "nothing was erased" in err, MARK in out + err) == (1, True, False)


def test_retention_shows_what_is_due_and_removes_it_on_request(day: str, landing: Any, run: Run) -> None:
    code, _, err = run("retention")
    assert (code, "set KYC_RETAIN_DAYS or KYC_RETAIN_DOCUMENTS_DAYS" in err) == (2, True)
    folder = landing.root / "relationships"
    folder.mkdir()
    (folder / "ends.csv").write_text(f"tag.customerId,ended_at\n{CUSTOMER},2024-10-01\nother,2024-10-01\n")
    assert run("legal-hold", "add", "--tag", OTHER, "--reason", "case 4/26")[0] == 0
    rules = {"KYC_RETAIN_DAYS": "365", "KYC_RETAIN_DOCUMENTS_DAYS": "30"}
    code, out, err = run("retention", **rules)
    assert (code, err) == (0, "")
    assert out.startswith("dry run: nothing changes. --apply would do this:\nrelationships: 2 subjects\n")
    assert re.search(r"^data +365 +1 submission$", out, re.MULTILINE)
    assert re.search(r"^documents +30 +2 documents$", out, re.MULTILINE)
    assert "kept: 1 submission under legal hold on a customerid since 20" in out
    assert Lake("lake").row_count(SUBMISSIONS, DAY) == 2
    code, again, err = run("retention", "--apply", "--request", "R-11", **rules)
    assert (code, err) == (0, "")
    assert again.splitlines() == [*out.splitlines()[1:], "removed"]
    assert [row["submission_id"] for row in Lake("lake").read(SUBMISSIONS, DAY).to_pylist()] == ["a"]
    assert {path.name for path in (landing.root / "documents").iterdir()} == {"a-id.jpg", "a-selfie.jpg"}
    code, out, _ = run("retention", "--apply", **rules)
    assert (code, "removed" in out) == (0, False)
    _, out, _ = run("audit", "list", "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["action"] for entry in entries] == ["legal-hold-add", "retention", "retention-ended"]
    assert (entries[2]["request"], entries[2]["details"]["submissions"], entries[2]["details"]["held"]) == (
        "R-11",
        1,
        1,
    )
    assert MARK not in out


def test_what_deepxl_must_delete_is_listed_until_somebody_confirms_it(
    day: str, run: Run, tmp_path: Path
) -> None:
    assert run("vendor-deletions", "list") == (0, "DeepXL has nothing to delete\n", "")
    [row] = [row for row in Lake("lake").read(SUBMISSIONS, DAY).to_pylist() if row["submission_id"] != "a"]
    with Ledger("sqlite:///ledger.sqlite") as ledger:
        lease = acquire_lease(ledger, DAY, "run")
        claim = Claim(row["submission_id"], row["content_sha256"])
        commit(ledger, lease, [claim], [])
        lost = ClaimResult(claim, State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, billable=True)
        commit(ledger, lease, [], [lost])
        release_lease(ledger, lease)
    code, out, _ = run("erase", "--tag", TAG, "--request", "R-12")
    assert (code, "1 submission with a record of unknown id" in out, MARK in out) == (0, True, False)
    assert f"{MARK}-0" in run("vendor-deletions", "list")[1]
    confirm = ("vendor-deletions", "confirm")
    assert run(*confirm, "--request", "R-12")[0] == 2, "without evidence"
    assert run(*confirm, "--all", "--request", "R-12", "--evidence", "letter 7")[0] == 2
    code, _, err = run(*confirm, "--request", "R-13", "--evidence", "letter 7")
    assert (code, "no such record is open" in err) == (2, True)
    code, _, err = run(*confirm, "--all", "--evidence", "letter 7", "--date", "9999-03-03")
    assert (code, "--date 9999-03-03 is in the future" in err) == (2, True)
    evidence = ("--evidence", "letter 7", "--date", "2026-03-03")
    assert run(*confirm, "--request", "R-12", *evidence) == (0, "1 deletion confirmed\n", "")
    assert run("vendor-deletions", "list")[1] == "DeepXL has nothing to delete\n"
    assert MARK.encode() not in (tmp_path / "ledger.sqlite").read_bytes()
    _, out, _ = run("vendor-deletions", "list", "--confirmed")
    assert "2026-03-03" in out
    assert "letter 7" in out
    _, out, _ = run("audit", "list", "--json")
    entry = json.loads(out.splitlines()[-1])
    assert (entry["action"], entry["reason"], entry["request"]) == ("vendor-deletion", "letter 7", "R-12")
    assert run("audit", "verify")[0] == 0


def test_a_new_key_reaches_the_warehouse_and_keeps_erased_people_out(landing: Any, run: Run) -> None:
    theirs = landing.submission(f"{MARK}-0", 11, {"customerId": CUSTOMER, "companyId": "COMP-001"})
    landing.manifest(DAY, [theirs, landing.submission("a", 20, {"customerId": "other"})])
    assert run("backfill", "--no-publish", "--from", DAY, "--to", DAY)[0] == 0
    assert run("erase", "--tag", TAG)[0] == 0
    assert run("publish")[0] == 0
    old, new = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    keys = {"KYC_PSEUDONYM_KEY": new, "KYC_PSEUDONYM_OLD_KEYS": old}
    assert _published_pseudonym("customerId") == Pseudonymizer(old).tag("customerId", "other")
    code, out, _ = run("rekey", "--dry-run", **keys)
    assert (code, "4 tombstones and 1 day have another" in out) == (0, True), out
    code, out, err = run("rekey", "--reason", "yearly", **keys)
    assert (code, err) == (0, "")
    assert f"leave in KYC_PSEUDONYM_OLD_KEYS: {Pseudonymizer(old).key_id}" in out
    assert _published_pseudonym("customerId") == Pseudonymizer(new).tag("customerId", "other")
    code, out, _ = run("audit", "list", "--tag", TAG, "--json", **keys)
    assert [json.loads(line)["action"] for line in out.splitlines()] == ["erase", "erased"]
    code, out, _ = run("audit", "list", "--json", **keys)
    assert [json.loads(line)["action"] for line in out.splitlines()][2:] == ["rekey", "rekeyed"]
    nothing = f"ledger and lake have the key {Pseudonymizer(new).key_id} already: nothing to replace there\n"
    assert run("rekey", "--dry-run", **keys) == (0, f"dry run: nothing changes; {nothing}", "")
    for published in ("warehouse", "report"):
        shutil.rmtree(published)  # or they would be built again
    code, out, _ = run("rekey", **keys)
    assert (code, out.startswith(nothing)) == (0, True), out
    code, _, err = run("plan", "--from", DAY, "--to", DAY, KYC_PSEUDONYM_KEY=new)
    assert (code, "add the old key to KYC_PSEUDONYM_OLD_KEYS" in err) == (2, True), err


def _published_pseudonym(tag: str) -> str:
    with duckdb.connect("warehouse/kyc.duckdb", read_only=True) as warehouse:
        query = "SELECT DISTINCT pseudonym FROM verification_tags WHERE name = ?"
        [(pseudonym,)] = warehouse.execute(query, [tag]).fetchall()
    return str(pseudonym)
