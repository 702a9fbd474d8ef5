"""Hands events to the flusher and writes what became of them: the SQL of a delivery.

Reading starts at the frontier: no event up to there is pending any more, only set
aside (deferred, refused) or dead. So neither a stuck tenant nor a heap of dead
letters makes the next read any slower.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meter_lib._sqlite.ledger import count_in_ledger, forget_keys, sweep_keys
from meter_lib.outbox import Account, DueEvent, Link

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import Settlement

__all__ = ["SqliteDelivery"]

# A hold that ends later than this was set by a clock that has jumped since: no wait is
# longer than the hour that Retry-After is capped at.
_LONGEST_HOLD_MILLISECONDS = 3_600_000
_FOREVER = 2**63 - 1
# What settling an event adds to the write-ahead log beside its payload, at most: its page,
# those of the indexes that it moves between, and that of its row in the ledger.
_SETTLE_LOG_BYTES = 4096


class SqliteDelivery:
    """The delivering part of an outbox in a SQLite file."""

    def __init__(self, database: Database, *, remembered_keys: int) -> None:
        self._database = database
        self._remembered_keys = remembered_keys
        self._outbox_id = ""
        # It is of the file that this opening found; the next one may find another.
        self._outbox_id_of = 0

    @property
    def outbox_id(self) -> str:
        """Return the outbox's own name."""
        if not self._outbox_id_of or self._outbox_id_of != self._database.times_opened:
            with self._database.read() as connection:
                (outbox_id,) = connection.execute("SELECT outbox_id FROM outbox").fetchone()
                self._outbox_id = str(outbox_id)
                self._outbox_id_of = self._database.times_opened
        return self._outbox_id

    def try_hold(self) -> bool:
        """Become the one flusher of this outbox, or return False where another is."""
        return self._database.try_hold()

    def release(self) -> None:
        """End the hold, if there is one."""
        self._database.release()

    # -- reading ----------------------------------------------------------------------

    def due(
        self, *, now: int, limit: int, max_bytes: int, beside: Sequence[str] = ()
    ) -> list[DueEvent]:
        """Return what may be delivered now; see `Delivery.due`."""
        # Nothing is handed out that could not be settled: not where the log is stuck, and not
        # more than one transaction of a small outbox can hold.
        self._database.check_room_in_log()
        limit = min(limit, max(1, self._database.max_log_bytes // (2 * _SETTLE_LOG_BYTES)))
        max_bytes = min(max_bytes, self._database.max_log_bytes // 2)
        passed_over = json.dumps(list(beside))
        events: list[DueEvent] = []
        with self._database.read() as connection:
            for first, last in ((-_FOREVER, now), (now + _LONGEST_HOLD_MILLISECONDS + 1, _FOREVER)):
                waiting = connection.execute(
                    """
                    SELECT e.seq, e.stream_id, s.tenant_id, s.device_id, s.meter_id,
                           e.idempotency_key, e.event_time, e.total_usage, e.payload, e.attempts,
                           0
                    FROM streams AS s
                    CROSS JOIN events AS e ON e.stream_id = s.stream_id AND e.state = 'deferred'
                    WHERE s.held_until BETWEEN ? AND ?
                      AND s.tenant_id NOT IN (SELECT value FROM json_each(?))
                    ORDER BY s.held_until, s.stream_id, e.seq
                    LIMIT ?
                    """,
                    (first, last, passed_over, limit - len(events)),
                )
                max_bytes = _take(waiting, events, max_bytes)
                if max_bytes <= 0 or len(events) >= limit:
                    return events
            untouched = connection.execute(
                """
                SELECT e.seq, e.stream_id, s.tenant_id, s.device_id, s.meter_id,
                       e.idempotency_key, e.event_time, e.total_usage, e.payload, e.attempts,
                       s.held_until IS NOT NULL
                FROM events AS e
                CROSS JOIN streams AS s ON s.stream_id = e.stream_id
                WHERE e.seq > (SELECT frontier FROM outbox) AND e.state = 'pending'
                  AND s.tenant_id NOT IN (SELECT value FROM json_each(?))
                ORDER BY e.seq
                LIMIT ?
                """,
                (passed_over, limit - len(events)),
            )
            _take(untouched, events, max_bytes)
        return events

    def suspects(self, *, limit: int, proven_only: bool) -> list[DueEvent]:
        """Return refused events to be asked about alone; see `Delivery.suspects`."""
        with self._database.read() as connection:
            rows = connection.execute(
                """
                SELECT e.seq, e.stream_id, s.tenant_id, s.device_id, s.meter_id,
                       e.idempotency_key, e.event_time, e.total_usage, e.payload, e.attempts, 0
                FROM events AS e
                JOIN streams AS s ON s.stream_id = e.stream_id
                WHERE e.state = 'refused'
                  AND (NOT :proven_only
                       OR e.refused_after IS NULL
                       OR e.refused_after < (SELECT delivered_events FROM outbox))
                ORDER BY e.seq
                LIMIT :limit
                """,
                {"proven_only": proven_only, "limit": limit},
            )
            return [DueEvent._make(row) for row in rows]

    def refused_before(self, event: DueEvent) -> bool:
        """Return whether it was refused alone, and another event delivered after that."""
        with self._database.read() as connection:
            (proven,) = connection.execute(
                """
                SELECT coalesce(max(refused_after < (SELECT delivered_events FROM outbox)), 0)
                FROM events WHERE seq = ?
                """,
                (event.seq,),
            ).fetchone()
        return bool(proven)

    def next_due_at(self) -> int | None:
        """Return when the next held stream is due, or None where none is held."""
        with self._database.read() as connection:
            (held_until,) = connection.execute(
                "SELECT min(held_until) FROM streams WHERE held_until IS NOT NULL"
            ).fetchone()
        return None if held_until is None else int(held_until)

    # -- settling ---------------------------------------------------------------------

    def queue(self, events: Sequence[DueEvent]) -> None:
        """Put events of held streams behind those that wait; see `Delivery.queue`."""
        with self._database.write(log_bytes=_log_bytes(events)) as connection:
            connection.executemany(
                """
                UPDATE events SET state = 'deferred'
                WHERE seq = ? AND idempotency_key = ? AND state = 'pending'
                """,
                [(event.seq, event.idempotency_key) for event in events],
            )
            # Should a stream be free by now, it is due at once: 0 lies in the past.
            connection.executemany(
                """
                UPDATE streams SET held_until = 0
                WHERE stream_id = ? AND held_until IS NULL
                  AND EXISTS (SELECT 1 FROM events
                              WHERE events.stream_id = streams.stream_id AND state = 'deferred')
                """,
                [(stream_id,) for stream_id in {event.stream_id for event in events}],
            )
            _advance_frontier(connection)

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events; see `Delivery.settle`."""
        with self._database.write(log_bytes=_log_bytes(_all_of(settlement))) as connection:
            self._deliver(connection, settlement.delivered, now)
            connection.executemany(
                """
                UPDATE events SET state = 'deferred', attempts = attempts + ?
                WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
                """,
                [
                    (int(counts), event.seq, event.idempotency_key)
                    for event, _, counts in settlement.deferred
                ],
            )
            connection.executemany(
                """
                UPDATE streams SET held_until = ?
                WHERE stream_id = ?
                  AND EXISTS (SELECT 1 FROM events
                              WHERE events.stream_id = streams.stream_id AND state = 'deferred')
                """,
                [(until, event.stream_id) for event, until, _ in settlement.deferred],
            )
            connection.executemany(
                """
                UPDATE events SET state = 'refused'
                WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
                """,
                [(event.seq, event.idempotency_key) for event in settlement.refused],
            )
            connection.executemany(
                """
                UPDATE events
                SET state = 'refused',
                    refused_after = coalesce(refused_after,
                                             (SELECT delivered_events FROM outbox))
                WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
                """,
                [(event.seq, event.idempotency_key) for event in settlement.refused_alone],
            )
            for event, reason, detail, answers in settlement.buried:
                buried = connection.execute(
                    """
                    UPDATE events
                    SET state = 'dead', reason = ?, detail = ?, dead_at = ?,
                        attempts = attempts + ?
                    WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
                    """,
                    (reason, detail, now, answers, event.seq, event.idempotency_key),
                ).rowcount
                connection.execute("UPDATE outbox SET dead_events = dead_events + ?", (buried,))
            _free_streams(connection, settlement)
            _advance_frontier(connection)

    def _deliver(
        self, connection: sqlite3.Connection, delivered: Sequence[DueEvent], now: int
    ) -> None:
        if not delivered:
            return
        gone = [
            event
            for event in delivered
            # Counted only if it is still there: nobody may be counted twice. Its key says that
            # it is this event, should another file have come to the place meanwhile.
            if connection.execute(
                "DELETE FROM events WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'",
                (event.seq, event.idempotency_key),
            ).rowcount
        ]
        connection.execute(
            """
            UPDATE outbox
            SET delivered_events = delivered_events + ?, last_seq = max(last_seq, ?)
            """,
            (len(gone), max((event.seq for event in gone), default=0)),
        )
        count_in_ledger(
            connection,
            "delivered",
            ((event.event_time, event.stream_id, event.total_usage) for event in gone),
        )
        connection.execute(
            """
            INSERT INTO links (name, last_success_at) VALUES ('events', :now)
            ON CONFLICT (name) DO UPDATE
            SET failures = 0, down_since = NULL, next_attempt_at = NULL, last_success_at = :now
            """,
            {"now": now},
        )
        forget_keys(connection, [event.seq for event in gone])
        sweep_keys(connection, self._remembered_keys)

    # -- links and accounts -----------------------------------------------------------

    def link(self, name: str) -> Link:
        """Return how it stands with the link of that name."""
        with self._database.read() as connection:
            row = connection.execute(
                """
                SELECT name, failures, down_since, next_attempt_at,
                       last_success_at, last_error, last_error_at
                FROM links WHERE name = ?
                """,
                (name,),
            ).fetchone()
        return Link(*row) if row else Link(name)

    def set_link(self, link: Link) -> None:
        """Write how it stands with a link."""
        with self._database.write() as connection:
            connection.execute(
                """
                INSERT OR REPLACE INTO links (name, failures, down_since, next_attempt_at,
                                              last_success_at, last_error, last_error_at)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
                link,
            )

    def account(self, tenant_id: str) -> Account | None:
        """Return what the accounts API last answered for the tenant, or None."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT customer_id, answered_at, misses FROM accounts WHERE tenant_id = ?",
                (tenant_id,),
            ).fetchone()
        return Account(*row) if row else None

    def set_account(self, tenant_id: str, account: Account) -> None:
        """Write what the accounts API answered for the tenant."""
        with self._database.write() as connection:
            connection.execute(
                """
                INSERT OR REPLACE INTO accounts (tenant_id, customer_id, answered_at, misses)
                VALUES (?, ?, ?, ?)
                """,
                (tenant_id, *account),
            )


def _take(rows: Iterable[tuple[object, ...]], events: list[DueEvent], budget: int) -> int:
    """Append rows as events while the budget of bytes lasts; return what is left of it.

    The very first event is taken whatever its size.
    """
    for row in rows:
        event = DueEvent._make(row)
        size = len(event.payload.encode())
        if events and size > budget:
            return 0
        events.append(event)
        budget -= size
    return budget


def _all_of(settlement: Settlement) -> list[DueEvent]:
    return [
        *settlement.delivered,
        *(deferral.event for deferral in settlement.deferred),
        *settlement.refused,
        *settlement.refused_alone,
        *(burial.event for burial in settlement.buried),
    ]


def _log_bytes(events: Sequence[DueEvent]) -> int:
    """Return what a change to these events adds to the write-ahead log, at most."""
    return sum(_SETTLE_LOG_BYTES + len(event.payload.encode()) for event in events)


def _free_streams(connection: sqlite3.Connection, settlement: Settlement) -> None:
    """End the hold of streams in which nobody waits any more."""
    touched = {event.stream_id for event in settlement.delivered}
    touched.update(event.stream_id for event in settlement.refused)
    touched.update(event.stream_id for event in settlement.refused_alone)
    touched.update(burial.event.stream_id for burial in settlement.buried)
    connection.executemany(
        """
        UPDATE streams SET held_until = NULL
        WHERE stream_id = ? AND held_until IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM events
                          WHERE events.stream_id = streams.stream_id AND state = 'deferred')
        """,
        [(stream_id,) for stream_id in touched],
    )


def _advance_frontier(connection: sqlite3.Connection) -> None:
    """Move the frontier to just before the first event that nobody has looked at."""
    connection.execute(
        """
        UPDATE outbox
        SET frontier = coalesce(
            (SELECT e.seq - 1 FROM events AS e
             WHERE e.seq > outbox.frontier AND e.state = 'pending'
             ORDER BY e.seq LIMIT 1),
            (SELECT max(outbox.frontier, coalesce(max(e.seq), 0)) FROM events AS e))
        """
    )
