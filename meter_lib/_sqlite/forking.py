"""What fork() does to open databases: the parent goes on, the child starts afresh."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from meter_lib._sqlite.database import Database

__all__ = ["inherit", "watch"]

_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()
# Held over a fork: no database is added meanwhile, and no two threads fork at once.
_registry = threading.RLock()
_paused: list[Database] = []
# Connections that a child inherited in the middle of a transaction: nobody may close them.
_inherited: list[sqlite3.Connection] = []


def watch(database: Database) -> None:
    """See to this database at every fork, and at the end of the process."""
    with _registry:
        _open_databases.add(database)


def inherit(connection: sqlite3.Connection) -> None:
    """Keep the parent's connection from being closed in this child."""
    _inherited.append(connection)


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
