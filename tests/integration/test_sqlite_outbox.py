"""What is particular to the outbox in a SQLite file: its files, its limit, its cost."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import meter_migrations
from meter_lib import MeterClient
from meter_lib._sqlite import SqliteOutbox, database, file_lock, opening, recorder, room
from meter_lib.errors import OutboxFull, OutboxMissing, OutboxUnavailable, SchemaTooNew
from meter_lib.outbox import Account, Burial, Deferral, Selector, Settlement, Unanswered
from meter_lib.usage import digest, usage_event

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from meter_lib.outbox import DueEvent
    from meter_lib.usage import UsageEvent

NOON = 1_760_000_000_000
MIB = 2**20
ALLOWED_OVER_LIMIT = 256 * 1024


def use(units: int = 1, *, tenant: str = "t", device: str = "d", **said: Any) -> UsageEvent:
    """An event, with what differs."""
    return usage_event(tenant, device, "m", units, **said)


def due(outbox: SqliteOutbox, *, now: int = NOON, limit: int = 100_000) -> list[DueEvent]:
    """What is due, without a limit that matters."""
    return outbox.due(now=now, limit=limit, max_bytes=2**30)


def connection_of(outbox: SqliteOutbox) -> sqlite3.Connection:
    """The connection inside, for a look at what it does."""
    connection = outbox._database._connection
    assert connection is not None
    return connection


def pragma(outbox: SqliteOutbox, name: str) -> object:
    """The setting of the connection inside."""
    return connection_of(outbox).execute(f"PRAGMA {name}").fetchone()[0]


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with its content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def disk_bytes(path: str) -> int:
    """What the limit is about: the bytes of database, write-ahead log and reserve."""
    return sum(
        os.path.getsize(path + end)
        for end in ("", "-wal", ".reserve")
        if os.path.exists(path + end)
    )


@pytest.fixture
def opened(outbox_path: str) -> Generator[Callable[..., SqliteOutbox], None, None]:
    """Open an outbox, by default at this test's place; all are closed at the end."""
    outboxes: list[SqliteOutbox] = []

    def open_it(path: str = outbox_path, max_bytes: int = 64 * MIB, **how: Any) -> SqliteOutbox:
        outboxes.append(SqliteOutbox(path, max_bytes=max_bytes, **how))
        return outboxes[-1]

    yield open_it
    for outbox in outboxes:
        outbox.close()


@pytest.fixture
def outbox(opened: Callable[..., SqliteOutbox]) -> SqliteOutbox:
    """An outbox that nothing was recorded in yet."""
    return opened()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for a lock or a reader for longer than tests can afford."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(room, "_PATIENCE_SECONDS", 0)


# -- how the file is written ----------------------------------------------------------


def test_a_post_is_synced_and_a_settlement_is_not(outbox: SqliteOutbox) -> None:
    """A post is on the disk at its commit; settling leaves the sync to a later post."""
    outbox.append([use()], now=NOON)
    assert (pragma(outbox, "journal_mode"), pragma(outbox, "synchronous")) == ("wal", 2)
    outbox.settle(Settlement(delivered=due(outbox)), now=NOON)
    assert pragma(outbox, "synchronous") == 1
    outbox.append([use()], now=NOON)
    assert pragma(outbox, "synchronous") == 2


def test_a_post_of_normal_durability_is_not_synced(opened: Callable[..., SqliteOutbox]) -> None:
    """Whoever asks for less durability gets it for posts, too."""
    outbox = opened(durability="normal")
    outbox.append([use()], now=NOON)
    assert pragma(outbox, "synchronous") == 1


def test_a_post_writes_one_page(outbox: SqliteOutbox, outbox_path: str) -> None:
    """A lone event adds a single page of 1 KiB to the log: flash wears by what is written."""
    outbox.append([use(idempotency_key=None)], now=NOON)
    before = os.path.getsize(f"{outbox_path}-wal")
    outbox.append([use()], now=NOON)
    assert os.path.getsize(f"{outbox_path}-wal") - before == 1024 + 24


def test_the_file_says_what_it_is(outbox: SqliteOutbox, outbox_path: str) -> None:
    """Header fields name the program and the schema, for us and for file(1)."""
    outbox.append([use()], now=NOON)
    outbox.close()
    with open(outbox_path, "rb") as file:
        header = file.read(100)
    assert (header[:16], header[68:72], int.from_bytes(header[60:64], "big")) == (
        b"SQLite format 3\0",
        b"METR",
        meter_migrations.LATEST,
    )


# -- files and who may read them ------------------------------------------------------


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(
    ("folder_mode", "file_mode"), [(0o700, 0o600), (0o755, 0o600), (0o2770, 0o660)]
)
def test_only_a_set_group_id_folder_is_shared(
    opened: Callable[..., SqliteOutbox],
    tmp_path: Path,
    umask: int,
    folder_mode: int,
    file_mode: int,
) -> None:
    """Every file is 0600, or 0660 where the folder is shared on purpose, whatever the umask."""
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(folder_mode)
    before = os.umask(umask)
    try:
        outbox = opened(str(folder / "outbox.db"))
        outbox.append([use()], now=NOON)
        assert outbox.try_hold()
    finally:
        os.umask(before)
    assert _modes(folder) == {
        "outbox.db": file_mode,
        "outbox.db-wal": file_mode,
        "outbox.db-shm": file_mode,
        "outbox.db.lock": file_mode,
        "outbox.db.flusher": file_mode,
        "outbox.db.reserve": file_mode,
        "outbox.db.turn": file_mode,
    }


