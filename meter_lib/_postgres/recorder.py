"""Takes events in: the SQL of a post, in a transaction of its own or in the caller's."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from meter_lib._postgres.keys import known_keys, remember_keys
from meter_lib._postgres.listening import CHANNEL
from meter_lib._postgres.streams import Streams, shard_of
from meter_lib._postgres.tallies import Totals, count, count_by_itself, totals
from meter_lib._sqlite.post_queue import Moment, Post, PostQueue
from meter_lib.clock import FIRST_POSSIBLE_TIME
from meter_lib.errors import (
    InvalidUsage,
    InvalidUsageType,
    KeyConflict,
    MeterError,
    OutboxFull,
    OutboxMissing,
    OutboxUnavailable,
)
from meter_lib.known_key import KnownKey
from meter_lib.usage import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection, Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server
    from meter_lib._postgres.session import Session
    from meter_lib._postgres.streams import Numbers
    from meter_lib.clock import Uptime
    from meter_lib.outbox import Receipt
    from meter_lib.usage import UsageEvent

__all__ = ["PostgresRecorder"]

# How often this process wakes the workers. The server commits transactions that do so one
# after the other, so not each of them may; who comes in between is seen at the next look.
_SECONDS_BETWEEN_CALLS = 0.1
# For keys that others record at the same moment.
_MOST_TRIES = 3
# How long a post under a key that another transaction is recording waits for its end. As long
# as that may stay open, others of this process take their turns in between.
_PATIENCE_SECONDS = 10.0
_LOCK_TIMEOUT = "50ms"
_SECONDS_BETWEEN_TRIES = 0.05
# As `bytes` of the table has it, beside the payload.
_ROW_BYTES = 400


class _Overtaken(Exception):
    """Somebody else has recorded one of the keys in the meantime, or moved an outbox."""


class PostgresRecorder:
    """The recording part of an outbox on a server."""

    def __init__(self, server: Server, session: Session, *, max_bytes: int) -> None:
        self._server = server
        self._session = session
        self._max_bytes = max_bytes
        self._streams = Streams()
        self._call_again_at = 0.0
        self._name = ""
        self._name_of: object = None
        self._queue = PostQueue(self._record_together)
        # Threads that waited when the process forked are not there in the child.
        self._queue_of = os.getpid()

    @property
    def outbox_id(self) -> str:
        """Return the outbox's own name."""
        if not self._name or self._name_of != self._session.life():
            self._name_of = self._session.life()
            self._name = self._session.repeatable(_outbox_id)
        return self._name

    def append(
        self, events: Sequence[UsageEvent], *, now: int, uptime: Uptime | None = None
    ) -> list[Receipt]:
        """Record all of `events` or none; see `Recorder.append`."""
        if not events:
            return []
        at = Moment(now, uptime)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            return self._append(events, at)
        except OutboxUnavailable as error:
            if not _is_locked(error):
                raise
        while True:
            time.sleep(_SECONDS_BETWEEN_TRIES)
            try:
                return self._record([(events, at)])[0]
            except OutboxUnavailable as error:
                if not _is_locked(error) or time.monotonic() >= deadline:
                    raise

    def _append(self, events: Sequence[UsageEvent], at: Moment) -> list[Receipt]:
        thread = threading.get_ident()
        if thread == threading.main_thread().ident:
            # Signal handlers run in this thread only: nobody waits for it, and it for nobody.
            return self._record([(events, at)])[0]
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
        theirs = self._checked(connection)
        # Beforehand, by our own connection: nothing that others wait for is left to the caller's.
        self._session.repeatable(lambda cursor: self._check_room(cursor, events))
        try:
            # Whatever kind of cursor theirs makes.
            with psycopg.Cursor(theirs, row_factory=tuple_row) as cursor:
                # Begins it, where that is left to the first statement: what follows must be in it.
                cursor.execute("SELECT current_setting('transaction_isolation') = 'read committed'")
                [(sees_others,)] = cursor.fetchall()
                for _ in range(_MOST_TRIES):
                    numbers = self._streams.numbers(self._session, events)
                    with contextlib.suppress(_Overtaken), theirs.transaction():
                        self._check_it_is_this_outbox(cursor, numbers.life)
                        receipts, more = self._insert(
                            cursor, [(events, Moment(now, uptime))], numbers
                        )
                        (count if sees_others else count_by_itself)(cursor, more)
                        self._call_workers(cursor)
                        return receipts[0]
        except psycopg.Error as error:
            raise self._session.translation(error) from error
        raise OutboxUnavailable(f"{self._server.location}: its keys are being recorded by others")

    def _check_it_is_this_outbox(self, cursor: Cursor[TupleRow], life: object) -> None:
        try:
            cursor.execute("SELECT life FROM meter_lib.outbox")
            lives = [theirs for (theirs,) in cursor.fetchall()]
        except psycopg.errors.UndefinedTable:
            lives = []
        if lives == [life]:
            return
        self._session.look_again()
        if lives == [self._session.life()]:
            raise _Overtaken
        raise InvalidUsage(
            f"connection: its database, as its transaction sees it, has"
            f" {'another' if lives else 'no'} outbox, not {self._server.location}"
        )

    def _checked(self, connection: object) -> Connection[TupleRow]:
        if not isinstance(connection, psycopg.Connection):
            raise InvalidUsageType(
                f"connection must be a psycopg.Connection, as the outbox is"
                f" {self._server.location}, not {type(connection).__name__}"
            )
        status = connection.info.transaction_status
        if status == TransactionStatus.IDLE and connection.autocommit:
            raise InvalidUsage(
                "connection is in autocommit mode and in no transaction: post within"
                " connection.transaction()"
            )
        if status not in {TransactionStatus.IDLE, TransactionStatus.INTRANS}:
            raise InvalidUsage(
                f"connection is not ready for a statement ({status.name.lower()}): its transaction"
                " must be open and not failed"
            )
        if connection.info.encoding != "utf-8":
            raise InvalidUsage(
                f"connection has the client_encoding {connection.info.encoding}, which cannot hold"
                f" every text: set it to UTF8"
            )
        return connection

    def _record_together(self, posts: Sequence[Post]) -> None:
        """Record posts of several threads in one transaction, or each alone where that fails."""
        if len(posts) > 1:
            try:
                receipts = self._record([(post.events, post.at) for post in posts])
            except (KeyConflict, OutboxFull):
                pass
            except OutboxUnavailable as error:
                self._refuse(posts, error)
                return
            else:
                for post, its_receipts in zip(posts, receipts, strict=True):
                    post.receipts = its_receipts
                return
        for post in posts:
            try:
                [post.receipts] = self._record([(post.events, post.at)])
            except MeterError as error:
                post.error = error

    def _refuse(self, posts: Sequence[Post], error: OutboxUnavailable) -> None:
        """Give each the error; but what has no key waits for nobody, and is recorded."""
        keyless = [post for post in posts if all(e.idempotency_key is None for e in post.events)]
        if not _is_locked(error) or len(keyless) == len(posts):
            keyless = []
        for post in posts:
            if post not in keyless:
                post.error = type(error)(str(error))
                post.error.__cause__ = error.__cause__
        if keyless:
            self._record_together(keyless)

    def _record(
        self, batches: Sequence[tuple[Sequence[UsageEvent], Moment]]
    ) -> list[list[Receipt]]:
        events = [event for its_events, _ in batches for event in its_events]

        def record(cursor: Cursor[TupleRow]) -> list[list[Receipt]]:
            if numbers.life != self._session.life():
                raise _Overtaken
            self._check_room(cursor, events)
            receipts, more = self._insert(cursor, batches, numbers)
            count(cursor, more)
            self._call_workers(cursor)
            return receipts

        for _ in range(_MOST_TRIES):
            numbers = self._streams.numbers(self._session, events)
            with contextlib.suppress(_Overtaken):
                return self._session.capture(record, lock_timeout=_LOCK_TIMEOUT)
        raise OutboxUnavailable(f"{self._server.location}: its keys are being recorded by others")

    def _insert(
        self,
        cursor: Cursor[TupleRow],
        batches: Sequence[tuple[Sequence[UsageEvent], Moment]],
        numbers: Numbers,
    ) -> tuple[list[list[Receipt]], Totals]:
        """Record what is new of the events; return receipts for all, and what that adds."""
        known = known_keys(
            cursor,
            [
                digest(event.idempotency_key)
                for events, _ in batches
                for event in events
                if event.idempotency_key is not None
            ],
        )
        receipts: list[list[Receipt]] = []
        new: list[tuple[UsageEvent, Moment, Receipt]] = []
        for events, at in batches:
            its_receipts: list[Receipt] = []
            receipts.append(its_receipts)
            for index, event in enumerate(events):
                receipt = _receipt(event, at, known, index)
                its_receipts.append(receipt)
                if receipt["status"] == "queued":
                    new.append((event, at, receipt))
        if not new:
            return receipts, Totals()
        cursor.execute(
            "SELECT nextval('meter_lib.event_seq') FROM generate_series(1, %s)", (len(new),)
        )
        seqs = [int(seq) for (seq,) in cursor]
        rows = [
            (
                seq,
                numbers.of[event.tenant_id, event.device_id, event.meter_id],
                shard_of(event.tenant_id, event.device_id),
                receipt["idempotency_key"],
                receipt["event_time"],
                at.now,
                at.now < FIRST_POSSIBLE_TIME and _is_ours(event),
                event.total_usage,
                event.payload,
            )
            for seq, (event, at, receipt) in zip(seqs, new, strict=True)
        ]
        cursor.execute(
            """
            INSERT INTO meter_lib.events (seq, stream_id, shard, idempotency_key, event_time,
                                          recorded_at, clock_uncertain, total_usage, payload)
            SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::integer[], %s::text[],
                                 %s::bigint[], %s::bigint[], %s::boolean[], %s::bigint[],
                                 %s::text[])
            """,
            [list(column) for column in zip(*rows, strict=True)],
        )
        keys = [
            (seq, event, receipt["event_time"])
            for seq, (event, _, receipt) in zip(seqs, new, strict=True)
            if event.idempotency_key is not None
        ]
        if not remember_keys(cursor, keys):
            raise _Overtaken
        return receipts, Totals(accepted=len(new), bytes=sum(_bytes(event) for event, _, _ in new))

    def _check_room(self, cursor: Cursor[TupleRow], events: Sequence[UsageEvent]) -> None:
        if totals(cursor).bytes + sum(map(_bytes, events)) > self._max_bytes:
            raise OutboxFull(
                f"{self._server.location} is full: its limit (METER_MAX_BYTES) is"
                f" {self._max_bytes} bytes; nothing was recorded"
            )

    def _call_workers(self, cursor: Cursor[TupleRow]) -> None:
        if time.monotonic() >= self._call_again_at:
            self._call_again_at = time.monotonic() + _SECONDS_BETWEEN_CALLS
            cursor.execute("SELECT pg_notify(%s, '')", (CHANNEL,))


