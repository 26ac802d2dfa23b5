"""A file is replaced completely or not at all, and only an unlocked draft is stale."""

import os
import stat
from pathlib import Path

import pytest

from kyc_pipeline.lake.atomic import draft_folder, drafts_of, new_draft, remove_drafts, replacing


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "a [b].txt"
    path.write_text("old")
    return path


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_when_the_block_ends(target: Path, durable: bool) -> None:
    with replacing(target, durable=durable) as file:
        file.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_no_draft(target: Path) -> None:
    def fail() -> None:
        with replacing(target) as file:
            file.write(b"new")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_keep_existing_does_not_overwrite_a_file(target: Path) -> None:
    with replacing(target, keep_existing=True) as file:
        file.write(b"new")
    assert target.read_text() == "old"
    target.unlink()
    with replacing(target, mode=0o600, keep_existing=True) as file:
        file.write(b"new")
    assert (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ("new", 0o600)
    assert list(target.parent.iterdir()) == [target]


def test_only_stale_drafts_of_the_target_are_removed(target: Path) -> None:
    others = [target.with_name(".draft-notes"), target.with_name(".draft-1-b.txt")]
    stale = target.with_name(f".draft-{os.getpid()}-{target.name}")
    for path in (*others, stale):
        path.write_bytes(b"half")
    folder = Path(draft_folder(str(stale)))
    folder.mkdir()
    (folder / "database").write_bytes(b"half")
    with new_draft(target) as held:
        assert remove_drafts(drafts_of(target), older_than=stale.stat().st_mtime) == 0
        assert remove_drafts(drafts_of(target)) == 1
        assert sorted(target.parent.iterdir()) == sorted([target, Path(held.name), *others])
    assert sorted(target.parent.iterdir()) == sorted([target, *others])
