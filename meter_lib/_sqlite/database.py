"""One SQLite file opened the one right way, and its kinds of transaction.

Every write transaction, checkpoint and close happens under a lock file that all
processes share. That makes commits fair, and it is what keeps SQLite before
3.51.3 from losing a commit that races a checkpoint
(https://www.sqlite.org/wal.html, "the WAL-reset bug").
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, TypeVar

from meter_lib._sqlite.connection import is_busy, set_mode, translated
from meter_lib._sqlite.file_lock import FairLock
from meter_lib._sqlite.files import file_bytes, make_folder
from meter_lib._sqlite.flusher_hold import FlusherHold
from meter_lib._sqlite.forking import ForkedFile
from meter_lib._sqlite.limits import limits_of
from meter_lib._sqlite.log_repair import LogTrust, may_leave_traces
from meter_lib._sqlite.opening import open_or_create, open_read_only
from meter_lib._sqlite.place import Place
from meter_lib._sqlite.reserve import Reserve
from meter_lib._sqlite.room import give_space_back, make_room_in_log, pages_left
from meter_lib._sqlite.salvage.set_aside import DAMAGE_SHOWS_AS, is_damage
from meter_lib._sqlite.shared_file import SharedFile
from meter_lib.errors import OutboxFull, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Database"]

# How long a write waits for the other writers. A commit takes milliseconds; whoever
# holds the lock for longer is stopped or broken, and the caller had better know.
_LOCK_TIMEOUT_SECONDS = 10.0
# How many pages events may take between two looks at how many there are.
_PAGES_BETWEEN_LOOKS = 64

_T = TypeVar("_T")


class Database(SharedFile, ForkedFile):
    """The file of one outbox, as this process sees it. Opened on first use, safe across fork()."""

    def __init__(
        self, path: str, *, max_bytes: int, durability: str = "full", read_only: bool = False
    ) -> None:
        # SQLite names the log after the file that a link leads to; so must the locks be.
        self.path = os.path.realpath(path)
        self.limits = limits_of(max_bytes)
        self.max_log_bytes = self.limits.max_log_bytes
        self.is_durable = durability == "full"
        self._durable_mode = "FULL" if self.is_durable else "NORMAL"
        self._read_only = read_only
        self.times_opened = 0
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._place: Place | None = None
        self._log_bytes = 0
        self._trust = LogTrust()
        self._mode = "", True
        self._write_lock: FairLock | None = None
        self._is_exclusive = False
        self._reserve = Reserve(f"{self.path}.reserve", self.limits.reserve_bytes)
        self._pages_until_look = 0
        self._hold = FlusherHold(f"{self.path}.flusher")
        self._held_file = 0
        self.watch_forks()

    # -- transactions -----------------------------------------------------------------

    def capture(
        self,
        record: Callable[[sqlite3.Connection], _T],
        *,
        log_bytes: int,
        pages: int,
        checks: bool = True,
    ) -> _T:
        """Run what records new events, and return its result once that is on the disk.

        `record` gets the connection, and commits: by one statement, or in a `transaction`.
        What it commits is synced before anybody can see it (as far as the durability asked
        for goes); what fails is undone. `log_bytes` and `pages` are what it adds to the
        write-ahead log and to the database at most. Without `checks`, CHECKs are passed over.
        """
        with self._mutex:
            # No context managers from here on: they would take longer than all of Python's
            # part in a lone post.
            give_up_at = 0.0
            while True:
                try:
                    connection = self._locked()
                    try:
                        if self._trust.is_doubtful:
                            self._mode = "", True
                            self._trust.require(connection, self._write_lock, self.path)
                        if self._log_bytes + log_bytes > self.max_log_bytes:
                            self._make_room_in_log(connection, log_bytes)
                        self._reserve.keep()
                        if self._pages_until_look < pages:
                            self._leave_the_reserve(connection, pages)
                        self._pages_until_look -= pages
                        if self._mode != (self._durable_mode, checks):
                            self._mode = set_mode(connection, self._durable_mode, checks=checks)
                        return record(connection)
                    except DAMAGE_SHOWS_AS as error:
                        self._undo(connection, error)
                        raise
                    finally:
                        self._unlock()
                except (sqlite3.Error, OSError) as error:
                    give_up_at = self._nap_or_raise(error, give_up_at, _LOCK_TIMEOUT_SECONDS)

    @contextlib.contextmanager
    def write(self, *, log_bytes: int = 0) -> Generator[sqlite3.Connection]:
        """Run a write transaction: committed at the end of the block, undone if the block raises.

        It is not synced: a power cut may undo it and those after it. `log_bytes` is
        what it adds to the write-ahead log at most. Where the disk is full, the
        reserve is given up, for the next one.
        """
        with self._mutex, translated(self.path):
            connection = self._begun(log_bytes)
            try:
                yield connection
                connection.execute("COMMIT")
                self._give_space_back(connection)
            except BaseException as error:
                self._undo_write(connection, error)
                raise
            finally:
                self._unlock()

    def _begun(self, log_bytes: int) -> sqlite3.Connection:
        """Take the write lock, and begin a write transaction."""
        give_up_at = 0.0
        while True:
            connection = self._locked()
            try:
                self._make_room_in_log(connection, log_bytes)
                if self._mode != ("NORMAL", True):
                    self._mode = set_mode(connection, "NORMAL", checks=True)
                connection.execute("BEGIN IMMEDIATE")
            except BaseException as error:
                try:
                    self._undo_write(connection, error)
                finally:
                    self._unlock()
                if not is_busy(error):
                    raise
                give_up_at = self._nap_or_raise(error, give_up_at, _LOCK_TIMEOUT_SECONDS)
            else:
                return connection

    def _undo_write(self, connection: sqlite3.Connection, error: BaseException) -> None:
        self._undo(connection, error)
        if may_leave_traces(error):
            self._reserve.release()

    @contextlib.contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """Run reads that all see the same instant. Nobody waits for them."""
        with self._mutex, translated(self.path):
            self._check_it_is_our_turn()
            connection = self._opened()
            try:
                # Whoever reads waits only where the log is being recovered or closed.
                connection.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_SECONDS * 1000:.0f}")
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if not self._read_only and is_damage(error, connection):
                    self.mend(error)
                raise
            finally:
                if connection is self._connection:
                    connection.execute("PRAGMA busy_timeout = 0")

    def _undo(self, connection: sqlite3.Connection, error: BaseException) -> None:
        """Undo what failed; where the file is damaged, raise with a new one in its place."""
        self._mode = "", True
        self._trust.undo(connection, error, self._write_lock)
        self.replace_if_damaged(connection, error)

    # -- the lock ---------------------------------------------------------------------

    def _locked(self) -> sqlite3.Connection:
        """Take the write lock and return the connection to the file that is at the path now."""
        self._check_it_is_our_turn()
        if self._read_only:
            raise OutboxUnavailable(f"{self.path} was opened readonly; nothing was recorded")
        give_up_at = 0.0
        while True:
            if self._connection is None:
                make_folder(os.path.dirname(self.path))
            self._lock()
            try:
                connection = self._connection or self._open()
                if self._place is not None and self._place.is_taken():
                    self._log_bytes = self._place.log_bytes()
                    return connection
                # Moved, deleted or replaced: what is open has no name that anybody would find
                # it by. The lock may have gone with it.
                self._forget_files()
                connection.close()
            except BaseException as error:
                self._unlock()
                if not is_busy(error):
                    raise
                give_up_at = self._nap_or_raise(error, give_up_at, _LOCK_TIMEOUT_SECONDS)
                continue
            self._unlock()
            self._close_locks()

    def _lock(self) -> None:
        if self._write_lock is None:
            self._write_lock = FairLock(f"{self.path}.lock", f"{self.path}.turn")
        # Before it is: a signal handler that comes right after must find it so.
        self._is_exclusive = True
        is_taken = False
        try:
            is_taken = self._write_lock.acquire(_LOCK_TIMEOUT_SECONDS)
        finally:
            if not is_taken:
                self._unlock()
        if not is_taken:
            raise OutboxUnavailable(
                f"{self.path} is locked: another process has been writing for "
                f"{_LOCK_TIMEOUT_SECONDS:g} s; nothing was recorded"
            )

    def _unlock(self) -> None:
        self._is_exclusive = False
        if self._write_lock is not None:
            self._write_lock.release()

    @contextlib.contextmanager
    def _exclusive(self) -> Generator[None]:
        self._check_it_is_our_turn()
        self._lock()
        try:
            yield
        finally:
            self._unlock()

    def _check_it_is_our_turn(self) -> None:
        self.notice_a_fork()
        # The mutex let us in, so it is the same thread: a signal handler has interrupted it.
        if self._is_exclusive or (self._connection is not None and self._connection.in_transaction):
            raise OutboxUnavailable(
                f"{self.path} is in use by the code that a signal handler has interrupted; "
                f"nothing was recorded"
            )

    # -- the limit --------------------------------------------------------------------

    def check_room_in_log(self) -> None:
        """Raise `OutboxFull` where the write-ahead log is full and cannot be emptied.

        The flusher asks before it delivers what it could not settle. Where the disk is
        full, it is given the reserve.
        """
        if self._read_only:
            return
        with self._mutex, translated(self.path):
            self._reserve.release_if_needed()
            self._opened()
            half = self.max_log_bytes // 2
            if self._place is not None and self._place.log_bytes() > half:
                connection = self._begun(half)
                try:
                    connection.execute("ROLLBACK")
                finally:
                    self._unlock()

    def _make_room_in_log(self, connection: sqlite3.Connection, needed: int) -> None:
        if self._place is not None:
            make_room_in_log(connection, self._place, self.limits, needed, path=self.path)

    def _leave_the_reserve(self, connection: sqlite3.Connection, needed: int) -> None:
        """Raise where new events would take pages that settling will need."""
        left = pages_left(connection, self.limits)
        if left < needed:
            raise OutboxFull(
                f"{self.path} is full: its limit (METER_MAX_BYTES) is reached; nothing was recorded"
            )
        self._pages_until_look = min(left, _PAGES_BETWEEN_LOOKS)

    def _give_space_back(self, connection: sqlite3.Connection) -> None:
        """Return what is not needed to the disk; a failure undoes nothing of what was committed."""
        try:
            if self._place is not None:
                give_space_back(connection, self._place, self.limits)
        except sqlite3.Error as error:
            self._undo(connection, error)

    def disk_bytes(self) -> int:
        """Return the bytes on disk: database, write-ahead log and reserve."""
        return sum(file_bytes(f"{self.path}{ending}") for ending in ("", "-wal", ".reserve"))

    # -- opening ----------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now, opened if need be."""
        if self._connection is not None and self._place is not None and self._place.is_taken():
            return self._connection
        if self._read_only:
            self._close_connection()
            return self._open()
        connection = self._locked()
        self._unlock()
        return connection

    def _open(self) -> sqlite3.Connection:
        if self._read_only:
            connection = open_read_only(self.path, timeout_seconds=_LOCK_TIMEOUT_SECONDS)
        else:
            connection = open_or_create(self.path, self.limits, timeout_seconds=0)
        try:
            self._place = Place(self.path)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._mode = "", True
        self._pages_until_look = 0
        if self._write_lock is not None:
            self._trust.look(self._write_lock)
        self.times_opened += 1
        return connection

    def _forget_files(self) -> None:
        self._connection = None
        if self._place is not None:
            self._place.close()
            self._place = None

    # -- the flusher's hold -----------------------------------------------------------

    def try_hold(self) -> bool:
        """Become the one flusher of this file, or return False where another is."""
        with self._mutex, translated(self.path):
            try:
                self._opened()
            except (sqlite3.Error, OSError):
                # It may be the disk that has no byte left for a new log.
                if self._read_only or not self._reserve.release():
                    raise
                self._opened()
            self._held_file = self.times_opened
            return self._hold.try_take()

    def keeps_hold(self) -> bool:
        """Return whether it is held, and the same file still that it was taken for."""
        return self._held_file == self.times_opened and self._hold.is_kept()

    def release(self) -> None:
        """End the hold, if there is one."""
        with self._mutex:
            self._hold.release()

    def holder(self) -> int | None:
        """Return the process id of the flusher that holds this file, or None."""
        with translated(self.path):
            return self._hold.holder()

    def close(self) -> None:
        """Let go of the file and of all locks."""
        with self._mutex:
            self.notice_a_fork()
            self.leave_transactions()
            self.release()
            self._close_connection()

    def _close_connection(self) -> None:
        connection = self._connection
        self._forget_files()
        if connection is not None:
            if self._read_only:
                connection.close()
            else:
                # The last connection to close checkpoints, hence the lock.
                with contextlib.suppress(OutboxUnavailable, OSError), self._exclusive():
                    connection.close()
        self._close_locks()

    def _close_locks(self) -> None:
        self._reserve.close()
        if self._write_lock is not None:
            self._write_lock.close()
            self._write_lock = None
