"""What is open, as others find it at the path: the file may have been moved meanwhile."""

from __future__ import annotations

import contextlib
import os

__all__ = ["Place"]


class Place:
    """The database file that a connection has open, and its write-ahead log."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._log_path = f"{path}-wal"
        self._file = self._find()
        self._log = -1
        # Whoever only reads may do without.
        with contextlib.suppress(FileNotFoundError):
            # SQLite keeps no locks on its log, so that closing this descriptor drops none.
            self._log = os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC)

    def is_taken(self) -> bool:
        """Return whether the path still leads to these files."""
        # The log itself is not asked for its times: from then on each write would change them
        # and each sync write them, which takes half as long again (Linux 6.13 and later,
        # multigrain timestamps).
        return self._find() == self._file and (self._log < 0 or os.access(self._log_path, os.F_OK))

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log."""
        return os.lseek(self._log, 0, os.SEEK_END) if self._log >= 0 else 0

    def close(self) -> None:
        """Let go of the descriptor."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def __del__(self) -> None:
        self.close()

    def _find(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino
