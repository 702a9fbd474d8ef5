"""Looks an outbox through from end to end, and takes over what other files hold."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING

from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.salvage.set_aside import (
    OutboxSetAside,
    is_damage,
    set_aside_files,
    was_salvaged,
)
from meter_lib.errors import OutboxMissing, OutboxUnavailable
from meter_lib.upkeep import Inspection

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meter_lib._sqlite.database import Database
    from meter_lib.upkeep import Taken

__all__ = ["SqliteInspection"]

# Above this size, indexes are not compared with their tables: that takes minutes.
_QUICK_FROM_BYTES = 256 * 1024 * 1024
_STEPS_BETWEEN_LOOKS_AT_THE_CLOCK = 100_000
_MOST_PROBLEMS = 10


class SqliteInspection:
    """The part of an outbox in a SQLite file that finds and mends damage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def inspect(self, *, seconds: float) -> Inspection:
        """Look the outbox through; see `Upkeep.inspect`."""
        method = (
            "integrity_check" if self._database.disk_bytes() < _QUICK_FROM_BYTES else "quick_check"
        )
        deadline = time.monotonic() + seconds
        problems: list[str] = []
        books = None
        try:
            is_complete = self._check(method, deadline, problems)
            books = self._books(deadline) if is_complete and not problems else None
        except OutboxUnavailable:
            # A file that is damaged enough fails the end of the look as well.
            if not problems:
                raise
        accepted, pending, dead, delivered, removed = books or (0, 0, 0, 0, 0)
        return Inspection(
            engine=f"SQLite {sqlite3.sqlite_version}",
            method=method,
            is_complete=bool(problems) or books is not None,
            problems=problems,
            accepted=accepted,
            pending=pending,
            dead=dead,
            delivered=delivered,
            removed=removed,
        )

    def _check(self, method: str, deadline: float, problems: list[str]) -> bool:
        """Add what is wrong to `problems`, and return whether there was time for all of it."""
        with self._database.read() as connection, _until(deadline, connection) as in_time:
            try:
                for (problem,) in connection.execute(f"PRAGMA {method}({_MOST_PROBLEMS})"):
                    if problem != "ok":
                        problems.append(str(problem))
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                problems.append(str(error))
        return bool(in_time)

    def _books(self, deadline: float) -> tuple[int, int, int, int, int] | None:
        """Return the accepted, pending, dead, delivered and removed events of one instant."""
        books: list[tuple[int, int, int, int, int]] = []
        with self._database.read() as connection, _until(deadline, connection):
            pending, dead, delivered, removed = connection.execute(
                """
                SELECT (SELECT count(*) FROM events WHERE state <> 'dead'),
                       (SELECT count(*) FROM events WHERE state = 'dead'),
                       delivered_events, removed_events
                FROM outbox
                """
            ).fetchone()
            books.append((accepted_events(connection), pending, dead, delivered, removed))
        return books[0] if books else None

    def salvage(self) -> bool:
        """Set the file aside if it is damaged; see `Upkeep.salvage`."""
        before = set_aside_files(self._database.path)
        # Some damage is met when the file is opened, some when it is looked through.
        with contextlib.suppress(OutboxSetAside):
            self._database.mend()
        return set_aside_files(self._database.path) != before

    def take_over(self, path: str, *, progress: Callable[[int, int], object]) -> Taken:
        """Take the events of a file that this outbox never had; see `Upkeep.take_over`."""
        from meter_lib._sqlite.salvage.merging import merge  # noqa: PLC0415  # hardly ever needed

        if not os.path.isfile(path):
            raise OutboxMissing(f"there is no file {path}")
        outbox = self._database.path
        if was_salvaged(outbox, path):
            raise OutboxUnavailable(
                f"{path} went over into {outbox} when it was set aside: nothing is left to do"
            )
        with self._database.read():  # it is there, and whole enough to be opened
            if os.path.samefile(path, outbox):
                raise OutboxUnavailable(f"{path} is the outbox itself: name no file to salvage it")
        return merge(path, self._database, progress)


@contextlib.contextmanager
def _until(deadline: float, connection: sqlite3.Connection) -> Generator[list[bool]]:
    """Break off what runs on the connection at the deadline; the list is empty if it was."""
    in_time = [True]
    connection.set_progress_handler(
        lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS_AT_THE_CLOCK
    )
    try:
        yield in_time
    except sqlite3.OperationalError:
        if time.monotonic() <= deadline:
            raise
        in_time.clear()
    finally:
        connection.set_progress_handler(None, 0)
