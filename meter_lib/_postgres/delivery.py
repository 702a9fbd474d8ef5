"""Hands events to the flusher and takes back what became of them: the SQL of a delivery.

It sees the shards that are held. Fresh events are read in the order of their seq, by an index
for each shard, so neither a stuck tenant nor a heap of dead letters makes a read any slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.sql import SQL

from meter_lib._postgres.events import (
    EVENT,
    ORIGIN,
    due_event,
    forget_unanswered,
    read_unanswered,
    write_unanswered,
)
from meter_lib._postgres.holding import Holding
from meter_lib._postgres.listening import Listener
from meter_lib._postgres.peers import PostgresPeers
from meter_lib._postgres.settling import settle
from meter_lib._postgres.streams import lock_streams
from meter_lib.outbox import DueEvent, Settlement, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server
    from meter_lib._postgres.session import Session
    from meter_lib.clock import ClockReading, Uptime

__all__ = ["PostgresDelivery"]

# A hold that ends later than this was set by a clock that has jumped since: no wait is
# longer than the hour that Retry-After is capped at.
_LONGEST_HOLD_MILLISECONDS = 3_600_000
_FOREVER = 2**63 - 1
# Not more than one is over the bytes that are left: the rest is not even sent by the server.
_WITHIN = "WHERE all_so_far - size < %(max_bytes)s"

_FRESH = f"""
    WITH chosen AS (
        (
            SELECT seq FROM meter_lib.events
            WHERE state = 'pending' AND seq <= %(after)s AND shard = ANY(%(shards)s)
              AND posted_by >= pg_snapshot_xmin(%(seen)s::text::pg_snapshot)
              AND NOT pg_visible_in_snapshot(posted_by, %(seen)s::text::pg_snapshot)
            ORDER BY seq
            LIMIT %(limit)s
        )
        UNION ALL
        (SELECT seq FROM ({{by_shard}}) AS fresh ORDER BY seq LIMIT %(limit)s)
        ORDER BY seq
        LIMIT %(limit)s
    ), measured AS (
        SELECT seq, octet_length(payload) AS size,
               sum(octet_length(payload)) OVER (ORDER BY seq) AS all_so_far
        FROM chosen JOIN meter_lib.events USING (seq)
    )
    SELECT {EVENT}, s.held_until IS NOT NULL, {ORIGIN}
    FROM meter_lib.outbox AS o
    CROSS JOIN measured AS m
    JOIN meter_lib.events AS e ON e.seq = m.seq
    JOIN meter_lib.streams AS s ON s.stream_id = e.stream_id
    {_WITHIN}
    ORDER BY m.seq
