"""The session of a move: it holds all shards, and has one transaction at a time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from meter_lib._postgres.holding import introduce, try_take_all
from meter_lib.errors import OutboxUnavailable, SchemaTooNew
from meter_migrations.postgres import LATEST, schema_version

if TYPE_CHECKING:
    from collections.abc import Generator

    from psycopg import Connection, Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server

__all__ = ["Mover"]

# "METR" and the next number after those of shards and workers.
_LOCK = 0x4D455452 + 2, 0
# Posts, and callers' transactions that have posted, are waited for that long.
_LOCK_TIMEOUT = "10s"


class Mover:
    """A connection that is made on first use, and again where it was lost before a `begin`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection: Connection[TupleRow] | None = None
        self._has_held = False

    def try_hold(self) -> bool:
        """Keep flushers and other moves away as long as this connection lasts, or return False."""
        with self.translated(), self._opened().cursor() as cursor:
            introduce(cursor, self._server)
            self._has_held = try_take_all(cursor)
        return self._has_held

    def begin(self) -> Cursor[TupleRow]:
        """Begin a transaction that lasts until `commit` or `undo`.

        Whoever else moves is waited for, also one that is dead and whose commit is still under
        way. Raises `OutboxUnavailable` where the hold is lost.
        """
        if self._has_held and self._is_lost():
            raise OutboxUnavailable(
                f"{self._server.location}: the connection was lost, and with it the hold"
            )
        with self.translated():
            cursor = self._opened().cursor()
            cursor.execute("BEGIN")
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true), set_config('synchronous_commit',"
                " 'on', true)",
                (_LOCK_TIMEOUT,),
            )
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
            if schema_version(cursor) > LATEST:
                raise SchemaTooNew(
                    f"a newer version made the outbox in {self._server.location}: upgrade"
                    " meter-lib; it was left untouched"
                )
        return cursor

    def begun(self) -> Cursor[TupleRow]:
        """Return a cursor in the transaction that has begun."""
        if self._connection is None or not self.has_begun():
            raise RuntimeError("only after `begin`")
        return self._connection.cursor()

    def has_begun(self) -> bool:
        """Return whether a transaction is open."""
        return (
            self._connection is not None
            and self._connection.info.transaction_status == TransactionStatus.INTRANS
        )

    def commit(self) -> None:
        """Make what was done durable, at one instant. Where it raises, nobody knows."""
        self.begun().execute("COMMIT")

    def undo(self) -> None:
        """Make what was done since `begin` undone, if anything was."""
        connection = self._connection
        if connection is None or connection.info.transaction_status == TransactionStatus.IDLE:
            return
        if connection.info.transaction_status != TransactionStatus.ACTIVE:
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
                return
        # What is left of it ends with the connection; whoever begins next waits for that.
        connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Generator[Cursor[TupleRow]]:
        """Run a transaction of its own, on a new connection if need be; see `begin`."""
        if self._is_lost():
            self._connection, self._has_held = None, False
        cursor = self.begin()
        try:
            with self.translated():
                yield cursor
                self.commit()
        finally:
            self.undo()

    @contextlib.contextmanager
    def translated(self) -> Generator[None]:
        """Say in our words what the driver raises within the block."""
        try:
            yield
        except psycopg.errors.LockNotAvailable as error:
            raise OutboxUnavailable(
                f"{self._server.location} cannot be moved while a transaction of another program"
                " has it open; nothing was moved"
            ) from error
        except psycopg.Error as error:
            raise self._server.translation(error) from error

    def close(self) -> None:
        """End the connection, and with it whatever it holds or has begun."""
        if self._connection is not None:
            self._connection.close()

    def _opened(self) -> Connection[TupleRow]:
        if self._connection is None or self._connection.closed:
            self._connection = self._server.connect()
        return self._connection

    def _is_lost(self) -> bool:
        return self._connection is None or bool(self._connection.closed)
