"""Applies the numbered SQL files of this folder, each in one transaction with its number.

The number of the last one applied is SQLite's `user_version`; it is read again
inside the write lock, so any number of processes may migrate at once.
"""

import os
import sqlite3
from collections.abc import Collection, Iterator
from typing import NamedTuple

__all__ = [
    "APPLICATION_ID",
    "LATEST",
    "ForeignFileError",
    "NewerSchemaError",
    "migrate",
    "schema_version",
]

# "METR": what `file` and we ourselves know an outbox by (SQLite's header, offset 68).
APPLICATION_ID = 0x4D455452

# Two names of these are more than chance, and what is left of a schema of ours has them.
_OURS = frozenset(("outbox", "streams", "events", "links", "accounts", "ledger", "known_keys"))
_TELLING = 2

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class NewerSchemaError(Exception):
    """A newer version made this file. It was only read."""

    def __init__(self, version: int) -> None:
        super().__init__(f"schema {version} is newer than {LATEST}, the newest this version knows")
        self.version = version


class ForeignFileError(Exception):
    """This is a SQLite file of something else, or hardly one any more. It was only read."""

    def __init__(self, tables: Collection[str]) -> None:
        super().__init__("this SQLite file was not made by meter-lib")
        self.is_another_programs = bool(tables) and len(_OURS.intersection(tables)) < _TELLING
        """Whether it holds tables, and they are not ours: then it is no outbox that was damaged."""


class _Migration(NamedTuple):
    number: int
    file_name: str

    def statements(self) -> Iterator[str]:
        """Yield the statements one by one.

        `executescript` is no help here: up to Python 3.11 it commits first, and a
        failing second statement would leave half a schema.
        """
        with open(os.path.join(_FOLDER, self.file_name), encoding="utf-8") as script:
            statement = ""
            for line in script:
                statement += line
                if sqlite3.complete_statement(statement):
                    yield statement
                    statement = ""
        if statement.strip() and not statement.strip().startswith("--"):
            raise ValueError(f"{self.file_name} ends in the middle of a statement")


def _migrations() -> tuple[_Migration, ...]:
    names = sorted(name for name in os.listdir(_FOLDER) if name.endswith(".sql"))
    found: list[_Migration] = []
    for expected, name in enumerate(names, start=1):
        if not name.startswith(f"{expected:04}_") or name != name.lower():
            raise ValueError(f"{name}: migrations are named NNNN_what.sql, numbered without a gap")
        found.append(_Migration(expected, name))
    return tuple(found)


_MIGRATIONS = _migrations()
LATEST = len(_MIGRATIONS)


def schema_version(connection: sqlite3.Connection) -> int:
    """Return the schema's number, 0 for an empty file; change nothing.

    Raises `NewerSchemaError` or `ForeignFileError` where it is not ours to open.
    """
    # All three of one instant: another process may be making the schema meanwhile.
    begin = not connection.in_transaction
    if begin:
        connection.execute("BEGIN")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        is_ours = application_id == APPLICATION_ID or not (application_id or version or tables)
        names = [] if is_ours else connection.execute("SELECT name FROM sqlite_master").fetchall()
    finally:
        if begin and connection.in_transaction:
            connection.execute("COMMIT")
    if not is_ours:
        raise ForeignFileError([name for (name,) in names])
    if version > LATEST:
        raise NewerSchemaError(int(version))
    return int(version)


def migrate(connection: sqlite3.Connection) -> list[str]:
    """Bring the file to the current schema and return the names of the steps applied.

    On return the file has schema `LATEST`. A step that fails is rolled back whole,
    and its error passes through; the steps before it stay. The connection must be
    in autocommit mode (`isolation_level=None`) with no transaction open.
    """
    applied: list[str] = []
    for migration in _MIGRATIONS[schema_version(connection) :]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have been faster: look again, now that nobody else can write.
            if schema_version(connection) < migration.number:
                for statement in migration.statements():
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {migration.number}")
                applied.append(migration.file_name)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return applied
