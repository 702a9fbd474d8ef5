"""How the file of an outbox is made, recognised and opened. The caller holds the write lock."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

import meter_migrations
from meter_lib._sqlite.connection import connect
from meter_lib._sqlite.copies import enter_machine
from meter_lib._sqlite.files import create_or_open, file_bytes, sync_file, sync_folder
from meter_lib._sqlite.index_space import take_space
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib._sqlite.moved import keep_out
from meter_lib._sqlite.salvage.set_aside import (
    DamagedLog,
    OutboxSetAside,
    finish,
    replace_damaged,
)
from meter_lib.errors import OutboxMissing, OutboxUnavailable, SchemaTooNew

if TYPE_CHECKING:
    import sqlite3

    from meter_lib._sqlite.limits import Limits

__all__ = ["open_or_create", "open_read_only"]


def open_or_create(path: str, limits: Limits, *, timeout_seconds: float) -> sqlite3.Connection:
    """Return a connection to the outbox at `path`, made where there is none, of the current schema.

    On return the file's name and schema are on the disk.
    """
    finish(path)
    keep_out(path)
    try:
        return _open_in_place(path, limits, timeout_seconds)
    except OutboxSetAside:
        return _open_in_place(path, limits, timeout_seconds)


def _open_in_place(path: str, limits: Limits, timeout_seconds: float) -> sqlite3.Connection:
    connection = None
    try:
        if _is_new(path):
            _create(path, timeout_seconds)
        else:
            _look_whose_it_is(path, timeout_seconds)
        connection = connect(path, mode="rw", timeout_seconds=timeout_seconds)
        # Some builds of SQLite have another default for what the first migration is synced by.
        connection.execute("PRAGMA synchronous = FULL")
        _use_log(connection, path)
        take_space(path, limits.max_log_bytes)
        meter_migrations.migrate(connection)
        enter_machine(connection, path)
        if file_bytes(f"{path}-wal") == 0:
            # Made just now, or by somebody else who has not synced it yet. A file whose folder is
            # not synced may be gone after a power cut, events and all.
            sync_folder(os.path.dirname(path))
        log_pages = min(1000, limits.max_log_bytes // 4 // PAGE_BYTES)
        connection.execute(f"PRAGMA wal_autocheckpoint = {log_pages}").fetchone()
        connection.execute(f"PRAGMA journal_size_limit = {limits.max_log_bytes // 4}").fetchone()
        connection.execute(f"PRAGMA max_page_count = {limits.max_pages}").fetchone()
    except BaseException as error:
        replace_damaged(path, error, connection)
        if connection is not None:
            connection.close()
        raise
    return connection


def open_read_only(path: str, *, timeout_seconds: float) -> sqlite3.Connection:
    """Return a connection that can only read; make nothing. Needs no lock."""
    keep_out(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise OutboxMissing(f"there is no outbox at {path}") from None
    _refuse_special(path, mode)
    connection = connect(path, mode="ro", timeout_seconds=timeout_seconds)
    try:
        version = _schema_version(connection, path)
        take_space(path)
    except BaseException:
        connection.close()
        raise
    if version != meter_migrations.LATEST:
        connection.close()
        raise OutboxUnavailable(
            f"{path} has schema {version}, this version reads "
            f"{meter_migrations.LATEST}; run: meter-lib migrate"
        )
    if not connection.execute("SELECT count(*) FROM outbox").fetchone()[0]:
        connection.close()
        raise OutboxUnavailable(
            f"{path} is damaged: its table outbox is empty; run: meter-lib doctor --salvage"
        )
    return connection


def _is_new(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        _refuse_special(path, os.stat(path).st_mode)
    if file_bytes(path):
        return False
    if file_bytes(f"{path}-wal"):
        raise DamagedLog("it is gone or empty, and its log is not")
    return True


def _refuse_special(path: str, mode: int) -> None:
    """Raise for a folder, and for a device, a pipe or a socket: all but the first look empty."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OutboxUnavailable(
            f"{path} is not an outbox: it is a device, a pipe or a socket; it was left untouched"
        )


def _create(path: str, timeout_seconds: float) -> None:
    """Make an empty outbox under another name, and give it its own once its content is synced.

    Made in its place, a power cut could leave half a header or half a schema there.
    """
    unfinished = f"{path}.new"
    for ending in ("", "-journal", "-wal", "-shm"):
        _remove(f"{unfinished}{ending}")
    os.close(create_or_open(unfinished))
    connection = connect(unfinished, mode="rw", timeout_seconds=timeout_seconds)
    try:
        # Page size and journal mode are fixed by the first write of a new file.
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        # It is synced as a whole, below.
        connection.execute("PRAGMA synchronous = OFF")
        _use_log(connection, path)
        meter_migrations.migrate(connection)
        enter_machine(connection, path)
    finally:
        connection.close()
    if file_bytes(f"{unfinished}-wal"):
        # Closing does not tell that the log could not be brought into the file.
        raise OutboxUnavailable(f"{path} cannot be made: the disk failed to write")
    sync_file(unfinished)
    # Left of a file that is gone, and would be taken for those of the new one.
    for ending in ("-journal", "-wal", "-shm"):
        if _remove(f"{path}{ending}"):
            sync_folder(os.path.dirname(path))
    os.replace(unfinished, path)


def _remove(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        return True
    return False


def _use_log(connection: sqlite3.Connection, path: str) -> None:
    (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if journal_mode != "wal":
        raise OutboxUnavailable(
            f"{path} is on a file system that cannot share memory, as network "
            f"file systems often cannot: an outbox belongs on a local disk"
        )


def _look_whose_it_is(path: str, timeout_seconds: float) -> None:
    """Raise where the file is not ours to open, having made and changed nothing."""
    # Reading a file without a log would make one beside it.
    mode = "ro" if file_bytes(f"{path}-wal") else "ro&immutable=1"
    probe = connect(path, mode=mode, timeout_seconds=timeout_seconds)
    try:
        if _schema_version(probe, path) and file_bytes(f"{path}-wal"):
            # Only where there is a log does it cost anything.
            from meter_lib._sqlite.salvage.log_check import check_log  # noqa: PLC0415  # see above

            check_log(path, probe)
    finally:
        probe.close()


def _schema_version(connection: sqlite3.Connection, path: str) -> int:
    try:
        return meter_migrations.schema_version(connection)
    except meter_migrations.NewerSchemaError as error:
        raise SchemaTooNew(
            f"{path} was made by a newer version of meter-lib ({error}); "
            f"it was left untouched: upgrade this program"
        ) from error
    except meter_migrations.ForeignFileError as error:
        raise OutboxUnavailable(
            f"{path} is not an outbox: {error}; it was left untouched"
        ) from error
