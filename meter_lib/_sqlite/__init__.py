"""The outbox in a SQLite file. Nothing outside this package speaks SQL."""

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
    from collections.abc import Sequence

    from meter_lib.clock import Uptime
    from meter_lib.outbox import Receipt, Settlement
    from meter_lib.usage import UsageEvent

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

    def append(
        self, events: Sequence[UsageEvent], *, now: int, uptime: Uptime | None = None
    ) -> list[Receipt]:
        """Record all of `events` or none, in a new outbox if this one turns out damaged."""
        try:
            return super().append(events, now=now, uptime=uptime)
        except OutboxSetAside:
            return super().append(events, now=now, uptime=uptime)

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events, in a new outbox if this one turns out damaged."""
        try:
            super().settle(settlement, now=now)
        except OutboxSetAside:
            super().settle(settlement, now=now)

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return self._database.path

    def close(self) -> None:
        """Let go of the file and of all locks."""
        self._database.close()
