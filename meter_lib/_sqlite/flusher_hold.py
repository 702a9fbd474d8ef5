"""The right to deliver from an outbox: one flusher on the machine has it."""

from __future__ import annotations

from meter_lib._sqlite.file_lock import FileLock

__all__ = ["FlusherHold"]


class FlusherHold:
    """One process's side of it. The kernel ends the hold with the process, however it dies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held: FileLock | None = None

    def try_take(self) -> bool:
        """Take it and return True, or return False where another flusher has it."""
        if self.is_kept():
            return True
        self.release()
        lock = FileLock(self._path)
        if not lock.try_acquire():
            lock.close()
            return False
        lock.sign()
        self._held = lock
        return True

    def is_kept(self) -> bool:
        """Return whether there is a hold that others can see: its file may be gone meanwhile."""
        return self._held is not None and self._held.is_in_place()

    def release(self) -> None:
        """End the hold, if there is one."""
        if self._held is not None:
            self._held.release()
            self.forget()

    def forget(self) -> None:
        """Leave the hold to the process that this one was forked from."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def holder(self) -> int | None:
        """Return the process id of the flusher that has it, 0 if unknown, or None."""
        return FileLock(self._path).holder()
