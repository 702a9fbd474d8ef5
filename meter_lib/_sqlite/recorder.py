"""Takes events in: the SQL of a post."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import transaction
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib._sqlite.post_queue import Post, PostQueue
from meter_lib.errors import KeyConflict, MeterError, OutboxFull, OutboxUnavailable
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
# The pages that a commit touches in any case: the file's first, and those on the way to a row.
_COMMIT_LOG_BYTES = 8 * 1024
_KEY_LOG_BYTES = 1200
_STREAM_LOG_BYTES = 2400
# A lone event is not measured: none takes more.
_LARGEST_LOG_BYTES = 144 * 1024
# Streams whose numbers are remembered, so that a post needs no look-up. A program has
# a few dozen; one that has more starts over now and then.
_MOST_REMEMBERED_STREAMS = 4096

_Stream = tuple[str, str, str]

# Without a seq it takes the next one.
_INSERT = """
    INSERT INTO events (seq, stream_id, idempotency_key, event_time,
                        recorded_at, total_usage, payload)
    VALUES (coalesce(?, 1 + (SELECT max(last_seq, coalesce((SELECT max(seq) FROM events), 0))
                             FROM outbox)), ?, ?, ?, ?, ?, ?)
"""


class SqliteRecorder:
    """The recording part of an outbox in a SQLite file."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._streams: dict[_Stream, int] = {}
        # They are of the file that this opening found; the next one may find another.
        self._streams_of = 0
        self._queue = PostQueue(self._record_together)
        # Threads that waited when the process forked are not there in the child.
        self._queue_of = os.getpid()

    def append(self, events: Sequence[UsageEvent], *, now: int) -> list[Receipt]:
        """Record all of `events` or none; see `Recorder.append`."""
        thread = threading.get_ident()
        if thread == threading.main_thread().ident:
            # Signal handlers run in this thread only. It waits for no post of another thread,
            # and none for it: a handler that interrupts it leaves nobody stuck.
            return self._record(events, now)
        if self._queue_of != os.getpid():
            self._queue, self._queue_of = PostQueue(self._record_together), os.getpid()
        post = Post(events, now, thread)
        self._queue.add(post)
        if post.error is not None:
            raise post.error
        return post.receipts or []

    def _record_together(self, posts: Sequence[Post]) -> None:
        """Record posts of several threads in one transaction, or each alone where that fails."""
        if len(posts) > 1:
            with contextlib.suppress(KeyConflict, OutboxFull):
                return self._record_in_one_commit(posts)
        for post in posts:
            try:
                post.receipts = self._record(post.events, post.now)
            except MeterError as error:
                post.error = error
        return None

    def _record_in_one_commit(self, posts: Sequence[Post]) -> None:
        log_bytes = _log_bytes([event for post in posts for event in post.events])
        batches = [(post.events, post.now) for post in posts]
        try:
            receipts = self._database.capture(
                lambda connection: self._record_all(connection, batches),
                log_bytes=log_bytes,
                pages=log_bytes // PAGE_BYTES,
            )
        except OutboxFull:
            raise
        except OutboxUnavailable as error:
            for post in posts:
                post.error = type(error)(str(error))
                post.error.__cause__ = error
        else:
            for post, its_receipts in zip(posts, receipts, strict=True):
                post.receipts = its_receipts

    def _record(self, events: Sequence[UsageEvent], now: int) -> list[Receipt]:
        """Record the events in a commit of their own."""
        if len(events) == 1 and events[0].idempotency_key is None:
            event = events[0]

            def record(connection: sqlite3.Connection) -> list[Receipt]:
                stream_id = self._known_streams().get(
                    (event.tenant_id, event.device_id, event.meter_id)
                )
                if stream_id is None:
                    return self._record_all(connection, [(events, now)])[0]
                key = os.urandom(16).hex()
                event_time = event.event_time(now)
                # One statement is its own transaction, which saves a third of the time that
                # is not the disk's.
                connection.execute(
                    _INSERT,
                    (None, stream_id, key, event_time, now, event.total_usage, event.payload),
                )
                return [{"status": "queued", "idempotency_key": key, "event_time": event_time}]

            return self._database.capture(
                record,
                log_bytes=_LARGEST_LOG_BYTES,
                # No character takes more than four bytes.
                pages=2 + 4 * len(event.payload) // PAGE_BYTES,
            )
        log_bytes = _log_bytes(events)
        return self._database.capture(
            lambda connection: self._record_all(connection, [(events, now)])[0],
            log_bytes=log_bytes,
            pages=log_bytes // PAGE_BYTES,
        )

    def _record_all(
        self, connection: sqlite3.Connection, batches: Sequence[tuple[Sequence[UsageEvent], int]]
    ) -> list[list[Receipt]]:
        new_streams: dict[_Stream, int] = {}
        with transaction(connection):
            receipts = self._insert(connection, batches, new_streams)
        # Only now: a number from a transaction that was undone would be wrong.
        if len(self._streams) + len(new_streams) > _MOST_REMEMBERED_STREAMS:
            self._streams.clear()
        self._streams.update(new_streams)
        return receipts

    def _insert(
        self,
        connection: sqlite3.Connection,
        batches: Sequence[tuple[Sequence[UsageEvent], int]],
        new_streams: dict[_Stream, int],
    ) -> list[list[Receipt]]:
        receipts: list[list[Receipt]] = []
        rows: list[tuple[object, ...]] = []
        streams = self._known_streams()
        seq = accepted_events(connection)
        for events, now in batches:
            its_receipts: list[Receipt] = []
            receipts.append(its_receipts)
            for index, event in enumerate(events):
                event_time = event.event_time(now)
                key = event.idempotency_key
                if key is not None:
                    known = _known(connection, event, index)
                    if known is not None:
                        its_receipts.append(known)
                        continue
                seq += 1
                stream = (event.tenant_id, event.device_id, event.meter_id)
                stream_id = streams.get(stream) or new_streams.get(stream)
                if stream_id is None:
                    stream_id = new_streams[stream] = _stream_id(connection, stream)
                if key is None:
                    key = os.urandom(16).hex()
                else:
                    _remember_key(connection, seq, event, event_time)
                rows.append(
                    (seq, stream_id, key, event_time, now, event.total_usage, event.payload)
                )
                its_receipts.append(
                    {"status": "queued", "idempotency_key": key, "event_time": event_time}
                )
        connection.executemany(_INSERT, rows)
        return receipts

    def _known_streams(self) -> dict[_Stream, int]:
        if self._streams_of != self._database.times_opened:
            self._streams, self._streams_of = {}, self._database.times_opened
        return self._streams


