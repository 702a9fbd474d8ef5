"""Sees to it that an outbox stays within its limit: looks before each transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import empty_log
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib.errors import OutboxFull

if TYPE_CHECKING:
    import sqlite3

    from meter_lib._sqlite.limits import Limits
    from meter_lib._sqlite.place import Place

__all__ = ["give_space_back", "make_room_in_log", "pages_left"]

# A file is made smaller where that frees as much as this, and seven eighths of it: what it
# costs to copy the rest is then little, and so is how long posts wait for it.
_WORTHWHILE_PAGES = 1024
_MOST_PAGES_TO_COPY = 4096
# How long emptying the log waits for readers: their transactions take milliseconds.
_PATIENCE_SECONDS = 1.0


def make_room_in_log(
    connection: sqlite3.Connection,
    place: Place,
    limits: Limits,
    needed: int,
    *,
    path: str,
) -> None:
    """Return once the write-ahead log has room for so many bytes, or raise `OutboxFull`."""
    if place.log_bytes() + needed <= limits.max_log_bytes:
        return
    empty_log(connection, patience_seconds=_PATIENCE_SECONDS)
    in_log = place.log_bytes()
    if in_log + needed <= limits.max_log_bytes:
        return
    # What the database does not use, the log may.
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    free_bytes = limits.max_bytes - limits.reserve_bytes - pages * PAGE_BYTES
    if in_log > 0:
        raise OutboxFull(
            f"{path} is full: its write-ahead log cannot be emptied while "
            f"another program reads the file; nothing was recorded"
        )
    if needed > free_bytes:
        raise OutboxFull(
            f"{path} has no room for a commit of about {needed} bytes, its limit "
            f"(METER_MAX_BYTES) being {limits.max_bytes}; record fewer events at a time"
        )


def pages_left(connection: sqlite3.Connection, limits: Limits) -> int:
    """Return how many pages new events may still take.

    Not left to `max_page_count`: that would also keep them from the free pages of a file
    that settling has made larger than events may.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(limits.max_capture_pages - pages + free_pages)


def give_space_back(connection: sqlite3.Connection, place: Place, limits: Limits) -> None:
    """Make the file smaller where nearly all of it is free. Waits for nobody.

    No `auto_vacuum`: with it, each post that begins a page would write another one.
    """
    (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    if free_pages < _WORTHWHILE_PAGES:
        return
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    used_pages = pages - free_pages
    most = min(_MOST_PAGES_TO_COPY, limits.max_log_bytes // 2 // PAGE_BYTES)
    if used_pages > most or used_pages > free_pages // 7:
        return
    # The copy goes through the log, and the checkpoint after it cuts the file.
    empty_log(connection)
    if place.log_bytes() < limits.max_log_bytes // 4:
        connection.execute("VACUUM")
        empty_log(connection)
