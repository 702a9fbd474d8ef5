"""Hands events to the flusher and writes what became of them: the SQL of a delivery.

Reading starts at the frontier: no event up to there is pending any more, only set
aside (deferred, refused) or dead. So neither a stuck tenant nor a heap of dead
letters makes the next read any slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.outbox import Account, DueEvent, Link

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import Settlement

__all__ = ["SqliteDelivery"]

_DAY_MILLISECONDS = 86_400_000
# A hold that ends later than this was set by a clock that has jumped since: no wait is
# longer than the hour that Retry-After is capped at.
_LONGEST_HOLD_MILLISECONDS = 3_600_000


class SqliteDelivery:
    """The delivering part of an outbox in a SQLite file."""

    def __init__(self, database: Database, *, remembered_keys: int) -> None:
        self._database = database
        self._remembered_keys = remembered_keys
        self._outbox_id: str | None = None

    @property
    def outbox_id(self) -> str:
        """Return the outbox's own name."""
        if self._outbox_id is None:
            with self._database.read() as connection:
                (self._outbox_id,) = connection.execute("SELECT outbox_id FROM outbox").fetchone()
        return str(self._outbox_id)

    def try_hold(self) -> bool:
        """Become the one flusher of this outbox, or return False where another is."""
        return self._database.try_hold()

    def release(self) -> None:
        """End the hold, if there is one."""
        self._database.release()

    # -- reading ----------------------------------------------------------------------

    def due(self, *, now: int, limit: int, max_bytes: int) -> list[DueEvent]:
        """Return what may be delivered now; see `Delivery.due`."""
        events: list[DueEvent] = []
        budget = max_bytes
        with self._database.read() as connection:
            waiting = connection.execute(
                """
                SELECT e.seq, e.stream_id, s.tenant_id, s.device_id, s.meter_id,
                       e.idempotency_key, e.event_time, e.total_usage, e.payload, e.attempts, 0
                FROM streams AS s
                JOIN events AS e ON e.stream_id = s.stream_id AND e.state = 'deferred'
                WHERE s.held_until IS NOT NULL
                  AND (s.held_until <= :now OR s.held_until > :now + :longest)
                ORDER BY s.held_until, s.stream_id, e.seq
                LIMIT :limit
                """,
                {"now": now, "longest": _LONGEST_HOLD_MILLISECONDS, "limit": limit},
            )
            budget = _take(waiting, events, budget)
            if budget <= 0 or len(events) >= limit:
                return events
            untouched = connection.execute(
                """
                SELECT e.seq, e.stream_id, s.tenant_id, s.device_id, s.meter_id,
                       e.idempotency_key, e.event_time, e.total_usage, e.payload, e.attempts,
                       s.held_until IS NOT NULL
                FROM events AS e
                JOIN streams AS s ON s.stream_id = e.stream_id
                WHERE e.seq > (SELECT frontier FROM outbox) AND e.state = 'pending'
                ORDER BY e.seq
                LIMIT :limit
                """,
                {"limit": limit - len(events)},
            )
            _take(untouched, events, budget)
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
        with self._database.write() as connection:
            _defer(connection, events)
            for stream_id in {event.stream_id for event in events}:
                # Should the stream be free by now, it is due at once: 0 lies in the past.
                connection.execute(
                    "UPDATE streams SET held_until = 0 WHERE stream_id = ? AND held_until IS NULL",
                    (stream_id,),
                )
            _advance_frontier(connection)

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events; see `Delivery.settle`."""
        with self._database.write() as connection:
            self._deliver(connection, settlement.delivered, now)
            for event, until, counts in settlement.deferred:
                connection.execute(
                    """
                    UPDATE events SET state = 'deferred', attempts = attempts + ?
                    WHERE seq = ? AND state <> 'dead'
                    """,
                    (int(counts), event.seq),
                )
                connection.execute(
                    "UPDATE streams SET held_until = ? WHERE stream_id = ?",
                    (until, event.stream_id),
                )
            connection.executemany(
                "UPDATE events SET state = 'refused' WHERE seq = ? AND state <> 'dead'",
                [(event.seq,) for event in settlement.refused],
            )
            connection.executemany(
                """
                UPDATE events
                SET state = 'refused',
                    refused_after = coalesce(refused_after,
                                             (SELECT delivered_events FROM outbox))
                WHERE seq = ? AND state <> 'dead'
                """,
                [(event.seq,) for event in settlement.refused_alone],
            )
            for event, reason, detail in settlement.buried:
                buried = connection.execute(
                    """
                    UPDATE events
                    SET state = 'dead', reason = ?, detail = ?, dead_at = ?
                    WHERE seq = ? AND state <> 'dead'
                    """,
                    (reason, detail, now, event.seq),
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
            # Counted only if it is still there: nobody may be counted twice.
            if connection.execute(
                "DELETE FROM events WHERE seq = ? AND state <> 'dead'", (event.seq,)
            ).rowcount
        ]
        connection.execute(
            """
            UPDATE outbox
            SET delivered_events = delivered_events + ?, last_seq = max(last_seq, ?)
            """,
            (len(gone), max(event.seq for event in delivered)),
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
        connection.execute(
            """
            DELETE FROM known_keys
            WHERE seq <= (SELECT last_seq FROM outbox) - ?
              AND seq NOT IN (SELECT seq FROM events)
            """,
            (self._remembered_keys,),
        )

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
    """Append rows as events until the budget of bytes is spent; return what is left of it."""
    for row in rows:
        event = DueEvent._make(row)
        events.append(event)
        budget -= len(event.payload)
        if budget <= 0:
            break
    return budget


def _defer(connection: sqlite3.Connection, events: Sequence[DueEvent]) -> None:
    connection.executemany(
        "UPDATE events SET state = 'deferred' WHERE seq = ? AND state = 'pending'",
        [(event.seq,) for event in events],
    )


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


def count_in_ledger(
    connection: sqlite3.Connection,
    column: str,
    events: Iterable[tuple[int, int, int | None]],
) -> None:
    """Add (event time, stream, units) to the `delivered` or `removed` columns of the ledger."""
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    for event_time, stream_id, units in events:
        row = (event_time // _DAY_MILLISECONDS, stream_id)
        events_so_far, units_so_far = sums.get(row, (0, 0))
        sums[row] = (events_so_far + 1, units_so_far + (units or 0))
    for (day, stream_id), (count, units) in sums.items():
        connection.execute(
            "INSERT OR IGNORE INTO ledger (day, stream_id) VALUES (?, ?)", (day, stream_id)
        )
        (before,) = connection.execute(
            f"SELECT {column}_units FROM ledger WHERE day = ? AND stream_id = ?",  # noqa: S608  # one of two names, both ours
            (day, stream_id),
        ).fetchone()
        connection.execute(
            f"""
            UPDATE ledger SET {column}_events = {column}_events + ?, {column}_units = ?
            WHERE day = ? AND stream_id = ?
            """,  # noqa: S608  # as above
            (count, str(int(before) + units), day, stream_id),
        )
