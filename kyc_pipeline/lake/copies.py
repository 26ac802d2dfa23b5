"""Local copies of partitions in an object store, for a reader that opens each of them many times.

A build of the warehouse opens a file for every model that reads it, and each opening costs a HEAD request: 35
per object. So small objects are fetched once, many at a time. Of large ones, most columns may not be needed:
they are read in ranges, and a listing takes the place of the HEAD requests.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import fsspec

from kyc_pipeline.lake.storage import SMALL, Lake, Partition

_AT_ONCE: Final = 64 << 20
"""Bytes that are in memory at a time."""
_REQUESTS_AT_ONCE: Final = 32
"""As many as keep a processor busy, at 1.3 ms each; with more, a server on few cores is slower."""


def copy_small(lake: Lake, partitions: Iterable[Partition], folder: Path) -> dict[str, str]:
    """Copies small objects below `folder`, one request each; returns their paths by those in the lake.

    A copy may be newer than the listing in `partitions`: list the lake again afterwards, and compare. Raises
    :class:`OSError` if an object is gone.
    """
    copies: dict[str, str] = {}
    root = f"{lake.full_path(lake.root)}/"
    for some in _portions(each for each in partitions if each.size <= SMALL):
        paths = [each.path for each in some]
        # Not `cat`, which takes some names for patterns.
        ends = [each.size for each in some]
        contents = lake.fs.cat_ranges(
            paths, [0] * len(some), ends, on_error="raise", batch_size=_REQUESTS_AT_ONCE
        )
        for path, content in zip(paths, contents, strict=True):
            copy = folder / path.removeprefix(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            copies[path] = str(copy)
    return copies


def listed_filesystem(lake: Lake) -> Any:
    """A file system that knows the lake's objects as they are now: opening one costs no request."""
    fs, root = fsspec.core.url_to_fs(
        lake.full_path(lake.root), use_listings_cache=True, skip_instance_cache=True
    )
    fs.find(root)
    return fs


def _portions(partitions: Iterable[Partition]) -> Iterator[list[Partition]]:
    """The partitions in portions that fit into memory."""
    portion: list[Partition] = []
    for partition in partitions:
        if portion and sum(each.size for each in portion) + partition.size > _AT_ONCE:
            yield portion
            portion = []
        portion.append(partition)
    if portion:
        yield portion
