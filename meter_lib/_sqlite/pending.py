"""What waits for its delivery, as operators look at it: the SQL of `PendingEvent`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.selecting import SENT, selected
from meter_lib.outbox import PendingEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import Selector

__all__ = ["SqlitePending"]

# In the words of `PendingEvent.state`.
_STATE = f"""
    CASE WHEN e.state = 'refused' AND e.lone_refusal IS NOT NULL THEN 'refused'
         WHEN e.state <> 'dead' AND {SENT} THEN 'sent'
         WHEN e.state = 'refused' THEN 'suspected'
         ELSE e.state END
"""
# The later of what holds its stream and what pauses the link; a hold until 0 is none.
_NEXT_ATTEMPT_AT = """
    (SELECT nullif(max(coalesce(s.held_until, 0), coalesce(
        (SELECT next_attempt_at FROM links WHERE name = 'events'), 0)), 0))
"""
_COLUMNS = f"""
    e.seq, s.tenant_id, s.device_id, s.meter_id, e.idempotency_key, e.event_time, e.payload,
    e.attempts, {_STATE}, {_NEXT_ATTEMPT_AT}, e.replays, e.customer_id
"""


class SqlitePending:
    """The part of an outbox in a SQLite file that tells what waits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pending_events(self, selector: Selector) -> Iterator[PendingEvent]:
        """Yield the pending events meant, oldest first; see `Operations.pending_events`."""
        for row in selected(self._database, _COLUMNS, "e.state <> 'dead'", selector):
            yield PendingEvent._make(row)

    def state_of(self, seq: int, idempotency_key: str) -> str | None:
        """Return where an event is; see `Operations.state_of`."""
        with self._database.read() as connection:
            row = connection.execute(
                f"SELECT {_STATE} FROM events AS e WHERE e.seq = ? AND e.idempotency_key = ?",  # noqa: S608  # the words are ours
                (seq, idempotency_key),
            ).fetchone()
        return None if row is None else str(row[0])
