"""An event that is recorded in the caller's own transaction: both or neither."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from meter_lib import (
    InvalidUsage,
    InvalidUsageType,
    KeyConflict,
    MeterClient,
    OutboxUnavailable,
    Settings,
)
from meter_lib._sqlite.post_queue import Moment, Post
from meter_lib.outbox import Settlement
from meter_lib.usage import usage_event
from tests.promises.delivering import METER, eventually, first_arrivals

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meter_lib._postgres import PostgresOutbox
    from tests.postgres.server import PostgresServer
    from tests.promises.delivering import Device

NOON = 1_760_000_000_000
Connection = psycopg.Connection[Any]


@pytest.fixture
def client(postgres_url: str) -> Generator[MeterClient]:
    """A program that records."""
    with MeterClient(settings=Settings(outbox=postgres_url)) as client:
        yield client


@pytest.fixture
def orders(connection: Connection) -> Connection:
    """The program's own table, beside the outbox."""
    connection.execute("DROP TABLE IF EXISTS orders")
    connection.execute("CREATE TABLE orders (number integer)")
    connection.commit()
    return connection


def due(outbox: PostgresOutbox, *, after: int = 0) -> list[int | None]:
    """The units of what is due."""
    found = outbox.due(now=NOON, limit=100, max_bytes=2**20, after=after)
    return [event.total_usage for event in found]


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel))
@pytest.mark.parametrize("is_committed", [True, False])
def test_usage_and_business_data_commit_or_roll_back_together(
    client: MeterClient,
    orders: Connection,
    open_it: Callable[[], PostgresOutbox],
    level: psycopg.IsolationLevel,
    *,
    is_committed: bool,
) -> None:
    """After a commit both are there, after a rollback neither, whatever the isolation level."""
    outbox = open_it()
    assert outbox.status().accepted == 0
    orders.isolation_level = level
    orders.execute("INSERT INTO orders VALUES (7)")
    # Others count in the meantime: at no level is that an error.
    client.post("t", "d", "m", 1)
    receipt = client.post("t", "d", "m", 2, idempotency_key="k", connection=orders)
    client.post("t", "d", "m", 3)
    assert (receipt["status"], due(outbox), outbox.status().accepted) == ("queued", [1, 3], 2)
    if is_committed:
        orders.commit()
    else:
        orders.rollback()
    rows = orders.execute("SELECT number FROM orders").fetchall()
    assert (rows, due(outbox)) == (([(7,)], [1, 2, 3]) if is_committed else ([], [1, 3]))
    status = outbox.status()
    assert (status.accepted, status.pending) == ((3, 3) if is_committed else (2, 2))
    # The key is known if, and only if, the event is.
    again = client.post("t", "d", "m", 2, idempotency_key="k")
    assert again["status"] == ("duplicate" if is_committed else "queued")


def test_an_open_transaction_holds_up_nobody(client: MeterClient, orders: Connection) -> None:
    """Others record and deliver the same stream, new streams too, while it stays open."""
    client.post("new", "d", "m", 1, connection=orders)
    for number in range(100):
        client.post("new", "d", "m", number)
    outbox = client._outbox
    assert outbox.try_hold()
    found = outbox.due(now=NOON, limit=1000, max_bytes=2**20)
    outbox.settle(Settlement(delivered=found), now=NOON)
    assert outbox.status().delivered == 100
    orders.commit()
    assert (outbox.status().accepted, outbox.status().pending) == (101, 1)


def test_what_commits_late_is_delivered_though_later_ones_were_read_before(
    fleet: Device, orders: Connection
) -> None:
    """A worker that has passed an event's place by while nobody could see it still finds it."""
    with MeterClient(settings=fleet.settings()) as client:
        client.post("t", "d0", METER, 1, idempotency_key="late", connection=orders)
        fleet.start_worker()
        fleet.post(*map(str, range(50)), device_id="d1")
        fleet.post(*map(str, range(50, 60)), device_id="d0")
        eventually(lambda: fleet.sandbox.count == 60)
        orders.commit()
    eventually(lambda: fleet.sandbox.count == 61)
    fleet.drained()
    assert fleet.status.delivered == fleet.status.accepted == 61
    assert len(first_arrivals(fleet.sandbox.records)) == 2


