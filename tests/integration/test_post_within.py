"""An event that is recorded in the caller's own transaction, on the file of the outbox."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import (
    InvalidUsage,
    InvalidUsageType,
    KeyConflict,
    MeterClient,
    OutboxFull,
    OutboxUnavailable,
    Settings,
)
from meter_lib._sqlite import database, within
from meter_lib.opening import open_outbox
from meter_worker.sandbox import Sandbox
from tests.promises.delivering import METER, Device, eventually

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from meter_lib.outbox import DueEvent, OutboxStatus

NOON = 1_760_000_000_000


@pytest.fixture
def client(outbox_path: str) -> Generator[MeterClient]:
    """A program that records."""
    with MeterClient(outbox_path) as client:
        client.post("t", "d", "m", 1)
        yield client


@pytest.fixture
def orders(client: MeterClient, outbox_path: str) -> Generator[sqlite3.Connection]:
    """The program's own table, beside the outbox."""
    assert client.settings.outbox == outbox_path
    with contextlib.closing(sqlite3.connect(outbox_path)) as connection:
        connection.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
        yield connection


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for a lock for longer than tests can afford."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.1)


def due(client: MeterClient) -> list[DueEvent]:
    """What a flusher would deliver."""
    with contextlib.closing(open_outbox(client.settings)) as outbox:
        return outbox.due(now=NOON, limit=10_000, max_bytes=2**30)


def status(client: MeterClient) -> OutboxStatus:
    """What the outbox says of itself."""
    with contextlib.closing(open_outbox(client.settings)) as outbox:
        return outbox.status()


def units(client: MeterClient) -> list[int | None]:
    """The units of what is due, in the order of its seq, which has no gap."""
    found = due(client)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    return [event.total_usage for event in found]


def is_balanced(client: MeterClient) -> bool:
    """Whether the books add up."""
    with (
        contextlib.closing(open_outbox(client.settings)) as outbox,
        outbox.audit(progress=lambda *_: None) as audit,
    ):
        return not audit.problems


def run(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program of Python's."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if key[:6] != "METER_"}
        | {"METER_CONFIG": os.devnull},
        text=True,
    )


@pytest.mark.parametrize("is_committed", [True, False])
def test_usage_and_business_data_commit_or_roll_back_together(
    client: MeterClient, orders: sqlite3.Connection, *, is_committed: bool
) -> None:
    """After a commit all is there, after a rollback nothing; the next post goes on from that."""
    orders.execute("INSERT INTO orders VALUES (7)")
    for number in (2, 3):
        receipt = client.post(
            "new", "d", "m", number, idempotency_key=f"{number}", connection=orders
        )
        assert receipt["status"] == "queued"
    assert client.post("new", "d", "m", 3, idempotency_key="3", connection=orders)["status"] == (
        "duplicate"
    )
    assert units(client) == [1]
    if is_committed:
        orders.commit()
    else:
        orders.rollback()
    # To a stream that the transaction may have made, or not.
    client.post("new", "d", "m", 4)
    rows = orders.execute("SELECT number FROM orders").fetchall()
    assert (rows, units(client)) == (([(7,)], [1, 2, 3, 4]) if is_committed else ([], [1, 4]))
    again = client.post("new", "d", "m", 3, idempotency_key="3")
    assert again["status"] == ("duplicate" if is_committed else "queued")
    assert is_balanced(client)


def test_the_transaction_is_begun_where_that_is_left_to_python(
    client: MeterClient, orders: sqlite3.Connection
) -> None:
    """A post is enough: as with a statement that changes data, commit() is what makes it hold."""
    client.post("t", "d", "m", 2, connection=orders)
    assert orders.in_transaction
    orders.rollback()
    assert units(client) == [1]
    with orders:
        client.post("t", "d", "m", 3, connection=orders)
    assert units(client) == [1, 3]


def test_a_refused_post_leaves_the_transaction_as_it_was(
    client: MeterClient, orders: sqlite3.Connection
) -> None:
    """After a conflict of keys the caller may go on and commit the rest; one not begun stays so."""
    client.post("t", "d", "m", 2, idempotency_key="k")
    with pytest.raises(KeyConflict):
        client.post("t", "d", "m", 3, idempotency_key="k", connection=orders)
    assert not orders.in_transaction
    orders.execute("INSERT INTO orders VALUES (8)")
    with pytest.raises(KeyConflict):
        client.post("t", "d", "m", 3, idempotency_key="k", connection=orders)
    orders.commit()
    assert orders.execute("SELECT number FROM orders").fetchall() == [(8,)]
    assert units(client) == [1, 2]


