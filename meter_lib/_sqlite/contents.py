"""All that an outbox file holds: counted, and row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.ledger import accepted_events
from meter_lib.moving import Contents, Rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

__all__ = ["contents_of", "row_count", "rows_of", "tables_of"]

_ROWS_AT_A_TIME = 1000
_HIGH_BITS = 32  # SQLite sums 64 bits and no more: the halves of a number are summed apart


def contents_of(connection: sqlite3.Connection) -> Contents:
    """Return what it holds, counted row by row. Nobody writes to it, or it is a transaction."""
    outbox_id, delivered, removed = connection.execute(
        "SELECT outbox_id, delivered_events, removed_events FROM outbox"
    ).fetchone()
    events = {
        bool(is_dead): (int(number), (int(high) << _HIGH_BITS) + int(low))
        for is_dead, number, high, low in connection.execute(
            f"""
            SELECT state = 'dead', count(*),
                   coalesce(sum(total_usage >> {_HIGH_BITS}), 0),
                   coalesce(sum(total_usage & {(1 << _HIGH_BITS) - 1}), 0)
            FROM events GROUP BY 1
            """  # noqa: S608  # numbers of ours
        )
    }
    ledger_events = ledger_units = 0
    for number, *units in connection.execute(
        "SELECT delivered_events + removed_events, delivered_units, removed_units FROM ledger"
    ):
        ledger_events += number
        ledger_units += sum(map(int, units))
    pending, pending_units = events.get(False, (0, 0))
    dead, dead_units = events.get(True, (0, 0))
    return Contents(
        outbox_id=str(outbox_id),
        accepted=accepted_events(connection),
        pending=pending,
        pending_units=pending_units,
        dead=dead,
        dead_units=dead_units,
        delivered=int(delivered),
        removed=int(removed),
        ledger_events=ledger_events,
        ledger_units=ledger_units,
        unanswered=_count(connection, "unanswered"),
        known_keys=_count(connection, "known_keys"),
    )


def tables_of(connection: sqlite3.Connection) -> list[str]:
    """Return the names of all tables of the schema, that of streams before those that name them."""
    return [
        str(name)
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%'"
            " ESCAPE '\\' ORDER BY name <> 'streams', name"
        )
    ]


def row_count(connection: sqlite3.Connection) -> int:
    """Return how many rows `rows_of` yields."""
    return sum(_count(connection, table) for table in tables_of(connection))


def rows_of(connection: sqlite3.Connection) -> Iterator[Rows]:
    """Yield the rows of all tables, in the order of their keys, streams first."""
    for table in tables_of(connection):
        cursor = connection.execute(f"SELECT * FROM {table}")  # noqa: S608  # a name of ours
        columns = tuple([str(column[0]) for column in cursor.description])
        while rows := cursor.fetchmany(_ROWS_AT_A_TIME):
            yield Rows(table, columns, rows)


def _count(connection: sqlite3.Connection, table: str) -> int:
    (number,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  # as above
    return int(number)
