"""Looks for commits in a log that SQLite does not see.

To SQLite a damaged frame is the end of the log: it reports nothing, and writes over what
follows. But there may be events with a receipt. They are told by their numbers, which are
higher than any that SQLite knows of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.files import file_bytes
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.salvage.log_frames import LogFrames
from meter_lib._sqlite.salvage.rows import current_layouts, salvaged_event
from meter_lib._sqlite.salvage.set_aside import DamagedLog
from meter_lib._sqlite.salvage.trees import Trees

if TYPE_CHECKING:
    import sqlite3

__all__ = ["check_log"]

# Only the end is looked at: events are recorded in the order of their numbers.
_FRAMES = 16


def check_log(path: str, connection: sqlite3.Connection) -> None:
    """Raise `DamagedLog` where the log of `path` ends with events that `connection` cannot see.

    To be called under the lock file, before anything is written.
    """
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    highest = _highest_seq_in_log(path, page_size)
    if highest > accepted_events(connection):
        raise DamagedLog(f"its log is damaged before event {highest}")


def _highest_seq_in_log(path: str, page_size: int) -> int:
    log = LogFrames(path)
    try:
        frames = _FRAMES
        pages = _LatestPages(log, page_size, frames)
        while not pages.frames and frames < file_bytes(f"{path}-wal") // page_size:
            frames *= 4
            pages = _LatestPages(log, page_size, frames)
        trees = Trees(pages)
        layout = current_layouts()["events"]
        rows = (layout.row(record) for page in pages.frames for record in trees.records(page))
        events = (salvaged_event(row) for row in rows if row is not None)
        return max((event.seq for event in events if event is not None), default=0)
    finally:
        log.close()


class _LatestPages:
    """The last pages of a log, without the database that it belongs to."""

    def __init__(self, log: LogFrames, page_size: int, frames: int) -> None:
        self.usable = page_size
        self._log = log
        self.frames = {
            frame.page: frame.offset
            for transaction in log.committed(page_size, latest=frames)
            for frame in transaction
        }
        self.count = max(self.frames, default=0)

    def page(self, number: int) -> bytes | None:
        offset = self.frames.get(number)
        return None if offset is None else self._log.read(offset, self.usable)
