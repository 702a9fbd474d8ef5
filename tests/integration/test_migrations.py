"""How the schema comes to be: step by step, each of them whole or not at all."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import meter_migrations
from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import OutboxUnavailable
from meter_migrations import _runner

if TYPE_CHECKING:
    from collections.abc import Generator

FOLDER = Path(_runner.__file__).parent


@pytest.fixture
def connection(outbox_path: str) -> Generator[sqlite3.Connection, None, None]:
    """An empty file, opened as the outbox opens it: in autocommit mode."""
    connection = sqlite3.connect(outbox_path, isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the runner takes its steps from, with one step in it; see `use_steps`."""
    folder = tmp_path / "steps"
    folder.mkdir()
    monkeypatch.setattr(_runner, "_FOLDER", str(folder))
    (folder / "0001_one.sql").write_text("CREATE TABLE one (x);\n")
    return folder


def use_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the runner look at its folder again."""
    monkeypatch.setattr(_runner, "_MIGRATIONS", _runner._migrations())
    monkeypatch.setattr(_runner, "LATEST", len(_runner._MIGRATIONS))


def state(connection: sqlite3.Connection) -> dict[str, object]:
    """What a migration could have changed."""
    return {
        "version": connection.execute("PRAGMA user_version").fetchone()[0],
        "application": connection.execute("PRAGMA application_id").fetchone()[0],
        "tables": [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master ORDER BY name")
        ],
    }


def test_steps_are_numbered_without_a_gap() -> None:
    """The files are 0001_what.sql, 0002_what.sql and so on, and the last one is the schema."""
    names = sorted(path.name for path in FOLDER.glob("*.sql"))
    numbers = [re.fullmatch(r"(\d{4})_[a-z0-9_]+\.sql", name) for name in names]
    assert [match and int(match[1]) for match in numbers] == list(
        range(1, meter_migrations.LATEST + 1)
    )


@pytest.mark.parametrize(
    "name", ["0003_gap.sql", "0001_twice.sql", "two.sql", "2_short.sql", "0002_Upper.sql"]
)
def test_a_step_with_a_wrong_name_is_found_out(steps: Path, name: str) -> None:
    """A gap, a number used twice or a name of another form is an error before anything runs."""
    (steps / name).write_text("SELECT 1;")
    with pytest.raises(ValueError, match=r"numbered without a gap"):
        _runner._migrations()


def test_an_empty_file_comes_to_the_current_schema(connection: sqlite3.Connection) -> None:
    """From nothing to the newest schema, step by step; the next time nothing is left to do."""
    applied = meter_migrations.migrate(connection)
    assert applied == sorted(path.name for path in FOLDER.glob("*.sql"))
    assert meter_migrations.schema_version(connection) == meter_migrations.LATEST
    before = state(connection)
    assert (meter_migrations.migrate(connection), state(connection)) == ([], before)


def test_only_the_missing_steps_are_applied(
    steps: Path, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older file gets what it lacks, and keeps what is in it."""
    use_steps(monkeypatch)
    assert meter_migrations.migrate(connection) == ["0001_one.sql"]
    connection.execute("INSERT INTO one VALUES (7)")
    (steps / "0002_two.sql").write_text("CREATE TABLE two (y);\nINSERT INTO two SELECT x FROM one;")
    (steps / "0003_three.sql").write_text("CREATE TABLE three (z);")
    use_steps(monkeypatch)
    assert meter_migrations.migrate(connection) == ["0002_two.sql", "0003_three.sql"]
    assert connection.execute("SELECT y FROM two").fetchall() == [(7,)]
    assert state(connection) == {
        "version": 3,
        "application": meter_migrations.APPLICATION_ID,
        "tables": ["one", "three", "two"],
    }


