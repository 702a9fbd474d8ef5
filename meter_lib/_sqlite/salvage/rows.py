"""Rows of a damaged outbox: each is taken only if it can be what it seems to be."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

import meter_migrations

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_lib._sqlite.salvage.trees import Record, Value

__all__ = ["RECOGNISED", "Layout", "Row", "SalvagedEvent", "current_layouts", "salvaged_event"]

Row = dict[str, "Value"]

# Whatever counts events or numbers rows stays below this, in JSON as in every backend.
_MOST = 2**53
_LAST_TIME = 10**13
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_KEY = re.compile(r"[!-~]{1,255}")


class Layout(NamedTuple):
    """Which value of a record is which column."""

    columns: tuple[str, ...]
    row_id_column: str | None

    def row(self, record: Record) -> Row | None:
        """Return the record by the names of its columns, or None where it cannot be of this table.

        A row that was written before columns were added lacks the last ones.
        """
        values = record.values
        if len(values) > len(self.columns):
            return None
        if (record.row_id is None) != (self.row_id_column is None):
            return None
        row = dict(zip(self.columns, values, strict=False))
        if self.row_id_column is not None:
            if row.get(self.row_id_column) is not None:
                return None
            row[self.row_id_column] = record.row_id
        return row


def current_layouts() -> dict[str, Layout]:
    """Return the tables of this version; migrations add columns at their end, nowhere else."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        meter_migrations.migrate(connection)
        return _layouts(connection)
    finally:
        connection.close()


def _layouts(connection: sqlite3.Connection) -> dict[str, Layout]:
    layouts: dict[str, Layout] = {}
    for name, sql in connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
    ).fetchall():
        columns = connection.execute(
            "SELECT name, pk, upper(type) FROM pragma_table_info(?)", (name,)
        ).fetchall()
        if "WITHOUT ROWID" in sql.upper():
            # Stored by its key: that comes first.
            columns.sort(key=lambda column: column[1] or len(columns) + 1)
            row_id_column = None
        else:
            keys = [column for column, pk, kind in columns if pk == 1 and kind == "INTEGER"]
            row_id_column = keys[0] if keys else ""
        layouts[name] = Layout(tuple(column for column, _, _ in columns), row_id_column)
    return layouts


# -- what a row must be -----------------------------------------------------------------


class SalvagedEvent(NamedTuple):
    """An event as a damaged outbox has it."""

    seq: int
    stream_id: int
    stream: tuple[str, str, str]
    """Tenant, device and meter, by its payload."""
    idempotency_key: str
    is_dubious: bool
    """Whether its row says other units than its payload."""
    row: Row


def salvaged_event(row: Row) -> SalvagedEvent | None:
    """Return the event of a row of `events`, or None where it can be none."""
    key, payload = row.get("idempotency_key"), row.get("payload")
    seq, stream_id, units = row.get("seq"), row.get("stream_id"), row.get("total_usage")
    if not (
        isinstance(seq, int)
        and isinstance(stream_id, int)
        and isinstance(key, str)
        and _KEY.fullmatch(key)
        and isinstance(payload, str)
        and _is_time(row.get("event_time"))
        and _is_time(row.get("recorded_at"))
        and _is_count(row.get("attempts"))
        and (units is None or (isinstance(units, int) and units >= 0))
    ):
        return None
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    names = [said.get(name) for name in ("tenant_id", "device_id", "meter_id")]
    if not all(_is_id(name) for name in names):
        return None
    stream = str(names[0]), str(names[1]), str(names[2])
    return SalvagedEvent(seq, stream_id, stream, key, said.get("total_usage") != units, row)


def _is_outbox(row: Row) -> bool:
    outbox_id = row.get("outbox_id")
    counts = [row.get(name) for name in ("last_seq", "frontier", "keys_swept_to")]
    counts += [row.get(f"{kind}_events") for kind in ("delivered", "removed", "dead")]
    if not all(_is_count(count) for count in counts):
        return False
    last_seq, frontier, swept_to, delivered, removed, _ = (int(str(count)) for count in counts)
    return (
        row.get("id") == 1
        and isinstance(outbox_id, str)
        and re.fullmatch(r"[0-9a-f]{32}", outbox_id) is not None
        and _is_time(row.get("created_at"))
        # Each of these left the outbox under a number of its own.
        and delivered + removed <= last_seq
        and swept_to <= last_seq
        and frontier < _MOST
    )


def _is_stream(row: Row) -> bool:
    return all(_is_id(row.get(name)) for name in ("tenant_id", "device_id", "meter_id"))


def _is_known_key(row: Row) -> bool:
    timestamp = row.get("timestamp")
    return (
        all(
            isinstance(value, bytes) and len(value) == 16
            for value in (row.get("key_digest"), row.get("fingerprint"))
        )
        and _is_count(row.get("seq"))
        and _is_time(row.get("event_time"))
        and (timestamp is None or _is_time(timestamp))
    )


def _is_ledger_row(row: Row) -> bool:
    if not (_is_count(row.get("day")) and _is_count(row.get("stream_id"))):
        return False
    events = [value for name, value in row.items() if name.endswith("_events")]
    units = [value for name, value in row.items() if name.endswith("_units")]
    return (
        len(events) >= 2
        and len(events) == len(units)
        and all(_is_count(value) for value in events)
        and all(isinstance(value, str) and value.isdecimal() for value in units)
    )


# What a row must be of the tables that are salvaged beside `events`. What an accounts API or a
# link last said is asked anew instead: a damaged customer id would send the bill to somebody else.
RECOGNISED: dict[str, Callable[[Row], bool]] = {
    "outbox": _is_outbox,
    "streams": _is_stream,
    "known_keys": _is_known_key,
    "ledger": _is_ledger_row,
}


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and 0 <= value < _MOST


def _is_time(value: Value) -> bool:
    return isinstance(value, int) and 0 <= value < _LAST_TIME


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and not _CONTROL.search(value)
