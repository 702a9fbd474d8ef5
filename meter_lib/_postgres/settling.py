"""Writes what became of events: the SQL at the end of a delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._postgres.events import forget_unanswered, write_unanswered
from meter_lib._postgres.keys import forget_keys, sweep_keys
from meter_lib._postgres.ledger import count_delivered
from meter_lib._postgres.peers import note_success, storable
from meter_lib._postgres.streams import lock_streams
from meter_lib._postgres.tallies import Totals, count, fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib.outbox import Burial, Deferral, DueEvent, Settlement

__all__ = ["settle"]


def settle(
    cursor: Cursor[TupleRow], settlement: Settlement, *, now: int, remembered_keys: int
) -> None:
    """Write a settlement within the caller's transaction; see `Delivery.settle`."""
    lock_streams(cursor, {event.stream_id for event in _events_of(settlement)})
    customer = settlement.answered.customer_id if settlement.answered else None
    added = _deliver(cursor, settlement)
    for deferral in settlement.deferred:
        _defer(cursor, deferral, customer)
    if settlement.deferred:
        _hold_streams(cursor, settlement.deferred)
    _refuse(cursor, settlement, customer)
    for event in settlement.refused_alone:
        _refuse_alone(cursor, event, customer)
    dead = sum(_bury(cursor, burial, customer, now) for burial in settlement.buried)
    if settlement.answered is not None:
        forget_unanswered(cursor, [settlement.answered.idempotency_key])
    if settlement.left_open is not None:
        write_unanswered(cursor, [settlement.left_open])
    _free_streams(cursor, settlement)
    count(cursor, added._replace(dead=dead, dead_lettered=dead))
    if settlement.delivered:
        # Last: all workers write these rows, and wait for each other from here to the commit.
        cursor.execute(
            "UPDATE meter_lib.outbox SET proven_to = %s WHERE proven_to < %s",
            (settlement.proves, settlement.proves),
        )
        note_success(cursor, now, recovers=settlement.recovers)
        sweep_keys(cursor, remembered_keys)
        fold(cursor)


def _events_of(settlement: Settlement) -> Iterable[DueEvent]:
    yield from settlement.delivered
    yield from (deferral.event for deferral in settlement.deferred)
    yield from settlement.refused
    yield from settlement.refused_alone
    yield from (burial.event for burial in settlement.buried)


def _deliver(cursor: Cursor[TupleRow], settlement: Settlement) -> Totals:
    if not settlement.delivered:
        return Totals()
    # Counted only if it is still there: nobody may be counted twice.
    cursor.execute(
        """
        DELETE FROM meter_lib.events AS e
        USING unnest(%s::bigint[], %s::text[]) AS named (seq, key)
        WHERE e.seq = named.seq AND e.idempotency_key = named.key AND e.state <> 'dead'
        RETURNING e.seq, e.event_time, e.stream_id, e.total_usage, e.bytes
        """,
        (
            [event.seq for event in settlement.delivered],
            [event.idempotency_key for event in settlement.delivered],
        ),
    )
    gone = cursor.fetchall()
    count_delivered(cursor, (row[1:4] for row in gone))
    forget_keys(cursor, [row[0] for row in gone])
    return Totals(delivered=len(gone), bytes=-sum(row[4] for row in gone))


def _defer(cursor: Cursor[TupleRow], deferral: Deferral, customer: str | None) -> None:
    event = deferral.event
    # Where others were accepted beside it, no refusal has the number 0: it is proven from now on.
    beside_others = 0 if deferral.beside_others else None
    cursor.execute(
        """
        UPDATE meter_lib.events
        SET state = 'deferred', attempts = attempts + %s, customer_id = coalesce(customer_id, %s),
            lone_refusal = coalesce(lone_refusal, %s)
        WHERE seq = %s AND idempotency_key = %s AND state <> 'dead'
        """,
        (int(deferral.counts), customer, beside_others, event.seq, event.idempotency_key),
    )
    is_first = deferral.alone and not deferral.beside_others and event.lone_refusal is None
    if cursor.rowcount and is_first:
        _number_lone_refusal(cursor, event, sign=-1)


