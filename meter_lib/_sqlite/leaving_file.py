"""What a database does to be moved away: nobody writes meanwhile, and then it is closed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import empty_log, translated
from meter_lib._sqlite.files import file_bytes, sync_folder
from meter_lib._sqlite.moved import write_departure
from meter_lib._sqlite.salvage.mending import MendedFile
from meter_lib._sqlite.salvage.set_aside import DAMAGE_SHOWS_AS
from meter_lib.errors import OutboxUnavailable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator

    from meter_lib.moving import Departure

__all__ = ["LeavingFile"]

# How long the log waits for readers: their transactions take milliseconds.
_PATIENCE_SECONDS = 1.0


class LeavingFile(MendedFile):
    """The part of `Database` that closes its file for good."""

    @contextlib.contextmanager
    def alone(self) -> Generator[sqlite3.Connection]:
        """Make all others who would write wait; what is done on the connection is read only."""
        with self._mutex, translated(self.path):
            # Whoever had begun a transaction of their own is seen out by that.
            connection = self._begun(0)
            try:
                connection.execute("ROLLBACK")
                yield connection
            except DAMAGE_SHOWS_AS as error:
                self.replace_if_damaged(connection, error)
                raise
            finally:
                self._unlock()

    def leave(self, connection: sqlite3.Connection, to: str, outbox_id: str) -> Departure:
        """Give the file another name, for good: within `alone`, on its connection.

        Others that have it open see with their next transaction that nothing is at its place,
        and look there again. What is left in the log goes into the file first.
        """
        connection.execute("PRAGMA synchronous = FULL")
        is_empty = empty_log(connection, patience_seconds=_PATIENCE_SECONDS)
        if not is_empty or file_bytes(f"{self.path}-wal"):
            raise OutboxUnavailable(
                f"{self.path} cannot be moved while another program reads it; nothing was moved"
            )
        departure = write_departure(self.path, to, outbox_id)
        os.rename(self.path, departure.kept)
        sync_folder(os.path.dirname(self.path))
        self._forget_files()
        connection.close()
        # They are empty, and would be taken for those of the next file at this place.
        for ending in ("-wal", "-shm", ".reserve"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}{ending}")
        return departure

    def _begun(self, log_bytes: int) -> sqlite3.Connection:
        raise NotImplementedError
