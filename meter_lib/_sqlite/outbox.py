"""The outbox in a SQLite file, with all its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.audit import SqliteAudit
from meter_lib._sqlite.database import Database
from meter_lib._sqlite.delivery import SqliteDelivery
from meter_lib._sqlite.inspection import SqliteInspection
from meter_lib._sqlite.letter_import import SqliteLetterImport
from meter_lib._sqlite.operations import SqliteOperations
from meter_lib._sqlite.pending import SqlitePending
from meter_lib._sqlite.recorder import SqliteRecorder
from meter_lib._sqlite.salvage.set_aside import OutboxSetAside
from meter_lib._sqlite.times import SqliteTimes

if TYPE_CHECKING:
    from meter_lib.outbox import Settlement

__all__ = ["SqliteOutbox"]


class SqliteOutbox(
    SqliteRecorder,
    SqliteDelivery,
    SqliteTimes,
    SqliteOperations,
    SqlitePending,
    SqliteLetterImport,
    SqliteInspection,
    SqliteAudit,
):
    """All parts over one file. See `meter_lib.outbox` for what each method promises."""

    def __init__(
        self,
        path: str,
        *,
        max_bytes: int,
        durability: str = "full",
        read_only: bool = False,
        drops_oldest: bool = False,
    ) -> None:
        database = Database(path, max_bytes=max_bytes, durability=durability, read_only=read_only)
        SqliteRecorder.__init__(self, database, drops_oldest=drops_oldest)
        # One key per KiB of the limit: what is remembered stays a small part of the file.
        SqliteDelivery.__init__(self, database, remembered_keys=max_bytes // 1024)
        SqliteTimes.__init__(self, database)
        SqliteOperations.__init__(self, database)
        SqlitePending.__init__(self, database)
        SqliteLetterImport.__init__(self, database)
        SqliteInspection.__init__(self, database)
        SqliteAudit.__init__(self, database)

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events, in a new outbox if this one turns out damaged."""
        try:
            super().settle(settlement, now=now)
        except OutboxSetAside:
            super().settle(settlement, now=now)
