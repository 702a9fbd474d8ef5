"""Writes what became of events: the SQL at the end of a delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.frontier import FRONTIER, advance_frontier
from meter_lib._sqlite.keys import forget_delivered_keys
from meter_lib._sqlite.ledger import count_dead, count_in_ledger
from meter_lib._sqlite.unanswered import forget_unanswered, write_unanswered

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from meter_lib.outbox import Deferral, DueEvent, Settlement

__all__ = ["events_of", "settle"]


def settle(
    connection: sqlite3.Connection, settlement: Settlement, *, now: int, remembered_keys: int
) -> None:
    """Write a settlement within the caller's transaction; see `Delivery.settle`."""
    gone = _remove(connection, settlement.delivered)
    customer = settlement.answered.customer_id if settlement.answered else None
    if settlement.deferred:
        _defer(connection, settlement.deferred, customer)
    if settlement.refused:
        _refuse(connection, settlement, customer)
    for event in settlement.refused_alone:
        _refuse_alone(connection, event, customer)
    for event, reason, detail, answers in settlement.buried:
        buried = connection.execute(
            """
            UPDATE events
            SET state = 'dead', reason = ?, detail = ?, dead_at = ?, attempts = attempts + ?,
                customer_id = coalesce(customer_id, ?)
            WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
            """,
            (reason, detail, now, answers, customer, event.seq, event.idempotency_key),
        ).rowcount
        count_dead(connection, buried)
    if settlement.answered is not None:
        forget_unanswered(connection, [settlement.answered.idempotency_key])
    if settlement.left_open is not None:
        write_unanswered(connection, [settlement.left_open])
    _free_streams(connection, settlement)
    if settlement.delivered:
        _count_delivered(connection, settlement, gone, now)
        forget_delivered_keys(connection, [event.seq for event in gone], remembered=remembered_keys)
    else:
        advance_frontier(connection)


def events_of(settlement: Settlement) -> list[DueEvent]:
    """Return every event that a settlement names."""
    return [
        *settlement.delivered,
        *(deferral.event for deferral in settlement.deferred),
        *settlement.refused,
        *settlement.refused_alone,
        *(burial.event for burial in settlement.buried),
    ]


def _defer(
    connection: sqlite3.Connection, deferred: Sequence[Deferral], customer: str | None
) -> None:
    for deferral in deferred:
        event = deferral.event
        connection.execute(
            """
            UPDATE events
            SET state = 'deferred', attempts = attempts + ?, customer_id = coalesce(customer_id, ?)
            WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
            """,
            (int(deferral.counts), customer, event.seq, event.idempotency_key),
        )
        if deferral.beside_others:
            # No refusal has this number, so it is proven from now on.
            connection.execute(
                """
                UPDATE events SET lone_refusal = coalesce(lone_refusal, 0)
                WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
                """,
                (event.seq, event.idempotency_key),
            )
        elif deferral.alone and event.lone_refusal is None:
            _number_lone_refusal(connection, event, sign=-1)
    connection.executemany(
        """
        UPDATE streams SET held_until = ?
        WHERE stream_id = ?
          AND EXISTS (SELECT 1 FROM events
                      WHERE events.stream_id = streams.stream_id AND state = 'deferred')
        """,
        [(deferral.until, deferral.event.stream_id) for deferral in deferred],
    )


def _refuse(connection: sqlite3.Connection, settlement: Settlement, customer: str | None) -> None:
    # Where others were accepted in the same answer, no refusal needs that number for its proof.
    beside_others = 0 if settlement.delivered else None
    connection.executemany(
        """
        UPDATE events
        SET state = 'refused', customer_id = coalesce(customer_id, ?),
            lone_refusal = coalesce(lone_refusal, ?)
        WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
        """,
        [
            (customer, beside_others, event.seq, event.idempotency_key)
            for event in settlement.refused
        ],
    )


def _number_lone_refusal(connection: sqlite3.Connection, event: DueEvent, *, sign: int) -> None:
    # The first of its lone refusals counts: whatever is accepted after that is its proof.
    numbered = connection.execute(
        """
        UPDATE events
        SET lone_refusal = CASE WHEN lone_refusal > 0 THEN lone_refusal
                                ELSE ? * (SELECT lone_refusals + 1 FROM outbox) END
        WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
        """,
        (sign, event.seq, event.idempotency_key),
    ).rowcount
    connection.execute("UPDATE outbox SET lone_refusals = lone_refusals + ?", (numbered,))