@pytest.mark.parametrize(
    "ways",
    [
        {"row_factory": sqlite3.Row},
        {"row_factory": lambda cursor, row: {"columns": len(row), "cursor": cursor}},
        {"text_factory": bytes},
        {"isolation_level": "EXCLUSIVE"},
    ],
)
def test_how_the_caller_sees_rows_does_not_matter_and_is_kept(
    client: MeterClient, orders: sqlite3.Connection, ways: dict[str, Any]
) -> None:
    """Whatever factories a connection has, it has them still, and its patience too."""
    orders.execute("PRAGMA busy_timeout = 1234")
    for name, value in ways.items():
        setattr(orders, name, value)
    for _ in range(2):
        client.post("t", "d", "m", 2, idempotency_key="k", connection=orders)
    orders.commit()
    assert {name: getattr(orders, name) for name in ways} == ways
    orders.row_factory, orders.text_factory = None, str
    assert orders.execute("PRAGMA busy_timeout").fetchone() == (1234,)
    assert units(client) == [1, 2]


def refused(client: MeterClient, connection: object, match: str, kind: type[Exception]) -> None:
    """Post, and see that it is refused in words that name the argument."""
    with pytest.raises(kind, match=f"connection.*{match}"):
        client.post("t", "d", "m", 9, connection=connection)


def test_a_connection_that_cannot_carry_an_event_is_refused(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str, tmp_path: Path
) -> None:
    """Not a connection, no transaction, another file, less durable, or only for reading."""
    refused(client, "outbox.db", r"must be a sqlite3\.Connection, .* not str", InvalidUsageType)

    def opened(path: str = outbox_path, **how: Any) -> contextlib.closing[sqlite3.Connection]:
        return contextlib.closing(sqlite3.connect(path, **how))

    with opened(isolation_level=None) as theirs:
        refused(client, theirs, "autocommit mode and in no transaction", InvalidUsage)
        theirs.execute("BEGIN")
        client.post("t", "d", "m", 2, connection=theirs)
        theirs.execute("COMMIT")
    for elsewhere in (str(tmp_path / "other.db"), ":memory:"):
        with opened(elsewhere) as theirs:
            refused(client, theirs, "not the outbox at", InvalidUsage)
            assert not theirs.in_transaction
    with opened() as theirs:
        theirs.execute("PRAGMA synchronous = NORMAL")
        refused(client, theirs, "PRAGMA synchronous = 1", InvalidUsage)
        normal = Settings(outbox=outbox_path, durability="normal")
        with MeterClient(settings=normal) as other:
            other.post("t", "d", "m", 3, connection=theirs)
        theirs.commit()
    with opened(f"file:{outbox_path}?mode=ro", uri=True) as theirs:
        refused(client, theirs, "readonly", OutboxUnavailable)
    with opened() as theirs:
        theirs.execute("PRAGMA query_only = ON")
        refused(client, theirs, "readonly", OutboxUnavailable)
        assert not theirs.in_transaction
    with opened() as theirs:
        theirs.execute("CREATE TEMP TABLE Events (seq)")
        refused(client, theirs, "temporary table Events", InvalidUsage)
    with opened() as theirs:
        client.post("t", "d", "m", 4)
    refused(client, theirs, "closed database", InvalidUsage)
    in_a_thread = threading.Thread(
        target=refused, args=(client, orders, "thread", InvalidUsage), daemon=True
    )
    in_a_thread.start()
    in_a_thread.join()
    assert units(client) == [1, 2, 3, 4]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the attribute is of Python 3.12")
def test_the_modes_of_newer_pythons_are_known(client: MeterClient, outbox_path: str) -> None:
    """With autocommit=False a transaction is always open, with True never by itself."""
    with contextlib.closing(sqlite3.connect(outbox_path, autocommit=True)) as theirs:
        refused(client, theirs, "autocommit mode", InvalidUsage)
    with contextlib.closing(sqlite3.connect(outbox_path, autocommit=False)) as theirs:
        client.post("t", "d", "m", 2, connection=theirs)
        theirs.commit()
    assert units(client) == [1, 2]


