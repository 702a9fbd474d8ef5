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

__all__ = ["FairLock", "FileLock"]

# Others hold the lock for the length of one commit. Where a disk is fast that is less than the
# system takes to end a nap, so whoever is next looks again and again for as long as this.
_LOOKING_SECONDS = 0.0003
# The others nap, for a part of what they have waited so far, within these bounds.
_SHORTEST_NAP_SECONDS = 0.0001
_LONGEST_NAP_SECONDS = 0.002
_NAPS_A_WAIT = 8
_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


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
            fcntl.flock(self._descriptor if self._descriptor >= 0 else self._open(), _NOW)
        except BlockingIOError:
            return False
        return True

    def acquire_until(self, deadline: float, *, looking_seconds: float = 0.0) -> bool:
        """Take the lock and return True, or False if it is not to be had by then (monotonic).

        For the first `looking_seconds` it keeps looking, after that it naps in between.
        """
        begun = time.monotonic()
        while not self.try_acquire():
            waited = time.monotonic() - begun
            if begun + waited > deadline:
                return False
            if waited < looking_seconds:
                os.sched_yield()
            else:
                nap = max(waited / _NAPS_A_WAIT, _SHORTEST_NAP_SECONDS)
                time.sleep(min(nap, _LONGEST_NAP_SECONDS))
        return True

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

    def mark(self, *, is_marked: bool) -> None:
        """Leave a mark in the file for whoever takes the lock next, or take it away."""
        os.ftruncate(self._open(), int(is_marked))

    def is_marked(self) -> bool:
        """Return whether somebody has left a mark. Call it while holding."""
        return os.fstat(self._open()).st_size > 0

    def is_in_place(self) -> bool:
        """Return whether the path still leads to the file that is open."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

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


class FairLock:
    """A lock of two files: whoever waits holds the second, so that the first is theirs next.

    Else a process that writes all the time would take the lock again before those who wait
    for it have woken, and they would wait for seconds.
    """

    def __init__(self, path: str, turn_path: str) -> None:
        self._lock = FileLock(path)
        self._turn = FileLock(turn_path)
        self.mark = self._lock.mark
        self.is_marked = self._lock.is_marked
        self.release = self._lock.release
        self._has_waited = False

    def acquire(self, timeout_seconds: float) -> bool:
        """Take the lock and return True, or return False after the time-out."""
        try:
            if not self._has_waited and self._turn.try_acquire():
                if self._lock.try_acquire():
                    self._turn.release()
                    return True
                deadline = time.monotonic() + timeout_seconds
            else:
                deadline = time.monotonic() + timeout_seconds
                if self._has_waited:
                    # Those who wait already are asleep as often as not: they go first.
                    time.sleep(_SHORTEST_NAP_SECONDS)
                if not self._turn.acquire_until(deadline):
                    return False
            self._has_waited = not self._lock.try_acquire()
            taken = not self._has_waited or self._lock.acquire_until(
                deadline, looking_seconds=_LOOKING_SECONDS
            )
        except BaseException:
            # Ctrl-C: nobody may be kept waiting by a program that has given up.
            self._lock.release()
            self._turn.release()
            raise
        self._turn.release()
        return taken

    def close(self) -> None:
        """Let go of the lock and of the descriptors; see `FileLock.close`."""
        self._lock.close()
        self._turn.close()
