"""The file system under a SQLite ledger, which must keep its locks and belong to one machine.

Over a network, file locks may not work and flushes may not reach a disk. Leases need one machine too: they
count by its clock, and a process of another machine would look dead. On a FUSE file system, its program
decides: perhaps it is a network folder, perhaps not.
"""

import logging
import os
import re
from pathlib import Path
from typing import Final

_NETWORK: Final = re.compile(
    "9p|afs|beegfs|ceph|cifs|coda|gfs2?|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|panfs|pvfs2|smb[23]|smbfs|"
    r"fuse\.(afpfs|blobfuse2?|ceph(-fuse)?|curlftpfs|davfs2?|fuse-nfs|gcsfuse|geesefs|glusterfs|goofys|"
    "juicefs|mfs|mount-s3|nfs|rclone|s3backer|s3fs|seaweedfs|smbnetfs|sshfs)",
    re.IGNORECASE,
)
_PERHAPS: Final = re.compile(r"fuse(\..*)?|prl_fs|vboxsf|virtiofs|vmhgfs")
"""Other FUSE programs (`fuseblk` is a local disk), and a host's folders in a virtual machine."""
_logger = logging.getLogger(__name__)


class NetworkFolder(Exception):
    """The file lies on a network file system; the text is its type."""


class MountedFile(Exception):
    """The file is mounted without its folder, so what SQLite writes beside it is on another file system."""


def check(path: Path) -> None:
    """Raises :class:`NetworkFolder` or :class:`MountedFile`; warns if the file system may be on a network.

    Without /proc, nothing is known.
    """
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    place = os.path.realpath(path)
    folder, kind = mount_of(place, table)
    if folder == place:
        raise MountedFile
    if _NETWORK.fullmatch(kind):
        raise NetworkFolder(kind)
    if _PERHAPS.fullmatch(kind):
        _logger.warning(
            "the ledger %s is on a file system of type %s: it must keep locks and flushes, and only this "
            "machine may use it; better put it on a local disk",
            path,
            kind,
        )


def mount_of(path: str, table: str) -> tuple[str, str]:
    """The mount that holds `path` (absolute, no links): where it is and its type; empty if unknown.

    `table` has the format of /proc/self/mountinfo. Of several mounts on one folder, the last is on top.
    """
    found, kind = "", ""
    for line in table.splitlines():
        mount, _, file_system = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5 or not file_system:
            continue
        folder = _unescape(fields[4])
        if len(folder) >= len(found) and f"{path}/".startswith(folder.rstrip("/") + "/"):
            found, kind = folder, file_system.split(" ")[0]
    return found, kind


def _unescape(text: str) -> str:
    """Blanks, tabs, newlines and backslashes of a mount point are octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
