"""Pseudonyms: stable, keyed and separate for each domain; the key is created once."""

import hashlib
import hmac
import os
import re
import secrets
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from kyc_pipeline.errors import UsageError
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, has_pseudonym_key, load_pseudonymizer
from kyc_pipeline.settings import Settings

KEY = "k" * 32
PSEUDONYMIZER = Pseudonymizer(KEY)


def test_matches_the_documented_hmac() -> None:
    expected = hmac.new(KEY.encode(), b"14:tag:customerId:9999", hashlib.sha256).hexdigest()
    assert Pseudonymizer(KEY).tag("customerId", "9999") == expected


def test_a_lone_surrogate_is_a_character_like_any_other() -> None:
    message = "6:tag:a\ud800:\udfff".encode(errors="surrogatepass")
    expected = hmac.new(KEY.encode(), message, hashlib.sha256).hexdigest()
    assert PSEUDONYMIZER.tag("a\ud800", "\udfff") == expected


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


def test_columns_without_rows_have_the_type_of_a_pseudonym() -> None:
    nothing = pa.array([], pa.string())
    assert PSEUDONYMIZER.tags(nothing, nothing).type == pa.string()
    assert PSEUDONYMIZER.documents(nothing).type == pa.string()


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


def write_private(file: Path, content: str) -> None:
    file.touch(mode=0o600)
    file.write_text(content, encoding="utf-8")


def settings(folder: Path) -> Settings:
    return Settings(_env_file=None, kyc_landing=folder / "landing")


def test_the_key_file_is_created_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = load_pseudonymizer(settings(tmp_path))
    file = tmp_path / "pseudonym.key"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert re.fullmatch("[0-9a-f]{64}", file.read_text())
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


def test_the_key_that_is_written_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key, other = secrets.token_hex, secrets.token_hex(32)

    def make_key_while_another_process_writes_its_own(count: int) -> str:
        write_private(tmp_path / "pseudonym.key", other)
        return make_key(count)

    monkeypatch.setattr(secrets, "token_hex", make_key_while_another_process_writes_its_own)
    assert load_pseudonymizer(settings(tmp_path)).key_id == Pseudonymizer(other).key_id


def test_a_key_in_the_settings_comes_before_that_of_the_file(tmp_path: Path) -> None:
    assert not has_pseudonym_key(settings(tmp_path))
    load_pseudonymizer(settings(tmp_path))
    assert has_pseudonym_key(settings(tmp_path))
    key = secrets.token_hex(32)
    configured = Settings(
        _env_file=None, kyc_landing=tmp_path / "elsewhere/landing", kyc_pseudonym_key=SecretStr(key)
    )
    assert has_pseudonym_key(configured)
    assert load_pseudonymizer(configured).key_id == Pseudonymizer(key).key_id
    assert not configured.pseudonym_key_file.exists()


@pytest.mark.parametrize("content", ["ä" * 64, None])
def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "pseudonym.key"
    if content is None:
        file.mkdir(mode=0o700)
    else:
        write_private(file, content)
    kind = "Is a directory" if content is None else "UnicodeDecodeError"
    with pytest.raises(UsageError, match=f"key file {re.escape(str(file))}: {kind}$"):
        load_pseudonymizer(settings(tmp_path))


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "pseudonym.key", "")
    with pytest.raises(UsageError, match="at least 32"):
        load_pseudonymizer(settings(tmp_path))


@pytest.mark.parametrize("length", [16, 63, 64, 65, 200])
def test_a_key_of_any_length_gives_the_standard_hmac(length: int) -> None:
    key = "ä" + "k" * length
    expected = hmac.new(key.encode(), b"8:document:ab", hashlib.sha256).hexdigest()
    assert Pseudonymizer(key).document("AB") == expected


def test_the_key_id_is_no_shortcut_to_the_key() -> None:
    """It is not an HMAC of the key, which could be tried a million times a second, and short."""
    expected = hashlib.scrypt(KEY.encode(), salt=b"kyc-pipeline key id", n=2**14, r=8, p=1).hex()
    assert Pseudonymizer(KEY).key_id == expected[:6]
    assert not Pseudonymizer(KEY).document("").startswith(Pseudonymizer(KEY).key_id)
