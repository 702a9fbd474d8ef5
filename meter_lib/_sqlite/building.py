"""Makes the file of an outbox at a place where nobody looks before it is whole."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import meter_migrations
from meter_lib._sqlite.connection import connect
from meter_lib._sqlite.files import create_or_open
from meter_lib._sqlite.limits import PAGE_BYTES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator

__all__ = ["building"]


@contextlib.contextmanager
def building(path: str) -> Generator[sqlite3.Connection]:
    """Fill an outbox of the current schema; at the end of the block the connection is closed.

    Nothing is synced, and nothing can be undone: what is left after a crash is to be thrown
    away, and what is whole to be synced before it gets its name.
    """
    os.close(create_or_open(path))
    connection = connect(path, mode="rw", timeout_seconds=0)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = OFF").fetchone()
        connection.execute("PRAGMA synchronous = OFF")
        meter_migrations.migrate(connection)
        yield connection
    finally:
        connection.close()
