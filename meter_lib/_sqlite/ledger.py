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
    sums: dict[tuple[int, int], list[int]] = {}
    for event_time, stream_id, units in events:
        row = (event_time // _DAY_MILLISECONDS, stream_id)
        if row not in sums:
            sums[row] = [0, 0]
        total = sums[row]
        total[0] += 1
        total[1] += units or 0
    for (day, stream_id), (count, units) in sums.items():
        before = connection.execute(
            f"SELECT {column}_units FROM ledger WHERE day = ? AND stream_id = ?",  # noqa: S608  # one of two names, both ours
            (day, stream_id),
        ).fetchone()
        if before is not None:
            units += int(before[0])  # noqa: PLW2901  # their sum may pass what SQLite counts with
        connection.execute(
            f"""
            INSERT INTO ledger (day, stream_id, {column}_events, {column}_units)
            VALUES (?, ?, ?, ?)
            ON CONFLICT (day, stream_id) DO UPDATE
            SET {column}_events = {column}_events + excluded.{column}_events,
                {column}_units = excluded.{column}_units
            """,  # noqa: S608  # as above
            (day, stream_id, count, str(units)),
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
