"""What a failed sync leaves behind, and how the write-ahead log is made trustworthy again.

Linux reports a failed sync once and then takes what was not written for clean: a second sync
that succeeds proves nothing. The log may have a hole where settlements stood that nobody had
synced yet, and recovery after a power cut would stop there, short of whatever is accepted
later. And it may hold a refused event whole, which recovery would take for committed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import meter_migrations
from meter_lib._sqlite.connection import empty_log, is_busy
from meter_lib.errors import OutboxUnavailable

if TYPE_CHECKING:
    from meter_lib._sqlite.file_lock import FairLock

__all__ = ["LogTrust", "may_leave_traces"]

# How long the log waits for readers: their transactions take milliseconds.
_PATIENCE_SECONDS = 10.0


class LogTrust:
    """Whether the log can be trusted, as far as this process knows, and what is done if not."""

    def __init__(self) -> None:
        self.is_doubtful = False

    def look(self, lock: FairLock) -> None:
        """Take over what the last process said that could not repair it."""
        self.is_doubtful = lock.is_marked()

    def undo(
        self, connection: sqlite3.Connection, error: BaseException, lock: FairLock | None
    ) -> None:
        """See to it that what failed is gone for good, and that the log can be trusted.

        The connection may be at another `synchronous` afterwards. Call it under the lock.
        """
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if may_leave_traces(error):
            _overwrite_refused(connection)
            if _may_be_a_failed_sync(error):
                self.repair(connection, lock)

    def repair(self, connection: sqlite3.Connection, lock: FairLock | None) -> bool:
        """Repair the log and return True, or leave a mark for other processes: it must be."""
        self.is_doubtful = True
        self._mark(lock)
        if _repaired(connection):
            self.is_doubtful = False
            self._mark(lock)
        return not self.is_doubtful

    def require(self, connection: sqlite3.Connection, lock: FairLock | None, path: str) -> None:
        """Repair the log, or raise where that fails still."""
        if not self.repair(connection, lock):
            raise OutboxUnavailable(
                f"{path} cannot be used: the disk has failed to write, and fails still; "
                f"nothing was recorded"
            )

    def renew(self, connection: sqlite3.Connection, lock: FairLock | None) -> bool:
        """Begin a new log, lest it cannot be trusted; return False where readers are in the way."""
        try:
            return _begin_new_log(connection, patience_seconds=0)
        except sqlite3.Error as error:
            if is_busy(error):
                raise
            # Now it is known that it cannot be: posts see to it from here on.
            self.repair(connection, lock)
            return True

    def _mark(self, lock: FairLock | None) -> None:
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.mark(is_marked=self.is_doubtful)


def may_leave_traces(error: BaseException) -> bool:
    """Return whether the error may have come when part of the transaction was in the log."""
    return _may_be_a_failed_sync(error) or (
        isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    )


def _may_be_a_failed_sync(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "disk I/O" in str(error)


def _overwrite_refused(connection: sqlite3.Connection) -> None:
    """Put something else where the refused transaction stands in the log, as far as that works."""
    # Not synced: that would fail once more and leave this, too, uncommitted.
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA synchronous = NORMAL")
        _write_something(connection)


def _repaired(connection: sqlite3.Connection) -> bool:
    try:
        return _begin_new_log(connection, patience_seconds=_PATIENCE_SECONDS)
    except sqlite3.Error as error:
        if is_busy(error):
            # A caller's transaction is open: there is a time to do it.
            raise
        return False


def _begin_new_log(connection: sqlite3.Connection, *, patience_seconds: float) -> bool:
    """Move all that is committed to the database, begin a new log, and return True.

    Then what is committed from now on is on the disk when its sync succeeds. Returns False
    where readers are in the way. The connection is at `synchronous=FULL` afterwards.
    """
    connection.execute("PRAGMA synchronous = FULL")
    if not empty_log(connection, patience_seconds=patience_seconds):
        return False
    # The first commit of a new log, synced with its header, makes void whatever the disk
    # still has of the old one.
    _write_something(connection)
    return True


def _write_something(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA user_version = {meter_migrations.LATEST}")
