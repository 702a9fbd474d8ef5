"""How what was read of one outbox is written into another."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from meter_lib._sqlite.salvage.rows import Row, SalvagedEvent

__all__ = ["ESSENTIAL", "carried", "columns_of", "insert", "stream_id"]

# How far the old outbox was with proving a refusal is not carried over: that starts anew.
_NOT_CARRIED = frozenset({"state", "stream_id", "refused_after", "lone_refusal"})
ESSENTIAL = (
    "seq",
    "stream_id",
    "idempotency_key",
    "event_time",
    "recorded_at",
    "total_usage",
    "state",
    "attempts",
    "reason",
    "dead_at",
    "payload",
)


def carried(event: SalvagedEvent, seq: int, stream_id: int) -> Row:
    """Return the row of an event in another outbox: dead as it was, else to be delivered."""
    old = event.row
    row = {name: value for name, value in old.items() if name not in _NOT_CARRIED}
    row["seq"] = seq
    row["stream_id"] = stream_id
    row["state"] = "deferred" if old["attempts"] else "pending"
    row.update(reason=None, detail=None, dead_at=None)
    if old.get("state") == "dead":
        reason, dead_at = old.get("reason"), old.get("dead_at")
        row["state"] = "dead"
        row["reason"] = reason if isinstance(reason, str) else "damaged"
        row["detail"] = old.get("detail")
        row["dead_at"] = dead_at if isinstance(dead_at, int) else old["recorded_at"]
    return row


def insert(connection: sqlite3.Connection, table: str, row: Row, columns: Sequence[str]) -> bool:
    """Insert a row, or return False where it is there or breaks a rule of the table."""
    names = tuple([name for name in columns if name in row])
    values = [row[name] for name in names]
    return bool(connection.execute(_insertion(table, names), values).rowcount)


@functools.lru_cache
def _insertion(table: str, names: tuple[str, ...]) -> str:
    places = ", ".join("?" * len(names))
    return f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({places})"  # noqa: S608  # names of ours


def columns_of(connection: sqlite3.Connection, table: str) -> list[str]:
    """Return the names of a table's columns."""
    return [
        str(name)
        for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
    ]


def stream_id(connection: sqlite3.Connection, names: tuple[str, str, str]) -> int:
    """Return the number of a stream, by tenant, device and meter; make it where there is none."""
    connection.execute(
        "INSERT OR IGNORE INTO streams (tenant_id, device_id, meter_id) VALUES (?, ?, ?)", names
    )
    (number,) = connection.execute(
        "SELECT stream_id FROM streams WHERE tenant_id = ? AND device_id = ? AND meter_id = ?",
        names,
    ).fetchone()
    return int(number)
