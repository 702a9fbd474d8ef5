"""Records events in a transaction that the caller has open, on the caller's own connection.

The post is made under our lock, like any other, and with SQLite's own, which the caller keeps
until the transaction ends. So posts of others wait for SQLite's, and never have ours meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, TypeVar

import meter_migrations
from meter_lib._sqlite.connection import is_busy, see_callers_out, translation
from meter_lib._sqlite.ledger import accepted_events
from meter_lib.errors import InvalidUsage, InvalidUsageType, OutboxUnavailable, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meter_lib._sqlite.database import Database

__all__ = ["record_within"]

_FULL = 2
# https://www.sqlite.org/rescode.html#busy_snapshot
_BUSY_SNAPSHOT = 517

_T = TypeVar("_T")


def record_within(
    database: Database,
    theirs: object,
    record: Callable[[sqlite3.Connection], _T],
    *,
    log_bytes: int,
    pages: int,
) -> _T:
    """Run `record` on the caller's connection, in its open transaction, and return its result.

    Where this raises, that transaction is as it was; one that Python would begin by itself
    is begun. The connection makes no checkpoint from then on. `log_bytes` and `pages` are what
    `record` adds to the write-ahead log and to the database at most.
    """
    if not isinstance(theirs, sqlite3.Connection):
        raise InvalidUsageType(
            f"connection must be a sqlite3.Connection, as the outbox is the file {database.path},"
            f" not {type(theirs).__name__}"
        )
    try:
        _check_it_has_a_transaction(theirs)
        with _in_our_ways(theirs), _as_it_was(theirs):
            _check_it_leads_here(theirs, database)
            return database.capture(
                lambda ours: _record(database, theirs, ours, record, (log_bytes, pages)),
                # In the middle of a transaction the log cannot be emptied.
                log_bytes=0 if theirs.in_transaction else log_bytes,
                pages=pages,
                # Of our connection, by which nothing is written here: as most posts have it.
                checks=False,
            )
    except sqlite3.ProgrammingError as error:
        # It is closed, or of another thread.
        raise InvalidUsage(f"connection cannot be used: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise translation(f"connection: {database.path}", error) from error


def _record(
    database: Database,
    theirs: sqlite3.Connection,
    ours: sqlite3.Connection,
    record: Callable[[sqlite3.Connection], _T],
    needed: tuple[int, int],
) -> _T:
    _take_write_lock(theirs, ours, database.path)
    # What fails from here on is no fault of our connection.
    try:
        _check_tables(theirs, database.path)
        database.check_room_within(theirs, ours, *needed)
        with _savepoint(theirs):
            database.look_after(accepted_events(theirs) + 1)
            result = record(theirs)
            database.look_after(accepted_events(theirs))
            return result
    except sqlite3.Error as error:
        raise translation(f"connection: {database.path}", error) from error


def _take_write_lock(theirs: sqlite3.Connection, ours: sqlite3.Connection, path: str) -> None:
    """Return with SQLite's lock in the caller's hands, or raise where another has it."""
    try:
        if not theirs.in_transaction:
            theirs.execute("BEGIN IMMEDIATE")
        # Writes nothing, but as any that would it needs the lock.
        theirs.execute("UPDATE outbox SET id = id WHERE 0")
    except sqlite3.Error as error:
        if not is_busy(error):
            raise OutboxUnavailable(
                f"connection cannot write to the outbox at {path}: {error}; if it was opened before"
                f" the outbox was made or moved, open it anew"
            ) from error
        if not _is_outdated(theirs, ours, error):
            raise
        raise OutboxUnavailable(
            "connection: its transaction has read what others have changed since, so it cannot"
            " write any more: roll it back, and begin with BEGIN IMMEDIATE"
        ) from error
    if _is_free(ours):
        # It would be in our way, if it were here.
        raise InvalidUsage(
            f"connection: its file is no longer the outbox at {path}, which has been moved or"
            f" replaced since it was opened: open it anew"
        )


def _is_outdated(
    theirs: sqlite3.Connection, ours: sqlite3.Connection, error: sqlite3.Error
) -> bool:
    # Up to Python 3.10 there is no code. Then it is outdated if nobody has the lock.
    code = getattr(error, "sqlite_errorcode", None)
    return code == _BUSY_SNAPSHOT if code else theirs.in_transaction and _is_free(ours)


def _is_free(ours: sqlite3.Connection) -> bool:
    try:
        see_callers_out(ours)
    except sqlite3.OperationalError as error:
        if is_busy(error):
            return False
        raise
    return True


def _check_tables(theirs: sqlite3.Connection, path: str) -> None:
    (version,) = theirs.execute("PRAGMA user_version").fetchone()
    if version != meter_migrations.LATEST:
        raise SchemaTooNew(f"{path} has been migrated by a newer version: upgrade this program")
    hidden = theirs.execute(
        """
        SELECT name FROM sqlite_temp_master
        WHERE lower(name) IN ('outbox', 'events', 'streams', 'known_keys', 'links')
        """
    ).fetchone()
    if hidden is not None:
        raise InvalidUsage(
            f"connection has a temporary table {hidden[0]}, which hides the outbox's own"
        )


def _check_it_has_a_transaction(theirs: sqlite3.Connection) -> None:
    # Python 3.12 and later: True, False, or -1 for what isolation_level says.
    autocommit = getattr(theirs, "autocommit", -1)
    begins_itself = theirs.isolation_level is not None if autocommit == -1 else not autocommit
    if not theirs.in_transaction and not begins_itself:
        raise InvalidUsage(
            "connection is in autocommit mode and in no transaction: execute BEGIN IMMEDIATE on it"
            " before the post, and COMMIT after it"
        )


def _check_it_leads_here(theirs: sqlite3.Connection, database: Database) -> None:
    paths = [path for _, name, path in theirs.execute("PRAGMA database_list") if name == "main"]
    path = paths[0] if paths else ""
    if not path or os.path.realpath(path) != database.path:
        raise InvalidUsage(
            f"connection: its main database is {path or 'in memory'}, not the outbox at"
            f" {database.path}"
        )
    if database.is_durable:
        (synchronous,) = theirs.execute("PRAGMA synchronous").fetchone()
        if synchronous < _FULL:
            raise InvalidUsage(
                f"connection has PRAGMA synchronous = {synchronous}, by which a commit may be lost"
                f" when the power fails: set it to FULL before the transaction, or set"
                f" METER_DURABILITY=normal"
            )
        theirs.execute("PRAGMA fullfsync = ON")
    # Its checkpoints would be outside of our lock; see `empty_log`.
    theirs.execute("PRAGMA wal_autocheckpoint = 0").fetchone()


@contextlib.contextmanager
def _as_it_was(theirs: sqlite3.Connection) -> Generator[None]:
    """Undo the beginning of a transaction where the block raises."""
    is_theirs = theirs.in_transaction
    try:
        yield
    except BaseException:
        if not is_theirs and theirs.in_transaction:
            theirs.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _savepoint(theirs: sqlite3.Connection) -> Generator[None]:
    theirs.execute("SAVEPOINT meter_lib_post")
    try:
        yield
        theirs.execute("RELEASE meter_lib_post")
    except BaseException:
        # SQLite itself may have undone all of it, as it does when the disk fails.
        if theirs.in_transaction:
            theirs.execute("ROLLBACK TO meter_lib_post")
            theirs.execute("RELEASE meter_lib_post")
        raise


@contextlib.contextmanager
def _in_our_ways(theirs: sqlite3.Connection) -> Generator[None]:
    """Set aside how the caller likes to see rows, and to wait."""
    row_factory, text_factory = theirs.row_factory, theirs.text_factory
    theirs.row_factory, theirs.text_factory = None, str
    try:
        (busy_timeout,) = theirs.execute("PRAGMA busy_timeout").fetchone()
        theirs.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            theirs.execute(f"PRAGMA busy_timeout = {busy_timeout}")
    finally:
        theirs.row_factory, theirs.text_factory = row_factory, text_factory
