"""The outbox in a SQLite file. Nothing outside this package speaks SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meter_lib._sqlite.outbox import SqliteOutbox

__all__ = ["SqliteOutbox"]


def __getattr__(name: str) -> object:
    """Load the whole outbox when it is asked for: whoever records needs the half of it."""
    if name != "SqliteOutbox":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meter_lib._sqlite.outbox import SqliteOutbox  # noqa: PLC0415  # see above

    return SqliteOutbox
