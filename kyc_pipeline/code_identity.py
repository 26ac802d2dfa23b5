"""The identity of the code. Output of other code may differ, so it counts as out of date."""

import hashlib
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Final

from kyc_pipeline import __version__

_PACKAGE: Final = Path(__file__).parent
COMMIT: Final = "commit.txt"
"""hatch_build.py writes it into an sdist and a wheel. It is no part of the identity."""


@lru_cache(maxsize=8)
def code_identity(*folders: Path) -> str:
    """Version of the package and a digest of its files and those of `folders`: `0.1.0+3f2a…`.

    The version alone would hide a change in a checkout. Hashing takes some milliseconds.
    """
    digest = hashlib.sha256()
    for folder in (_PACKAGE, *folders):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path != _PACKAGE / COMMIT:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return f"{__version__}+{digest.hexdigest()[:16]}"


def commit() -> str:
    """The commit of the build or of the checkout, with `-dirty` if files differ; empty if unknown."""
    built_from = _PACKAGE / COMMIT
    if built_from.is_file():
        return built_from.read_text(encoding="utf-8").strip()
    # Only the project's own repository: the package may be installed inside another one.
    if not (_PACKAGE.parent / ".git").exists():
        return ""
    command = [
        "git",
        "-C",
        str(_PACKAGE.parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
