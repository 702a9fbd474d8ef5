"""The database that an outbox moves to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.sql import SQL, Identifier

from meter_lib._postgres.contents import contents_of
from meter_lib._postgres.filling import empty, fill
from meter_lib._postgres.moved import (
    HOME,
    STAGE,
    are_there,
    carry,
    lock_tables,
    outbox_arriving,
    read_departure,
)
from meter_lib._postgres.mover import Mover
from meter_lib._postgres.tallies import totals
from meter_lib.errors import OutboxFull, OutboxUnavailable
from meter_migrations.postgres import migrate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server
    from meter_lib.moving import Contents, Rows

__all__ = ["PostgresArriving"]


class PostgresArriving:
    """See `meter_lib.moving.Arriving` for what each method promises.

    `fill` leaves a transaction open, which `seal` commits: before that nothing is there.
    """

    def __init__(self, server: Server, *, max_bytes: int) -> None:
        self._place = server.location
        self._max_bytes = max_bytes
        self._mover = Mover(server)

    @property
    def location(self) -> str:
        """Return the URL, less whatever may be secret in it."""
        return self._place

    def try_hold(self) -> bool:
        """Keep flushers and other moves away until `close`, or return False."""
        return self._mover.try_hold()

    def require_free(self, outbox_id: str) -> None:
        """Raise where it has events, or waits for another outbox."""
        with self._mover.transaction() as cursor:
            there = outbox_arriving(cursor)
            if there is not None and there != outbox_id:
                raise OutboxUnavailable(
                    f"another outbox ({there}) is half-way to {self._place}: finish that move"
                    " first, by meter-lib move from where it was"
                )
            if are_there(cursor):
                self._require_unused(cursor)

    def fill(self, rows: Iterable[Rows]) -> Contents:
        """Write these rows, and nothing else, where nobody can see them."""
        cursor = self._mover.begin()
        with self._mover.translated():
            self._make_tables(cursor)
            lock_tables(cursor)
            self._require_unused(cursor)
            empty(cursor)
            fill(cursor, rows)
            if totals(cursor).bytes > self._max_bytes:
                raise OutboxFull(
                    f"{self._place} would take more than its limit (METER_MAX_BYTES); nothing"
                    " was moved"
                )
            return contents_of(cursor)

    def seal(self, outbox_id: str) -> None:
        """Make what was written durable, and refuse all others until `open`."""
        with self._mover.translated():
            cursor = self._mover.begun()
            cursor.execute(SQL("CREATE SCHEMA {}").format(Identifier(STAGE)))
            carry(cursor, origin=HOME, to=STAGE)
            cursor.execute(
                """
                INSERT INTO meter_lib.moved (is_arriving, outbox_id, kept_in) VALUES (true, %s, %s)
                """,
                (outbox_id, STAGE),
            )
            self._mover.commit()

    def open(self, outbox_id: str) -> Contents:
        """Put it in use, durably, unless it is already."""
        with self._mover.transaction() as cursor:
            there = outbox_arriving(cursor)
            if there == outbox_id:
                _unseal(cursor)
                cursor.execute("DELETE FROM meter_lib.moved")
            elif there is None and are_there(cursor):
                cursor.execute("SELECT outbox_id FROM meter_lib.outbox")
                [(there,)] = cursor.fetchall()
            if there != outbox_id:
                raise OutboxUnavailable(
                    f"the outbox ({outbox_id}) should have moved to {self._place}, and is not there"
                )
            return contents_of(cursor)

    def discard(self) -> None:
        """Throw away what was written and not opened."""
        self._mover.undo()
        with self._mover.transaction() as cursor:
            if outbox_arriving(cursor) is None:
                return
            if read_departure(cursor) is None:
                _unseal(cursor)
                empty(cursor)
            else:
                # There was no outbox here, but what tells where one went.
                cursor.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(STAGE)))
                cursor.execute("DELETE FROM meter_lib.moved WHERE is_arriving")

    def close(self) -> None:
        """Let go of everything."""
        self._mover.close()

    def _make_tables(self, cursor: Cursor[TupleRow]) -> None:
        """See to it that there are tables, in their place and as they are now."""
        if outbox_arriving(cursor) is not None:
            # Left unfinished by an earlier move.
            _unseal(cursor)
            empty(cursor)
        elif read_departure(cursor) is not None:
            cursor.execute("SELECT * FROM meter_lib.moved")
            told = cursor.fetchall()
            cursor.execute("DROP TABLE meter_lib.migrations, meter_lib.moved")
            migrate(cursor)
            cursor.executemany("INSERT INTO meter_lib.moved VALUES (%s, %s, %s, %s)", told)
        try:
            migrate(cursor)
        except ValueError as error:
            raise OutboxUnavailable(f"{self._place}: {error}") from error

    def _require_unused(self, cursor: Cursor[TupleRow]) -> None:
        cursor.execute(
            """
            SELECT sum(accepted)::bigint, (SELECT count(*) FROM meter_lib.events)
            FROM meter_lib.tallies
            """
        )
        [counts] = cursor.fetchall()
        if any(counts):
            raise OutboxUnavailable(
                f"{self._place} has accepted {max(counts):,} events of its own: an outbox is moved"
                f" as a whole, to a place where there is none; nothing was moved"
            )


def _unseal(cursor: Cursor[TupleRow]) -> None:
    """Bring the tables of an outbox that waits for its last step to their place."""
    carry(cursor, origin=STAGE, to=HOME)
    cursor.execute(SQL("DROP SCHEMA {}").format(Identifier(STAGE)))
    cursor.execute("DELETE FROM meter_lib.moved WHERE is_arriving")
    migrate(cursor)
