"""Counts what there is in all, without two transactions ever waiting for each other.

The totals are the sums of many rows. Each transaction adds to one that nobody else is at, so
that one which stays open (a caller's own) holds up no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from psycopg import Cursor
    from psycopg.rows import TupleRow

__all__ = ["Totals", "count", "count_by_itself", "fold", "totals"]

# Rows that were made with the outbox. Those beyond came when none was free.
_USUAL_SLOTS = 64


class Totals(NamedTuple):
    """Of all events that there ever were; or what is added to that."""

    accepted: int = 0
    delivered: int = 0
    removed: int = 0
    dead: int = 0
    dead_lettered: int = 0
    """That ever became dead letters."""
    bytes: int = 0
    """Of those that are here."""


def totals(cursor: Cursor[TupleRow]) -> Totals:
    """Return the totals of this instant."""
    cursor.execute(
        """
        SELECT coalesce(sum(accepted), 0)::bigint, coalesce(sum(delivered), 0)::bigint,
               coalesce(sum(removed), 0)::bigint, coalesce(sum(dead), 0)::bigint,
               coalesce(sum(dead_lettered), 0)::bigint, coalesce(sum(bytes), 0)::bigint
        FROM meter_lib.tallies
        """
    )
    return Totals._make(cursor.fetchone() or Totals())


def count(cursor: Cursor[TupleRow], more: Totals) -> None:
    """Add to the totals, within the caller's transaction."""
    if more == Totals():
        return
    cursor.execute(
        """
        UPDATE meter_lib.tallies AS tally
        SET accepted = tally.accepted + %s, delivered = tally.delivered + %s,
            removed = tally.removed + %s, dead = tally.dead + %s,
            dead_lettered = tally.dead_lettered + %s, bytes = tally.bytes + %s
        FROM (SELECT slot FROM meter_lib.tallies LIMIT 1 FOR UPDATE SKIP LOCKED) AS free
        WHERE tally.slot = free.slot
        """,
        more,
    )
    if not cursor.rowcount:
        count_by_itself(cursor, more)


def count_by_itself(cursor: Cursor[TupleRow], more: Totals) -> None:
    """Add to the totals by a new row: also where a row that changed meanwhile is an error."""
    cursor.execute(
        """
        INSERT INTO meter_lib.tallies (accepted, delivered, removed, dead, dead_lettered, bytes)
        VALUES (%s, %s, %s, %s, %s, %s)
        """,
        more,
    )


def fold(cursor: Cursor[TupleRow]) -> None:
    """Bring what new rows were made for back into the usual ones."""
    cursor.execute(
        """
        DELETE FROM meter_lib.tallies
        WHERE slot IN (SELECT slot FROM meter_lib.tallies WHERE slot > %s
                       LIMIT 1000 FOR UPDATE SKIP LOCKED)
        RETURNING accepted, delivered, removed, dead, dead_lettered, bytes
        """,
        (_USUAL_SLOTS,),
    )
    rows = cursor.fetchall()
    if rows:
        count(cursor, Totals._make(map(sum, zip(*rows, strict=True))))
