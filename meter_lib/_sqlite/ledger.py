"""What is kept of events that have left: their counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

__all__ = [
    "accepted_events",
    "count_dead",
    "count_in_ledger",
]

_DAY_MILLISECONDS = 86_400_000


def accepted_events(connection: sqlite3.Connection) -> int:
    """Return how many events were ever accepted: the highest seq, which has no gap."""
    (accepted,) = connection.execute(
        """
        SELECT max(last_seq, coalesce((SELECT max(seq) FROM events), 0)) FROM outbox
        """
    ).fetchone()
    return int(accepted)


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


def count_dead(connection: sqlite3.Connection, events: int) -> None:
    """Count events that have become dead letters: those there are, and those there ever were."""
    connection.execute(
        """
        UPDATE outbox
        SET dead_events = dead_events + :events,
            dead_lettered_events = dead_lettered_events + :events
        """,
        {"events": events},
    )