def _stream_id(connection: sqlite3.Connection, stream: _Stream) -> int:
    connection.execute(
        "INSERT OR IGNORE INTO streams (tenant_id, device_id, meter_id) VALUES (?, ?, ?)", stream
    )
    (stream_id,) = connection.execute(
        """
        SELECT stream_id FROM streams WHERE tenant_id = ? AND device_id = ? AND meter_id = ?
        """,
        stream,
    ).fetchone()
    return int(stream_id)


def _log_bytes(events: Sequence[UsageEvent]) -> int:
    """Return what recording these events adds to the write-ahead log, at most."""
    streams = {(event.tenant_id, event.device_id, event.meter_id) for event in events}
    total = _COMMIT_LOG_BYTES + len(streams) * _STREAM_LOG_BYTES
    for event in events:
        payload = event.payload
        total += _ROW_LOG_BYTES + 2 * (len(payload) if payload.isascii() else len(payload.encode()))
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


def _remember_key(
    connection: sqlite3.Connection, seq: int, event: UsageEvent, event_time: int
) -> None:
    connection.execute(
        """
        INSERT INTO known_keys (seq, key_digest, fingerprint, event_time, timestamp)
        VALUES (?, ?, ?, ?, ?)
        """,
        (
            seq,
            digest(event.idempotency_key or ""),
            event.fingerprint(),
            event_time,
            event.timestamp,
        ),
    )
