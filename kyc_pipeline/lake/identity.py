"""The lake's own id, and what it remembers of its ledger, in one small file at the lake's root.

`generation` is the highest that the lake has seen of the ledger, which counts it up with every commit: a
ledger with a lower one is an older copy. `ledger/identity.py` compares the two.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

import msgspec

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.atomic import make_folder, replacing
from kyc_pipeline.lake.storage import Lake

FILE_NAME: Final = "identity.json"


@dataclass(frozen=True, slots=True)
class LakeIdentity:
    """Which lake this is, and which ledger it belongs to."""

    lake_id: str
    ledger_id: str
    generation: int = 0


def read_lake_identity(lake: Lake) -> LakeIdentity | None:
    """The lake's identity; None if it has never had a ledger. Raises :class:`KycError` if it is damaged."""
    path = f"{lake.root}/{FILE_NAME}"
    try:
        with lake.fs.open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=LakeIdentity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise KycError(
            f"{path} cannot be read ({type(error).__name__}): restore it, or remove it and run "
            "`kyc-pipeline ledger check --bind`"
        ) from None


def write_lake_identity(lake: Lake, identity: LakeIdentity) -> None:
    """Replaces the lake's identity, durably. Raises :class:`KycError` if that fails."""
    path = f"{lake.root}/{FILE_NAME}"
    content = msgspec.json.encode(identity)
    try:
        if not lake.is_local:
            lake.fs.pipe_file(path, content)
            return
        make_folder(lake.root)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise KycError(f"cannot write {path} ({error.strerror}): nothing is sent without it") from error


def note_generation(lake: Lake, generation: int) -> None:
    """Remembers the generation, unless the lake has seen a higher one."""
    known = read_lake_identity(lake)
    if known is not None and known.generation < generation:
        write_lake_identity(lake, dataclasses.replace(known, generation=generation))
