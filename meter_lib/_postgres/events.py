"""Events as the flusher is handed them: their columns, and requests that were not answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._postgres.streams import shard_of
from meter_lib.outbox import DueEvent, Unanswered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Cursor
    from psycopg.rows import TupleRow

__all__ = [
    "EVENT",
    "ORIGIN",
    "due_event",
    "forget_unanswered",
    "read_unanswered",
    "write_unanswered",
]

# A due event, read from events AS e, streams AS s and outbox AS o; whether it is held, and
# what is to be said of its time and name, follow.
EVENT = """
    e.seq, e.stream_id, s.tenant_id, s.device_id, s.meter_id, e.idempotency_key, e.event_time,
    e.total_usage, e.payload, e.attempts, e.customer_id, e.lone_refusal,
    coalesce(abs(e.lone_refusal) <= o.proven_to, false), e.state = 'pending'
"""
ORIGIN = """
    CASE WHEN e.clock_corrected THEN e.recorded_at END, e.clock_uncertain,
    CASE WHEN o.epoch > 1 THEN coalesce(
        (SELECT former ->> 2 FROM jsonb_array_elements(o.copied_from::jsonb) AS former
         WHERE e.seq > (former ->> 0)::bigint AND e.seq <= (former ->> 1)::bigint),
        o.outbox_id)
    END
"""


def due_event(row: TupleRow) -> DueEvent:
    """Return the event of a row with these columns."""
    return DueEvent._make(row)


def write_unanswered(cursor: Cursor[TupleRow], requests: Iterable[Unanswered]) -> None:
    """Remember these requests."""
    cursor.executemany(
        """
        INSERT INTO meter_lib.unanswered (idempotency_key, shard, customer_id, seqs)
        VALUES (%s, %s, %s, %s)
        ON CONFLICT (idempotency_key) DO UPDATE
        SET customer_id = excluded.customer_id, seqs = excluded.seqs
        """,
        [
            (
                request.idempotency_key,
                # All of one device, if it is of any.
                next((shard_of(e.tenant_id, e.device_id) for e in request.events), 0),
                request.customer_id,
                [event.seq for event in request.events],
            )
            for request in requests
        ],
    )


def forget_unanswered(cursor: Cursor[TupleRow], keys: Sequence[str]) -> None:
    """Forget the requests with these keys."""
    if keys:
        cursor.execute(
            "DELETE FROM meter_lib.unanswered WHERE idempotency_key = ANY(%s)", (list(keys),)
        )


def read_unanswered(cursor: Cursor[TupleRow], shards: Sequence[int]) -> list[Unanswered]:
    """Return the requests of these shards with those of their events that are still here."""
    cursor.execute(
        """
        SELECT idempotency_key, customer_id FROM meter_lib.unanswered WHERE shard = ANY(%s)
        """,
        (list(shards),),
    )
    events: dict[str, list[DueEvent]] = {}
    customers: dict[str, str] = {}
    for key, customer_id in cursor.fetchall():
        events[key], customers[key] = [], customer_id
    cursor.execute(
        f"""
        SELECT sent.idempotency_key, {EVENT}, false, {ORIGIN}
        FROM meter_lib.outbox AS o
        CROSS JOIN meter_lib.unanswered AS sent
        CROSS JOIN unnest(sent.seqs) WITH ORDINALITY AS named (seq, place)
        JOIN meter_lib.events AS e ON e.seq = named.seq
        JOIN meter_lib.streams AS s ON s.stream_id = e.stream_id
        WHERE sent.shard = ANY(%s) AND e.state <> 'dead'
        ORDER BY sent.idempotency_key, named.place
        """,
        (list(shards),),
    )
    for row in cursor:
        events[row[0]].append(due_event(row[1:]))
    found = [Unanswered(key, customers[key], its_events) for key, its_events in events.items()]
    return sorted(found, key=lambda request: [event.seq for event in request.events])
