"""The numbered SQL files of an outbox on a PostgreSQL server, and what applies them.

Each is applied in one transaction with its number, under a lock of the server, so any number
of hosts may migrate at once. The connection is the caller's; no driver is imported here.
"""

from __future__ import annotations

import os
import re
from typing import Any, Protocol

__all__ = ["LATEST", "migrate", "schema_version"]

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_FOLDER = os.path.dirname(os.path.abspath(__file__))
# "METR", as the SQLite files say it: our part of the server's advisory locks.
_LOCK = 0x4D455452
_TABLE = ("meter_lib", "migrations")


class _Cursor(Protocol):
    """As much of a database cursor as is needed, outside of any driver."""

    def execute(self, query: Any, parameters: Any = None, /) -> Any:  # Any: the driver's own
        """Run a statement; without parameters it may be several."""
        ...

    def fetchone(self) -> Any:  # Any: a row is of whatever was asked for
        """Return a row."""
        ...


def _names() -> tuple[str, ...]:
    names = sorted(name for name in os.listdir(_FOLDER) if name.endswith(".sql"))
    for expected, name in enumerate(names, start=1):
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) != expected:
            raise ValueError(f"{name}: migrations are named NNNN_what.sql, numbered without a gap")
    return tuple(names)


_NAMES = _names()
LATEST = len(_NAMES)


def schema_version(cursor: _Cursor) -> int:
    """Return the number of the last step applied, 0 where there is no outbox; change nothing."""
    # From the table itself: `to_regclass` asks a cache, which may not have heard of another
    # session's commit.
    cursor.execute("SELECT 1 FROM pg_tables WHERE (schemaname, tablename) = (%s, %s)", _TABLE)
    is_there = cursor.fetchone()
    if not is_there:
        return 0
    cursor.execute("SELECT coalesce(max(number), 0) FROM meter_lib.migrations")
    (version,) = cursor.fetchone()
    return int(version)


def migrate(cursor: _Cursor) -> list[str]:
    """Apply the steps that are missing, within the caller's transaction; return their names.

    Whoever else migrates waits for its end. A database that is not in UTF-8 is refused with
    a ValueError: names of tenants would not fit in.
    """
    cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK}, -1), current_setting('server_encoding')")
    (_, encoding) = cursor.fetchone()
    if encoding != "UTF8":
        raise ValueError(f"the database is in {encoding}; an outbox needs one in UTF8")
    applied: list[str] = []
    for number, name in enumerate(_NAMES, start=1):
        if number <= schema_version(cursor):
            continue
        with open(os.path.join(_FOLDER, name), encoding="utf-8") as script:
            cursor.execute(script.read())
        cursor.execute(
            "INSERT INTO meter_lib.migrations (number, name) VALUES (%s, %s)", (number, name)
        )
        applied.append(name)
    return applied
