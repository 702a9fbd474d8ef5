"""How a SQLite file is opened, and what its errors mean to us."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from typing import TYPE_CHECKING

from meter_lib._sqlite.index_space import expect_space
from meter_lib.errors import OutboxFull, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["connect", "set_mode", "transaction", "translated", "translation"]


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
