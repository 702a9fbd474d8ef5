"""One connection to the server, as this process sees it, and its kinds of transaction.

Made on first use, and again after it was lost. Safe across fork(): the child makes its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, NoReturn, TypeVar

import psycopg

from meter_lib._postgres.moved import keep_out
from meter_lib.errors import OutboxMissing, OutboxUnavailable, SchemaTooNew
from meter_migrations.postgres import LATEST, migrate, schema_version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from psycopg import Connection, Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server

__all__ = ["Session"]

# How long a transaction waits for another one's lock, as that on a key of the caller's own.
_LOCK_TIMEOUT = "10s"
# How long to find out what became of a commit whose answer was lost with the connection.
_DOUBT_SECONDS = 10.0
_DOUBT_POLL_SECONDS = 0.1
# Connections that a child inherited: closing them would end the parent's.
_inherited: list[Connection[TupleRow]] = []

_T = TypeVar("_T")


class Session:
    """A connection that threads take turns with."""

    def __init__(
        self, server: Server, *, durability: str = "full", read_only: bool = False
    ) -> None:
        self._server = server
        self._synchronous = "on" if durability == "full" else "off"
        self._read_only = read_only
        self._connection: Connection[TupleRow] | None = None
        self._is_current = False
        self._life: object = None
        self._is_pinned = False
        self._turn = threading.Lock()
        self._whose_turn: int | None = None
        self._process = os.getpid()

    # -- transactions -----------------------------------------------------------------

    def capture(
        self, record: Callable[[Cursor[TupleRow]], _T], *, lock_timeout: str = _LOCK_TIMEOUT
    ) -> _T:
        """Run what records new events in a transaction; return its result once it is durable.

        It may be run twice: the second time on a new connection, where the first was lost
        before anything could have been committed. Where that happens during the commit, the
        server is asked what became of it.
        """
        with self._my_turn():
            while True:
                had_connection = self._connection is not None
                number: object = None
                results: list[_T] = []
                try:
                    with self._transaction() as cursor:
                        cursor.execute(
                            """
                            SELECT array[pg_current_xact_id()::text,
                                         pg_postmaster_start_time()::text],
                                   life, set_config('synchronous_commit', %s, true),
                                   set_config('lock_timeout', %s, true)
                            FROM meter_lib.outbox
                            """,
                            (self._synchronous, lock_timeout),
                        )
                        number, self._life, *_ = cursor.fetchone() or _nobody()
                        results.append(record(cursor))
                except psycopg.Error as error:
                    if self._connection is None and results:
                        if self._was_committed(number, error):
                            return results[0]
                    elif self._connection is None and had_connection:
                        # It had been lost before, and nobody had used it since.
                        continue
                    raise self.translation(error) from error
                return results[0]

    def repeatable(self, do: Callable[[Cursor[TupleRow]], _T]) -> _T:
        """Run what may be run twice in a transaction: again where the connection had been lost."""
        with self._translated(), self._my_turn():
            while True:
                had_connection = self._connection is not None
                try:
                    with self._transaction() as cursor:
                        _look_first(cursor)
                        return do(cursor)
                except psycopg.Error:
                    if self._connection is not None or not had_connection:
                        raise

    @contextlib.contextmanager
    def write(self) -> Generator[Cursor[TupleRow]]:
        """Run a write transaction: committed at the end of the block, undone if it raises.

        It is not synced: a crash of the server may undo it and those after it.
        """
        with self._translated(), self._my_turn(), self._transaction() as cursor:
            _look_first(cursor)
            yield cursor

    @contextlib.contextmanager
    def read(self) -> Generator[Cursor[TupleRow]]:
        """Run reads that all see the same instant. They wait, and are waited for, by moves only."""
        with self._translated(), self._my_turn(), self._transaction() as cursor:
            cursor.execute(
                f"""
                SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
                SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'
                """
            )
            yield cursor

    @contextlib.contextmanager
    def statements(self) -> Generator[Cursor[TupleRow]]:
        """Run statements of which each is a transaction of its own."""
        with self._translated(), self._my_turn(), self._cursor() as cursor:
            yield cursor

    # -- the connection ---------------------------------------------------------------

    def life(self) -> object:
        """Return which life of the tables this is; whoever has moved them begins another.

        It is that of the latest transaction of `capture`, if there was one: until its end
        nobody can move them.
        """
        if self._life is None:
            self._life = self.repeatable(_life)
        return self._life

    def look_again(self) -> None:
        """Let `life` ask the server: another outbox may have come."""
        self._life = None

    def translation(self, error: psycopg.Error) -> OutboxUnavailable:
        """The error of the driver in our words; where tables are missing, what became of them."""
        if isinstance(error, psycopg.errors.UndefinedTable):
            # Perhaps somebody begins anew here: the next use looks what is there.
            self._is_current = False
            with contextlib.suppress(psycopg.Error), self._server.connect() as connection:
                keep_out(connection.cursor(), self._server.location)
        return self._server.translation(error)

    def pin(self) -> None:
        """From now on this connection or none: once it is lost, everything raises until `unpin`."""
        self._is_pinned = True

    def unpin(self) -> None:
        """Make a new connection where the old one is lost."""
        self._is_pinned = False

    def is_lost(self) -> bool:
        """Return whether there is no connection, as far as is known."""
        return self._connection is None or self._connection.closed

    def close(self) -> None:
        """End the connection, if there is one; the next use makes another."""
        with self._my_turn():
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    @contextlib.contextmanager
    def _my_turn(self) -> Generator[None]:
        if self._process != os.getpid():
            self._forget_in_child()
        if self._whose_turn == threading.get_ident():
            # A signal handler or finalizer has interrupted it. It cannot go on before this returns.
            raise OutboxUnavailable(
                "this thread is using the outbox just now; nothing was recorded"
            )
        with self._turn:
            self._whose_turn = threading.get_ident()
            try:
                yield
            finally:
                self._whose_turn = None

    def _forget_in_child(self) -> None:
        if self._connection is not None:
            _inherited.append(self._connection)
        self._connection = None
        self._turn, self._whose_turn = threading.Lock(), None
        self._process = os.getpid()

    @contextlib.contextmanager
    def _transaction(self) -> Generator[Cursor[TupleRow]]:
        with self._cursor() as cursor, cursor.connection.transaction():
            yield cursor

    @contextlib.contextmanager
    def _cursor(self) -> Generator[Cursor[TupleRow]]:
        connection = self._opened()
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            if connection.closed:
                self._connection = None

    def _opened(self) -> Connection[TupleRow]:
        if self._connection is not None:
            if self._is_current or self._is_pinned:
                return self._connection
            self._connection.close()
        if self._is_pinned:
            raise OutboxUnavailable(
                f"{self._server.location}: the connection was lost, and with it the hold"
            )
        connection = self._server.connect()
        try:
            if not self._is_current:
                self._bring_up_to_date(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _bring_up_to_date(self, connection: Connection[TupleRow]) -> None:
        place = self._server.location
        with connection.transaction(), connection.cursor() as cursor:
            # Whoever makes or moves an outbox here may take long.
            cursor.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            version = schema_version(cursor)
            if version > LATEST:
                raise SchemaTooNew(
                    f"{place} has schema {version}, newer than {LATEST}, the newest this version"
                    " knows: upgrade meter-lib; it was left untouched"
                )
            if version == 0 and self._read_only:
                raise OutboxMissing(f"there is no outbox in {place}")
            if version < LATEST and self._read_only:
                raise OutboxUnavailable(
                    f"{place} has schema {version}; meter-lib migrate brings it to {LATEST}"
                )
            keep_out(cursor, place)
            if version < LATEST:
                try:
                    migrate(cursor)
                except ValueError as error:
                    raise OutboxUnavailable(f"{place}: {error}") from error
                # Who was waited for may have been a mover.
                keep_out(cursor, place)
        self._is_current = True

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self.translation(error) from error

    def _was_committed(self, number: object, error: psycopg.Error) -> bool:
        """Ask the server what became of a transaction, as long as there is hope to be told.

        A server that has crashed since gives the numbers of transactions that left no trace
        to others. That one of them was committed says nothing of ours, then.
        """
        deadline = time.monotonic() + _DOUBT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.Error), self._cursor() as cursor:
                cursor.execute(
                    """
                    SELECT CASE
                        WHEN status = 'committed' AND pg_postmaster_start_time()::text <> life
                        THEN 'unknown' ELSE status
                    END
                    FROM (SELECT pg_xact_status(told[1]::xid8) AS status, told[2] AS life
                          FROM (SELECT %s::text[] AS told) AS ours) AS theirs
                    """,
                    (number,),
                )
                status = _only(cursor)
                if status in {"committed", "aborted"}:
                    return status == "committed"
                if status == "unknown":
                    break
            time.sleep(_DOUBT_POLL_SECONDS)
        raise OutboxUnavailable(
            f"{self._server.location}: the connection was lost during the commit, and the server"
            " does not say what became of it: the event may have been recorded. To be sure, post"
            " again what had an idempotency_key of its own, under the same one"
        ) from error


def _look_first(cursor: Cursor[TupleRow]) -> None:
    """Begin a transaction that is not synced: until its end nobody can move the outbox."""
    cursor.execute(
        """
        SELECT set_config('synchronous_commit', 'off', true),
               set_config('lock_timeout', %s, true)
        FROM meter_lib.outbox
        """,
        (_LOCK_TIMEOUT,),
    )


def _life(cursor: Cursor[TupleRow]) -> object:
    cursor.execute("SELECT life FROM meter_lib.outbox")
    return _only(cursor)


def _nobody() -> NoReturn:
    raise OutboxMissing("the tables of an outbox are there, and nothing in them")


def _only(cursor: Cursor[TupleRow]) -> object:
    """Return the first column of the row that is there."""
    row = cursor.fetchone()
    if row is None:
        raise AssertionError("a statement that always has a row had none")
    return row[0]
