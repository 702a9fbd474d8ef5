"""Takes events in: the SQL of a post."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from meter_lib._sqlite.boots import FROM_CALLER, Boot, enter_boot, time_source
from meter_lib._sqlite.connection import transaction
from meter_lib._sqlite.dropping import DropLog, drop_oldest
from meter_lib._sqlite.keys import known_key, remember_key
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib._sqlite.post_queue import Moment, Post, PostQueue
from meter_lib._sqlite.salvage.set_aside import OutboxSetAside
from meter_lib._sqlite.within import record_within
from meter_lib.errors import (
    KeyConflict,
    MeterError,
    OutboxFull,
    OutboxUnavailable,
)
from meter_lib.known_key import KnownKey

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.clock import Uptime
    from meter_lib.recording import Receipt
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
# A new event was checked by usage.py, and is pending by default. To see that this is among the
# known states SQLite would fill a table with them for every post: two fifths of its own work.
_CHECKS = False
_KEY_BYTES = 16

_Stream = tuple[str, str, str]

# Without a seq it takes the next one.
_INSERT = """
    INSERT INTO events (seq, stream_id, idempotency_key, event_time, recorded_at, recorded_boot,
                        recorded_uptime, clock, total_usage, payload)
    VALUES (coalesce(?, 1 + (SELECT max(last_seq, coalesce((SELECT max(seq) FROM events), 0))
                             FROM outbox)), ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class SqliteRecorder:
    """The recording part of an outbox in a SQLite file."""

    def __init__(self, database: Database, *, drops_oldest: bool) -> None:
        self._database = database
        self._drops_oldest = drops_oldest
        self._drop_log = DropLog()
        self._dropped_to = 0
        self._streams: dict[_Stream, int] = {}
        # They are of the file that this opening found; the next one may find another.
        self._streams_of = 0
        self._boot: Boot | None = None
        self._queue = PostQueue(self._record_together)
        # Threads that waited when the process forked are not there in the child.
        self._queue_of = os.getpid()

    def append(
        self, events: Sequence[UsageEvent], *, now: int, uptime: Uptime | None = None
    ) -> list[Receipt]:
        """Record all of `events` or none, in a new outbox if this one turns out damaged."""
        at = Moment(now, uptime)
        try:
            return self._append(events, at)
        except OutboxSetAside:
            return self._append(events, at)

    def _append(self, events: Sequence[UsageEvent], at: Moment) -> list[Receipt]:
        thread = threading.get_ident()
        if thread == threading.main_thread().ident:
            # Signal handlers run in this thread only. It waits for no post of another thread,
            # and none for it: a handler that interrupts it leaves nobody stuck.
            return self._record(events, at)
        if self._queue_of != os.getpid():
            self._queue, self._queue_of = PostQueue(self._record_together), os.getpid()
        post = Post(events, at, thread)
        self._queue.add(post)
        if post.error is not None:
            raise post.error
        return post.receipts or []

    def append_within(
        self,
        connection: object,
        events: Sequence[UsageEvent],
        *,
        now: int,
        uptime: Uptime | None = None,
    ) -> list[Receipt]:
        """Record all of `events` or none in the caller's transaction; see `Recorder`."""
        at = Moment(now, uptime)
        log_bytes = _log_bytes(events)
        pages = log_bytes // PAGE_BYTES
        try:
            return record_within(
                self._database,
                connection,
                lambda theirs: self._record_within(theirs, events, at, 0),
                log_bytes=log_bytes,
                pages=pages,
            )
        except OutboxFull:
            if not self._drops_oldest:
                raise
        receipts = record_within(
            self._database,
            connection,
            lambda theirs: self._record_within(theirs, events, at, pages),
            # Dropping goes through the log as well.
            log_bytes=log_bytes + self._database.max_log_bytes // 3,
            pages=0,
        )
        self._drop_log.say(self._database.path)
        return receipts

    def _record_within(
        self, theirs: sqlite3.Connection, events: Sequence[UsageEvent], at: Moment, make_room: int
    ) -> list[Receipt]:
        # Nothing is remembered of a transaction that may be rolled back.
        if make_room:
            self._drop_log.add(drop_oldest(theirs, self._database.limits, pages=make_room, after=0))
        boot = _enter_boot(theirs, None, at)
        return self._insert(theirs, [(events, at)], {}, {}, boot)[0]

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return self._database.path

    def close(self) -> None:
        """Let go of the file and of all locks."""
        self._database.close()

    def _record_together(self, posts: Sequence[Post]) -> None:
        """Record posts of several threads in one transaction, or each alone where that fails."""
        if len(posts) > 1:
            with contextlib.suppress(KeyConflict, OutboxFull):
                return self._record_in_one_commit(posts)
        for post in posts:
            try:
                post.receipts = self._record(post.events, post.at)
            except MeterError as error:
                post.error = error
        return None

    def _record_in_one_commit(self, posts: Sequence[Post]) -> None:
        log_bytes = _log_bytes([event for post in posts for event in post.events])
        batches = [(post.events, post.at) for post in posts]
        try:
            receipts = self._database.capture(
                lambda connection: self._record_all(connection, batches),
                log_bytes=log_bytes,
                pages=log_bytes // PAGE_BYTES,
                checks=_CHECKS,
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

    def _record(self, events: Sequence[UsageEvent], at: Moment) -> list[Receipt]:
        """Record the events in a commit of their own."""
        try:
            if len(events) == 1 and events[0].idempotency_key is None:
                return self._record_one(events[0], at)
            log_bytes = _log_bytes(events)
            return self._database.capture(
                lambda connection: self._record_all(connection, [(events, at)])[0],
                log_bytes=log_bytes,
                pages=log_bytes // PAGE_BYTES,
                checks=_CHECKS,
            )
        except OutboxFull:
            if not self._drops_oldest:
                raise
        return self._record_instead_of_oldest(events, at)

    def _record_one(self, event: UsageEvent, at: Moment) -> list[Receipt]:
        def record(connection: sqlite3.Connection) -> list[Receipt]:
            stream_id = self._known_streams().get(
                (event.tenant_id, event.device_id, event.meter_id)
            )
            if stream_id is None or not self._is_in_boot(at):
                return self._record_all(connection, [([event], at)])[0]
            key = os.urandom(_KEY_BYTES).hex()
            recorded, own_source = _clock_columns(at, self._boot)
            event_time, source = event.time_said(), FROM_CALLER
            if event_time is None:
                event_time, source = at.now, own_source
            # One statement is its own transaction, which saves a third of the time that
            # is not the disk's.
            connection.execute(
                _INSERT,
                (
                    None,
                    stream_id,
                    key,
                    event_time,
                    *recorded,
                    source,
                    event.total_usage,
                    event.payload,
                ),
            )
            return [{"status": "queued", "idempotency_key": key, "event_time": event_time}]

        return self._database.capture(
            record,
            log_bytes=_LARGEST_LOG_BYTES,
            # No character takes more than four bytes.
            pages=2 + 4 * len(event.payload) // PAGE_BYTES,
            checks=_CHECKS,
        )

    def _record_instead_of_oldest(self, events: Sequence[UsageEvent], at: Moment) -> list[Receipt]:
        log_bytes = _log_bytes(events)
        receipts = self._database.capture(
            lambda connection: self._record_all(
                connection, [(events, at)], make_room=log_bytes // PAGE_BYTES
            ),
            # Dropping goes through the log as well.
            log_bytes=log_bytes + self._database.max_log_bytes // 3,
            pages=0,
        )
        self._drop_log.say(self._database.path)
        return receipts[0]

    def _record_all(
        self,
        connection: sqlite3.Connection,
        batches: Sequence[tuple[Sequence[UsageEvent], Moment]],
        *,
        make_room: int = 0,
    ) -> list[list[Receipt]]:
        new_streams: dict[_Stream, int] = {}
        dropped = None
        with transaction(connection):
            streams = self._known_streams()
            if make_room:
                limits = self._database.limits
                dropped = drop_oldest(connection, limits, pages=make_room, after=self._dropped_to)
            boot = _enter_boot(connection, self._boot, batches[0][1])
            receipts = self._insert(connection, batches, streams, new_streams, boot)
        # Only now: a number from a transaction that was undone would be wrong.
        if dropped is not None:
            self._dropped_to = dropped.up_to
            self._drop_log.add(dropped)
        self._boot = boot
        if len(streams) + len(new_streams) > _MOST_REMEMBERED_STREAMS:
            streams.clear()
        streams.update(new_streams)
        return receipts

    def _insert(
        self,
        connection: sqlite3.Connection,
        batches: Sequence[tuple[Sequence[UsageEvent], Moment]],
        streams: dict[_Stream, int],
        new_streams: dict[_Stream, int],
        boot: Boot | None,
    ) -> list[list[Receipt]]:
        receipts: list[list[Receipt]] = []
        rows: list[tuple[object, ...]] = []
        seq = accepted_events(connection)
        new_keys = iter(_new_keys(sum([len(events) for events, _ in batches])))
        for events, at in batches:
            its_receipts: list[Receipt] = []
            receipts.append(its_receipts)
            recorded, own_source = _clock_columns(at, boot)
            for index, event in enumerate(events):
                event_time, source = event.time_said(), FROM_CALLER
                if event_time is None:
                    event_time, source = at.now, own_source
                key = event.idempotency_key
                if key is not None:
                    twin = _known(connection, event, index)
                    if twin is not None:
                        its_receipts.append(twin)
                        continue
                seq += 1
                stream = (event.tenant_id, event.device_id, event.meter_id)
                stream_id = streams.get(stream) or new_streams.get(stream)
                if stream_id is None:
                    stream_id = new_streams[stream] = _stream_id(connection, stream)
                if key is None:
                    key = next(new_keys)
                else:
                    known = KnownKey(event.fingerprint(), event_time, event.timestamp)
                    remember_key(connection, seq, key, known)
                usage, payload = event.total_usage, event.payload
                rows.append((seq, stream_id, key, event_time, *recorded, source, usage, payload))
                its_receipts.append(
                    {"status": "queued", "idempotency_key": key, "event_time": event_time}
                )
        connection.executemany(_INSERT, rows)
        return receipts

    def _is_in_boot(self, at: Moment) -> bool:
        """Return whether the outbox knows of the boot, if it can be known."""
        if at.uptime is None or at.uptime.boot is None:
            return True
        return self._boot is not None and self._boot.number == at.uptime.boot

    def _known_streams(self) -> dict[_Stream, int]:
        if self._streams_of != self._database.times_opened:
            self._streams, self._streams_of = {}, self._database.times_opened
            self._boot, self._dropped_to = None, 0
        return self._streams


def _enter_boot(connection: sqlite3.Connection, known: Boot | None, at: Moment) -> Boot | None:
    number = at.uptime.boot if at.uptime else None
    if number is None or (known is not None and known.number == number):
        return known
    return enter_boot(connection, number)


def _clock_columns(at: Moment, boot: Boot | None) -> tuple[tuple[int, int | None, int | None], int]:
    """Return recorded_at, recorded_boot and recorded_uptime; and clock, for a time of our own."""
    in_boot = at.uptime.boot if at.uptime else None
    uptime = at.uptime.milliseconds if at.uptime and in_boot is not None else None
    source = time_source(at.now, boot.earlier_at if boot else None)
    return (at.now, in_boot, uptime), source


def _new_keys(count: int) -> list[str]:
    # Drawn at once: a call of the system for each would take half as long as its row.
    digits, length = os.urandom(_KEY_BYTES * count).hex(), 2 * _KEY_BYTES
    return [digits[start : start + length] for start in range(0, length * count, length)]


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
    key = event.idempotency_key or ""
    known = known_key(connection, key)
    if known is None:
        return None
    known.check(event, index)
    return {"status": "duplicate", "idempotency_key": key, "event_time": known.event_time}