@pytest.mark.parametrize("python", ["as it is", "3.10"])
def test_a_transaction_that_has_read_what_changed_since_cannot_write(
    client: MeterClient, orders: sqlite3.Connection, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting would not help, so it is said at once, and nobody is held up."""
    if python == "3.10":
        # There, errors and connections do not have the attributes that are asked for.
        monkeypatch.setattr(within, "getattr", lambda _, __, default: default, raising=False)
    orders.execute("BEGIN")
    orders.execute("SELECT count(*) FROM orders").fetchone()
    client.post("t", "d", "m", 2)
    refused(client, orders, "BEGIN IMMEDIATE", OutboxUnavailable)
    assert orders.in_transaction
    client.post("t", "d", "m", 3)
    orders.rollback()
    assert units(client) == [1, 2, 3]


def test_a_connection_that_was_there_before_the_outbox_is_told_so(outbox_path: str) -> None:
    """Its file is no longer the one at the path, which SQLite calls an I/O error."""
    with contextlib.closing(sqlite3.connect(outbox_path)) as early, MeterClient(outbox_path) as new:
        new.post("t", "d", "m", 1)
        refused(new, early, "opened before the outbox was made", OutboxUnavailable)
        assert units(new) == [1]


def test_a_file_that_was_replaced_since_is_noticed(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str
) -> None:
    """Its name is the outbox's, and what is committed there nobody would ever deliver."""
    for end in ("", "-wal", "-shm"):
        os.rename(f"{outbox_path}{end}", f"{outbox_path}.old{end}")
    client.post("t", "d", "m", 5)
    refused(client, orders, "moved or replaced", InvalidUsage)
    assert (orders.in_transaction, units(client)) == (False, [5])


@pytest.mark.usefixtures("impatient")
def test_while_it_is_open_others_wait_and_are_told_why(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str
) -> None:
    """A post by another connection, of the same thread too, is refused when it has waited long."""
    client.post("t", "d", "m", 2, connection=orders)
    with MeterClient(outbox_path) as other, contextlib.closing(sqlite3.connect(outbox_path)) as own:
        for each, connection in ((client, None), (other, None), (client, own)):
            with pytest.raises(OutboxUnavailable, match="is locked: another connection"):
                each.post("t", "d", "m", 3, connection=connection)
    orders.commit()
    client.post("t", "d", "m", 4)
    assert units(client) == [1, 2, 4]


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_however_it_ends_posts_of_other_threads_go_on(
    client: MeterClient, orders: sqlite3.Connection, end: str
) -> None:
    """Threads that wait for the transaction have their turn as soon as it is over."""
    orders.execute("INSERT INTO orders VALUES (7)")
    client.post("t", "d", "m", 2, connection=orders)
    waiting = [threading.Thread(target=client.post, args=("t", "d", "m", 3)) for _ in range(3)]
    for thread in waiting:
        thread.start()
    getattr(orders, end)()
    for thread in waiting:
        thread.join()
    assert units(client) == ([1, 2, 3, 3, 3] if end == "commit" else [1, 3, 3, 3])
    assert is_balanced(client)


def test_who_holds_up_whom_is_settled_in_favour_of_what_was_begun(
    client: MeterClient, orders: sqlite3.Connection
) -> None:
    """A write that waits for SQLite's lock lets the transaction that has it post, and so end."""
    orders.execute("INSERT INTO orders VALUES (1)")
    begun = threading.Event()

    def post() -> None:
        begun.set()
        client.post("t", "d", "m", 3)

    waiting = [threading.Thread(target=post) for _ in range(3)]
    for thread in waiting:
        thread.start()
    begun.wait()
    for _ in range(3):
        client.post("t", "d", "m", 2, connection=orders)
    orders.commit()
    for thread in waiting:
        thread.join()
    assert units(client) == [1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("first", ["order", "post"])
def test_the_log_is_emptied_for_a_program_that_only_posts_within(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str, first: str
) -> None:
    """Its own connection empties no log, and it leaves hardly a moment between transactions."""
    text = {f"{number}": "x" * 8000 for number in range(6)}
    for _ in range(100):
        with orders:
            if first == "order":
                orders.execute("INSERT INTO orders VALUES (NULL)")
            client.post("t", "d", "m", 2, metadata=text, connection=orders)
    assert orders.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    eventually(lambda: os.path.getsize(f"{outbox_path}-wal") < 3 * 2**20)
    assert status(client).accepted == 101


def test_the_limit_holds_within_a_transaction_too(outbox_path: str) -> None:
    """A full outbox refuses, and what was posted before it was full can be committed."""
    settings = Settings(outbox=outbox_path, max_bytes=4 * 2**20)
    text = {f"{number}": "x" * 8000 for number in range(6)}
    with MeterClient(settings=settings) as client:
        client.post("t", "d", "m", 1)
        theirs = sqlite3.connect(outbox_path)
        posted = 1
        while True:
            try:
                client.post("t", "d", "m", 2, metadata=text, connection=theirs)
                posted += 1
            except OutboxFull:
                if not theirs.in_transaction:
                    break
                theirs.commit()
        assert 20 < posted == status(client).accepted
        parts = (outbox_path, f"{outbox_path}-wal", f"{outbox_path}.reserve")
        assert sum(map(os.path.getsize, parts)) <= 4 * 2**20 + 256 * 1024
        theirs.close()


@pytest.mark.parametrize("is_committed", [True, False])
def test_room_is_made_within_a_transaction_where_that_is_asked_for(
    outbox_path: str, *, is_committed: bool
) -> None:
    """With drop-oldest the oldest go for the new one, if and only if the caller commits."""
    settings = Settings(outbox=outbox_path, max_bytes=4 * 2**20)
    text = {f"{number}": "x" * 8000 for number in range(6)}
    with MeterClient(settings=settings) as client, contextlib.suppress(OutboxFull):
        while True:
            client.post("t", "d", "m", 1, metadata=text)
    dropping = Settings(outbox=outbox_path, max_bytes=4 * 2**20, when_full="drop-oldest")
    with (
        MeterClient(settings=dropping) as client,
        contextlib.closing(sqlite3.connect(outbox_path)) as theirs,
    ):
        before = status(client)
        for _ in range(5):
            client.post("t", "d", "m", 2, metadata=text, connection=theirs)
        theirs.commit() if is_committed else theirs.rollback()
        after = status(client)
        assert (after.accepted - before.accepted, after.removed > 0) == (
            (5, True) if is_committed else (0, False)
        )
        assert is_balanced(client)


_POSTING = """
import sqlite3, sys
from meter_lib import MeterClient
client = MeterClient(sys.argv[1])
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
client.post("t", "d", "m", 2, connection=connection)
if sys.argv[2] == "committed":
    connection.execute("COMMIT")
print("done", flush=True)
if sys.argv[3] == "waits":
    sys.stdin.read()
if sys.argv[3] == "closes":
    client.close()
"""


@pytest.mark.parametrize("how", ["committed", "open"])
def test_what_a_killed_process_had_committed_is_there_and_nothing_else(
    client: MeterClient, outbox_path: str, how: str
) -> None:
    """Killed before its commit it leaves nothing and holds up nobody; after it, the event."""
    with run(_POSTING, outbox_path, how, "waits") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    client.post("t", "d", "m", 3)
    assert units(client) == ([1, 2, 3] if how == "committed" else [1, 3])
    assert is_balanced(client)


@pytest.mark.parametrize("ends", ["closes", "ends"])
def test_a_program_that_ends_in_the_middle_does_not_hang(
    client: MeterClient, outbox_path: str, ends: str
) -> None:
    """Neither close() nor the interpreter waits for a transaction that nobody will end."""
    with run(_POSTING, outbox_path, "open", ends) as process:
        process.communicate(timeout=8)
        assert process.returncode == 0
    assert units(client) == [1]


def test_a_client_that_closes_first_leaves_the_log_to_the_next(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str
) -> None:
    """Whether the commit's sync fails it will not see: a mark says so, until the log is renewed."""
    client.post("t", "d", "m", 2, connection=orders)
    client.close()
    assert os.path.getsize(f"{outbox_path}.lock") == 1
    orders.commit()
    client.post("t", "d", "m", 3)
    assert (os.path.getsize(f"{outbox_path}.lock"), units(client)) == (0, [1, 2, 3])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_child_of_a_fork_keeps_no_lock(client: MeterClient, orders: sqlite3.Connection) -> None:
    """Once the parent has committed, others may post, although the child lives on."""
    client.post("t", "d", "m", 2, connection=orders)
    to_child, from_parent = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(from_parent)
        os.read(to_child, 1)
        os._exit(0)
    try:
        orders.commit()
        client.post("t", "d", "m", 3)
        assert units(client) == [1, 2, 3]
    finally:
        os.close(from_parent)
        os.close(to_child)
        os.waitpid(child, 0)


def ended(*processes: subprocess.Popen[str]) -> list[int]:
    """How they ended."""
    for process in processes:
        process.communicate(timeout=120)
    return [process.returncode for process in processes]


_WRITING = """
import sqlite3, sys
from meter_lib import MeterClient
client = MeterClient(sys.argv[1])
connection = sqlite3.connect(sys.argv[1], timeout=30)
for number in range(int(sys.argv[3])):
    if sys.argv[2] == "first":
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders VALUES (NULL)")
        client.post("t", "first", "m", number, connection=connection)
        connection.commit()
    elif sys.argv[2] == "stranger":
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders VALUES (NULL)")
        connection.commit()
    elif sys.argv[2] == "within":
        if number % 2:
            connection.execute("INSERT INTO orders VALUES (NULL)")
        client.post("t", "within", "m", number, connection=connection)
        if not number % 2:
            connection.execute("INSERT INTO orders VALUES (NULL)")
        connection.rollback() if number % 10 == 9 else connection.commit()
    else:
        client.post("t", "plain", "m", number)
        if number % 20 == 0:
            client.close()
"""


def test_processes_that_post_in_both_ways_keep_the_books(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str
) -> None:
    """Side by side under load: nothing lost, nothing twice, in order, and the file whole."""
    ways = ("within", "plain", "within")
    assert ended(*(run(_WRITING, outbox_path, how, "300") for how in ways)) == [0, 0, 0]
    counts = status(client)
    assert counts.accepted == 1 + 300 + 2 * 270
    assert orders.execute("SELECT count(*) FROM orders").fetchone() == (2 * 270,)
    assert orders.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert is_balanced(client)
    found = due(client)
    plain = [event.total_usage for event in found if event.device_id == "plain"]
    assert plain == list(range(300))
    assert [event.seq for event in found] == list(range(1, counts.accepted + 1))


@pytest.mark.parametrize("how", ["first", "stranger"])
def test_whoever_has_a_transaction_after_the_other_starves_nobody(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str, how: str
) -> None:
    """Posts have their turn beside a program that leaves hardly a moment between transactions."""
    other = run(_WRITING, outbox_path, how, "500")
    eventually(lambda: orders.execute("SELECT count(*) FROM orders").fetchone() > (0,))
    posted = 0
    while other.poll() is None:
        client.post("t", "d", "m", 2)
        posted += 1
    assert ended(other) == [0]
    assert posted > 0
    assert status(client).accepted == 1 + posted + (500 if how == "first" else 0)
    assert is_balanced(client)


def test_threads_with_connections_of_their_own_take_turns(
    client: MeterClient, orders: sqlite3.Connection, outbox_path: str
) -> None:
    """Each thread's transactions are whole, beside threads that post in the usual way."""

    def write(device: str) -> None:
        with contextlib.closing(sqlite3.connect(outbox_path, timeout=30)) as theirs:
            for number in range(20):
                with theirs:
                    theirs.execute("INSERT INTO orders VALUES (NULL)")
                    client.post("t", device, "m", number, connection=theirs)

    def post(device: str) -> None:
        for number in range(20):
            client.post("t", device, "m", number)

    threads = [
        threading.Thread(target=how, args=(f"{how.__name__} {number}",))
        for how in (write, post)
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = due(client)
    for device in {event.device_id for event in found} - {"d"}:
        numbers = [event.total_usage for event in found if event.device_id == device]
        assert numbers == list(range(20))
    assert len(found) == 1 + 6 * 20
    assert orders.execute("SELECT count(*) FROM orders").fetchone() == (60,)
    assert is_balanced(client)


def test_a_worker_delivers_what_was_committed_once(tmp_path: Path) -> None:
    """An idle worker finds the event after the commit by itself, and nothing before."""
    with Sandbox() as sandbox:
        device = Device(tmp_path, sandbox)
        try:
            with MeterClient(settings=device.settings()) as client:
                client.post("t", "d", METER, 1)
                device.start_worker()
                eventually(lambda: sandbox.count == 1)
                with contextlib.closing(sqlite3.connect(device.path)) as theirs:
                    client.post("t", "d", METER, 2, connection=theirs)
                    theirs.rollback()
                    client.post("t", "d", METER, 3, connection=theirs)
                    theirs.commit()
                eventually(lambda: sandbox.count == 2)
            device.drained()
            assert [record.value["total_usage"] for record in sandbox.records] == [1, 3]
            assert (device.status.delivered, device.status.accepted) == (2, 2)
        finally:
            device.end()
