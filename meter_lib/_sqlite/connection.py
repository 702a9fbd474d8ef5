"""How a SQLite file is opened, and what its errors mean to us."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from meter_lib.errors import OutboxFull, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["connect", "file_bytes", "sync_folder", "translated"]


def connect(path: str, *, mode: str, timeout_seconds: float) -> sqlite3.Connection:
    """Open an existing file (`mode` is `ro` or `rw`) with what holds for all our connections."""
    # '?' and '#' would end the path of the URI, '%' would start an escape.
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(
        f"file:{quoted}?mode={mode}",
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
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def sync_folder(folder: str) -> None:
    """Put the entries of a folder on the disk: a file is only as durable as its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_bytes(path: str) -> int:
    """Return the size of a file, 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def translated(path: str) -> Generator[None]:
    """Turn what SQLite and the system raise into our errors, most specific first."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OutboxFull(
                f"{path} is full: its limit (METER_MAX_BYTES) or the disk is reached; "
                f"nothing was recorded"
            ) from error
        raise OutboxUnavailable(f"{path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise OutboxUnavailable(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise OutboxUnavailable(
            f"{path} cannot be used: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error
