"""Keeps waits and event times right whatever happens to the wall clock: see `boots`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.boots import (
    begin_line_of_waits,
    correct_times,
    end_holds,
    line_of_waits,
    mistimed,
)
from meter_lib._sqlite.connection import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Iterator

    from meter_lib._sqlite.database import Database
    from meter_lib.clock import ClockReading, Uptime

__all__ = ["SqliteTimes"]

# Events looked through at a time: no read stays open for long.
_EVENTS_A_LOOK = 20_000
# Streams whose wait is ended at a time, and what each adds to the write-ahead log at most.
_STREAMS_A_WRITE = 200
_STREAM_LOG_BYTES = 4096
# What correcting an event and its key adds to it, beside twice its payload (of four bytes a
# character).
_EVENT_LOG_BYTES = 8192
_LINE_LOG_BYTES = 64 * 1024


class SqliteTimes:
    """The part of an outbox in a SQLite file that knows of boots."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def resume_waits(self, *, now: int, uptime: Uptime) -> int:
        """Return the offset of the time line of waits; see `Delivery.resume_waits`."""
        with self._database.read() as connection:
            offset = line_of_waits(connection, uptime)
        if offset is not None:
            return offset
        is_done = False
        while not is_done:
            with self._database.write(log_bytes=_STREAMS_A_WRITE * _STREAM_LOG_BYTES) as connection:
                is_done = end_holds(connection, most=_STREAMS_A_WRITE)
        with self._database.write(log_bytes=_LINE_LOG_BYTES) as connection:
            return begin_line_of_waits(connection, now, uptime)

    def correct_times(self, reading: ClockReading, *, keep: Collection[int]) -> int:
        """Correct the times that a wrong clock gave; see `Delivery.correct_times`."""
        corrected = 0
        after = 0
        is_last = False
        while not is_last:
            with self._database.read() as connection:
                found, after, is_last = mistimed(
                    connection, reading, after=after, span=_EVENTS_A_LOOK
                )
            for seqs in self._batches(found, keep):
                corrected += self._correct(reading, seqs)
        return corrected

    def _correct(self, reading: ClockReading, seqs: list[int]) -> int:
        def correct(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                return correct_times(connection, reading, seqs)

        # Synced, as a post is: after a power cut the same times must be sent again.
        return self._database.capture(correct, log_bytes=self._most_log_bytes, pages=0)

    def _batches(
        self, found: Iterable[tuple[int, int]], keep: Collection[int]
    ) -> Iterator[list[int]]:
        part: list[int] = []
        log_bytes = 0
        for seq, characters in found:
            if seq in keep:
                continue
            size = _EVENT_LOG_BYTES + 8 * characters
            if part and log_bytes + size > self._most_log_bytes:
                yield part
                part, log_bytes = [], 0
            part.append(seq)
            log_bytes += size
        if part:
            yield part

    @property
    def _most_log_bytes(self) -> int:
        return self._database.max_log_bytes // 2
