"""A lock between processes: a file held with flock(2).

The kernel lets go of it when the holder dies, however it dies. The file beside
the outbox is never the outbox itself: closing any descriptor of a SQLite file
would drop SQLite's own locks (https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from meter_lib._sqlite.files import create_or_open

__all__ = ["FileLock"]

# Waits for a lock that others hold only for the length of one commit.
_FIRST_NAP_SECONDS = 0.0002
_LONGEST_NAP_SECONDS = 0.01


class FileLock:
    """One lock file, held by at most one `FileLock` on the machine."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1

    def _open(self) -> int:
        if self._descriptor < 0:
            self._descriptor = create_or_open(self.path)
        return self._descriptor

    def try_acquire(self) -> bool:
        """Take the lock and return True, or return False at once where it is taken."""
        try:
            fcntl.flock(self._open(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout_seconds: float) -> bool:
        """Take the lock and return True, or return False after the time-out."""
        if self.try_acquire():
            return True
        deadline = time.monotonic() + timeout_seconds
        nap = _FIRST_NAP_SECONDS
        while time.monotonic() < deadline:
            time.sleep(nap)
            if self.try_acquire():
                return True
            nap = min(nap * 2, _LONGEST_NAP_SECONDS)
        return False

    def release(self) -> None:
        """Let go of the lock; the file stays."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def sign(self) -> None:
        """Write our process id into the file, for `holder` to read. Call it while holding.

        On a full disk it stays unsigned: the lock counts, and the name is a courtesy.
        """
        descriptor = self._open()
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)

    def holder(self) -> int | None:
        """Return the process id that the holder wrote, 0 if none, or None where nobody holds it."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            written = os.pread(descriptor, 32, 0).strip()
            return int(written) if written.isdigit() else 0
        else:
            return None
        finally:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock and of the descriptor.

        In a child of fork() this leaves the parent's hold alone: a descriptor that is
        closed, rather than unlocked, keeps the lock while the parent's copy is open.
        """
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