def _refuse_alone(connection: sqlite3.Connection, event: DueEvent, customer: str | None) -> None:
    connection.execute(
        """
        UPDATE events SET state = 'refused', customer_id = coalesce(customer_id, ?)
        WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
        """,
        (customer, event.seq, event.idempotency_key),
    )
    _number_lone_refusal(connection, event, sign=1)


def _count_delivered(
    connection: sqlite3.Connection, settlement: Settlement, gone: Sequence[DueEvent], now: int
) -> None:
    connection.execute(
        f"""
        UPDATE outbox
        SET delivered_events = delivered_events + ?, last_seq = max(last_seq, ?),
            proven_to = max(proven_to, ?), frontier = {FRONTIER}
        """,  # noqa: S608  # ours
        (len(gone), max((event.seq for event in gone), default=0), settlement.proves),
    )
    count_in_ledger(
        connection,
        "delivered",
        [(event.event_time, event.stream_id, event.total_usage) for event in gone],
    )
    connection.execute(
        """
        INSERT INTO links (name, last_success_at) VALUES ('events', :now)
        ON CONFLICT (name) DO UPDATE
        SET last_success_at = :now,
            failures = CASE WHEN :recovers THEN 0 ELSE failures END,
            down_since = CASE WHEN :recovers THEN NULL ELSE down_since END,
            next_attempt_at = CASE WHEN :recovers THEN NULL ELSE next_attempt_at END
        """,
        {"now": now, "recovers": settlement.recovers},
    )


def _remove(connection: sqlite3.Connection, events: Sequence[DueEvent]) -> Sequence[DueEvent]:
    """Delete these events and return those that were there: nobody may be counted twice.

    The key of an event says that it is this one, should another file have come to the place.
    """
    if _remove_run(connection, events):
        return events
    rows = [(event.seq, event.idempotency_key) for event in events]
    delete = "DELETE FROM events WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'"
    if len(rows) > 1:
        # As a rule all are there. All at once takes half the time, and does not tell which.
        connection.execute("SAVEPOINT all_at_once")
        if connection.executemany(delete, rows).rowcount == len(rows):
            connection.execute("RELEASE all_at_once")
            return events
        connection.execute("ROLLBACK TO all_at_once")
        connection.execute("RELEASE all_at_once")
    return [
        event
        for event, row in zip(events, rows, strict=True)
        if connection.execute(delete, row).rowcount
    ]


def _remove_run(connection: sqlite3.Connection, events: Sequence[DueEvent]) -> bool:
    """Delete events whose seqs follow each other, if all of them are there; return whether.

    As a rule they are, and two statements take two thirds of the time of one for each event.
    """
    seqs = [event.seq for event in events]
    if len(seqs) < 2 or seqs != list(range(seqs[0], seqs[0] + len(seqs))):
        return False
    run = seqs[0], seqs[-1]
    # No key holds a line break.
    (keys,) = connection.execute(
        """
        SELECT group_concat(idempotency_key, char(10))
        FROM (SELECT idempotency_key FROM events
              WHERE seq BETWEEN ? AND ? AND state <> 'dead' ORDER BY seq)
        """,
        run,
    ).fetchone()
    if keys != "\n".join([event.idempotency_key for event in events]):
        return False
    connection.execute("DELETE FROM events WHERE seq BETWEEN ? AND ?", run)
    return True


def _free_streams(connection: sqlite3.Connection, settlement: Settlement) -> None:
    """End the hold of streams in which nobody waits any more."""
    touched: Sequence[DueEvent] = [
        *settlement.delivered,
        *settlement.refused,
        *settlement.refused_alone,
        *(burial.event for burial in settlement.buried),
    ]
    connection.executemany(
        """
        UPDATE streams SET held_until = NULL
        WHERE stream_id = ? AND held_until IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM events
                          WHERE events.stream_id = streams.stream_id AND state = 'deferred')
        """,
        [(stream_id,) for stream_id in {event.stream_id for event in touched}],
    )