def test_folders_are_made_for_their_owner_alone(
    opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """Missing folders are made with mode 0700, those that are there stay as they are."""
    before = os.umask(0)
    try:
        opened(str(tmp_path / "a" / "b" / "outbox.db")).append([use()], now=NOON)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [
        0o700,
        0o700,
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may give files away")
def test_a_command_run_as_root_locks_nobody_out(
    opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """What root makes belongs to the folder's owner, as the files that SQLite makes do."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 4711, 4712)
    outbox = opened(str(folder / "outbox.db"))
    outbox.append([use()], now=NOON)
    assert outbox.try_hold()
    assert {(path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()} == {(4711, 4712)}


@pytest.mark.parametrize(
    "name",
    ["100%25.db", "what?mode=memory.db", "a#b.db", "a b.db", "Ä東京.db", "a'b\"c.db", "a&b=c;d.db"],
)
@pytest.mark.parametrize("lead", ["", "/"], ids=["absolute", "two slashes"])
def test_any_path_is_just_a_path(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, name: str, lead: str
) -> None:
    """No character of a path means anything to us: the file is where the caller says."""
    outbox = opened(f"{lead}{tmp_path}/{name}")
    outbox.append([use()], now=NOON)
    outbox.close()
    assert set(files_in(tmp_path)) == {name, f"{name}.lock", f"{name}.reserve", f"{name}.turn"}


def test_a_link_and_its_target_are_one_outbox(
    opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """Through a symbolic link, too, all use the same locks and see the same log."""
    (tmp_path / "link.db").symlink_to(tmp_path / "outbox.db")
    behind_link = opened(str(tmp_path / "link.db"))
    behind_link.append([use(1)], now=NOON)
    direct = opened(str(tmp_path / "outbox.db"))
    direct.append([use(2)], now=NOON)
    assert behind_link.try_hold()
    assert (direct.try_hold(), len(due(direct)), behind_link.location) == (
        False,
        2,
        str((tmp_path / "outbox.db").resolve()),
    )
    assert behind_link.status().bytes == disk_bytes(direct.location)


# -- files that are not ours ----------------------------------------------------------


def _newer_outbox(path: str) -> None:
    SqliteOutbox(path, max_bytes=4 * MIB).close()
    outbox = SqliteOutbox(path, max_bytes=4 * MIB)
    outbox.append([use()], now=NOON)
    outbox.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {meter_migrations.LATEST + 1}")
    connection.close()


def _foreign_database(path: str, mode: str = "DELETE") -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("INSERT INTO theirs VALUES (1)")
    connection.close()


def _foreign_wal_database(path: str) -> None:
    _foreign_database(path, "WAL")


def _foreign_version(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()


def _text(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("Dear diary, today I was nearly taken for a database. " * 50)


NOT_OURS = pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (_newer_outbox, SchemaTooNew, "newer version"),
        (_foreign_database, OutboxUnavailable, "not an outbox"),
        (_foreign_wal_database, OutboxUnavailable, "not an outbox"),
        (_foreign_version, OutboxUnavailable, "not an outbox"),
        (_text, OutboxUnavailable, "not a database"),
    ],
)


@NOT_OURS
def test_a_file_that_is_not_ours_is_left_untouched_by_reading(
    opened: Callable[..., SqliteOutbox],
    tmp_path: Path,
    outbox_path: str,
    make: Callable[[str], None],
    error: type[Exception],
    says: str,
) -> None:
    """A newer outbox, another program's database and a plain file are refused, byte for byte."""
    make(outbox_path)
    before = files_in(tmp_path)
    outbox = opened(read_only=True)
    with pytest.raises(error, match=says):
        outbox.status()
    outbox.close()
    after = files_in(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_newer_outbox_is_left_untouched(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, outbox_path: str
) -> None:
    """Nothing is recorded into what a newer version made, and nothing of it is changed."""
    _newer_outbox(outbox_path)
    before = files_in(tmp_path)
    outbox = opened()
    with pytest.raises(SchemaTooNew, match="newer version"):
        outbox.status()
    with pytest.raises(SchemaTooNew, match="newer version"):
        outbox.append([use()], now=NOON)
    outbox.close()
    after = files_in(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"outbox.db.lock", "outbox.db.turn"}


def test_a_folder_in_its_place_is_named(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, outbox_path: str
) -> None:
    """Where a folder stands at the path, the error says so."""
    (tmp_path / "outbox.db").mkdir()
    with pytest.raises(OutboxUnavailable, match=f"{re.escape(outbox_path)} .*[Dd]irectory"):
        opened().append([use()], now=NOON)


def test_a_reader_is_told_which_rights_it_lacks(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, outbox_path: str
) -> None:
    """Reading makes a file beside the outbox: where it may not, the error says what is needed."""
    writer = opened()
    writer.append([use()], now=NOON)
    writer.close()
    os.chmod(outbox_path, 0o444)
    tmp_path.chmod(0o555)
    for folder in tmp_path.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(0o755)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    try:
        with pytest.raises(OutboxUnavailable, match="able to read and write it and its folder"):
            opened(read_only=True).status()
    finally:
        os.seteuid(was)
        tmp_path.chmod(0o755)


def _pipe(path: str) -> None:
    os.mkfifo(path)


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # By its name alone: the path of a socket has to be short.
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        os.close(folder)


@pytest.mark.parametrize("make", [_pipe, _socket])
@pytest.mark.parametrize("read_only", [False, True], ids=["writing", "reading"])
def test_a_pipe_or_a_socket_in_its_place_stays(
    opened: Callable[..., SqliteOutbox],
    outbox_path: str,
    make: Callable[[str], None],
    *,
    read_only: bool,
) -> None:
    """What looks like an empty file and is none, such as a device, is not replaced by an outbox."""
    make(outbox_path)
    before = os.stat(outbox_path)
    outbox = opened(read_only=read_only)
    with pytest.raises(OutboxUnavailable, match="a device, a pipe or a socket"):
        outbox.status()
    after = os.stat(outbox_path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_an_empty_file_becomes_an_outbox(
    opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """A file that was made but never written, as after a crash, is nobody's: it becomes ours."""
    (tmp_path / "outbox.db").touch()
    outbox = opened()
    outbox.append([use()], now=NOON)
    assert outbox.status().accepted == 1


# -- reading only ---------------------------------------------------------------------


def test_reading_makes_no_outbox(opened: Callable[..., SqliteOutbox], tmp_path: Path) -> None:
    """Where there is no outbox, a reader says so and leaves the disk as it was."""
    for path in (tmp_path / "outbox.db", tmp_path / "no" / "folder" / "outbox.db"):
        outbox = opened(str(path), read_only=True)
        with pytest.raises(OutboxMissing, match=re.escape(str(path))):
            outbox.status()
        assert outbox.holder() is None
    assert list(tmp_path.iterdir()) == []


def test_reading_beside_a_writer_makes_no_file(
    outbox: SqliteOutbox, opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """A reader sees what the writer committed, and adds nothing to the folder."""
    outbox.append([use(1)], now=NOON)
    before = set(files_in(tmp_path))
    reader = opened(read_only=True)
    assert reader.status().pending == 1
    outbox.append([use(2)], now=NOON)
    assert [event.total_usage for event in due(reader)] == [1, 2]
    reader.close()
    assert set(files_in(tmp_path)) == before


def test_a_reader_cannot_write(
    outbox: SqliteOutbox, opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """An outbox that was opened for reading takes nothing in, and changes no byte."""
    outbox.append([use()], now=NOON)
    outbox.close()
    before = files_in(tmp_path)["outbox.db"]
    reader = opened(read_only=True)
    assert reader.status().pending == 1
    with pytest.raises(OutboxUnavailable, match="readonly"):
        reader.append([use()], now=NOON)
    reader.close()
    assert files_in(tmp_path)["outbox.db"] == before


def test_an_older_schema_is_named_to_readers(
    opened: Callable[..., SqliteOutbox], tmp_path: Path
) -> None:
    """A reader does not migrate: it says what to run."""
    (tmp_path / "outbox.db").touch()
    with pytest.raises(OutboxUnavailable, match=r"schema 0, .* run: meter-lib migrate"):
        opened(read_only=True).status()


# -- impossible states ----------------------------------------------------------------


@pytest.mark.parametrize(
    "impossible",
    [
        "UPDATE events SET state = 'lost'",
        "UPDATE events SET state = 'dead'",
        "UPDATE events SET state = 'dead', reason = 'r'",
        "UPDATE events SET state = 'dead', dead_at = 1",
        "UPDATE events SET reason = 'r'",
        "UPDATE events SET dead_at = 1",
        "UPDATE events SET attempts = 1",
        "UPDATE events SET attempts = -1, state = 'deferred'",
        "UPDATE events SET refused_after = 0",
        "UPDATE events SET total_usage = -1",
        "UPDATE events SET payload = NULL",
        "UPDATE events SET stream_id = NULL",
        "UPDATE events SET idempotency_key = NULL",
        "UPDATE outbox SET delivered_events = -1",
        "UPDATE outbox SET removed_events = -1",
        "UPDATE outbox SET dead_events = -1",
        "UPDATE outbox SET last_seq = -1",
        "UPDATE outbox SET frontier = -1",
        "INSERT INTO outbox (id, outbox_id, created_at) VALUES (2, 'x', 1)",
        "INSERT INTO streams (tenant_id, device_id, meter_id) VALUES ('t', 'd', 'm')",
        "INSERT INTO known_keys SELECT seq + 1, key_digest, fingerprint, 1, 1, 0 FROM known_keys",
        "INSERT INTO ledger (day, stream_id, delivered_events) VALUES (1, 1, -1)",
        "INSERT INTO ledger (day, stream_id, removed_events) VALUES (1, 1, -1)",
        "INSERT INTO links (name, failures) VALUES ('events', 1)",
        "INSERT INTO links (name, down_since) VALUES ('events', 1)",
        "INSERT INTO links (name, failures, down_since) VALUES ('events', -1, 1)",
        "INSERT INTO accounts (tenant_id, customer_id, answered_at, misses) VALUES ('t', '', 1, 1)",
        "INSERT INTO accounts (tenant_id, answered_at, misses) VALUES ('t', 1, -1)",
    ],
)
def test_the_file_itself_refuses_impossible_states(outbox: SqliteOutbox, impossible: str) -> None:
    """The state machine holds for whoever writes to the file, this library's faults included."""
    outbox.append([use(idempotency_key="k")], now=NOON)
    outbox.close()
    connection = sqlite3.connect(outbox.location)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(impossible)
    connection.close()


# -- who is in the way ----------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_lock_that_is_never_given_back_ends_in_an_error(outbox: SqliteOutbox) -> None:
    """Where another process is stuck in its commit, posts are refused in bounded time."""
    outbox.append([use()], now=NOON)
    with open(f"{outbox.location}.lock", "rb") as stuck:
        fcntl.flock(stuck, fcntl.LOCK_EX)
        with pytest.raises(OutboxUnavailable, match="is locked: another process"):
            outbox.append([use()], now=NOON)
        assert len(due(outbox)) == 1
    outbox.append([use()], now=NOON)
    assert len(due(outbox)) == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_stranger_in_a_transaction_ends_in_an_error(
    opened: Callable[..., SqliteOutbox], outbox_path: str, kind: str
) -> None:
    """Where another program holds SQLite's own lock, posts are refused in bounded time."""
    outbox = opened()
    outbox.append([use()], now=NOON)
    stranger = sqlite3.connect(outbox_path, isolation_level=None)
    stranger.execute(f"BEGIN {kind}")
    with pytest.raises(OutboxUnavailable, match="is locked: another connection"):
        outbox.append([use()], now=NOON)
    stranger.execute("ROLLBACK")
    stranger.close()
    outbox.append([use()], now=NOON)
    assert len(due(outbox)) == 2


def test_a_hold_ends_with_its_holder(outbox: SqliteOutbox) -> None:
    """A flusher that is killed leaves no hold behind, and no clock is asked."""
    script = (
        "import sys; from meter_lib._sqlite import SqliteOutbox;"
        f"outbox = SqliteOutbox({outbox.location!r}, max_bytes=4 << 20);"
        "print(outbox.try_hold(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as flusher:
        assert flusher.stdout is not None
        assert flusher.stdout.readline() == "True\n"
        assert (outbox.try_hold(), outbox.holder()) == (False, flusher.pid)
        flusher.kill()
        flusher.wait()
    assert (outbox.holder(), outbox.try_hold()) == (None, True)


class _Interrupted:
    """A connection whose user presses Ctrl-C at the end of a statement, once."""

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self._connection = connection
        self._statement = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Run the statement, and then raise if it is the one."""
        result = self._connection.execute(statement, *parameters)
        if self._statement and statement.strip().startswith(self._statement):
            self._statement = ""
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize(
    ("statement", "key", "recorded"),
    [
        ("BEGIN IMMEDIATE", "k", [1, 3]),
        ("COMMIT", "k", [1, 2, 3]),
        # A lone post of a known stream is one statement.
        ("INSERT INTO events", None, [1, 2, 3]),
    ],
)
def test_an_interrupted_post_does_no_harm(
    outbox: SqliteOutbox,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    key: str | None,
    recorded: list[int],
) -> None:
    """Ctrl-C in the middle of a post leaves it whole or not at all, and the outbox in order."""
    outbox.append([use(1)], now=NOON)
    interrupted = _Interrupted(connection_of(outbox), statement)
    monkeypatch.setattr(outbox._database, "_connection", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outbox.append([use(2, idempotency_key=key)], now=NOON)
    outbox.append([use(3)], now=NOON)
    assert [event.total_usage for event in due(outbox)] == recorded


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT"])
def test_an_interrupted_look_does_no_harm(
    outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Ctrl-C while somebody looks leaves the outbox in order."""
    outbox.append([use(1)], now=NOON)
    interrupted = _Interrupted(connection_of(outbox), statement)
    monkeypatch.setattr(outbox._database, "_connection", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outbox.status()
    outbox.append([use(2)], now=NOON)
    assert outbox.status().accepted == 2


FORKED = """
import os, sys
from meter_lib._sqlite import SqliteOutbox, database
from meter_lib.errors import OutboxUnavailable
from meter_lib.usage import usage_event

def append():
    try:
        return outbox.append([usage_event("t", "d", "m", 1)], now=1)[0]["status"]
    except OutboxUnavailable as error:
        return "refused"

def in_child(*questions):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, repr([ask() for ask in questions]).encode())
        os._exit(0)
    os.wait()
    return os.read(read, 1000).decode()

database._LOCK_TIMEOUT_SECONDS = 0.05
outbox = SqliteOutbox(sys.argv[1], max_bytes=4 << 20)
print(append(), outbox.try_hold())
print(in_child(lambda: outbox._database._connection, outbox.try_hold, append))
with outbox._database._exclusive():
    print(in_child(append))
print(in_child(append), outbox.holder() == os.getpid(), append(), outbox.status().accepted)
"""


def test_a_child_shares_no_lock_with_its_parent(outbox_path: str) -> None:
    """After a fork the parent's locks are the parent's: the child waits for them like any other."""
    forked = subprocess.run(
        [sys.executable, "-c", FORKED, outbox_path], capture_output=True, text=True, check=False
    )
    assert (forked.stdout.splitlines(), forked.stderr) == (
        [
            "queued True",
            "[None, False, 'queued']",
            "['refused']",
            "['queued'] True queued 4",
        ],
        "",
    )


def test_a_full_disk_keeps_no_flusher_from_its_work(
    outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold counts also where its process id cannot be written down."""

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    outbox.append([use()], now=NOON)
    monkeypatch.setattr(file_lock.os, "pwrite", no_space)
    assert (outbox.try_hold(), outbox.holder()) == (True, 0)


def test_a_post_from_a_signal_handler_does_no_harm(
    outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that interrupts a post is refused, and the one that it interrupts is whole."""
    outbox.append([use(1)], now=NOON)
    refused: list[OutboxUnavailable] = []

    def post(*_: object) -> None:
        try:
            outbox.append([use(2)], now=NOON)
        except OutboxUnavailable as error:
            refused.append(error)

    def interrupted(size: int) -> bytes:
        signal.raise_signal(signal.SIGUSR1)
        return bytes(size)

    before = signal.signal(signal.SIGUSR1, post)
    monkeypatch.setattr(recorder.os, "urandom", interrupted)
    try:
        outbox.append([use(3)], now=NOON)
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.undo()
    outbox.append([use(4)], now=NOON)
    assert ([event.total_usage for event in due(outbox)], len(refused)) == ([1, 3, 4], 1)


# -- the file is moved, removed or replaced -------------------------------------------


def _move_away(folder: Path) -> None:
    for path in list(folder.glob("outbox.db*")):
        path.rename(folder.parent / f"moved-{path.name}")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_events_never_go_to_a_file_that_nobody_would_find(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, closed: bool
) -> None:
    """Where the file was moved away, the next event starts a new one in its place."""
    folder = tmp_path / "folder"
    outbox = opened(str(folder / "outbox.db"))
    outbox.append([use(1), use(2, device="other")], now=NOON)
    first_id = outbox.outbox_id
    if closed:
        outbox.close()
    _move_away(folder)
    outbox.append([use(3, device="other")], now=NOON)
    assert [event.total_usage for event in due(outbox)] == [3]
    assert outbox.outbox_id != first_id
    moved = opened(str(tmp_path / "moved-outbox.db"))
    assert ([event.total_usage for event in due(moved)], moved.outbox_id) == ([1, 2], first_id)


def test_a_restored_copy_is_taken_as_it_is(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, outbox_path: str
) -> None:
    """Where another outbox took its place, events go to that one, under its own numbers."""
    outbox = opened()
    outbox.append([use(1, device="a"), use(2, device="b")], now=NOON)
    other = opened(str(tmp_path / "other.db"))
    other.append([use(3, device="b")], now=NOON)
    other.close()
    outbox.close()
    os.replace(tmp_path / "other.db", outbox_path)
    outbox.append([use(4, device="b"), use(5, device="a")], now=NOON)
    assert [(event.seq, event.device_id, event.total_usage) for event in due(outbox)] == [
        (1, "b", 3),
        (2, "b", 4),
        (3, "a", 5),
    ]


# -- the limit ------------------------------------------------------------------------


SMALLEST = 4 * MIB


class _Measured:
    """An outbox of the smallest size, measured after every call."""

    def __init__(self, outbox: SqliteOutbox) -> None:
        self._outbox = outbox
        self.peak_bytes = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def measured(*arguments: Any, **named: Any) -> Any:
            try:
                return getattr(self._outbox, name)(*arguments, **named)
            finally:
                self.peak_bytes = max(self.peak_bytes, disk_bytes(self._outbox.location))

        return measured


@pytest.fixture
def smallest(opened: Callable[..., SqliteOutbox]) -> Generator[Any, None, None]:
    """An outbox of 4 MiB; at the end it must never have been larger."""
    measured = _Measured(opened(max_bytes=SMALLEST))
    yield measured
    assert measured.peak_bytes <= SMALLEST + ALLOWED_OVER_LIMIT


def _fill(outbox: SqliteOutbox, make: Callable[[int], UsageEvent], first: int = 0) -> int:
    """Record from this event on until the outbox takes not one more; return how many it took."""
    taken, batch = 0, 100
    while batch:
        start = first + taken
        try:
            outbox.append([make(number) for number in range(start, start + batch)], now=NOON)
            taken += batch
        except OutboxFull:
            batch //= 10
    return taken


def _deliver_everything(outbox: SqliteOutbox, *, now: int) -> int:
    delivered = 0
    while True:
        batch = due(outbox, now=now, limit=500)
        if not batch:
            return delivered
        behind = [event for event in batch if event.held]
        outbox.queue(behind)
        ready = [event for event in batch if not event.held]
        outbox.settle(Settlement(delivered=ready), now=now)
        delivered += len(ready)


KINDS = pytest.mark.parametrize(
    "make",
    [
        lambda n: use(n, tenant=f"t{n % 3}"),
        lambda n: use(n, metadata={"x": "é" * 400}),
        lambda n: use(n, metadata={str(k): "y" * 8_000 for k in range(n % 7)}),
        lambda n: use(
            n, device=f"d{n % 500}", idempotency_key=hashlib.sha256(b"%d" % n).hexdigest()
        ),
    ],
    ids=["small", "page", "large", "own keys"],
)


@KINDS
def test_a_full_outbox_empties_and_fills_again(
    smallest: Any, make: Callable[[int], UsageEvent]
) -> None:
    """At the limit posts are refused; delivery goes on, and then as many posts fit as before."""
    taken = _fill(smallest, make)
    with pytest.raises(OutboxFull, match=r"is full: .*METER_MAX_BYTES"):
        smallest.append([make(taken)], now=NOON)
    assert _deliver_everything(smallest, now=NOON) == taken
    again = _fill(smallest, make, first=taken)
    assert again > taken * 0.6
    assert smallest.status().accepted == taken + again


@KINDS
def test_a_full_outbox_lets_one_stream_wait_while_others_go_on(
    smallest: Any, make: Callable[[int], UsageEvent]
) -> None:
    """Setting aside what must wait needs room, which posts leave free again and again."""
    now, taken = NOON, 0
    for _ in range(3):
        taken += _fill(smallest, make, first=taken)
        for _ in range(100):
            batch = due(smallest, now=now)
            if not batch:
                break
            smallest.queue([event for event in batch if event.held])
            smallest.settle(
                Settlement(deferred=[Deferral(e, now + 50, True) for e in batch if not e.held]),
                now=now,
            )
        now += 100
        part = due(smallest, now=now)
        smallest.settle(Settlement(delivered=part), now=now)
        assert part
    status = smallest.status()
    assert status.delivered + status.pending == status.accepted == taken


def test_what_one_process_frees_another_fills(opened: Callable[..., SqliteOutbox]) -> None:
    """The file may have become larger than events may fill: its free pages are free for posts."""
    poster, flusher = opened(max_bytes=SMALLEST), opened(max_bytes=SMALLEST)
    taken = _fill(poster, lambda n: use(n, tenant=f"t{n % 3}"))
    while batch := due(flusher):
        flusher.queue(batch)
        flusher.settle(Settlement(deferred=[Deferral(batch[0], NOON + 50, False)]), now=NOON)
    assert _deliver_everything(flusher, now=NOON + 50) == taken
    for _ in range(taken // 20):
        poster.append([use()] * 10, now=NOON)


def test_a_full_outbox_buries_replays_and_purges(smallest: Any) -> None:
    """Dead letters need room for their reasons; operators can always make room again."""
    taken = _fill(smallest, lambda n: use(n, device=f"d{n % 9}", metadata={"x": "y" * 200}))
    for _ in range(taken // 200):
        batch = due(smallest, limit=50)
        smallest.settle(
            Settlement(
                buried=[Burial(event, "rejected", "42201: " + "z" * 100) for event in batch]
            ),
            now=NOON,
        )
    seqs = [dead.seq for dead in smallest.dead_letters(Selector())]
    half = len(seqs) // 2
    assert smallest.replay(seqs[:half], now=NOON) == half
    assert smallest.purge(seqs[half:]) == len(seqs) - half
    smallest.append([use()], now=NOON)
    status = smallest.status()
    assert (status.removed, status.pending) == (
        len(seqs) - half,
        taken + 1 - (len(seqs) - half),
    )


def test_a_list_that_no_commit_can_hold_is_refused_as_such(smallest: Any) -> None:
    """A list too large for the outbox is refused whole, and the message says what to do."""
    with pytest.raises(OutboxFull, match="record fewer events at a time"):
        smallest.append([use(metadata={"x": "y" * 8_000})] * 500, now=NOON)
    assert smallest.status().accepted == 0


@pytest.mark.parametrize("dead", [0, 1, 500], ids=["all", "but one dead letter", "but many"])
def test_a_drained_outbox_gives_its_space_back(
    opened: Callable[..., SqliteOutbox], outbox_path: str, dead: int
) -> None:
    """The file shrinks to what is still in it, and all goes on as before."""
    outbox = opened()
    for number in range(dead):
        outbox.append([use(number, metadata={"x": "y" * 300})], now=NOON)
    outbox.settle(
        Settlement(buried=[Burial(event, "rejected", "no") for event in due(outbox)]), now=NOON
    )
    before = os.path.getsize(f"{outbox_path}-wal")
    for _ in range(40):
        outbox.append([use(metadata={"x": "y" * 300})] * 250, now=NOON)
    full = disk_bytes(outbox_path)
    assert full > 5 * MIB
    first_id = outbox.outbox_id
    assert _deliver_everything(outbox, now=NOON) == 10_000
    assert disk_bytes(outbox_path) < MIB * 3 + dead * 1024 + before
    assert os.path.getsize(outbox_path) < full / 4
    outbox.close()
    again = opened()
    again.append([use(7)], now=NOON)
    assert ([event.seq for event in due(again)], again.outbox_id) == ([10_001 + dead], first_id)
    assert len(list(again.dead_letters(Selector()))) == dead


def test_a_file_with_much_left_in_it_is_not_copied(opened: Callable[..., SqliteOutbox]) -> None:
    """Giving space back costs little: where an eighth or more is in use, nothing is moved."""
    outbox = opened()
    for _ in range(40):
        outbox.append([use(metadata={"x": "y" * 300})] * 250, now=NOON)
    statements: list[str] = []
    connection_of(outbox).set_trace_callback(statements.append)
    for _ in range(17):
        outbox.settle(Settlement(delivered=due(outbox, limit=500)), now=NOON)
    assert "VACUUM" not in statements
    _deliver_everything(outbox, now=NOON)
    assert 0 < statements.count("VACUUM") < 4


def test_many_keys_leave_room_for_events(smallest: Any) -> None:
    """What is remembered of delivered events stays a small part, however long their keys."""
    for batch in range(60):
        events = [use(idempotency_key=os.urandom(127).hex()) for _ in range(100)]
        smallest.append(events, now=NOON)
        assert _deliver_everything(smallest, now=NOON) == 100, batch
    assert _fill(smallest, use) > 5_000


def test_keys_are_forgotten_in_the_end(outbox: SqliteOutbox) -> None:
    """Of events that are gone only so many keys are remembered; of events that are here, all."""
    outbox._remembered_keys = 10
    outbox.append([use(idempotency_key=f"k{number}") for number in range(100)], now=NOON)
    waiting, *others = due(outbox)
    for event in others:
        outbox.settle(Settlement(delivered=[event]), now=NOON)

    def known_keys() -> list[str]:
        return [
            f"k{number}"
            for number in range(100)
            if connection_of(outbox)
            .execute("SELECT 1 FROM known_keys WHERE key_digest = ?", (digest(f"k{number}"),))
            .fetchone()
        ]

    assert known_keys() == ["k0", *(f"k{number}" for number in range(90, 100))]
    outbox.settle(Settlement(delivered=[waiting]), now=NOON)
    assert known_keys() == [f"k{number}" for number in range(90, 100)]


@pytest.mark.usefixtures("impatient")
def test_a_reader_that_never_ends_cannot_make_the_log_grow(smallest: Any) -> None:
    """While another program keeps the log from being emptied, it is full: for both sides."""
    smallest.append([use(metadata={"x": "y" * 500})] * 100, now=NOON)
    reader = sqlite3.connect(smallest._outbox.location, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    _fill(smallest, lambda n: use(n, metadata={"x": "y" * 500}))
    with pytest.raises(OutboxFull, match="while another program reads the file"):
        smallest.append([use()] * 100, now=NOON)
    with pytest.raises(OutboxFull, match="while another program reads the file"):
        due(smallest)
    reader.close()
    smallest.append([use()], now=NOON)
    assert _deliver_everything(smallest, now=NOON) == smallest.status().accepted


# -- the cost -------------------------------------------------------------------------

FEW, MANY = 200, 20_000


def _pending(outbox: SqliteOutbox, count: int) -> None:
    for start in range(0, count, 1_000):
        outbox.append([use(tenant="heap")] * min(1_000, count - start), now=NOON)


def _deferred(outbox: SqliteOutbox, count: int) -> None:
    _pending(outbox, count)
    while batch := due(outbox):
        outbox.queue(batch)
        outbox.settle(
            Settlement(deferred=[Deferral(batch[0], NOON + 60_000, counts=True)]), now=NOON
        )


def _deferred_streams(outbox: SqliteOutbox, count: int) -> None:
    for start in range(0, count, 1_000):
        devices = range(start, min(start + 1_000, count))
        outbox.append([use(device=f"heap-{number}") for number in devices], now=NOON)
    while batch := due(outbox):
        outbox.settle(
            Settlement(deferred=[Deferral(event, NOON + 60_000, counts=True) for event in batch]),
            now=NOON,
        )


def _refused(outbox: SqliteOutbox, count: int) -> None:
    _pending(outbox, count)
    while batch := due(outbox):
        outbox.settle(Settlement(refused=batch), now=NOON)


def _dead(outbox: SqliteOutbox, count: int) -> None:
    _pending(outbox, count)
    while batch := due(outbox):
        outbox.settle(Settlement(buried=[Burial(e, "rejected", "no") for e in batch]), now=NOON)


def _dead_with_keys(outbox: SqliteOutbox, count: int) -> None:
    for start in range(0, count, 1_000):
        numbers = range(start, min(start + 1_000, count))
        outbox.append([use(idempotency_key=f"heap-{number}") for number in numbers], now=NOON)
    while batch := due(outbox):
        outbox.settle(Settlement(buried=[Burial(e, "rejected", "no") for e in batch]), now=NOON)
    # As if far more had been recorded since than keys are remembered.
    outbox._remembered_keys = 0
    for _ in range(3):
        outbox.append([use(tenant="since")], now=NOON)
        outbox.settle(Settlement(delivered=due(outbox)), now=NOON)


def _delivered(outbox: SqliteOutbox, count: int) -> None:
    _pending(outbox, count)
    _deliver_everything(outbox, now=NOON)


HEAPS = [
    _pending,
    _deferred,
    _deferred_streams,
    _refused,
    _dead,
    _dead_with_keys,
    _delivered,
]


def _steps(outbox: SqliteOutbox, action: Callable[[], object]) -> int:
    """Run it and return how many steps SQLite's virtual machine made for it."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection = connection_of(outbox)
    connection.set_progress_handler(count, 1)
    action()
    connection.set_progress_handler(None, 1)
    return steps


def _costs(outbox: SqliteOutbox) -> dict[str, int]:
    """What each thing costs that poster, flusher and operator do all the time."""
    later = NOON + 1_000
    costs = {
        "append": _steps(outbox, lambda: outbox.append([use(tenant="new")], now=NOON)),
        "append with key": _steps(
            outbox, lambda: outbox.append([use(tenant="new", idempotency_key="k")], now=NOON)
        ),
        "append a duplicate": _steps(
            outbox, lambda: outbox.append([use(tenant="new", idempotency_key="k")], now=NOON)
        ),
        "due": _steps(outbox, lambda: due(outbox, now=later, limit=20)),
        "suspects": _steps(outbox, lambda: outbox.suspects(limit=20, proven_only=True)),
        "next_due_at": _steps(outbox, outbox.next_due_at),
        "accepted": _steps(outbox, outbox.accepted),
    }
    events = due(outbox, now=later, limit=20)
    first, second, third, fourth, fifth, sixth, *_ = events + [None] * 6
    if sixth is not None:
        costs["due beside"] = _steps(
            outbox,
            lambda: outbox.due(
                now=later,
                limit=20,
                max_bytes=MIB,
                after=second.seq,
                beside=[event.stream_id for event in events],
            ),
        )
        sent = Unanswered("request", "1", events)
        costs["begin"] = _steps(outbox, lambda: outbox.begin([sent], forget=["another"]))
        costs["unanswered"] = _steps(outbox, outbox.unanswered)
        costs["queue"] = _steps(outbox, lambda: outbox.queue([first], until=later))
        for name, settlement in (
            ("delivered", Settlement(delivered=[second], answered=sent, proves=1)),
            (
                "deferred",
                Settlement(deferred=[Deferral(third, NOON + 60_000, counts=True, alone=True)]),
            ),
            ("refused", Settlement(refused=[fourth])),
            ("refused alone", Settlement(refused_alone=[fifth])),
            ("buried", Settlement(buried=[Burial(sixth, "rejected", "no")])),
        ):
            costs[f"settle {name}"] = _steps(
                outbox, lambda settlement=settlement: outbox.settle(settlement, now=later)
            )
        costs["replay"] = _steps(outbox, lambda: outbox.replay([sixth.seq], now=later))
    return costs


@pytest.mark.parametrize("heap", HEAPS)
def test_no_cost_grows_with_the_backlog(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, heap: Callable[[SqliteOutbox, int], None]
) -> None:
    """Posting and delivering take the same steps on a heap of 20,000 events as on one of 200."""
    costs: list[dict[str, int]] = []
    for count in (FEW, MANY):
        outbox = opened(str(tmp_path / f"{count}.db"), durability="normal")
        heap(outbox, count)
        outbox.append([use(units, tenant="fine") for units in range(10)], now=NOON)
        costs.append(_costs(outbox))
    few, many = costs
    assert {name: steps for name, steps in many.items() if steps > few[name] * 1.2 + 30} == {}


@pytest.mark.parametrize("heap", [_pending, _deferred, _dead, _delivered])
def test_the_status_costs_the_same_on_any_backlog(
    opened: Callable[..., SqliteOutbox], tmp_path: Path, heap: Callable[[SqliteOutbox, int], None]
) -> None:
    """Looking at the outbox counts no events, however many there are."""
    costs: list[int] = []
    for count in (FEW, MANY):
        outbox = opened(str(tmp_path / f"{count}.db"), durability="normal")
        heap(outbox, count)
        costs.append(_steps(outbox, outbox.status))
    assert costs[1] <= costs[0] * 1.2 + 30


def _everything_once(outbox: SqliteOutbox) -> None:
    """Run each statement of poster, flusher and status at least once."""
    outbox.append([use(units, idempotency_key=f"k{units}") for units in range(20)], now=NOON)
    outbox.append([use(idempotency_key=None), use(1, idempotency_key="k1")], now=NOON)
    a, b, c, d, e, f, *rest = due(outbox)
    outbox._remembered_keys = 0
    sent = Unanswered("request", "1", [a, b, c, d, e, f, *rest])
    proves = outbox.begin([sent], forget=["another"])
    outbox.settle(
        Settlement(
            delivered=[a],
            deferred=[
                Deferral(b, NOON, counts=True, alone=True),
                Deferral(rest[0], NOON, counts=True, beside_others=True),
            ],
            refused=[c],
            refused_alone=[d],
            buried=[Burial(e, "rejected", "no"), Burial(f, "rejected", "no")],
            answered=sent,
            left_open=Unanswered("rest", "1", rest),
            proves=proves,
        ),
        now=NOON,
    )
    outbox.unanswered()
    outbox.accepted()
    outbox.queue(rest)
    outbox.settle(Settlement(delivered=[b]), now=NOON)
    outbox.due(now=NOON, limit=9, max_bytes=MIB, after=1, beside=[rest[0].stream_id])
    outbox.suspects(limit=9, proven_only=True)
    outbox.next_due_at()
    outbox.set_link(outbox.link("events"))
    outbox.set_account("t", Account(None, NOON, 1, NOON))
    outbox.account("t")
    outbox.replay([e.seq], now=NOON)
    outbox.purge([f.seq])
    outbox.status()
    outbox.close()


def test_every_statement_finds_its_rows_by_an_index(
    outbox: SqliteOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement that runs all the time reads a table from end to end, or sorts."""
    statements: set[str] = set()
    connect = opening.connect

    def traced(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **named)
        connection.set_trace_callback(statements.add)
        return connection

    monkeypatch.setattr(opening, "connect", traced)
    outbox.append([use()], now=NOON)
    outbox.settle(Settlement(delivered=due(outbox)), now=NOON)
    statements.clear()
    _everything_once(outbox)

    plain = sqlite3.connect(outbox.location)
    plans: set[tuple[str, str]] = set()
    for statement in statements:
        verb = statement.split(maxsplit=1)[0]
        if verb in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            # Python before 3.12 shows placeholders, later ones what they stood for.
            positional = statement.count("?")
            named = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
            for *_, step in plain.execute(
                f"EXPLAIN QUERY PLAN {statement}", [1] * positional if positional else named
            ):
                plans.add((step, statement))
    plain.close()
    assert len(plans) > 20
    # The one row of `outbox`, the few of `links`, and what is held, refused or under way just now.
    harmless = re.compile(
        r"SEARCH |SCAN (outbox|links|unanswered)\b|SCAN CONSTANT ROW|SCALAR SUBQUERY|"
        r"CORRELATED SCALAR|"
        # A list that came with the statement, or the few former names of a copy.
        r"SCAN (json_each|sent|former) |LIST SUBQUERY |"
        r"COMPOUND QUERY|LEFT-MOST|UNION ALL|CO-ROUTINE|MATERIALIZE|SCAN \(?subquery|"
        r"SCAN (s|streams|e|events) USING (COVERING )?INDEX (held_streams|refused_events)\b"
    )
    assert {plan for plan in plans if not harmless.match(plan[0])} == set()


def test_rows_are_held_against_their_constraints_again_after_a_post(
    opened: Callable[..., SqliteOutbox],
) -> None:
    """A post passes over the CHECKs, which cost it more than all else; what follows does not."""
    outbox = opened()
    outbox.append([use()], now=NOON)
    with pytest.raises(OutboxUnavailable, match="known_state"), outbox._database.write() as sql:
        sql.execute("UPDATE events SET state = 'lost'")
    assert len(due(outbox)) == 1


def test_an_event_that_is_gone_already_is_not_counted_among_those_settled_with_it(
    opened: Callable[..., SqliteOutbox],
) -> None:
    """Settled in one call, each event that was still there counts once, and no other."""
    outbox = opened()
    outbox.append([use(), use(), use()], now=NOON)
    events = due(outbox)
    outbox.settle(Settlement(delivered=events[1:2]), now=NOON)
    outbox.settle(Settlement(delivered=events), now=NOON)
    status = outbox.status()
    assert (status.delivered, status.pending, due(outbox)) == (3, 0, [])


def test_a_folder_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    """Whoever removed it under a program that records costs it no event."""
    with MeterClient(tmp_path / "state" / "outbox.db") as client:
        client.post("t", "d", "m", 1)
        shutil.rmtree(tmp_path / "state")
        assert client.post("t", "d", "m", 2)["status"] == "queued"
    outbox = SqliteOutbox(str(tmp_path / "state" / "outbox.db"), max_bytes=2**22)
    assert outbox.status().accepted == 1
