"""Disk space kept for settling: it is given up where the disk is full, and taken again later.

Recording needs it to be in place; so what it gives up goes to those who deliver, and a
disk without a free byte does not keep an outbox from emptying.
"""

from __future__ import annotations

import contextlib
import errno
import os

from meter_lib._sqlite.files import create_or_open, file_bytes
from meter_lib.errors import OutboxFull

__all__ = ["Reserve"]


class Reserve:
    """The file beside an outbox that holds nothing but space."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._size = size
        self._descriptor = -1

    def keep(self) -> None:
        """Return with the space taken, or raise `OutboxFull` where the disk has too little."""
        if self._descriptor >= 0:
            found = os.fstat(self._descriptor)
            if found.st_size >= self._size and found.st_nlink:
                return
            self.close()
        self._descriptor = create_or_open(self._path)
        if os.fstat(self._descriptor).st_size >= self._size:
            return
        # As much and no more is what those who deliver have just been given: it is theirs.
        if _free_bytes(self._path) < self._size + self._size // 4:
            raise self._full()
        try:
            _allocate(self._descriptor, self._size)
        except OSError as error:
            os.ftruncate(self._descriptor, 0)
            raise self._full() from error

    def release(self) -> bool:
        """Give the space back to the disk; return whether there was any."""
        if file_bytes(self._path) == 0:
            return False
        os.truncate(self._path, 0)
        return True

    def release_if_needed(self) -> None:
        """Give the space back where the disk has less left than that."""
        if file_bytes(self._path) and _free_bytes(self._path) < self._size:
            self.release()

    def close(self) -> None:
        """Let go of the file; the space stays taken."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def _full(self) -> OutboxFull:
        return OutboxFull(
            f"the disk is full: {self._path} must be {self._size} bytes, so that what is "
            f"recorded can still be delivered; nothing was recorded"
        )


def _free_bytes(path: str) -> int:
    """Return what the file system of this file still has for us."""
    found = os.statvfs(os.path.dirname(path))
    return found.f_bavail * found.f_frsize


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, 0, size)
            return
    # Neither macOS nor each file system of Linux knows how: written bytes take space anywhere.
    if os.pwrite(descriptor, bytes(size), 0) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
