"""How a SQLite file is opened, and what its errors mean to us."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from typing import TYPE_CHECKING

from meter_lib._sqlite.index_space import expect_space
from meter_lib.errors import OutboxFull, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeGuard

__all__ = [
    "connect",
    "empty_log",
    "is_busy",
    "see_callers_out",
    "set_mode",
    "transaction",
    "translated",
    "translation",
]

# Between two looks whether readers are gone.
_NAP_SECONDS = 0.002


def connect(path: str, *, mode: str, timeout_seconds: float) -> sqlite3.Connection:
    """Open an existing file with what holds for all our connections.

    `mode` is `rw`, `ro`, or `ro&immutable=1`: the last makes no file beside it, and is
    for a file that nobody writes meanwhile.
    """
    if not mode.endswith("immutable=1"):
        expect_space(path)
    # Escaped byte for byte, it is the file that the system calls by that name, whatever
    # the name holds and whatever the encoding of file names is.
    name = "".join("/" if byte == 0x2F else f"%{byte:02x}" for byte in os.fsencode(path))
    connection = sqlite3.connect(
        f"file://{name}?mode={mode}",
        uri=True,
        timeout=timeout_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    for pragma in (
        "temp_store = MEMORY",
        # A mapped file that another process truncates would kill us with SIGBUS.
        "mmap_size = 0",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        # On macOS fsync() leaves data in the drive's cache; these two do not.
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
        # What is deleted is zeroed only where that writes no further page: some builds
        # would write every freed page once more.
        "secure_delete = FAST",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def set_mode(connection: sqlite3.Connection, synchronous: str, *, checks: bool) -> tuple[str, bool]:
    """Set how a connection syncs, and whether it holds rows against CHECK constraints.

    All its statements are compiled anew. Returns what was set.
    """
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA ignore_check_constraints = {not checks}")
    return synchronous, checks


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """Run the block as one write transaction: committed at its end, undone if it raises."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def see_callers_out(connection: sqlite3.Connection) -> None:
    """Return once no caller's own transaction is open in which an event was posted.

    To be called under our lock. As long as that is held, none gets so far again: whoever posts
    in a transaction has SQLite's lock from before the post to the end, and needs ours in between.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def empty_log(connection: sqlite3.Connection, *, patience_seconds: float = 0.0) -> bool:
    """Bring the log into the database and begin it anew; return whether no reader was in the way.

    To be called under our lock: SQLite before 3.51.3 can lose a commit that races a checkpoint.
    """
    give_up_at = time.monotonic() + patience_seconds
    while True:
        see_callers_out(connection)
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy or time.monotonic() > give_up_at:
            return not busy
        # Not left to SQLite: it would also wait for a caller, who may be waiting for our lock.
        time.sleep(_NAP_SECONDS)


def is_busy(error: BaseException) -> TypeGuard[sqlite3.OperationalError]:
    """Return whether another connection has SQLite's lock, for now."""
    return isinstance(error, sqlite3.OperationalError) and "database is locked" in str(error)


@contextlib.contextmanager
def translated(path: str) -> Generator[None]:
    """Turn what SQLite and the system raise into our errors."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translation(path, error) from error


def translation(path: str, error: sqlite3.Error | OSError) -> OutboxUnavailable:
    """Return our error for what SQLite or the system raised, the most specific that fits."""
    if isinstance(error, OSError):
        # A quota is a disk to whom it is set.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _full(path)
        return OutboxUnavailable(
            f"{path} cannot be used: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
        )
    if not isinstance(error, sqlite3.OperationalError):
        return OutboxUnavailable(f"{path} cannot be read: {error}")
    if "full" in str(error):
        return _full(path)
    reason = str(error)
    if "readonly database" in reason or "unable to open" in reason:
        # Reading, too, makes a file beside it where there is none.
        reason += "; who uses it must be able to read and write it and its folder"
    return OutboxUnavailable(f"{path} cannot be used: {reason}")


def _full(path: str) -> OutboxFull:
    return OutboxFull(
        f"{path} is full: its limit (METER_MAX_BYTES) or the disk is reached; nothing was recorded"
    )
