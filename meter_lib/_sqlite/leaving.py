"""The file that an outbox moves from."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from meter_lib._sqlite.contents import contents_of, row_count, rows_of
from meter_lib._sqlite.database import Database
from meter_lib._sqlite.moved import read_departure
from meter_lib.errors import OutboxMissing

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator, Iterator

    from meter_lib.moving import Contents, Departure, Rows

__all__ = ["SqliteLeaving"]


class SqliteLeaving:
    """See `meter_lib.moving.Leaving` for what each method promises."""

    def __init__(self, path: str, *, max_bytes: int) -> None:
        self._database = Database(path, max_bytes=max_bytes)
        self._alone: sqlite3.Connection | None = None

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return self._database.path

    def departure(self) -> Departure | None:
        """Return where the outbox has moved to; see `Leaving.departure`."""
        path = self._database.path
        departure = read_departure(path)
        if departure is None and not os.path.lexists(path):
            raise OutboxMissing(f"there is no outbox at {path}")
        return departure

    def holder(self) -> int | None:
        """Return the process id of the flusher that holds it."""
        return self._database.holder()

    def try_hold(self) -> bool:
        """Keep flushers away until `close`, or return False where there is one."""
        return self._database.try_hold()

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Make everybody else who would write wait; see `Leaving.alone`."""
        with self._database.alone() as connection:
            self._alone = connection
            try:
                yield
            finally:
                self._alone = None

    def contents(self) -> Contents:
        """Return what it holds at this instant."""
        if self._alone is not None:
            return contents_of(self._alone)
        with self._database.read() as connection:
            return contents_of(connection)

    def row_count(self) -> int:
        """Return how many rows `rows` yields."""
        return row_count(self._connection())

    def rows(self) -> Iterator[Rows]:
        """Yield all that it holds."""
        return rows_of(self._connection())

    def leave(self, to: str, outbox_id: str) -> Departure:
        """Close it for good; see `Leaving.leave`."""
        return self._database.leave(self._connection(), to, outbox_id)

    def close(self) -> None:
        """Let go of everything."""
        self._database.close()

    def _connection(self) -> sqlite3.Connection:
        if self._alone is None:
            raise RuntimeError("only within `alone`")
        return self._alone