def _hold_streams(cursor: Cursor[TupleRow], deferred: Sequence[Deferral]) -> None:
    cursor.executemany(
        """
        UPDATE meter_lib.streams AS s SET held_until = %s
        WHERE s.stream_id = %s
          AND EXISTS (SELECT 1 FROM meter_lib.events AS e
                      WHERE e.stream_id = s.stream_id AND e.state = 'deferred')
        """,
        [(deferral.until, deferral.event.stream_id) for deferral in deferred],
    )


def _refuse(cursor: Cursor[TupleRow], settlement: Settlement, customer: str | None) -> None:
    # Where others were accepted in the same answer, no refusal needs that number for its proof.
    beside_others = 0 if settlement.delivered else None
    cursor.executemany(
        """
        UPDATE meter_lib.events
        SET state = 'refused', customer_id = coalesce(customer_id, %s),
            lone_refusal = coalesce(lone_refusal, %s)
        WHERE seq = %s AND idempotency_key = %s AND state <> 'dead'
        """,
        [
            (customer, beside_others, event.seq, event.idempotency_key)
            for event in settlement.refused
        ],
    )


def _refuse_alone(cursor: Cursor[TupleRow], event: DueEvent, customer: str | None) -> None:
    cursor.execute(
        """
        UPDATE meter_lib.events
        SET state = 'refused', customer_id = coalesce(customer_id, %s)
        WHERE seq = %s AND idempotency_key = %s AND state <> 'dead'
        """,
        (customer, event.seq, event.idempotency_key),
    )
    if cursor.rowcount:
        _number_lone_refusal(cursor, event, sign=1)


def _number_lone_refusal(cursor: Cursor[TupleRow], event: DueEvent, *, sign: int) -> None:
    # The counter first: whoever refuses at the same moment gets the next number.
    cursor.execute(
        "UPDATE meter_lib.outbox SET lone_refusals = lone_refusals + 1 RETURNING lone_refusals"
    )
    [(number,)] = cursor.fetchall()
    # The first of its lone refusals counts: whatever is accepted after that is its proof.
    cursor.execute(
        """
        UPDATE meter_lib.events
        SET lone_refusal = CASE WHEN lone_refusal > 0 THEN lone_refusal ELSE %s END
        WHERE seq = %s AND idempotency_key = %s AND state <> 'dead'
        """,
        (sign * number, event.seq, event.idempotency_key),
    )


def _bury(cursor: Cursor[TupleRow], burial: Burial, customer: str | None, now: int) -> int:
    event, reason, detail, answers = burial
    cursor.execute(
        """
        UPDATE meter_lib.events
        SET state = 'dead', reason = %s, detail = %s, dead_at = %s, attempts = attempts + %s,
            customer_id = coalesce(customer_id, %s)
        WHERE seq = %s AND idempotency_key = %s AND state <> 'dead'
        """,
        (reason, storable(detail), now, answers, customer, event.seq, event.idempotency_key),
    )
    return cursor.rowcount


def _free_streams(cursor: Cursor[TupleRow], settlement: Settlement) -> None:
    """End the hold of streams in which nobody waits any more."""
    touched = {
        event.stream_id
        for event in (
            *settlement.delivered,
            *settlement.refused,
            *settlement.refused_alone,
            *(burial.event for burial in settlement.buried),
        )
    }
    cursor.execute(
        """
        UPDATE meter_lib.streams AS s SET held_until = NULL
        WHERE s.stream_id = ANY(%s) AND s.held_until IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM meter_lib.events AS e
                          WHERE e.stream_id = s.stream_id AND e.state = 'deferred')
        """,
        (list(touched),),
    )
