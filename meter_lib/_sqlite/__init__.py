"""The outbox in a SQLite file. Nothing outside this package speaks SQL."""

from __future__ import annotations

from meter_lib._sqlite.database import Database
from meter_lib._sqlite.delivery import SqliteDelivery
from meter_lib._sqlite.operations import SqliteOperations
from meter_lib._sqlite.recorder import SqliteRecorder

__all__ = ["SqliteOutbox"]


class SqliteOutbox(SqliteRecorder, SqliteDelivery, SqliteOperations):
    """The three parts over one file. See `meter_lib.outbox` for what each method promises."""

    def __init__(
        self, path: str, *, max_bytes: int, durability: str = "full", read_only: bool = False
    ) -> None:
        database = Database(path, max_bytes=max_bytes, durability=durability, read_only=read_only)
        SqliteRecorder.__init__(self, database)
        # One key per KiB of the limit: what is remembered stays a small part of the file.
        SqliteDelivery.__init__(self, database, remembered_keys=max_bytes // 1024)
        SqliteOperations.__init__(self, database)

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return self._database.path

    def close(self) -> None:
        """Let go of the file and of all locks."""
        self._database.close()
