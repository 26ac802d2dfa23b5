"""The lake's own id, and what it remembers of its ledger, in one small file at the lake's root.

`generation` is the highest that the lake has seen of the ledger, which increments it with every commit: a
ledger with a lower one is an older copy. `ledger/identity.py` compares the two.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

from kyc_pipeline.lake.root_files import read_record, write_record
from kyc_pipeline.lake.storage import Lake

IDENTITY_FILE: Final = "identity.json"


@dataclass(frozen=True, slots=True)
class LakeIdentity:
    """Which lake this is, and which ledger it belongs to."""

    lake_id: str
    ledger_id: str
    generation: int = 0


def read_lake_identity(lake: Lake) -> LakeIdentity | None:
    """The lake's identity; None if it has never had a ledger. Raises :class:`KycError` if it is damaged."""
    advice = "restore it, or remove it and run `kyc-pipeline ledger check --bind`"
    return read_record(lake, IDENTITY_FILE, LakeIdentity, advice)


def write_lake_identity(lake: Lake, identity: LakeIdentity) -> None:
    """Replaces the lake's identity, durably. Raises :class:`KycError` if that fails."""
    write_record(lake, IDENTITY_FILE, identity, "cannot write {path} ({reason}): nothing is sent without it")


def note_generation(lake: Lake, generation: int) -> None:
    """Remembers the generation, unless the lake has seen a higher one."""
    known = read_lake_identity(lake)
    if known is not None and known.generation < generation:
        write_lake_identity(lake, dataclasses.replace(known, generation=generation))
