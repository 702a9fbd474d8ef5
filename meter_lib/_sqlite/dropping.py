"""Makes room for new events at the cost of the oldest: the SQL of METER_WHEN_FULL=drop-oldest."""

import logging
import sqlite3
import time
from typing import NamedTuple

from meter_lib._sqlite.keys import forget_removed_keys
from meter_lib._sqlite.ledger import count_in_ledger
from meter_lib._sqlite.limits import Limits
from meter_lib._sqlite.room import pages_left
from meter_lib.errors import OutboxFull

__all__ = ["DropLog", "Dropped", "drop_oldest"]

_logger = logging.getLogger("meter_lib")

# Dropped at a time, until there is room: the ledger is written once for all of them.
_EVENTS_A_LOOK = 64
# Room that is made beside what is needed, in pages: so that not each post has to drop.
_PAGES_AHEAD = 64
# What dropping an event adds to the write-ahead log, as that of settling it.
_DROP_LOG_BYTES = 4096
_SECONDS_BETWEEN_LOGS = 60.0


class Dropped(NamedTuple):
    """What had to go."""

    events: int
    units: int
    up_to: int
    """The seq of the last of them: nothing before it can be dropped, unless it was replayed."""


def drop_oldest(
    connection: sqlite3.Connection, limits: Limits, *, pages: int, after: int
) -> Dropped:
    """Remove the oldest events that wait, until so many pages are free; count them as removed.

    Not dead letters, for somebody has to look at them, nor what may have been sent. Those
    up to `after` are looked at only where there are no others. Raises `OutboxFull` where
    there is nothing to drop, or too little at a time.
    """
    gone: list[tuple[int, int, int, int | None]] = []
    log_bytes = limits.max_log_bytes // 4
    while pages_left(connection, limits) < pages + (_PAGES_AHEAD if gone else 0):
        if log_bytes <= 0 and pages_left(connection, limits) >= pages:
            break
        found = _oldest(connection, after) or (_oldest(connection, 0) if after else [])
        if not found or log_bytes <= 0:
            raise OutboxFull(
                "the limit (METER_MAX_BYTES) is reached, and dropping the oldest events that"
                " wait makes no room; nothing was recorded"
            )
        connection.executemany("DELETE FROM events WHERE seq = ?", [(row[0],) for row in found])
        log_bytes -= sum(_DROP_LOG_BYTES + row[4] for row in found)
        gone += [row[:4] for row in found]
        after = found[-1][0]
    _count(connection, gone)
    return Dropped(len(gone), sum(units or 0 for _, _, _, units in gone), after)


def _oldest(
    connection: sqlite3.Connection, after: int
) -> list[tuple[int, int, int, int | None, int]]:
    """Return seq, stream, event time, units and payload size of the oldest that may go."""
    return connection.execute(
        """
        SELECT seq, stream_id, event_time, total_usage, length(payload) FROM events
        WHERE seq > ? AND state IN ('pending', 'deferred')
          AND seq NOT IN (SELECT sent.value FROM unanswered, json_each(unanswered.seqs) AS sent)
        ORDER BY seq LIMIT ?
        """,
        (after, _EVENTS_A_LOOK),
    ).fetchall()


def _count(connection: sqlite3.Connection, gone: list[tuple[int, int, int, int | None]]) -> None:
    if not gone:
        return
    connection.execute(
        "UPDATE outbox SET removed_events = removed_events + ?, last_seq = max(last_seq, ?)",
        (len(gone), max(seq for seq, _, _, _ in gone)),
    )
    count_in_ledger(
        connection,
        "removed",
        ((event_time, stream_id, units) for _, stream_id, event_time, units in gone),
    )
    forget_removed_keys(connection, [seq for seq, _, _, _ in gone])
    connection.executemany(
        """
        UPDATE streams SET held_until = NULL
        WHERE stream_id = ? AND held_until IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM events
                          WHERE events.stream_id = streams.stream_id AND state = 'deferred')
        """,
        [(stream_id,) for stream_id in {stream_id for _, stream_id, _, _ in gone}],
    )


class DropLog:
    """Says what was dropped, loudly, but not with every post."""

    def __init__(self) -> None:
        self._events = 0
        self._units = 0
        self._next_at = 0.0

    def add(self, dropped: Dropped) -> None:
        """Count it."""
        self._events += dropped.events
        self._units += dropped.units

    def say(self, path: str) -> None:
        """Log all that was not logged yet, at most once a minute."""
        if self._events and time.monotonic() >= self._next_at:
            _logger.error(
                "%s is full: dropped the %d oldest events that waited, %d units, to record new"
                " ones (METER_WHEN_FULL is drop-oldest); they are counted as removed",
                path,
                self._events,
                self._units,
                extra={
                    "event": "dropped_oldest",
                    "outbox": path,
                    "events": self._events,
                    "units": self._units,
                },
            )
            self._events = self._units = 0
            self._next_at = time.monotonic() + _SECONDS_BETWEEN_LOGS
