"""What a move leaves on a server, and whom it keeps out.

schema meter_lib             `migrations` and `moved` stay here, whatever leaves or arrives
schema meter_lib_moved_WHEN  the tables of an outbox that has left; nothing uses them
schema meter_lib_arriving    those of one that is whole, and not in use before the old one is
                             closed

Whoever has such tables open sees with the next statement that they are not at their place.
Each transaction that writes looks at `outbox` first, so whoever has locked that one waits for
nobody who waits for him.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from psycopg.sql import SQL, Identifier

from meter_lib.errors import OutboxMoved, OutboxUnavailable
from meter_lib.moving import Departure

if TYPE_CHECKING:
    from psycopg import Cursor
    from psycopg.rows import TupleRow

__all__ = [
    "HOME",
    "STAGE",
    "TABLES",
    "are_there",
    "carry",
    "keep_out",
    "lock_tables",
    "outbox_arriving",
    "read_departure",
    "shelve",
]

HOME = "meter_lib"
STAGE = "meter_lib_arriving"
# In the order in which they are locked.
TABLES = (
    "outbox",
    "tallies",
    "known_keys",
    "events",
    "streams",
    "ledger",
    "unanswered",
    "links",
    "accounts",
)
_SEQUENCE = "event_seq"


class _Told(NamedTuple):
    """A row of `moved`."""

    is_arriving: bool
    outbox_id: str
    moved_to: str | None
    kept_in: str


def keep_out(cursor: Cursor[TupleRow], location: str) -> None:
    """Raise where the outbox at this place must not be used, because it is moving or has moved."""
    for told in _told(cursor):
        if told.moved_to is None:
            raise OutboxUnavailable(
                f"an outbox is being moved to {location}, and is not all there; if meter-lib move"
                " has ended before its time, run it again as it was"
            )
        raise OutboxMoved(
            f"the outbox in {location} has moved to {told.moved_to}: set METER_OUTBOX to that"
            " place (to begin a new outbox here, drop the tables meter_lib.moved and"
            " meter_lib.migrations)"
        )


def read_departure(cursor: Cursor[TupleRow]) -> Departure | None:
    """Return where the outbox that was here has moved to, or None where it has not."""
    for told in _told(cursor):
        if told.moved_to is not None:
            return Departure(told.moved_to, told.outbox_id, f"schema {told.kept_in}")
    return None


def outbox_arriving(cursor: Cursor[TupleRow]) -> str | None:
    """Return the name of the outbox that waits for its last step, if there is one."""
    return next((told.outbox_id for told in _told(cursor) if told.is_arriving), None)


def _told(cursor: Cursor[TupleRow]) -> list[_Told]:
    """Return what is told here, that of an outbox that arrives first."""
    if not _is_there(cursor, "moved"):
        return []
    cursor.execute(
        """
        SELECT is_arriving, outbox_id, moved_to, kept_in FROM meter_lib.moved
        ORDER BY is_arriving DESC
        """
    )
    return [_Told._make(row) for row in cursor]


def are_there(cursor: Cursor[TupleRow]) -> bool:
    """Return whether the tables of an outbox are at their place."""
    return _is_there(cursor, TABLES[0])


def _is_there(cursor: Cursor[TupleRow], table: str) -> bool:
    cursor.execute(
        "SELECT 1 FROM pg_tables WHERE (schemaname, tablename) = (%s, %s)", (HOME, table)
    )
    return cursor.fetchone() is not None


def lock_tables(cursor: Cursor[TupleRow]) -> None:
    """Wait for all who use them, and let nobody else until the end of the transaction."""
    tables = SQL(", ").join(Identifier(HOME, table) for table in TABLES)
    cursor.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables))


def carry(cursor: Cursor[TupleRow], *, origin: str, to: str) -> None:
    """Bring the tables from one schema to another, with all rights on them."""
    for table in TABLES:
        cursor.execute(
            SQL("ALTER TABLE {} SET SCHEMA {}").format(Identifier(origin, table), Identifier(to))
        )
    cursor.execute(
        SQL("ALTER SEQUENCE {} SET SCHEMA {}").format(Identifier(origin, _SEQUENCE), Identifier(to))
    )


def shelve(cursor: Cursor[TupleRow], to: str, outbox_id: str) -> Departure:
    """Bring the tables of an outbox that has moved `to` another place out of everybody's way."""
    stem = f"meter_lib_moved_{time.strftime('%Y%m%dt%H%M%Sz', time.gmtime())}"
    kept, number = stem, 1
    while _is_schema(cursor, kept):
        number += 1
        kept = f"{stem}_{number}"
    cursor.execute(SQL("CREATE SCHEMA {}").format(Identifier(kept)))
    carry(cursor, origin=HOME, to=kept)
    cursor.execute(
        """
        INSERT INTO meter_lib.moved (is_arriving, outbox_id, moved_to, kept_in)
        VALUES (false, %s, %s, %s)
        """,
        (outbox_id, to, kept),
    )
    return Departure(to, outbox_id, f"schema {kept}")


def _is_schema(cursor: Cursor[TupleRow], name: str) -> bool:
    cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (name,))
    return cursor.fetchone() is not None
