"""Pseudonyms: stable, keyed and separate for each domain; the key is created once."""

import hashlib
import hmac
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kyc_pipeline.errors import UsageError
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, load_pseudonymizer
from kyc_pipeline.settings import Settings

KEY = "k" * 32
PSEUDONYMIZER = Pseudonymizer(KEY)


def test_matches_the_documented_hmac() -> None:
    expected = hmac.new(KEY.encode(), b"14:tag:customerId:9999", hashlib.sha256).hexdigest()
    assert Pseudonymizer(KEY).tag("customerId", "9999") == expected


@given(st.text(), st.text(), st.text(), st.text())
def test_differs_by_name_and_value(name: str, value: str, other_name: str, other_value: str) -> None:
    pseudonymizer = Pseudonymizer(KEY)
    assume((name, value.strip()) != (other_name, other_value.strip()))
    # Values that are equal after normalisation are one value.
    assume(name != other_name or pseudonymizer.tag("n", value) != pseudonymizer.tag("n", other_value))
    assert pseudonymizer.tag(name, value) != pseudonymizer.tag(other_name, other_value)


BLANKS = st.sampled_from(["", " \t", "Jose\u0301 ", "\u2000", "\x1f", "a\n", "0:a"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(TEXT, TEXT | BLANKS)))
def test_columns_and_single_values_agree(tags: list[tuple[str, str]]) -> None:
    names, values = (pa.array([tag[side] for tag in tags], pa.string()) for side in (0, 1))
    assert PSEUDONYMIZER.tags(names, values).to_pylist() == [
        PSEUDONYMIZER.tag(name, value) if value.strip() else None for name, value in tags
    ]
    digests = [value.encode().hex().upper() for _, value in tags]
    assert PSEUDONYMIZER.documents(pa.array(digests, pa.string())).to_pylist() == [
        PSEUDONYMIZER.document(digest) for digest in digests
    ]


@pytest.mark.parametrize("key", [KEY, "ä" + "k" * 200])
def test_columns_give_the_standard_hmac(key: str) -> None:
    expected = hmac.new(key.encode(), b"14:tag:customerId:9999", hashlib.sha256).hexdigest()
    assert Pseudonymizer(key).tags(pa.array(["customerId"]), pa.array([" 9999"])).to_pylist() == [expected]


def test_threads_can_share_a_pseudonymizer() -> None:
    names = pa.array(["n"] * 5000)
    values = [pa.array([f"{thread}-{row}" for row in range(5000)]) for thread in range(4)]
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda each: PSEUDONYMIZER.tags(names, each), values))
    for thread in range(4):
        assert made[thread][77].as_py() == PSEUDONYMIZER.tag("n", f"{thread}-77")


def test_equal_after_normalisation() -> None:
    pseudonymizer = Pseudonymizer(KEY)
    assert pseudonymizer.tag("n", "Jose\u0301 ") == pseudonymizer.tag("n", "José")


def test_another_key_gives_another_pseudonym_and_key_id() -> None:
    one, other = Pseudonymizer(KEY), Pseudonymizer("o" * 32)
    assert one.tag("n", "v") != other.tag("n", "v")
    assert one.key_id != other.key_id


def test_documents_and_tags_are_separate_domains() -> None:
    digest = hashlib.sha256(b"image").hexdigest()
    pseudonymizer = Pseudonymizer(KEY)
    assert pseudonymizer.document(digest) != pseudonymizer.tag("document", digest)


def test_the_key_does_not_show() -> None:
    assert KEY not in repr(Pseudonymizer(KEY))


def test_a_short_key_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="KYC_PSEUDONYM_KEY") as caught:
        Pseudonymizer("short-secret")
    assert "short-secret" not in str(caught.value)


def settings(folder: Path) -> Settings:
    return Settings(_env_file=None, kyc_landing=folder / "landing")


def test_the_key_file_is_created_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = load_pseudonymizer(settings(tmp_path))
    file = tmp_path / "pseudonym.key"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert load_pseudonymizer(settings(tmp_path)).key_id == first.key_id
    assert os.listdir(tmp_path) == ["pseudonym.key"]


def test_processes_that_start_together_use_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kyc_pipeline.settings import Settings;"
        "from kyc_pipeline.privacy.pseudonyms import load_pseudonymizer;"
        "print(load_pseudonymizer(Settings(_env_file=None, kyc_landing=Path(sys.argv[1]))).key_id)"
    )
    landing = str(tmp_path / "landing")
    processes = [
        subprocess.Popen([sys.executable, "-c", code, landing], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert not any(process.returncode for process in processes)


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pseudonym.key").write_text("")
    with pytest.raises(UsageError, match="at least 16"):
        load_pseudonymizer(settings(tmp_path))


@pytest.mark.parametrize("length", [16, 63, 64, 65, 200])
def test_a_key_of_any_length_gives_the_standard_hmac(length: int) -> None:
    key = "ä" + "k" * length
    expected = hmac.new(key.encode(), b"8:document:ab", hashlib.sha256).hexdigest()
    assert Pseudonymizer(key).document("AB") == expected
    assert Pseudonymizer(key).key_id == hmac.new(key.encode(), b"key-id", hashlib.sha256).hexdigest()[:8]
