"""On which kind of file system a path is.

SQLite's log needs memory that all who use the file share, and locks that hold: network file
systems have neither (https://www.sqlite.org/wal.html).
"""

import os
import re
from typing import NamedTuple

from meter_lib.errors import OutboxUnavailable

__all__ = ["FileSystem", "file_system_of", "file_system_type", "is_network", "refuse_network"]

_MOUNTS = "/proc/self/mountinfo"
_NETWORK_TYPES = frozenset(
    {
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse.ceph",
        "fuse.davfs2",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "prl_fs",
        "smb3",
        "smbfs",
        "vboxsf",
        "vmhgfs",
    }
)


class FileSystem(NamedTuple):
    """A file system. Texts are empty where the system does not tell."""

    type: str
    options: str
    """What it is mounted with."""


def file_system_of(path: str) -> FileSystem:
    """Return the file system that holds `path`. Nothing need be at the path yet."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            lines = mounts.readlines()
    except OSError:
        return FileSystem("", "")
    path = os.path.join(os.path.realpath(path), "")
    longest, found = "", FileSystem("", "")
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 6 or not after:
            continue
        # Blanks and the like are written as octal numbers.
        point = fields[4]
        if "\\" in point:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        # Of two at the same place, the later one hides the other.
        if path.startswith(os.path.join(point, "")) and len(point) >= len(longest):
            longest, found = point, FileSystem(after.split(" ")[0], fields[5])
    return found


def file_system_type(path: str) -> str:
    """Return the type of the file system that holds `path`, "" where the system does not tell."""
    return file_system_of(path).type


def is_network(kind: str) -> bool:
    """Return whether files of this type of file system are on another machine."""
    return kind in _NETWORK_TYPES


def refuse_network(path: str) -> None:
    """Raise `OutboxUnavailable` where the path is on a network file system."""
    kind = file_system_type(path)
    if is_network(kind):
        raise OutboxUnavailable(
            f"{path} is on a network file system ({kind}): an outbox belongs on a local disk;"
            f" METER_ALLOW_NETWORK_FS=true takes it all the same, and no promise holds there"
        )