@pytest.mark.parametrize(
    "broken",
    [
        "CREATE TABLE two (y);\nCREATE TABLE one (x);\n",
        "CREATE TABLE two (y);\nINSERT INTO two VALUES (1);\nNONSENSE;\n",
        "DROP TABLE one;\nSELECT * FROM one;\n",
        "CREATE TABLE two (y);\nINSERT INTO two VALUES (1)",
    ],
    ids=["exists", "syntax", "missing", "unfinished"],
)
def test_a_step_that_fails_leaves_nothing_behind(
    steps: Path, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A step is applied whole or not at all; those before it stay, those after it wait."""
    (steps / "0002_broken.sql").write_text(broken)
    (steps / "0003_later.sql").write_text("CREATE TABLE later (z);")
    use_steps(monkeypatch)
    with pytest.raises((sqlite3.OperationalError, ValueError)):
        meter_migrations.migrate(connection)
    assert not connection.in_transaction
    assert state(connection) == {
        "version": 1,
        "application": meter_migrations.APPLICATION_ID,
        "tables": ["one"],
    }
    (steps / "0002_broken.sql").write_text("CREATE TABLE two (y);")
    assert meter_migrations.migrate(connection) == ["0002_broken.sql", "0003_later.sql"]


def test_a_step_may_hold_whatever_sql_holds(
    steps: Path, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triggers, texts with semicolons and comments anywhere are no end of a statement."""
    (steps / "0002_rich.sql").write_text(
        "-- a comment; with a semicolon\n"
        "CREATE TABLE log (entry); -- behind a statement;\n"
        "CREATE TRIGGER note AFTER INSERT ON one BEGIN\n"
        "    INSERT INTO log VALUES ('a;b');\n"
        "    INSERT INTO log VALUES ('--');\n"
        "END;\n"
        "/* another;\n   comment */\n"
        "INSERT INTO one VALUES (1);\n"
        "\n-- the end;\n-- indeed\n"
    )
    use_steps(monkeypatch)
    meter_migrations.migrate(connection)
    assert connection.execute("SELECT entry FROM log").fetchall() == [("a;b",), ("--",)]


def test_a_failing_step_refuses_the_outbox(
    steps: Path, outbox_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outbox whose schema cannot be made is unavailable, and opens once the step is mended."""
    (steps / "0002_broken.sql").write_text("NONSENSE;")
    use_steps(monkeypatch)
    outbox = SqliteOutbox(outbox_path, max_bytes=4 * 2**20)
    with pytest.raises(OutboxUnavailable, match="syntax error"):
        outbox.append([], now=0)
    monkeypatch.undo()
    outbox.close()


def test_a_newer_schema_is_only_read(connection: sqlite3.Connection) -> None:
    """A file of a newer version is refused and stays as it is."""
    meter_migrations.migrate(connection)
    connection.execute(f"PRAGMA user_version = {meter_migrations.LATEST + 7}")
    before = state(connection)
    with pytest.raises(meter_migrations.NewerSchemaError) as refused:
        meter_migrations.migrate(connection)
    assert refused.value.version == meter_migrations.LATEST + 7
    assert state(connection) == before


@pytest.mark.parametrize(
    "theirs", ["CREATE TABLE x (y)", "PRAGMA user_version = 1", "PRAGMA application_id = 5"]
)
def test_another_programs_file_is_only_read(connection: sqlite3.Connection, theirs: str) -> None:
    """A SQLite file that shows any trace of another program is refused and stays as it is."""
    connection.execute(theirs)
    before = state(connection)
    with pytest.raises(meter_migrations.ForeignFileError):
        meter_migrations.migrate(connection)
    assert state(connection) == before


def test_a_reader_sees_all_of_a_migration_or_nothing(
    connection: sqlite3.Connection, outbox_path: str
) -> None:
    """Whoever looks at a file while another process makes its schema takes it for no stranger's."""
    connection.execute("PRAGMA journal_mode = WAL")
    other = sqlite3.connect(outbox_path, isolation_level=None)

    def migrate_meanwhile(statement: str) -> None:
        if "sqlite_master" in statement:
            meter_migrations.migrate(other)

    connection.set_trace_callback(migrate_meanwhile)
    seen = meter_migrations.schema_version(connection)
    connection.set_trace_callback(None)
    other.close()
    assert (seen, meter_migrations.schema_version(connection)) == (0, meter_migrations.LATEST)


MIGRATE = """
import sqlite3, sys, meter_migrations
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("PRAGMA journal_mode = WAL")
print("ready", flush=True)
sys.stdin.readline()
print(len(meter_migrations.migrate(connection)), meter_migrations.schema_version(connection))
"""


def test_any_number_of_processes_may_migrate_at_once(outbox_path: str) -> None:
    """Processes that start together all end with the current schema; each step runs once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, outbox_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate() for process in processes]
    assert {errors for _, errors in answers} == {""}
    # They may take turns: each step is one transaction.
    assert sum(int(output.split()[0]) for output, _ in answers) == meter_migrations.LATEST
    assert {output.split()[1] for output, _ in answers} == {str(meter_migrations.LATEST)}
