"""What a database does about its own damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import translated
from meter_lib._sqlite.salvage.set_aside import OutboxSetAside, find_damage, replace_damaged

if TYPE_CHECKING:
    import sqlite3
    import threading

__all__ = ["MendedFile"]


class MendedFile:
    """The part of `Database` that puts a new file in the place of a damaged one."""

    path: str
    times_opened: int
    _mutex: threading.RLock

    def mend(self, error: BaseException | None = None) -> None:
        """Put a new outbox in the place of a damaged one, and raise `OutboxSetAside`.

        It is damaged if the error says so, or without one if looking through all of it does.
        """
        times_opened = self.times_opened
        with self._mutex, translated(self.path):
            connection = self._locked()
            try:
                # Opened anew, it is another file: somebody was faster.
                if error is None or self.times_opened == times_opened:
                    self.replace_if_damaged(connection, error or find_damage(connection))
            finally:
                self._unlock()

    def replace_if_damaged(
        self, connection: sqlite3.Connection, error: BaseException | None
    ) -> None:
        """Do what `mend` does; the write lock is held, and is still held then."""
        try:
            replace_damaged(self.path, error, connection)
        except OutboxSetAside:
            self._forget_files()
            raise

    def _locked(self) -> sqlite3.Connection:
        raise NotImplementedError

    def _unlock(self) -> None:
        raise NotImplementedError

    def _forget_files(self) -> None:
        raise NotImplementedError
