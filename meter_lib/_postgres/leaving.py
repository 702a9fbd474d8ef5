"""The database that an outbox moves from."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from meter_lib._postgres.contents import contents_of, row_count, rows_of
from meter_lib._postgres.holding import workers
from meter_lib._postgres.moved import keep_out, lock_tables, read_departure, shelve
from meter_lib._postgres.mover import Mover
from meter_lib.errors import OutboxMissing
from meter_migrations.postgres import migrate, schema_version

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from meter_lib._postgres.server import Server
    from meter_lib.moving import Contents, Departure, Rows

__all__ = ["PostgresLeaving"]


class PostgresLeaving:
    """See `meter_lib.moving.Leaving` for what each method promises."""

    def __init__(self, server: Server) -> None:
        self._place = server.location
        self._mover = Mover(server)

    @property
    def location(self) -> str:
        """Return the URL, less whatever may be secret in it."""
        return self._place

    def departure(self) -> Departure | None:
        """Return where the outbox has moved to; see `Leaving.departure`."""
        self._mover.undo()
        with self._mover.transaction() as cursor:
            if not schema_version(cursor):
                raise OutboxMissing(f"there is no outbox in {self._place}")
            departure = read_departure(cursor)
            if departure is None:
                keep_out(cursor, self._place)
                migrate(cursor)
            return departure

    def holder(self) -> int | None:
        """Return the process id of a flusher that holds it."""
        with self._mover.transaction() as cursor:
            return next(iter(workers(cursor)), None)

    def try_hold(self) -> bool:
        """Keep flushers away until `close`, or return False where there is one."""
        return self._mover.try_hold()

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Make everybody else wait, whoever looks as well; see `Leaving.alone`."""
        cursor = self._mover.begin()
        try:
            with self._mover.translated():
                lock_tables(cursor)
            yield
        finally:
            self._mover.undo()

    def contents(self) -> Contents:
        """Return what it holds at this instant."""
        if self._mover.has_begun():
            with self._mover.translated():
                return contents_of(self._mover.begun())
        with self._mover.transaction() as cursor:
            return contents_of(cursor)

    def row_count(self) -> int:
        """Return how many rows `rows` yields."""
        with self._mover.translated():
            return row_count(self._mover.begun())

    def rows(self) -> Iterator[Rows]:
        """Yield all that it holds."""
        with self._mover.translated():
            yield from rows_of(self._mover.begun())

    def leave(self, to: str, outbox_id: str) -> Departure:
        """Close it for good; see `Leaving.leave`."""
        with self._mover.translated():
            cursor = self._mover.begun()
            departure = shelve(cursor, to, outbox_id)
            self._mover.commit()
        return departure

    def close(self) -> None:
        """Let go of everything."""
        self._mover.close()
