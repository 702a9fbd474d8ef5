"""Sets a damaged file aside and puts a new outbox in its place, in steps that may end anywhere.

    1. `NAME.damaged-WHEN.building`  the new outbox is being filled; nothing else has changed
    2. `NAME.damaged-WHEN.new`       it is whole and on the disk: from here on there is no way back
    3. NAME, NAME-wal                get the name NAME.damaged-WHEN, bytes untouched
    4. `NAME.damaged-WHEN.new`       gets the name NAME

Whoever opens the outbox next goes on from 3 or throws away what 1 has left. The folder is
synced after each step. All this happens under the lock file of writers. Other processes
that have the damaged file open see by its log, once they get the lock, that another one
took its place. SQLite itself sees it as well: at the last close it neither empties nor
removes the log of a file that was moved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from typing import TYPE_CHECKING

import meter_migrations
from meter_lib._sqlite.building import building
from meter_lib._sqlite.connection import is_busy, see_callers_out
from meter_lib._sqlite.files import sync_file, sync_folder
from meter_lib.errors import OutboxUnavailable
from meter_lib.usage import shown

if TYPE_CHECKING:
    from meter_lib._sqlite.salvage.rebuilding import Salvaged

__all__ = [
    "DAMAGE_SHOWS_AS",
    "DamagedLog",
    "OutboxSetAside",
    "find_damage",
    "finish",
    "is_damage",
    "replace_damaged",
    "set_aside_files",
    "was_salvaged",
]

_logger = logging.getLogger("meter_lib")

_BUILDING = ".building"
_NEW = ".new"
_SALVAGED = ".salvaged"
_DAMAGE_CODES = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB
# What SQLite says of a schema or a text that is not what it was when our statements were written;
# before Python 3.11 its words are all there is.
_DAMAGE_WORDS = (
    "malformed",
    "not a database",
    "already exists",
    "Could not decode to UTF-8",
    "unsupported file format",
)
# The same, unless it is SQLite that lacks something, such as json_each.
_SCHEMA_WORDS = ("no such table", "no such column", "has no column named")


# What our statements raise on a damaged file, among other occasions: a row that must be there is
# not, or a text is none.
DAMAGE_SHOWS_AS = (sqlite3.Error, TypeError, UnicodeDecodeError)


class DamagedLog(Exception):
    """The log holds what SQLite does not see, and would write over."""


class OutboxSetAside(OutboxUnavailable):
    """The file was damaged: it was set aside, and a new outbox is in its place. Try again."""


def is_damage(error: BaseException, connection: sqlite3.Connection | None = None) -> bool:
    """Return whether an error says that the file itself is damaged, or none of ours.

    A full disk, a missing right, a lock or a device that does not answer is no damage. Where
    a rule was broken or a row is not there, the file is looked through on `connection`.
    """
    # SQLite's own words are no UTF-8 where they quote what is damaged.
    if isinstance(error, (DamagedLog, UnicodeDecodeError)):
        return True
    if isinstance(error.__cause__, meter_migrations.ForeignFileError):
        # Another program's is not ours to move: a path was mistyped.
        return not error.__cause__.is_another_programs
    if isinstance(error, (sqlite3.IntegrityError, TypeError)):
        return connection is not None and find_damage(connection) is not None
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    # From Python 3.11 on there is a code, save where the words are not SQLite's own.
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _DAMAGE_CODES:
        return True
    if any(words in str(error) for words in _SCHEMA_WORDS):
        return connection is not None and _has_another_schema(connection)
    return any(words in str(error) for words in _DAMAGE_WORDS)


def _has_another_schema(connection: sqlite3.Connection) -> bool:
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        meter_migrations.migrate(fresh)
        ours, theirs = (
            one.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
            for one in (fresh, connection)
        )
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return True
    finally:
        fresh.close()
    return bool(ours != theirs)


def find_damage(connection: sqlite3.Connection) -> BaseException | None:
    """Look through the whole file and return what is wrong with it, or None."""
    try:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        (is_balanced,) = connection.execute(
            """
            SELECT max(last_seq, coalesce((SELECT max(seq) FROM events), 0))
                   = delivered_events + removed_events + (SELECT count(*) FROM events)
            FROM outbox
            """
        ).fetchone() or (False,)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        return error if is_damage(error, connection) else None
    if found != "ok":
        return sqlite3.DatabaseError(f"malformed: {found}")
    return None if is_balanced else sqlite3.DatabaseError("malformed: its counts do not add up")


def set_aside_files(path: str) -> list[str]:
    """Return the files that were set aside from this place, the oldest first."""
    return [name for name in _beside(path) if not name.endswith(("-wal", "-shm", _BUILDING, _NEW))]


def was_salvaged(path: str, file: str) -> bool:
    """Return whether this is a file that went over into the outbox at `path` when set aside."""
    file = os.path.realpath(file)
    return file in set_aside_files(path) and not file.endswith(_SALVAGED)


def replace_damaged(
    path: str, error: BaseException | None, connection: sqlite3.Connection | None
) -> None:
    """Where an error says that the file at `path` is damaged, set it aside with its log.

    Then a new outbox is in its place, with all that can be read, `connection` is closed, and
    `OutboxSetAside` is raised. To be called under the lock file. Raises what SQLite and the
    system raise where the new one cannot be written; then the damaged one is untouched, in
    its place.
    """
    if error is None or not is_damage(error, connection):
        return
    if connection is not None:
        _see_callers_out(connection)
    aside = _free_name(path)
    salvaged = _build(path, aside)
    finish(path)
    # Only now: at its last close SQLite would have emptied the log into the damaged file.
    if connection is not None:
        connection.close()
    _logger.error(
        "%s",
        _told(path, aside, str(error.__cause__ or error), salvaged),
        extra={"event": "outbox_set_aside", "outbox": path},
    )
    raise OutboxSetAside(f"{path} was damaged, and a new outbox is in its place") from error


def _see_callers_out(connection: sqlite3.Connection) -> None:
    # What they commit in the damaged file after it was read would not be in the new one.
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        see_callers_out(connection)
    except sqlite3.Error as error:
        # Damaged as it is, it may not be asked.
        if is_busy(error):
            raise


def _build(path: str, aside: str) -> Salvaged:
    from meter_lib._sqlite.salvage.rebuilding import rebuild  # noqa: PLC0415  # hardly ever needed

    unfinished = aside + _BUILDING
    try:
        with building(unfinished) as connection:
            salvaged = rebuild(path, connection)
        sync_file(unfinished)
    except BaseException:
        _remove(unfinished)
        raise
    os.rename(unfinished, aside + _NEW)
    sync_folder(os.path.dirname(path))
    return salvaged


def finish(path: str) -> None:
    """Go on with what was cut short, if anything was. To be called under the lock file."""
    folder = os.path.dirname(path)
    for name in _beside(path):
        if name.endswith(_BUILDING):
            _remove(name)
        elif name.endswith(_NEW):
            aside = name.removesuffix(_NEW)
            if os.path.lexists(path) and os.path.lexists(aside):
                # A program that knows nothing of all this has made another outbox meanwhile.
                os.rename(name, aside + _SALVAGED)
                continue
            _move(f"{path}-wal", f"{aside}-wal")
            _move(path, aside)
            _remove(f"{path}-shm")
            sync_folder(folder)
            os.rename(name, path)
            sync_folder(folder)


def _told(path: str, aside: str, why: str, salvaged: Salvaged) -> str:
    events, dead, dubious, unreadable, is_same_outbox = salvaged
    text = (
        f"{path} is damaged or no outbox ({shown(why, most=80)[1:-1]}): it was set aside as"
        f" {aside}, and a new outbox is in its place. {events} events went over, each under its"
        f" idempotency key ({dead} of them dead letters)"
    )
    if dubious:
        text += f"; {dubious} contradict themselves and became dead letters (reason: damaged)"
    if unreadable:
        text += f"; {unreadable} cannot be read and count as removed"
    if not is_same_outbox:
        text += "; its name and its counts cannot be read either, so that it begins with new ones"
    return text + ". meter-lib doctor tells what to do"


def _free_name(path: str) -> str:
    """Return a name for the file that nothing has, nor had while any part of it is there."""
    taken = _beside(path)
    stem = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    name, number = stem, 1
    while any(other.startswith(name) for other in taken):
        number += 1
        name = f"{stem}.{number}"
    return name


def _beside(path: str) -> list[str]:
    folder, name = os.path.split(path)
    return sorted(
        os.path.join(folder, entry)
        for entry in os.listdir(folder)
        if entry.startswith(f"{name}.damaged-")
    )


def _move(path: str, to: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, to)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
