"""Looks for commits in a log that SQLite does not see.

To SQLite a damaged frame is the end of the log: it reports nothing, and writes over what
follows. But there may be events with a receipt. They are told by their numbers, which are
higher than any that SQLite knows of.

One such commit is no sign of damage: whoever made it was killed, or the power failed,
before it was whole or published, and nobody has a receipt. Behind another one it is: a
commit of events is on the disk before the next one begins.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import connect
from meter_lib._sqlite.files import file_bytes
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.salvage.log_frames import LogFrames
from meter_lib._sqlite.salvage.rows import current_layouts, salvaged_event
from meter_lib._sqlite.salvage.set_aside import DamagedLog
from meter_lib._sqlite.salvage.trees import Trees

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator

    from meter_lib._sqlite.salvage.log_frames import Frame

__all__ = ["check_log"]

# Only the end is looked at: events are recorded in the order of their numbers.
_FRAMES = 32
# Hidden commits of events, of which the first must have been whole on the disk.
_PROOF = 2


def check_log(path: str, connection: sqlite3.Connection) -> None:
    """Raise `DamagedLog` where the log of `path` ends with events that `connection` cannot see.

    To be called under the lock file, before anything is written; `connection` only reads.
    """
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    if not _hidden_seqs(path, page_size, accepted_events(connection)):
        return
    with _no_commit_under_way(path):
        hidden = _hidden_seqs(path, page_size, accepted_events(connection))
        if len(hidden) >= _PROOF:
            raise DamagedLog(f"its log is damaged before event {max(hidden)}")
        if hidden:
            # SQLite would leave what it does not write over. Behind later commits it would be
            # taken for newer than those.
            LogFrames.erase_what_is_cut_off(path, page_size)


@contextlib.contextmanager
def _no_commit_under_way(path: str) -> Generator[None]:
    """Have SQLite's lock, or raise: a caller's own transaction commits without the lock file."""
    # It is not the last to be closed, and so empties no log.
    with contextlib.closing(connect(path, mode="rw", timeout_seconds=0)) as ours:
        ours.execute("BEGIN IMMEDIATE")
        yield
        ours.execute("ROLLBACK")


def _hidden_seqs(path: str, page_size: int, accepted: int) -> set[int]:
    """Return the highest seq of each transaction with events beyond `accepted`: two are enough."""
    log = LogFrames(path)
    try:
        frames = _FRAMES
        seqs = _seqs_of(log, page_size, frames)
        # The whole log is read only where its end is hidden, or tells nothing.
        while (
            max(seqs, default=accepted + 1) > accepted
            and len({seq for seq in seqs if seq > accepted}) < _PROOF
            and frames < file_bytes(f"{path}-wal") // page_size
        ):
            frames *= 4
            seqs = _seqs_of(log, page_size, frames)
        return {seq for seq in seqs if seq > accepted}
    finally:
        log.close()


def _seqs_of(log: LogFrames, page_size: int, frames: int) -> list[int]:
    layout = current_layouts()["events"]
    seqs: list[int] = []
    for transaction in log.committed(page_size, latest=frames):
        pages = _PagesOf(log, page_size, transaction)
        trees = Trees(pages)
        rows = (layout.row(record) for page in pages.frames for record in trees.records(page))
        events = (salvaged_event(row) for row in rows if row is not None)
        seqs.append(max((event.seq for event in events if event is not None), default=0))
    return seqs


class _PagesOf:
    """The pages of one transaction in a log, without the database that it belongs to."""

    def __init__(self, log: LogFrames, page_size: int, transaction: list[Frame]) -> None:
        self.usable = page_size
        self._log = log
        self.frames = {frame.page: frame.offset for frame in transaction}
        self.count = max(self.frames, default=0)

    def page(self, number: int) -> bytes | None:
        offset = self.frames.get(number)
        return None if offset is None else self._log.read(offset, self.usable)