def test_a_late_event_comes_once_and_is_not_read_again(
    client: MeterClient, orders: Connection, open_it: Callable[[], PostgresOutbox]
) -> None:
    """Reading on from a seq shows what became visible before it since, and that once."""
    outbox = open_it()
    client.post("t", "d", "m", 1, connection=orders)
    client.post("t", "d", "m", 2)
    assert due(outbox) == [2]
    assert due(outbox, after=2) == []
    orders.commit()
    client.post("t", "d", "m", 3)
    assert due(outbox, after=2) == [1, 3]
    assert due(outbox, after=3) == []


def test_a_late_event_for_which_there_was_no_room_is_read_next_time(
    client: MeterClient, orders: Connection, open_it: Callable[[], PostgresOutbox]
) -> None:
    """Where those that wait use up the bytes of a reading, a late event is not passed by."""
    outbox = open_it()
    client.post("t", "waits", "m", 1)
    [waits] = outbox.due(now=NOON, limit=100, max_bytes=2**20)
    outbox.queue([waits], until=NOON)
    client.post("t", "late", "m", 2, metadata={"large": "x" * 5000}, connection=orders)
    client.post("t", "d", "m", 3)
    read = outbox.due(now=NOON, limit=100, max_bytes=2**20)
    assert [event.total_usage for event in read] == [1, 3]
    orders.commit()
    [first] = outbox.due(now=NOON, limit=100, max_bytes=2000, after=read[-1].seq)
    outbox.queue([first], until=NOON + 1)
    assert due(outbox, after=read[-1].seq) == [2]


def test_a_refused_post_leaves_the_transaction_as_it_was(
    client: MeterClient, orders: Connection
) -> None:
    """After a conflict of keys the caller may go on and commit the rest."""
    client.post("t", "d", "m", 1, idempotency_key="k")
    orders.execute("INSERT INTO orders VALUES (8)")
    with pytest.raises(KeyConflict):
        client.post("t", "d", "m", 2, idempotency_key="k", connection=orders)
    assert client.post("t", "d", "m", 1, idempotency_key="k", connection=orders)["status"] == (
        "duplicate"
    )
    orders.commit()
    assert orders.execute("SELECT number FROM orders").fetchall() == [(8,)]
    assert client._outbox.status().accepted == 1


def test_a_key_that_another_transaction_is_recording_is_waited_for(
    client: MeterClient, orders: Connection, postgres_url: str
) -> None:
    """Two posts under one key at once are one event, whichever transaction ends first."""
    client.post("t", "d", "m", 1, idempotency_key="k", connection=orders)
    receipts: list[str] = []

    def post() -> None:
        with MeterClient(settings=Settings(outbox=postgres_url)) as other:
            receipts.append(other.post("t", "d", "m", 1, idempotency_key="k")["status"])

    other = threading.Thread(target=post)
    other.start()
    with psycopg.connect(postgres_url, autocommit=True) as looking:
        eventually(
            lambda: looking.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ).fetchall()
        )
    orders.commit()
    other.join()
    assert (receipts, client._outbox.status().accepted) == (["duplicate"], 1)