"""


class PostgresDelivery(PostgresPeers):
    """The delivering part of an outbox on a server."""

    def __init__(
        self, server: Server, session: Session, *, remembered_keys: int, shared: bool
    ) -> None:
        super().__init__(session)
        self._holding = Holding(server, session, shared=shared)
        self._listener = Listener(server)
        self._remembered_keys = remembered_keys
        # Of the server when fresh events were read last: what was under way then may show up
        # with a seq that the reading has passed by.
        self._seen: str | None = None

    def accepted(self) -> int:
        """Return the seq of the latest event, or a later one that came to nothing."""
        with self._work.statements() as cursor:
            cursor.execute(
                "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM meter_lib.event_seq"
            )
            [(seq,)] = cursor.fetchall()
        return int(seq)

    def try_hold(self) -> bool:
        """Hold a fair share of the streams, or return False where others hold all."""
        self._seen = None
        return self._holding.try_take()

    def keeps_hold(self) -> bool:
        """Return whether the hold is as it was taken, and fair; see `Delivery.keeps_hold`."""
        return self._holding.keeps()

    def release(self) -> None:
        """End the hold, if there is one."""
        self._listener.stop()
        self._holding.release()

    def call_when_posted(self, wake: Callable[[], None]) -> None:
        """Let `wake` be called soon after a post; see `Delivery.call_when_posted`."""
        self._listener.start(wake)

    # -- reading ----------------------------------------------------------------------

    def due(
        self,
        *,
        now: int,
        limit: int,
        max_bytes: int,
        after: int = 0,
        beside: Sequence[int] = (),
    ) -> list[DueEvent]:
        """Return what may be delivered now; see `Delivery.due`."""
        events: list[DueEvent] = []
        with self._work.read() as cursor:
            for first, last in ((-_FOREVER, now), (now + _LONGEST_HOLD_MILLISECONDS + 1, _FOREVER)):
                self._read_waiting(cursor, first, last, beside, limit - len(events), max_bytes)
                max_bytes = _take(cursor, events, max_bytes)
                if max_bytes <= 0 or len(events) >= limit:
                    return events
            seen = self._read_fresh(cursor, after, limit - len(events), max_bytes)
            before = len(events)
            _take(cursor, events, max_bytes)
            # Else, of those that showed up late there may be more.
            is_past_the_late = len(events) > before and events[-1].seq > after
            if is_past_the_late or not cursor.rowcount:
                self._seen = seen
        return events

    def _read_waiting(
        self,
        cursor: Cursor[TupleRow],
        first: int,
        last: int,
        beside: Sequence[int],
        limit: int,
        max_bytes: int,
    ) -> None:
        cursor.execute(
            f"""
            WITH chosen AS (
                SELECT s.held_until, s.stream_id, e.seq, octet_length(e.payload) AS size
                FROM meter_lib.streams AS s
                JOIN meter_lib.events AS e ON e.stream_id = s.stream_id AND e.state = 'deferred'
                WHERE s.held_until BETWEEN %(first)s AND %(last)s AND s.shard = ANY(%(shards)s)
                  AND s.stream_id <> ALL(%(beside)s)
                ORDER BY s.held_until, s.stream_id, e.seq
                LIMIT %(limit)s
            ), measured AS (
                SELECT *, sum(size) OVER (ORDER BY held_until, stream_id, seq) AS all_so_far
                FROM chosen
            )
            SELECT {EVENT}, false, {ORIGIN}
            FROM meter_lib.outbox AS o
            CROSS JOIN measured AS m
            JOIN meter_lib.events AS e ON e.seq = m.seq
            JOIN meter_lib.streams AS s ON s.stream_id = e.stream_id
            {_WITHIN}
            ORDER BY m.held_until, m.stream_id, m.seq
            """,
            {
                "first": first,
                "last": last,
                "shards": list(self._holding.shards),
                "beside": list(beside),
                "limit": limit,
                "max_bytes": max_bytes,
            },
        )

    def _read_fresh(self, cursor: Cursor[TupleRow], after: int, limit: int, max_bytes: int) -> str:
        """Read those after that seq, and those before it that nobody could see until now.

        Return what the server shows at this instant.
        """
        cursor.execute("SELECT pg_current_snapshot()::text")
        [(snapshot,)] = cursor.fetchall()
        # One ordered read for each shard, merged, each with the limit: else the server would
        # read and sort the whole backlog.
        by_shard = SQL(" UNION ALL ").join(
            SQL(
                """
                (
                    SELECT seq FROM meter_lib.events
                    WHERE shard = {} AND state = 'pending' AND seq > %(after)s
                    ORDER BY seq
                    LIMIT %(limit)s
                )
                """
            ).format(shard)
            for shard in self._holding.shards
        )
        cursor.execute(
            SQL(_FRESH).format(by_shard=by_shard),
            {
                "after": after,
                "shards": list(self._holding.shards),
                # Where nothing was read before, nobody has shown up since.
                "seen": self._seen or snapshot,
                "limit": limit,
                "max_bytes": max_bytes,
            },
        )
        return str(snapshot)

    def suspects(self, *, limit: int, proven_only: bool) -> list[DueEvent]:
        """Return refused events to be asked about alone; see `Delivery.suspects`."""
        with self._work.statements() as cursor:
            cursor.execute(
                f"""
                SELECT {EVENT}, false, {ORIGIN}
                FROM meter_lib.outbox AS o
                CROSS JOIN meter_lib.events AS e
                JOIN meter_lib.streams AS s ON s.stream_id = e.stream_id
                WHERE e.state = 'refused' AND e.shard = ANY(%(shards)s)
                  AND (NOT %(proven_only)s
                       OR e.lone_refusal IS NULL
                       OR abs(e.lone_refusal) <= o.proven_to)
                ORDER BY e.seq
                LIMIT %(limit)s
                """,
                {
                    "shards": list(self._holding.shards),
                    "proven_only": proven_only,
                    "limit": limit,
                },
            )
            return [due_event(row) for row in cursor]

    def next_due_at(self) -> int | None:
        """Return when the next held stream is due, or None where none is held."""
        with self._work.statements() as cursor:
            cursor.execute(
                """
                SELECT min(held_until) FROM meter_lib.streams
                WHERE held_until IS NOT NULL AND shard = ANY(%s)
                """,
                (list(self._holding.shards),),
            )
            [(held_until,)] = cursor.fetchall()
        return None if held_until is None else int(held_until)

    def unanswered(self) -> list[Unanswered]:
        """Return the requests that were begun and not answered; see `Delivery.unanswered`."""
        with self._work.read() as cursor:
            return read_unanswered(cursor, self._holding.shards)

    def gone(self, seqs: Sequence[int]) -> set[int]:
        """Return which of these events are no longer here; see `Delivery.gone`."""
        with self._work.statements() as cursor:
            cursor.execute(
                """
                SELECT seq FROM unnest(%s::bigint[]) AS named (seq)
                WHERE NOT EXISTS (SELECT 1 FROM meter_lib.events AS e WHERE e.seq = named.seq)
                """,
                (list(seqs),),
            )
            return {int(seq) for (seq,) in cursor}

    # -- writing ----------------------------------------------------------------------

    def begin(self, requests: Sequence[Unanswered], *, forget: Sequence[str] = ()) -> int:
        """Write that these requests are about to be sent; see `Delivery.begin`."""
        with self._work.write() as cursor:
            forget_unanswered(cursor, forget)
            write_unanswered(cursor, requests)
            cursor.execute("SELECT lone_refusals FROM meter_lib.outbox")
            [(refusals,)] = cursor.fetchall()
        return int(refusals)

    def queue(
        self, events: Sequence[DueEvent], *, until: int = 0, customer_id: str | None = None
    ) -> None:
        """Set events aside, behind those of their stream that wait; see `Delivery.queue`."""
        streams = sorted({event.stream_id for event in events})
        with self._work.write() as cursor:
            lock_streams(cursor, streams)
            cursor.execute(
                """
                UPDATE meter_lib.events AS e
                SET state = CASE e.state WHEN 'pending' THEN 'deferred' ELSE e.state END,
                    customer_id = coalesce(e.customer_id, %s)
                FROM unnest(%s::bigint[], %s::text[]) AS named (seq, key)
                WHERE e.seq = named.seq AND e.idempotency_key = named.key AND e.state <> 'dead'
                """,
                (
                    customer_id,
                    [event.seq for event in events],
                    [event.idempotency_key for event in events],
                ),
            )
            cursor.execute(
                """
                UPDATE meter_lib.streams AS s
                SET held_until = CASE WHEN %(until)s > 0
                                           AND s.held_until > %(until)s + %(longest)s THEN %(until)s
                                      ELSE greatest(coalesce(s.held_until, 0), %(until)s) END
                WHERE s.stream_id = ANY(%(streams)s)
                  AND EXISTS (SELECT 1 FROM meter_lib.events AS e
                              WHERE e.stream_id = s.stream_id AND e.state = 'deferred')
                """,
                {"until": until, "longest": _LONGEST_HOLD_MILLISECONDS, "streams": streams},
            )

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events; see `Delivery.settle`."""
        if settlement == Settlement():
            return
        with self._work.write() as cursor:
            settle(cursor, settlement, now=now, remembered_keys=self._remembered_keys)

    # -- time -------------------------------------------------------------------------

    def resume_waits(self, *, now: int, uptime: Uptime) -> int:  # noqa: ARG002  # of the port
        """Return the offset of the time line of waits: the server's clock, for all workers."""
        with self._work.statements() as cursor:
            cursor.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            [(server_now,)] = cursor.fetchall()
        return int(server_now) - uptime.milliseconds

    def correct_times(self, reading: ClockReading, *, keep: Collection[int]) -> int:  # noqa: ARG002  # of the port
        """Correct nothing: events come from many hosts, whose clocks this one cannot judge."""
        return 0


def _take(cursor: Cursor[TupleRow], events: list[DueEvent], budget: int) -> int:
    """Append rows as events while the budget of bytes lasts; return what is left of it.

    The very first event is taken whatever its size.
    """
    for row in cursor.fetchall():
        event = due_event(row)
        size = len(event.payload.encode())
        if events and size > budget:
            return 0
        events.append(event)
        budget -= size
    return budget
