"""What is kept of events that have left: their counts, by day and stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Cursor
    from psycopg.rows import TupleRow

__all__ = ["count_delivered", "count_removed"]

_DAY_MILLISECONDS = 86_400_000


def count_delivered(
    cursor: Cursor[TupleRow], events: Iterable[tuple[int, int, int | None]]
) -> None:
    """Add (event time, stream, units) to what was delivered."""
    cursor.executemany(
        """
        INSERT INTO meter_lib.ledger AS row (day, stream_id, delivered_events, delivered_units)
        VALUES (%s, %s, %s, %s)
        ON CONFLICT (day, stream_id) DO UPDATE
        SET delivered_events = row.delivered_events + excluded.delivered_events,
            delivered_units = row.delivered_units + excluded.delivered_units
        """,
        _sums(events),
    )


def count_removed(cursor: Cursor[TupleRow], events: Iterable[tuple[int, int, int | None]]) -> None:
    """Add (event time, stream, units) to what was removed."""
    cursor.executemany(
        """
        INSERT INTO meter_lib.ledger AS row (day, stream_id, removed_events, removed_units)
        VALUES (%s, %s, %s, %s)
        ON CONFLICT (day, stream_id) DO UPDATE
        SET removed_events = row.removed_events + excluded.removed_events,
            removed_units = row.removed_units + excluded.removed_units
        """,
        _sums(events),
    )


def _sums(events: Iterable[tuple[int, int, int | None]]) -> list[tuple[int, int, int, int]]:
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    for event_time, stream_id, units in events:
        row = (event_time // _DAY_MILLISECONDS, stream_id)
        events_so_far, units_so_far = sums.get(row, (0, 0))
        sums[row] = (events_so_far + 1, units_so_far + (units or 0))
    # In one order, so that no two transactions wait for each other.
    return sorted((*row, count, units) for row, (count, units) in sums.items())
