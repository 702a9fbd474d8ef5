"""One SQLite file opened the one right way, and its two kinds of transaction.

Every write transaction, checkpoint and close happens under a lock file that all
processes share. That makes commits fair, and it is what keeps SQLite before
3.51.3 from losing a commit that races a checkpoint
(https://www.sqlite.org/wal.html, "the WAL-reset bug").
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import threading
import weakref
from typing import TYPE_CHECKING

import meter_migrations
from meter_lib._sqlite.connection import connect, file_bytes, sync_folder, translated
from meter_lib._sqlite.file_lock import FileLock
from meter_lib.errors import OutboxFull, OutboxMissing, OutboxUnavailable, SchemaTooNew

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator

__all__ = ["Database"]

# A page of 1 KiB halves what a lone post writes to flash, at equal speed.
_PAGE_BYTES = 1024
# How long a write waits for the other writers. A commit takes milliseconds; whoever
# holds the lock for longer is stopped or broken, and the caller had better know.
_LOCK_TIMEOUT_SECONDS = 10.0
# Pages that settling may use beyond the limit for posts, so that a full outbox can
# still be delivered and purged: 128 KiB, half of what the limit may be passed by.
_RESERVE_PAGES = 128

_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """The file of one outbox, as this process sees it. Opened on first use, safe across fork()."""

    def __init__(
        self, path: str, *, max_bytes: int, durability: str = "full", read_only: bool = False
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        # A quarter of the limit is for the write-ahead log, the rest for the database.
        self.max_wal_bytes = max_bytes // 4
        self._max_pages = (max_bytes - self.max_wal_bytes) // _PAGE_BYTES - _RESERVE_PAGES
        self._durable_mode = "FULL" if durability == "full" else "NORMAL"
        self._read_only = read_only
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._write_lock: FileLock | None = None
        self._held_by_flusher: FileLock | None = None
        self._synchronous = ""
        self._page_limit = 0
        _open_databases.add(self)

    # -- transactions -----------------------------------------------------------------

    @contextlib.contextmanager
    def write(self, *, capture: bool = False) -> Generator[sqlite3.Connection]:
        """Run a write transaction: committed at the end of the block, undone if the block raises.

        `capture` is for new events: what it commits is on the disk when the block ends
        (as far as the durability asked for goes), and it respects the size limit. Other
        writes are neither synced nor limited: a power cut may undo them, in order.
        """
        with self._mutex, translated(self.path):
            connection = self._opened()
            self._tune(connection, capture=capture)
            with self._exclusive():
                self._bound_the_log(connection, capture=capture)
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise

    @contextlib.contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """Run reads that all see the same instant. Nobody waits for them."""
        with self._mutex, translated(self.path):
            connection = self._opened()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    @contextlib.contextmanager
    def _exclusive(self) -> Generator[None]:
        if self._write_lock is None:
            self._write_lock = FileLock(f"{self.path}.lock", mode=self._file_mode())
        if not self._write_lock.acquire(_LOCK_TIMEOUT_SECONDS):
            raise OutboxUnavailable(
                f"{self.path} is locked: another process has been writing for "
                f"{_LOCK_TIMEOUT_SECONDS:.0f} s; nothing was recorded"
            )
        try:
            yield
        finally:
            self._write_lock.release()

    def _tune(self, connection: sqlite3.Connection, *, capture: bool) -> None:
        synchronous = self._durable_mode if capture else "NORMAL"
        if synchronous != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        pages = self._max_pages + (0 if capture else _RESERVE_PAGES)
        if pages != self._page_limit:
            connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
            self._page_limit = pages

    def _bound_the_log(self, connection: sqlite3.Connection, *, capture: bool) -> None:
        """Keep the write-ahead log within its share of the limit."""
        if self.log_bytes() <= self.max_wal_bytes // 2:
            return
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if capture and self.log_bytes() > self.max_wal_bytes // 2:
            raise OutboxFull(
                f"{self.path} is full: its write-ahead log cannot be emptied while "
                f"another program reads the file; nothing was recorded"
            )

    # -- opening ----------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._read_only:
                self._connection = self._open_read_only()
            else:
                self._connection = self._open_or_create()
        return self._connection

    def _open_read_only(self) -> sqlite3.Connection:
        if not os.path.exists(self.path):
            raise OutboxMissing(f"there is no outbox at {self.path}")
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
        self._make_folder()
        with self._exclusive():
            if self._is_new():
                self._create_file()
            else:
                # A file that is not ours to open is looked at without writing a byte.
                probe = connect(self.path, mode="ro", timeout_seconds=_LOCK_TIMEOUT_SECONDS)
                try:
                    self._schema_version(probe)
                finally:
                    probe.close()
            connection = connect(self.path, mode="rw", timeout_seconds=_LOCK_TIMEOUT_SECONDS)
            try:
                # Page size and journal mode are fixed by the first write of a new file.
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                meter_migrations.migrate(connection)
                log_pages = min(1000, self.max_wal_bytes // 4 // _PAGE_BYTES)
                connection.execute(f"PRAGMA wal_autocheckpoint = {log_pages}").fetchone()
                size_limit = self.max_wal_bytes // 4
                connection.execute(f"PRAGMA journal_size_limit = {size_limit}").fetchone()
            except BaseException:
                connection.close()
                raise
        self._synchronous = ""
        self._page_limit = 0
        return connection

    def _is_new(self) -> bool:
        try:
            return os.stat(self.path).st_size == 0
        except FileNotFoundError:
            return True

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

    def _make_folder(self) -> None:
        folder = os.path.dirname(self.path)
        missing: list[str] = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            sync_folder(os.path.dirname(path))

    def _create_file(self) -> None:
        # Made before SQLite sees it, so that it never has wider permissions than these.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(self.path, flags, self._file_mode()))
        if self._file_mode() & 0o060:
            # The caller's umask may have taken the group's share away.
            os.chmod(self.path, self._file_mode())
        # A file whose folder is not synced may be gone after a power cut, events and all.
        sync_folder(os.path.dirname(self.path))

    def _file_mode(self) -> int:
        """Return 0600, or 0660 in a set-group-id folder, which is shared on purpose."""
        folder = os.stat(os.path.dirname(self.path)).st_mode
        return 0o660 if folder & stat.S_ISGID else 0o600

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
        return FileLock(f"{self.path}.flusher", mode=self._file_mode())

    # -- sizes, end -------------------------------------------------------------------

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log in bytes."""
        return file_bytes(f"{self.path}-wal")

    def disk_bytes(self) -> int:
        """Return the bytes on disk: database and write-ahead log."""
        return file_bytes(self.path) + self.log_bytes()

    def close(self) -> None:
        """Let go of the file and of all locks."""
        with self._mutex:
            self.release()
            connection, self._connection = self._connection, None
            if connection is not None:
                if self._read_only:
                    connection.close()
                else:
                    # The last connection to close checkpoints, hence the lock.
                    with contextlib.suppress(OutboxUnavailable, OSError), self._exclusive():
                        connection.close()
            if self._write_lock is not None:
                self._write_lock.close()
                self._write_lock = None

    # -- fork -------------------------------------------------------------------------

    def pause_for_fork(self) -> None:
        """Wait until no transaction of this process is open."""
        self._mutex.acquire()

    def resume_in_parent(self) -> None:
        """Go on after the fork."""
        self._mutex.release()

    def forget_in_child(self) -> None:
        """Start afresh in the child: the parent's connection and locks are not ours."""
        if self._connection is not None:
            _inherited.append(self._connection)
        self._connection = None
        if self._write_lock is not None:
            self._write_lock.close()
            self._write_lock = None
        if self._held_by_flusher is not None:
            self._held_by_flusher.close()
            self._held_by_flusher = None
        self._mutex = threading.RLock()


# Connections that a child inherited, kept so that nobody closes them.
_inherited: list[sqlite3.Connection] = []
_paused: list[Database] = []


def _before_fork() -> None:
    _paused.extend(_open_databases)
    for database in _paused:
        database.pause_for_fork()


def _after_fork_in_parent() -> None:
    for database in _paused:
        database.resume_in_parent()
    _paused.clear()


def _after_fork_in_child() -> None:
    for database in _paused:
        database.forget_in_child()
    _paused.clear()


def _close_all() -> None:
    for database in list(_open_databases):
        database.close()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
# Left to the garbage collector, a connection would be closed without the lock.
atexit.register(_close_all)
