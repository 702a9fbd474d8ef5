"""Reads events that are due: the SQL at the beginning of a delivery.

Within a read transaction of the caller's. What all events share, the names of their streams
among it, is read once and not with each of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meter_lib._sqlite.copies import former_names
from meter_lib.outbox import DueEvent

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

__all__ = ["LONGEST_HOLD_MILLISECONDS", "DueReader"]

# A hold that ends later than this was set by a clock that has jumped since: no wait is
# longer than the hour that Retry-After is capped at.
LONGEST_HOLD_MILLISECONDS = 3_600_000
_FOREVER = 2**63 - 1

# An event, read from events AS e; whether it is held comes behind.
_EVENT = """
    e.seq, e.stream_id, e.idempotency_key, e.event_time, e.total_usage, e.payload, e.attempts,
    e.customer_id, e.lone_refusal, e.state = 'pending',
    CASE e.clock WHEN 3 THEN e.recorded_at END, e.clock = 2
"""
_PAYLOAD = 5


class DueReader:
    """Reads as of the instant that the connection sees."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        (
            self._frontier,
            self._proven_to,
            self._outbox_id,
            epoch,
            copied_from,
            self._some_are_held,
        ) = connection.execute(
            """
            SELECT frontier, proven_to, outbox_id, epoch, copied_from,
                   EXISTS (SELECT 1 FROM streams WHERE held_until IS NOT NULL)
            FROM outbox
            """
        ).fetchone()
        # Under which names events were accepted, where the outbox has had more than one.
        self._names = former_names(copied_from) if epoch > 1 else None

    def due(
        self, *, now: int, limit: int, max_bytes: int, after: int, beside: Sequence[int]
    ) -> list[DueEvent]:
        """Return what may be delivered now; see `Delivery.due`."""
        rows: list[tuple[Any, ...]] = []  # Any: as SQLite gives them
        spans = ((-_FOREVER, now), (now + LONGEST_HOLD_MILLISECONDS + 1, _FOREVER))
        for first, last in spans if self._some_are_held else ():
            waiting = self._connection.execute(
                f"""
                SELECT {_EVENT}, 0
                FROM streams AS s
                CROSS JOIN events AS e ON e.stream_id = s.stream_id AND e.state = 'deferred'
                WHERE s.held_until BETWEEN ? AND ?
                  AND s.stream_id NOT IN (SELECT value FROM json_each(?))
                ORDER BY s.held_until, s.stream_id, e.seq
                LIMIT ?
                """,  # noqa: S608  # the columns are ours
                (first, last, json.dumps(list(beside)), limit - len(rows)),
            )
            max_bytes = _take(waiting, rows, max_bytes)
            if max_bytes <= 0 or len(rows) >= limit:
                return self._events(rows)
        untouched = self._connection.execute(
            f"""
            SELECT {_EVENT}, s.held_until IS NOT NULL
            FROM events AS e
            CROSS JOIN streams AS s ON s.stream_id = e.stream_id
            WHERE e.seq > ? AND e.state = 'pending'
            ORDER BY e.seq
            LIMIT ?
            """,  # noqa: S608  # as above
            (max(self._frontier, after), limit - len(rows)),
        )
        _take(untouched, rows, max_bytes)
        return self._events(rows)

    def suspects(self, *, limit: int, proven_only: bool) -> list[DueEvent]:
        """Return refused events to be asked about alone; see `Delivery.suspects`."""
        rows = self._connection.execute(
            f"""
            SELECT {_EVENT}, 0
            FROM events AS e
            CROSS JOIN streams AS s ON s.stream_id = e.stream_id
            WHERE e.state = 'refused'
              AND (NOT :proven_only
                   OR e.lone_refusal IS NULL
                   OR abs(e.lone_refusal) <= :proven_to)
            ORDER BY e.seq
            LIMIT :limit
            """,  # noqa: S608  # as above
            {"proven_only": proven_only, "proven_to": self._proven_to, "limit": limit},
        )
        return self._events(rows.fetchall())

    def here(self, seqs: Sequence[int]) -> list[DueEvent]:
        """Return those of these events that wait, the oldest first."""
        rows = self._connection.execute(
            f"""
            SELECT {_EVENT}, 0
            FROM json_each(?) AS sent
            CROSS JOIN events AS e ON e.seq = sent.value
            CROSS JOIN streams AS s ON s.stream_id = e.stream_id
            WHERE e.state <> 'dead'
            """,  # noqa: S608  # as above
            (json.dumps(list(seqs)),),
        )
        return sorted(self._events(rows.fetchall()))

    def _events(self, rows: Sequence[tuple[Any, ...]]) -> list[DueEvent]:  # Any: as above
        streams = {
            stream_id: ids
            for stream_id, *ids in self._connection.execute(
                """
                SELECT stream_id, tenant_id, device_id, meter_id FROM streams
                WHERE stream_id IN (SELECT value FROM json_each(?))
                """,
                (json.dumps(list({row[1] for row in rows})),),
            )
        }
        proven_to, names = self._proven_to, self._names
        # SQLite knows no booleans: they are 0 or 1.
        return [
            DueEvent._make(
                (
                    seq,
                    stream_id,
                    *streams[stream_id],
                    key,
                    event_time,
                    units,
                    payload,
                    attempts,
                    customer_id,
                    lone_refusal,
                    lone_refusal is not None and abs(lone_refusal) <= proven_to,
                    fresh == 1,
                    held == 1,
                    recorded_time,
                    clock_uncertain == 1,
                    None if names is None else self._name_of(seq, names),
                )
            )
            for (
                seq,
                stream_id,
                key,
                event_time,
                units,
                payload,
                attempts,
                customer_id,
                lone_refusal,
                fresh,
                recorded_time,
                clock_uncertain,
                held,
            ) in rows
        ]

    def _name_of(self, seq: int, names: Sequence[tuple[int, int, str]]) -> str:
        """Return the name that an event was accepted under."""
        return next((name for after, to, name in names if after < seq <= to), self._outbox_id)


def _take(
    found: Iterable[tuple[Any, ...]],  # Any: as above
    rows: list[tuple[Any, ...]],  # Any: as above
    budget: int,
) -> int:
    """Append rows while the budget of bytes lasts; return what is left of it.

    The very first is taken whatever its size.
    """
    for row in found:
        payload = row[_PAYLOAD]
        size = len(payload) if payload.isascii() else len(payload.encode())
        if rows and size > budget:
            return 0
        rows.append(row)
        budget -= size
    return budget
