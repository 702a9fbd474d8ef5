"""Disk space for SQLite's index of the write-ahead log, the one file that it maps into memory.

SQLite makes that file (`-shm`) longer by a byte in each 4 KiB. Where blocks are smaller than
that, as ext4 makes them on small disks, the others are taken when they are first touched; on a
full disk that is no error but a SIGBUS, which ends the host program.
"""

from __future__ import annotations

import contextlib
import errno
import os

from meter_lib._sqlite.files import file_bytes
from meter_lib._sqlite.limits import PAGE_BYTES

__all__ = ["expect_space", "take_space"]

_STEP_BYTES = 4096
# https://www.sqlite.org/walformat.html: a part of the index, the pages of the log that the first
# and each other one has room for, and what the log has beside a page.
_PART_BYTES = 32 * 1024
_FIRST_PART_PAGES = 4062
_PART_PAGES = 4096
_FRAME_HEADER_BYTES = 24
# For the log and the names of both files, which come with it.
_SPARE_BYTES = 32 * 1024
_OWN_DESCRIPTORS = "/proc/self/fd"


def expect_space(path: str) -> None:
    """Raise `OSError` (ENOSPC) where the index of this file's log could not be made.

    Before the file is opened. It may be full a moment later; until `take_space`, who opens
    it is a hair's breadth from the signal.
    """
    found = os.statvfs(os.path.dirname(path))
    if found.f_frsize >= _STEP_BYTES:
        return
    needed = _index_bytes(file_bytes(f"{path}-wal")) + _SPARE_BYTES
    with contextlib.suppress(FileNotFoundError):
        needed -= os.stat(f"{path}-shm").st_blocks * 512
    if found.f_bavail * found.f_frsize < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def take_space(path: str, log_bytes: int = 0) -> None:
    """Return with all blocks of the index on the disk, for a log of this size; else `OSError`.

    After the file is opened.
    """
    if os.statvfs(os.path.dirname(path)).f_frsize >= _STEP_BYTES:
        return
    index = f"{path}-shm"
    descriptor = _descriptor_of(index)
    if descriptor is not None:
        os.posix_fallocate(descriptor, 0, max(file_bytes(index), _index_bytes(log_bytes)))


def _index_bytes(log_bytes: int) -> int:
    pages = log_bytes // (PAGE_BYTES + _FRAME_HEADER_BYTES) + 1
    return _PART_BYTES * (1 + max(0, pages - _FIRST_PART_PAGES + _PART_PAGES - 1) // _PART_PAGES)


def _descriptor_of(index: str) -> int | None:
    """Return SQLite's own descriptor of it: closing another one would drop SQLite's locks."""
    if not os.path.isdir(_OWN_DESCRIPTORS):
        return None
    for name in os.listdir(_OWN_DESCRIPTORS):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{_OWN_DESCRIPTORS}/{name}") == index:
                return int(name)
    return None