def test_who_waits_for_a_key_keeps_no_other_thread_waiting(
    client: MeterClient, orders: Connection
) -> None:
    """While one post waits for another transaction's end, those of other threads are recorded."""
    client.post("t", "d", "m", 1, idempotency_key="k", connection=orders)
    together = threading.Barrier(9)
    receipts: list[str] = []
    waited_for: list[str] = []

    def post() -> None:
        together.wait()
        receipts.extend(client.post("t", "d", "m", number)["status"] for number in range(5))

    def wait() -> None:
        together.wait()
        waited_for.append(client.post("t", "d", "m", 1, idempotency_key="k")["status"])

    waiting = threading.Thread(target=wait)
    posting = [threading.Thread(target=post) for _ in range(8)]
    for thread in (waiting, *posting):
        thread.start()
    for thread in posting:
        thread.join()
    assert (receipts, waited_for) == (["queued"] * 40, [])
    orders.commit()
    waiting.join()
    assert waited_for == ["duplicate"]


def test_who_waits_for_a_key_takes_no_other_post_with_it(
    client: MeterClient, orders: Connection
) -> None:
    """Posts that would share a commit with one that waits are recorded without it."""
    client.post("t", "d", "m", 1, idempotency_key="k", connection=orders)
    posts = [
        Post([usage_event("t", "d", "m", 1, idempotency_key=key)], Moment(NOON, None), 0)
        for key in (None, "k", None)
    ]
    client._outbox._record_together(posts)
    assert [post.receipts is not None for post in posts] == [True, False, True]
    with pytest.raises(OutboxUnavailable, match="may be recording the same key"):
        raise posts[1].error or AssertionError
    assert client._outbox.status().accepted == 2


def test_a_connection_that_cannot_carry_an_event_is_refused(
    client: MeterClient, postgres_url: str, postgres_server: PostgresServer
) -> None:
    """Not a connection, no transaction, one that has failed, or another database's outbox."""
    client.post("t", "d", "m", 1)
    with pytest.raises(InvalidUsageType, match=r"must be a psycopg\.Connection, .* not str"):
        client.post("t", "d", "m", 1, connection="postgresql://")
    with psycopg.connect(postgres_url, autocommit=True) as theirs:
        with pytest.raises(InvalidUsage, match="autocommit mode and in no transaction"):
            client.post("t", "d", "m", 1, connection=theirs)
        with theirs.transaction():
            client.post("t", "d", "m", 1, connection=theirs)
    with psycopg.connect(postgres_url) as theirs:
        with pytest.raises(psycopg.errors.DivisionByZero):
            theirs.execute("SELECT 1 / 0")
        with pytest.raises(InvalidUsage, match="inerror"):
            client.post("t", "d", "m", 1, connection=theirs)
        theirs.rollback()
    there = postgres_server.url("postgres")
    with (
        psycopg.connect(there) as theirs,
        pytest.raises(InvalidUsage, match="has no outbox, not"),
    ):
        client.post("t", "d", "m", 1, connection=theirs)
    with MeterClient(settings=Settings(outbox=there)) as elsewhere:
        elsewhere.post("t", "d", "m", 1)
        with (
            psycopg.connect(postgres_url) as theirs,
            pytest.raises(InvalidUsage, match="has another outbox, not"),
        ):
            elsewhere.post("t", "d", "m", 1, connection=theirs)
    assert client._outbox.status().accepted == 2


def test_whatever_cursors_the_callers_connection_makes_it_is_recorded(
    client: MeterClient, orders: Connection, open_it: Callable[[], PostgresOutbox]
) -> None:
    """How a program likes to write its own statements says nothing about ours."""
    orders.cursor_factory = psycopg.RawCursor
    orders.execute("INSERT INTO orders VALUES ($1)", (7,))
    client.post("t", "d", "m", 1, connection=orders)
    orders.commit()
    assert due(open_it()) == [1]


def test_a_connection_that_cannot_hold_every_text_is_refused(
    client: MeterClient, orders: Connection
) -> None:
    """An id may be of any script; the error says what to set."""
    orders.execute("SET client_encoding = 'LATIN1'")
    with pytest.raises(InvalidUsage, match=r"client_encoding iso8859-1.*UTF8"):
        client.post("t", "\N{SNOWMAN}", "m", 1, connection=orders)
    orders.rollback()
