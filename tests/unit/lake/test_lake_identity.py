"""What a lake remembers of its ledger, in a folder and in an object store."""

from pathlib import Path

import pytest

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.identity import (
    IDENTITY_FILE,
    LakeIdentity,
    note_generation,
    read_lake_identity,
    write_lake_identity,
)
from kyc_pipeline.lake.storage import Lake


@pytest.fixture(params=["folder", "object store"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(
        str(tmp_path / "deep" / "lake" if request.param == "folder" else request.getfixturevalue("s3_root"))
    )


def test_a_lake_remembers_its_ledger_and_its_highest_generation(lake: Lake) -> None:
    assert read_lake_identity(lake) is None
    note_generation(lake, 7)
    assert read_lake_identity(lake) is None
    write_lake_identity(lake, LakeIdentity("lake", "ledger", 3))
    note_generation(lake, 5)
    note_generation(lake, 4)
    assert read_lake_identity(Lake(lake.root if lake.is_local else f"s3://{lake.root}")) == LakeIdentity(
        "lake", "ledger", 5
    )


def test_a_damaged_file_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    (tmp_path / IDENTITY_FILE).write_bytes(b'{"lake_id": "la')
    with pytest.raises(KycError, match=r"identity\.json cannot be read"):
        read_lake_identity(lake)


def test_a_file_that_is_out_of_reach_is_not_called_damaged(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    (tmp_path / "lake").touch()
    with pytest.raises(KycError, match=r"identity\.json: a file or folder cannot be used") as refused:
        read_lake_identity(lake)
    assert "remove" not in str(refused.value)
