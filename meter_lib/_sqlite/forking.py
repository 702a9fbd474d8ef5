"""What fork() does to open databases: the parent goes on, the child starts afresh."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from meter_lib._sqlite.flusher_hold import FlusherHold

__all__ = ["ForkedFile", "close_all"]


class ForkedFile:
    """The part of `Database` that outlives forks."""

    _mutex: threading.RLock
    _connection: sqlite3.Connection | None
    _is_exclusive: bool
    _hold: FlusherHold
    _process: int

    def watch_forks(self) -> None:
        """See to this database at every fork, and at the end of the process."""
        self._process = os.getpid()
        with _registry:
            _open_databases.add(self)

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
            _inherited.append(self._connection)
        self._forget_files()
        self._forget_locks()
        self._mutex = threading.RLock()

    def notice_a_fork(self) -> None:
        """Start afresh in a child of a fork of which Python was not told, such as uWSGI's.

        The inherited connection is at rest, or its mutex would be taken for good. It is closed
        first of all, under a lock of our own: that drops no lock of the parent's, and with it
        goes SQLite's account. The mutex is held.
        """
        if self._process != os.getpid():
            self._forget_locks()
            self._close_connection()

    def _forget_locks(self) -> None:
        self._process = os.getpid()
        self._close_locks()
        self._is_exclusive = False
        self._hold.forget()

    def _close_connection(self) -> None:
        raise NotImplementedError

    def _close_locks(self) -> None:
        raise NotImplementedError

    def _forget_files(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file and of all locks."""
        raise NotImplementedError


_open_databases: weakref.WeakSet[ForkedFile] = weakref.WeakSet()
# Held over a fork: no database is added meanwhile, and no two threads fork at once.
_registry = threading.RLock()
_paused: list[ForkedFile] = []
# Connections that a child inherited in the middle of a transaction: nobody may close them.
_inherited: list[sqlite3.Connection] = []


def _before_fork() -> None:
    _registry.acquire()
    _paused.extend(_open_databases)
    for database in _paused:
        database.pause_for_fork()


def _after_fork_in_parent() -> None:
    for database in _paused:
        database.resume_in_parent()
    _paused.clear()
    _registry.release()


def _after_fork_in_child() -> None:
    global _registry  # noqa: PLW0603  # the inherited one is held
    for database in _paused:
        database.forget_in_child()
    _paused.clear()
    _registry = threading.RLock()


def close_all() -> None:
    """Close what this process has open; the garbage collector would do it without the lock."""
    for database in list(_open_databases):
        database.close()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
atexit.register(close_all)
