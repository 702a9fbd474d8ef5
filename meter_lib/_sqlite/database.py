"""One SQLite file opened the one right way, and its two kinds of transaction.

Every write transaction, checkpoint and close happens under a lock file that all
processes share. That makes commits fair, and it is what keeps SQLite before
3.51.3 from losing a commit that races a checkpoint
(https://www.sqlite.org/wal.html, "the WAL-reset bug").
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

import meter_migrations
from meter_lib._sqlite.connection import connect, translated
from meter_lib._sqlite.file_lock import FileLock
from meter_lib._sqlite.files import create_or_open, file_bytes, make_folder, sync_folder
from meter_lib._sqlite.forking import inherit, watch
from meter_lib.errors import OutboxFull, OutboxMissing, OutboxUnavailable, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Database"]

# A page of 1 KiB halves what a lone post writes to flash, at equal speed.
_PAGE_BYTES = 1024
# How long a write waits for the other writers. A commit takes milliseconds; whoever
# holds the lock for longer is stopped or broken, and the caller had better know.
_LOCK_TIMEOUT_SECONDS = 10.0
# How long emptying the log waits for readers: theirs take milliseconds too.
_CHECKPOINT_TIMEOUT_SECONDS = 1.0
# A quarter of the limit is for the write-ahead log, but no more than it can ever need.
_LARGEST_LOG_BYTES = 64 * 1024 * 1024


class Database:
    """The file of one outbox, as this process sees it. Opened on first use, safe across fork()."""

    def __init__(
        self, path: str, *, max_bytes: int, durability: str = "full", read_only: bool = False
    ) -> None:
        # SQLite names the log after the file that a link leads to; so must the locks be.
        self.path = os.path.realpath(path)
        self._max_bytes = max_bytes
        self.max_log_bytes = min(max_bytes // 4, _LARGEST_LOG_BYTES)
        self._max_pages = (max_bytes - self.max_log_bytes) // _PAGE_BYTES
        # Events may fill three quarters of the pages. The last quarter is for settling, which
        # adds to rows and indexes: a full outbox must still be deliverable.
        self._max_capture_pages = self._max_pages * 3 // 4
        self._durable_mode = "FULL" if durability == "full" else "NORMAL"
        self._read_only = read_only
        self.times_opened = 0
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._log_path = f"{self.path}-wal"
        self._log_identity: tuple[int, int] | None = None
        self._synchronous = ""
        self._write_lock: FileLock | None = None
        self._is_exclusive = False
        self._held_by_flusher: FileLock | None = None
        watch(self)

    # -- transactions -----------------------------------------------------------------

    @contextlib.contextmanager
    def write(self, *, capture: bool = False, log_bytes: int = 0) -> Generator[sqlite3.Connection]:
        """Run a write transaction: committed at the end of the block, undone if the block raises.

        `capture` is for new events: what it commits is on the disk when the block ends
        (as far as the durability asked for goes), and leaves the reserve free. Other
        writes are not synced: a power cut may undo them, in order. `log_bytes` is what
        the transaction adds to the write-ahead log at most.
        """
        with self._mutex, translated(self.path):
            connection = self._opened()
            with self._exclusive():
                self._set_synchronous(connection, self._durable_mode if capture else "NORMAL")
                self._make_room_in_log(connection, log_bytes)
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
                    if capture:
                        self._leave_the_reserve(connection)
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                _commit(connection)

    @contextlib.contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """Run reads that all see the same instant. Nobody waits for them."""
        with self._mutex, translated(self.path):
            self._check_it_is_our_turn()
            connection = self._opened()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    @contextlib.contextmanager
    def _exclusive(self) -> Generator[None]:
        self._check_it_is_our_turn()
        if self._write_lock is None:
            self._write_lock = FileLock(f"{self.path}.lock")
        if not self._write_lock.acquire(_LOCK_TIMEOUT_SECONDS):
            raise OutboxUnavailable(
                f"{self.path} is locked: another process has been writing for "
                f"{_LOCK_TIMEOUT_SECONDS:g} s; nothing was recorded"
            )
        self._is_exclusive = True
        try:
            yield
        finally:
            self._is_exclusive = False
            self._write_lock.release()

    def _check_it_is_our_turn(self) -> None:
        # The mutex let us in, so it is the same thread: a signal handler has interrupted it.
        if self._is_exclusive or (self._connection and self._connection.in_transaction):
            raise OutboxUnavailable(
                f"{self.path} is in use by the code that a signal handler has interrupted; "
                f"nothing was recorded"
            )

    def _set_synchronous(self, connection: sqlite3.Connection, mode: str) -> None:
        if mode != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {mode}")
            self._synchronous = mode

    # -- the limit --------------------------------------------------------------------

    def check_room_in_log(self) -> None:
        """Raise `OutboxFull` where the write-ahead log is full and cannot be emptied.

        The flusher asks before it delivers what it could not settle.
        """
        if self.log_bytes() > self.max_log_bytes // 2 and not self._read_only:
            with self._mutex, translated(self.path):
                connection = self._opened()
                with self._exclusive():
                    self._make_room_in_log(connection, self.max_log_bytes // 2)

    def _make_room_in_log(self, connection: sqlite3.Connection, needed: int) -> None:
        if self.log_bytes() + needed <= self.max_log_bytes:
            return
        connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_TIMEOUT_SECONDS * 1000:.0f}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_SECONDS * 1000:.0f}")
        in_log = self.log_bytes()
        if in_log + needed <= self.max_log_bytes:
            return
        # What the database does not use, the log may.
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        free_bytes = self._max_bytes - pages * _PAGE_BYTES
        if in_log > 0:
            raise OutboxFull(
                f"{self.path} is full: its write-ahead log cannot be emptied while "
                f"another program reads the file; nothing was recorded"
            )
        if needed > free_bytes:
            raise OutboxFull(
                f"{self.path} has no room for a commit of about {needed} bytes, its limit "
                f"(METER_MAX_BYTES) being {self._max_bytes}; record fewer events at a time"
            )

    def _leave_the_reserve(self, connection: sqlite3.Connection) -> None:
        """Raise where new events took pages that settling will need.

        Not left to `max_page_count`: that would also keep them from the free pages of a
        file that settling has made larger than events may.
        """
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        if pages > self._max_capture_pages:
            (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
            if pages - free_pages > self._max_capture_pages:
                raise OutboxFull(
                    f"{self.path} is full: its limit (METER_MAX_BYTES) is reached; "
                    f"nothing was recorded"
                )

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log in bytes."""
        return file_bytes(self._log_path)

    def disk_bytes(self) -> int:
        """Return the bytes on disk: database and write-ahead log."""
        return file_bytes(self.path) + self.log_bytes()

    # -- opening ----------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._log_identity != self._identity_of_log():
            # Moved, deleted or replaced: what is open has no name that anybody would find it by.
            self._close_connection()
        if self._connection is None:
            if self._read_only:
                self._connection = self._open_read_only()
            else:
                self._connection = self._open_or_create()
            self._log_identity = self._identity_of_log()
            self._synchronous = ""
            self.times_opened += 1
        return self._connection

    def _identity_of_log(self) -> tuple[int, int] | None:
        """Return which file the log is: the same one while a connection is open."""
        try:
            found = os.stat(self._log_path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def _open_read_only(self) -> sqlite3.Connection:
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise OutboxMissing(f"there is no outbox at {self.path}") from None
        connection = connect(self.path, mode="ro", timeout_seconds=_LOCK_TIMEOUT_SECONDS)
        try:
            version = self._schema_version(connection)
        except BaseException:
            connection.close()
            raise
        if version != meter_migrations.LATEST:
            connection.close()
            raise OutboxUnavailable(
                f"{self.path} has schema {version}, this version reads "
                f"{meter_migrations.LATEST}; run: meter-lib migrate"
            )
        return connection

    def _open_or_create(self) -> sqlite3.Connection:
        make_folder(os.path.dirname(self.path))
        with self._exclusive():
            if self._is_new():
                os.close(create_or_open(self.path))
                # A file whose folder is not synced may be gone after a power cut, events and all.
                sync_folder(os.path.dirname(self.path))
            else:
                self._look_whose_it_is()
            connection = connect(self.path, mode="rw", timeout_seconds=_LOCK_TIMEOUT_SECONDS)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _is_new(self) -> bool:
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return file_bytes(self.path) == 0

    def _look_whose_it_is(self) -> None:
        """Raise where the file is not ours to open, having made and changed nothing."""
        # Reading a file without a log would make one beside it.
        mode = "ro" if self.log_bytes() else "ro&immutable=1"
        probe = connect(self.path, mode=mode, timeout_seconds=_LOCK_TIMEOUT_SECONDS)
        try:
            self._schema_version(probe)
        finally:
            probe.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Page size and journal mode are fixed by the first write of a new file.
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal_mode != "wal":
            raise OutboxUnavailable(
                f"{self.path} is on a file system that cannot share memory, as network "
                f"file systems often cannot: an outbox belongs on a local disk"
            )
        meter_migrations.migrate(connection)
        log_pages = min(1000, self.max_log_bytes // 4 // _PAGE_BYTES)
        connection.execute(f"PRAGMA wal_autocheckpoint = {log_pages}").fetchone()
        connection.execute(f"PRAGMA journal_size_limit = {self.max_log_bytes // 4}").fetchone()
        connection.execute(f"PRAGMA max_page_count = {self._max_pages}").fetchone()

    def _schema_version(self, connection: sqlite3.Connection) -> int:
        try:
            return meter_migrations.schema_version(connection)
        except meter_migrations.NewerSchemaError as error:
            raise SchemaTooNew(
                f"{self.path} was made by a newer version of meter-lib ({error}); "
                f"it was left untouched: upgrade this program"
            ) from error
        except meter_migrations.ForeignFileError as error:
            raise OutboxUnavailable(
                f"{self.path} is not an outbox: {error}; it was left untouched"
            ) from error

    # -- the flusher's hold -----------------------------------------------------------

    def try_hold(self) -> bool:
        """Become the one flusher of this file, or return False where another is."""
        with self._mutex, translated(self.path):
            if self._held_by_flusher is not None:
                return True
            self._opened()
            hold = self._flusher_lock()
            if not hold.try_acquire():
                hold.close()
                return False
            hold.sign()
            self._held_by_flusher = hold
            return True

    def release(self) -> None:
        """End the hold, if there is one."""
        with self._mutex:
            if self._held_by_flusher is not None:
                self._held_by_flusher.release()
                self._held_by_flusher.close()
                self._held_by_flusher = None

    def holder(self) -> int | None:
        """Return the process id of the flusher that holds this file, or None."""
        with translated(self.path):
            return self._flusher_lock().holder()

    def _flusher_lock(self) -> FileLock:
        return FileLock(f"{self.path}.flusher")

    # -- end --------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file and of all locks."""
        with self._mutex:
            self.release()
            self._close_connection()

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._read_only:
                connection.close()
            else:
                # The last connection to close checkpoints, hence the lock.
                with contextlib.suppress(OutboxUnavailable, OSError), self._exclusive():
                    connection.close()
        self._close_write_lock()

    def _close_write_lock(self) -> None:
        if self._write_lock is not None:
            self._write_lock.close()
            self._write_lock = None

    # -- fork -------------------------------------------------------------------------

    def pause_for_fork(self) -> None:
        """Wait until no transaction of this process is open, and close the connection.

        A child that inherits it inherits SQLite's account of who has the file open, and
        would share it with its own connection without telling the parent: the last of the
        parent's to close would take the log away from under the child.
        """
        self._mutex.acquire()
        if self._connection is not None and not self._connection.in_transaction:
            self._close_connection()

    def resume_in_parent(self) -> None:
        """Go on after the fork."""
        self._mutex.release()

    def forget_in_child(self) -> None:
        """Start afresh in the child: the parent's connection and locks are not ours."""
        if self._connection is not None:
            inherit(self._connection)
        self._connection = None
        self._close_write_lock()
        self._is_exclusive = False
        if self._held_by_flusher is not None:
            self._held_by_flusher.close()
            self._held_by_flusher = None
        self._mutex = threading.RLock()


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            # The log may hold it whole, short of the sync that failed: whoever recovers the log
            # after a crash would take it for committed. Something else goes in its place.
            with contextlib.suppress(sqlite3.Error):
                connection.execute(f"PRAGMA user_version = {meter_migrations.LATEST}")
        raise
