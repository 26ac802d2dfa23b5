"""Which file systems may hold a SQLite ledger."""

import logging
from pathlib import Path

import pytest

from kyc_pipeline.ledger import file_systems
from kyc_pipeline.ledger.database import Ledger, WrongLedger
from kyc_pipeline.ledger.leases import acquire_lease

MOUNTS = r"""
22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 28 0:40 / /mnt/share rw shared:9 master:2 - nfs4 server:/export rw,vers=4.2
41 40 0:41 / /mnt/share/local rw - xfs /dev/vdb rw
42 28 0:42 / /mnt/my\040data\134 rw - cifs //server/my\040data rw
43 28 0:43 / /host rw - 9p drvfs rw
44 28 0:44 / /remote rw,nosuid - fuse.sshfs user@server: rw
45 28 0:45 / /pool rw - fuse.mergerfs a:b rw
46 28 8:1 / /usb rw - fuseblk /dev/sda1 rw
47 28 0:47 / /over rw - nfs server:/over rw
48 47 0:48 / /over rw - tmpfs tmpfs rw
49 28 0:49 / /shared rw - virtiofs shared rw
a line that nobody understands
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/ledger.sqlite", "ext4"),
        ("/mnt/share/ledger.sqlite", "nfs4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/shared/ledger.sqlite", "ext4"),
        ("/mnt/share/local/x/ledger.sqlite", "xfs"),
        ("/mnt/my data\\/ledger.sqlite", "cifs"),
        ("/over/ledger.sqlite", "tmpfs"),
    ],
)
def test_the_type_is_that_of_the_innermost_and_last_mount(path: str, kind: str) -> None:
    assert file_systems.mount_of(path, MOUNTS)[1] == kind


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("/data/l", ""),
        ("/usb/l", ""),
        ("/mnt/share/l", "nfs4"),
        ("/mnt/my data\\/l", "cifs"),
        ("/host/l", "9p"),
        ("/remote/l", "fuse.sshfs"),
        ("/pool/l", "warned"),
        ("/shared/l", "warned"),
    ],
)
def test_network_file_systems_are_refused_and_others_perhaps_warned_about(
    path: str, verdict: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: MOUNTS)
    found = ""
    with caplog.at_level(logging.WARNING):
        try:
            file_systems.check(Path(path))
        except file_systems.NetworkFolder as kind:
            found = str(kind)
    assert found == verdict.replace("warned", "")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * (verdict == "warned")


@pytest.mark.parametrize(
    "kind", ["afs", "gfs2", "ncpfs", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs"]
)
def test_disks_that_machines_share_are_refused_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"1 0 0:1 / /data rw - {kind} source rw")
    with pytest.raises(file_systems.NetworkFolder, match=f"^{kind}$"):
        file_systems.check(Path("/data/l"))


def test_a_ledger_on_a_network_file_system_is_refused_and_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"1 0 0:1 / {tmp_path} rw - nfs4 server:/export rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: table)
    said = r"is on a network file system \(nfs4\).*: nothing is sent"
    with (
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger,
        pytest.raises(WrongLedger, match=said) as error,
    ):
        acquire_lease(ledger, "2024-09-01", "run")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_is_mounted_without_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `docker run --volume ledger.sqlite:...`: the journal would be lost with the container."""
    file = tmp_path / "ledger.sqlite"
    with Ledger(f"sqlite:///{file}") as ledger:
        acquire_lease(ledger, "2024-09-01", "run")
    table = f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:1 /data/ledger.sqlite {file} rw - ext4 a rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: table)
    with (
        Ledger(f"sqlite:///{file}") as mounted,
        pytest.raises(WrongLedger, match="is mounted without its folder"),
    ):
        acquire_lease(mounted, "2024-09-02", "run")


def test_this_machines_own_table_is_understood(tmp_path: Path) -> None:
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert file_systems.mount_of("/proc/self", table) == ("/proc", "proc")
    file_systems.check(tmp_path)
