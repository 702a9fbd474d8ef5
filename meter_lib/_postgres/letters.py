"""Reads the events that a selector means, oldest first, in memory that does not grow with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.outbox import DeadLetter, PendingEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.rows import TupleRow
    from typing_extensions import LiteralString

    from meter_lib._postgres.session import Session
    from meter_lib.outbox import Selector

__all__ = ["PostgresLetters"]

# Events read at a time: no transaction stays open while somebody looks at its rows.
_CHUNK = 500

# Whether it was sent in a request of which nobody knows what became of it.
_SENT = "EXISTS (SELECT 1 FROM meter_lib.unanswered AS sent WHERE e.seq = ANY(sent.seqs))"
# In the words of `PendingEvent.state`.
_STATE = f"""
    CASE WHEN e.state = 'refused' AND e.lone_refusal IS NOT NULL THEN 'refused'
         WHEN e.state <> 'dead' AND {_SENT} THEN 'sent'
         WHEN e.state = 'refused' THEN 'suspected'
         ELSE e.state END
"""
# The later of what holds its stream and what pauses the link; a hold until 0 is none.
_NEXT_ATTEMPT_AT = """
    nullif(greatest(s.held_until, (SELECT next_attempt_at FROM meter_lib.links
                                   WHERE name = 'events'), 0), 0)
"""
_DEAD_LETTER = f"""
    e.seq, s.tenant_id, s.device_id, s.meter_id, e.idempotency_key, e.event_time, e.payload,
    e.attempts, e.reason, coalesce(e.detail, ''), e.dead_at, e.replays, e.customer_id, {_SENT}
"""
_PENDING_EVENT = f"""
    e.seq, s.tenant_id, s.device_id, s.meter_id, e.idempotency_key, e.event_time, e.payload,
    e.attempts, {_STATE}, {_NEXT_ATTEMPT_AT}, e.replays, e.customer_id
"""


class PostgresLetters:
    """The part of an outbox on a server that operators look into event by event."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def dead_letters(self, selector: Selector) -> Iterator[DeadLetter]:
        """Yield the dead letters meant, oldest first; see `Operations.dead_letters`."""
        for row in self._selected(_DEAD_LETTER, "e.state = 'dead'", selector):
            yield DeadLetter._make(row)

    def pending_events(self, selector: Selector) -> Iterator[PendingEvent]:
        """Yield the pending events meant, oldest first; see `Operations.pending_events`."""
        for row in self._selected(_PENDING_EVENT, "e.state <> 'dead'", selector):
            yield PendingEvent._make(row)

    def state_of(self, seq: int, idempotency_key: str) -> str | None:
        """Return where an event is; see `Operations.state_of`."""
        with self._session.statements() as cursor:
            cursor.execute(
                f"""
                SELECT {_STATE} FROM meter_lib.events AS e
                WHERE e.seq = %s AND e.idempotency_key = %s
                """,
                (seq, idempotency_key),
            )
            row = cursor.fetchone()
        return None if row is None else str(row[0])

    def _selected(
        self, columns: LiteralString, of_state: LiteralString, selector: Selector
    ) -> Iterator[TupleRow]:
        after = 0
        left = selector.limit
        while left is None or left > 0:
            size = _CHUNK if left is None else min(left, _CHUNK)
            with self._session.statements() as cursor:
                cursor.execute(
                    f"""
                    SELECT {columns}
                    FROM meter_lib.events AS e
                    JOIN meter_lib.streams AS s ON s.stream_id = e.stream_id
                    WHERE {of_state} AND e.seq > %(after)s
                      AND (%(keys)s::text[] IS NULL OR e.idempotency_key = ANY(%(keys)s::text[]))
                      AND (%(tenant_id)s::text IS NULL OR s.tenant_id = %(tenant_id)s)
                      AND (%(device_id)s::text IS NULL OR s.device_id = %(device_id)s)
                      AND (%(meter_id)s::text IS NULL OR s.meter_id = %(meter_id)s)
                      AND (%(reason)s::text IS NULL OR e.reason = %(reason)s)
                      AND (%(since)s::bigint IS NULL OR e.event_time >= %(since)s)
                      AND (%(until)s::bigint IS NULL OR e.event_time < %(until)s)
                    ORDER BY e.seq
                    LIMIT %(size)s
                    """,
                    {
                        **selector._asdict(),
                        "keys": list(selector.keys) or None,
                        "after": after,
                        "size": size,
                    },
                )
                rows = cursor.fetchall()
            yield from rows
            if len(rows) < size:
                return
            after = rows[-1][0]
            left = None if left is None else left - len(rows)
