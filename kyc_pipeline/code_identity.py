"""The identity of the code. Output of other code may differ, so it counts as out of date."""

import hashlib
from functools import lru_cache
from pathlib import Path

from kyc_pipeline import __version__


@lru_cache(maxsize=8)
def code_identity(*folders: Path) -> str:
    """Version of the package and a digest of its files and those of `folders`: `0.1.0+3f2a…`.

    The version alone would hide a change in a checkout. Hashing takes some milliseconds.
    """
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, *folders):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return f"{__version__}+{digest.hexdigest()[:16]}"