def _is_locked(error: OutboxUnavailable) -> bool:
    """Return whether another transaction was in the way, as one that records the same key."""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)


def _outbox_id(cursor: Cursor[TupleRow]) -> str:
    cursor.execute("SELECT outbox_id FROM meter_lib.outbox")
    row = cursor.fetchone()
    if row is None:
        raise OutboxMissing("the tables of an outbox are there, and nothing in them")
    return str(row[0])


def _receipt(event: UsageEvent, at: Moment, known: dict[bytes, KnownKey], index: int) -> Receipt:
    """Return the receipt of an event, and know its key from now on."""
    event_time = event.event_time(at.now)
    key = event.idempotency_key
    if key is None:
        key = os.urandom(16).hex()
        return {"status": "queued", "idempotency_key": key, "event_time": event_time}
    key_digest = digest(key)
    before = known.get(key_digest)
    if before is not None:
        before.check(event, index)
        return {
            "status": "duplicate",
            "idempotency_key": key,
            "event_time": before.event_time,
        }
    known[key_digest] = KnownKey(event.fingerprint(), event_time, event.timestamp)
    return {"status": "queued", "idempotency_key": key, "event_time": event_time}


def _is_ours(event: UsageEvent) -> bool:
    """Return whether its time was left to our clock."""
    return event.timestamp is None and event.end_time is None and event.start_time is None


def _bytes(event: UsageEvent) -> int:
    payload = event.payload
    return _ROW_BYTES + (len(payload) if payload.isascii() else len(payload.encode()))
