"""The frontier: the point up to which every event has been looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

__all__ = ["FRONTIER", "advance_frontier"]

# Just before the first event that nobody has looked at; within an UPDATE of outbox.
FRONTIER = """
    coalesce(
        (SELECT e.seq - 1 FROM events AS e
         WHERE e.seq > outbox.frontier AND e.state = 'pending'
         ORDER BY e.seq LIMIT 1),
        (SELECT max(outbox.frontier, coalesce(max(e.seq), 0)) FROM events AS e))
"""


def advance_frontier(connection: sqlite3.Connection) -> None:
    """Move the frontier to just before the first event that nobody has looked at."""
    connection.execute(f"UPDATE outbox SET frontier = {FRONTIER}")  # noqa: S608  # ours
