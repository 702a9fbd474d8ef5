"""How the limit of an outbox is shared out: database, write-ahead log and reserve."""

from typing import NamedTuple

__all__ = ["PAGE_BYTES", "Limits", "limits_of"]

# A page of 1 KiB halves what a lone post writes to flash, at equal speed.
PAGE_BYTES = 1024
# A quarter of the limit is for the write-ahead log, but no more than it can ever need.
_LARGEST_LOG_BYTES = 64 * 1024 * 1024
# What the log takes until a large settlement is done; less would not get a full disk going again.
_LARGEST_RESERVE_BYTES = 1024 * 1024


class Limits(NamedTuple):
    """The shares. Together they are the limit."""

    max_bytes: int
    max_log_bytes: int
    reserve_bytes: int
    max_pages: int
    """Of the database, as SQLite enforces it."""
    max_capture_pages: int
    """Of the database, as far as events may fill it. The rest is for settling, which adds to
    rows and indexes: a full outbox must still be deliverable."""


def limits_of(max_bytes: int) -> Limits:
    """Share out the limit of an outbox."""
    max_log_bytes = min(max_bytes // 4, _LARGEST_LOG_BYTES)
    reserve_bytes = min(max_bytes // 16, _LARGEST_RESERVE_BYTES)
    max_pages = (max_bytes - max_log_bytes - reserve_bytes) // PAGE_BYTES
    return Limits(max_bytes, max_log_bytes, reserve_bytes, max_pages, max_pages * 3 // 4)
