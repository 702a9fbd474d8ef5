"""The file that an outbox moves to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from meter_lib._sqlite.building import building
from meter_lib._sqlite.connection import connect, transaction, translated
from meter_lib._sqlite.contents import contents_of
from meter_lib._sqlite.file_lock import FairLock
from meter_lib._sqlite.files import (
    file_bytes,
    make_folder,
    sync_file,
    sync_folder,
)
from meter_lib._sqlite.flusher_hold import FlusherHold
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.limits import limits_of
from meter_lib._sqlite.moved import ARRIVED, ARRIVING, forget_departure
from meter_lib.errors import OutboxFull, OutboxUnavailable
from meter_lib.moving import Rows

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from meter_lib.moving import Contents

__all__ = ["SqliteArriving"]

_TIMEOUT_SECONDS = 10.0
# Of an outbox that comes from a server.
_ACCEPTED = "accepted_events"


class SqliteArriving:
    """See `meter_lib.moving.Arriving` for what each method promises."""

    def __init__(self, path: str, *, max_bytes: int) -> None:
        self._path = os.path.realpath(path)
        self._limits = limits_of(max_bytes)
        self._hold = FlusherHold(f"{self._path}.flusher")

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return self._path

    def try_hold(self) -> bool:
        """Keep flushers and other moves away until `close`, or return False."""
        with translated(self._path):
            make_folder(os.path.dirname(self._path))
            return self._hold.try_take()

    def require_free(self, outbox_id: str) -> None:
        """Raise where it has events, or waits for another outbox."""
        with translated(self._path):
            there = _outbox_in(f"{self._path}{ARRIVED}")
            if there is not None and there[0] != outbox_id:
                raise OutboxUnavailable(
                    f"another outbox ({there[0]}) is half-way to {self._path}: finish that move"
                    f" first, by meter-lib move from where it was"
                )
            there = _outbox_in(self._path)
            if there is not None and there[1]:
                raise OutboxUnavailable(
                    f"{self._path} has accepted {there[1]:,} events of its own: an outbox is moved"
                    f" as a whole, to a place where there is none; nothing was moved"
                )

    def fill(self, rows: Iterable[Rows]) -> Contents:
        """Write these rows, and nothing else, beside what is in use."""
        path = f"{self._path}{ARRIVING}"
        with translated(path):
            self.discard()
            with building(path) as connection:
                with transaction(connection):
                    for part in rows:
                        here = _as_here(part)
                        connection.executemany(_insertion(here), here.rows)
                (pages,) = connection.execute("PRAGMA page_count").fetchone()
                if pages > self._limits.max_pages:
                    raise OutboxFull(
                        f"{self._path} would take more than its limit (METER_MAX_BYTES); nothing"
                        f" was moved"
                    )
                contents = contents_of(connection)
                _use_log(connection)
                return contents

    def seal(self, outbox_id: str) -> None:
        """Make what was written durable, and refuse all others until `open`."""
        with translated(self._path):
            if file_bytes(f"{self._path}{ARRIVING}-wal"):
                # Closing does not tell that the log could not be brought into the file.
                raise OutboxUnavailable(f"{self._path} cannot be made: the disk failed to write")
            sync_file(f"{self._path}{ARRIVING}")
            with self._locked():
                self.require_free(outbox_id)
                # What is there has no events: whoever has it open sees that it is gone.
                _remove(self._path)
                os.rename(f"{self._path}{ARRIVING}", f"{self._path}{ARRIVED}")
                sync_folder(os.path.dirname(self._path))

    def open(self, outbox_id: str) -> Contents:
        """Put it in use, durably, unless it is already."""
        with translated(self._path), self._locked():
            arrived = f"{self._path}{ARRIVED}"
            if os.path.lexists(arrived):
                self.require_free(outbox_id)
                # Nobody writes to a place that waits for an outbox: nothing is lost with these.
                _remove(self._path)
                os.rename(arrived, self._path)
                sync_folder(os.path.dirname(self._path))
                forget_departure(self._path)
            there = _outbox_in(self._path)
            if there is None or there[0] != outbox_id:
                raise OutboxUnavailable(
                    f"the outbox ({outbox_id}) should have moved to {self._path}, and is not there"
                )
            connection = connect(self._path, mode="rw", timeout_seconds=_TIMEOUT_SECONDS)
            try:
                return contents_of(connection)
            finally:
                connection.close()

    def discard(self) -> None:
        """Throw away what was written and not opened."""
        for ending in (ARRIVING, ARRIVED):
            _remove(f"{self._path}{ending}")

    def close(self) -> None:
        """Let go of everything."""
        self._hold.release()

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """Hold the lock that all who open or write the file at this place take."""
        lock = FairLock(f"{self._path}.lock", f"{self._path}.turn")
        try:
            if not lock.acquire(_TIMEOUT_SECONDS):
                raise OutboxUnavailable(
                    f"{self._path} is locked: another process has been writing for"
                    f" {_TIMEOUT_SECONDS:g} s; nothing was moved"
                )
            yield
        finally:
            lock.release()
            lock.close()


def _outbox_in(path: str) -> tuple[str, int] | None:
    """Return the name of the outbox in a file and how many events it accepted; None: no file."""
    if not file_bytes(path):
        return None
    # Reading a file without a log would make one beside it.
    mode = "ro" if file_bytes(f"{path}-wal") else "ro&immutable=1"
    connection = connect(path, mode=mode, timeout_seconds=_TIMEOUT_SECONDS)
    try:
        (outbox_id,) = connection.execute("SELECT outbox_id FROM outbox").fetchone()
        return str(outbox_id), accepted_events(connection)
    except sqlite3.DatabaseError as error:
        raise OutboxUnavailable(f"{path} is there, and is no outbox: {error}") from error
    finally:
        connection.close()


def _use_log(connection: sqlite3.Connection) -> None:
    """Mark the file as one with a write-ahead log, as every outbox is."""
    (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if journal_mode != "wal":
        raise OutboxUnavailable(
            "an outbox belongs on a local disk: this file system cannot share memory"
        )


def _as_here(part: Rows) -> Rows:
    """Return rows without the count that a file has no column for, since it counts by seq."""
    if _ACCEPTED not in part.columns:
        return part
    place = part.columns.index(_ACCEPTED)
    for row in part.rows:
        missed = int(row[part.columns.index("last_seq")] or 0) - int(row[place] or 0)
        if missed:
            raise OutboxUnavailable(
                f"{missed:,} numbers were taken by posts that came to nothing, as happens on a"
                " server; a file has one event for each. Let the outbox be delivered to its end"
                " (meter-lib flush), and begin a new one in a file; nothing was moved"
            )
    return Rows(
        part.table,
        part.columns[:place] + part.columns[place + 1 :],
        [row[:place] + row[place + 1 :] for row in part.rows],
    )


def _insertion(part: Rows) -> str:
    places = ", ".join("?" * len(part.columns))
    return f"INSERT OR REPLACE INTO {part.table} ({', '.join(part.columns)}) VALUES ({places})"  # noqa: S608  # names of the schema


def _remove(path: str) -> None:
    for ending in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{ending}")
