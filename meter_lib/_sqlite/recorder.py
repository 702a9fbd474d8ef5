"""Takes events in: the SQL of a post."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from meter_lib._sqlite.ledger import accepted_events
from meter_lib.errors import KeyConflict
from meter_lib.usage import digest

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import Receipt
    from meter_lib.usage import UsageEvent

__all__ = ["SqliteRecorder"]

# What goes to the write-ahead log, as pages, at most: of an event so much beside twice its
# payload (a page may stay half empty); of a key of the caller's own and of a stream, the
# pages of their indexes that they fall into.
_ROW_LOG_BYTES = 256
_KEY_LOG_BYTES = 1200
_STREAM_LOG_BYTES = 2400
# A lone event is not measured: none takes more.
_LARGEST_LOG_BYTES = 144 * 1024
# Streams whose numbers are remembered, so that a post needs no look-up. A program has
# a few dozen; one that has more starts over now and then.
_MOST_REMEMBERED_STREAMS = 4096


class SqliteRecorder:
    """The recording part of an outbox in a SQLite file."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._streams: dict[tuple[str, str, str], int] = {}
        # They are of the file that this opening found; the next one may find another.
        self._streams_of = 0

    def append(self, events: Sequence[UsageEvent], *, now: int) -> list[Receipt]:
        """Record all of `events` or none; see `Recorder.append`."""
        receipts: list[Receipt] = []
        new_streams: dict[tuple[str, str, str], int] = {}
        with self._database.write(capture=True, log_bytes=_log_bytes(events)) as connection:
            if self._streams_of != self._database.times_opened:
                self._streams, self._streams_of = {}, self._database.times_opened
            streams = self._streams
            seq = accepted_events(connection)
            for index, event in enumerate(events):
                event_time = event.event_time(now)
                if event.idempotency_key is not None:
                    known = _known(connection, event, index)
                    if known is not None:
                        receipts.append(known)
                        continue
                seq += 1
                key = event.idempotency_key or os.urandom(16).hex()
                connection.execute(
                    """
                    INSERT INTO events (seq, stream_id, idempotency_key, event_time,
                                        recorded_at, total_usage, payload)
                    VALUES (?, ?, ?, ?, ?, ?, ?)
                    """,
                    (
                        seq,
                        self._stream_id(connection, event, new_streams),
                        key,
                        event_time,
                        now,
                        event.total_usage,
                        event.payload,
                    ),
                )
                if event.idempotency_key is not None:
                    connection.execute(
                        """
                        INSERT INTO known_keys (seq, key_digest, fingerprint,
                                                event_time, timestamp)
                        VALUES (?, ?, ?, ?, ?)
                        """,
                        (seq, digest(key), event.fingerprint(), event_time, event.timestamp),
                    )
                receipts.append(
                    {"status": "queued", "idempotency_key": key, "event_time": event_time}
                )
        # Only now: a number from a transaction that was undone would be wrong.
        if len(streams) + len(new_streams) > _MOST_REMEMBERED_STREAMS:
            streams.clear()
        streams.update(new_streams)
        return receipts

    def _stream_id(
        self,
        connection: sqlite3.Connection,
        event: UsageEvent,
        new_streams: dict[tuple[str, str, str], int],
    ) -> int:
        stream = (event.tenant_id, event.device_id, event.meter_id)
        stream_id = self._streams.get(stream) or new_streams.get(stream)
        if stream_id is None:
            connection.execute(
                """
                INSERT OR IGNORE INTO streams (tenant_id, device_id, meter_id)
                VALUES (?, ?, ?)
                """,
                stream,
            )
            (stream_id,) = connection.execute(
                """
                SELECT stream_id FROM streams
                WHERE tenant_id = ? AND device_id = ? AND meter_id = ?
                """,
                stream,
            ).fetchone()
            new_streams[stream] = stream_id
        return stream_id


def _log_bytes(events: Sequence[UsageEvent]) -> int:
    """Return what recording these events adds to the write-ahead log, at most."""
    if len(events) == 1:
        return _LARGEST_LOG_BYTES
    streams = {(event.tenant_id, event.device_id, event.meter_id) for event in events}
    total = len(streams) * _STREAM_LOG_BYTES
    for event in events:
        total += _ROW_LOG_BYTES + 2 * len(event.payload.encode())
        if event.idempotency_key is not None:
            total += _KEY_LOG_BYTES + 2 * len(event.idempotency_key)
    return total


def _known(connection: sqlite3.Connection, event: UsageEvent, index: int) -> Receipt | None:
    """Return the first receipt's twin if the event's own key is known, or raise `KeyConflict`."""
    row = connection.execute(
        """
        SELECT fingerprint, event_time, timestamp FROM known_keys WHERE key_digest = ?
        """,
        (digest(event.idempotency_key or ""),),
    ).fetchone()
    if row is None:
        return None
    fingerprint, event_time, timestamp = row
    # A time that was defaulted, now or then, says nothing about the content.
    other_time = timestamp is not None and event.timestamp not in (None, timestamp)
    if fingerprint != event.fingerprint() or other_time:
        raise KeyConflict(
            f"idempotency_key {event.idempotency_key!r} is known already with other content; "
            f"use a new key for a new event",
            index=index,
        )
    return {
        "status": "duplicate",
        "idempotency_key": event.idempotency_key or "",
        "event_time": event_time,
    }
