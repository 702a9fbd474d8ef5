"""What a program with an event loop relies on: the twins whose names begin with `a`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest

import meter_lib
from meter_lib import (
    InvalidUsage,
    KeyConflict,
    MeterClient,
    OutboxUnavailable,
    apost_ai_meter_usage,
    apost_meter_usage,
    metered,
    pool,
)
from meter_lib._sqlite import database
from tests.fakes import ManualClock
from tests.integration.lock_holder import write_lock_held

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

NOON = 1_759_791_552_000
IDS = ("t", "d", "m")
EVENT = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 1}


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still at noon."""
    return ManualClock(NOON)


@pytest.fixture
def client(
    outbox_path: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Generator[MeterClient, None, None]:
    """A client of an outbox that has one event, and that the environment names too."""
    monkeypatch.setenv("METER_OUTBOX", outbox_path)
    with MeterClient(outbox_path, clock=clock) as client:
        client.post(*IDS, 1, idempotency_key="first")
        yield client


def stored(path: str) -> list[tuple[int, int | None]]:
    """Event time and units of each event but the first, read without this library."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT event_time, total_usage FROM events WHERE seq > 1 ORDER BY seq"
    ).fetchall()
    connection.close()
    return rows


async def ticks(count: int = 20) -> None:
    """Let the loop do so many other things."""
    for _ in range(count):
        await asyncio.sleep(0.001)


@metered(*IDS, units=1)
async def _counted() -> None:
    """Be one unit."""


@metered(*IDS)
async def _timed() -> None:
    """Take some time."""


async def _in_session(client: MeterClient) -> None:
    async with client.asession(*IDS):
        pass


WAYS: dict[str, tuple[Callable[[MeterClient], Coroutine[Any, Any, object]], int]] = {
    "apost": (lambda client: client.apost(*IDS, 1), 1),
    "apost_many": (lambda client: client.apost_many([EVENT, EVENT]), 2),
    "asession": (_in_session, 2),
    "apost_meter_usage": (lambda _: apost_meter_usage(*IDS, 1), 1),
    "apost_ai_meter_usage": (lambda _: apost_ai_meter_usage(*IDS, start_time=NOON), 1),
    "metered with units": (lambda _: _counted(), 1),
    "metered by time": (lambda _: _timed(), 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loop_goes_on_while_a_post_waits(
    client: MeterClient, outbox_path: str, way: str
) -> None:
    """Whatever holds a post up, here another process that writes, other tasks run."""
    post, events = WAYS[way]

    async def main() -> None:
        with write_lock_held(outbox_path) as release:
            task = asyncio.create_task(post(client))
            await ticks()
            assert not task.done()
            release()
        await task

    asyncio.run(main())
    assert len(stored(outbox_path)) == events


def test_closing_does_not_block_the_loop(client: MeterClient, outbox_path: str) -> None:
    """The last connection to close writes, and waits for others that do."""

    async def main() -> None:
        async with client:
            with write_lock_held(outbox_path) as release:
                task = asyncio.create_task(client.aclose())
                await ticks()
                assert not task.done()
                release()
            await task

    asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_cancelled_post_is_recorded_once(client: MeterClient, outbox_path: str, way: str) -> None:
    """However often a task is cancelled, it ends when its event is on the disk, and not twice."""
    post, events = WAYS[way]

    async def main() -> None:
        with write_lock_held(outbox_path) as release:
            task = asyncio.create_task(post(client))
            for _ in range(3):
                await ticks()
                task.cancel()
            await ticks()
            assert not task.done()
            release()
        with pytest.raises(asyncio.CancelledError):
            await task
        # A start that is recorded has its end, or the use would never end.
        assert len(stored(outbox_path)) == events

    asyncio.run(main())
    assert len(stored(outbox_path)) == events


def test_a_post_that_is_late_for_its_deadline_is_recorded_once(
    client: MeterClient, outbox_path: str
) -> None:
    """A time-out of the caller's own undoes nothing: with its key, the event can be named again."""

    async def main() -> str:
        with write_lock_held(outbox_path) as release:
            post = asyncio.wait_for(client.apost(*IDS, 5, idempotency_key="k"), timeout=0.01)
            task = asyncio.create_task(post)
            await ticks(50)
            release()
        with pytest.raises(asyncio.TimeoutError):
            await task
        return (await client.apost(*IDS, 5, idempotency_key="k"))["status"]

    assert asyncio.run(main()) == "duplicate"
    assert stored(outbox_path) == [(NOON, 5)]


def test_a_cancelled_post_that_is_refused_is_told_by_the_log(
    client: MeterClient,
    outbox_path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where nobody waits for the error any more, the log has it, and nothing is recorded."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.2)

    async def main() -> None:
        with write_lock_held(outbox_path):
            task = asyncio.create_task(client.apost(*IDS, 1))
            await ticks(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("meter_lib", logging.ERROR)
    assert "is locked" in record.getMessage()
    assert stored(outbox_path) == []


def test_a_task_that_is_cancelled_before_it_begins_records_nothing(
    client: MeterClient, outbox_path: str
) -> None:
    """Nothing of it has run, so there is no event."""

    async def main() -> None:
        task = asyncio.create_task(client.apost(*IDS, 1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stored(outbox_path) == []


def test_an_event_happened_when_it_was_posted(
    client: MeterClient, clock: ManualClock, outbox_path: str
) -> None:
    """However long it waits for its turn, its time is that of the call."""

    async def main() -> None:
        with write_lock_held(outbox_path):
            task = asyncio.create_task(client.apost(*IDS, 1))
            await ticks()
            clock.advance(60)
        await task

    asyncio.run(main())
    assert stored(outbox_path) == [(NOON, 1)]


def test_a_session_lasts_as_long_as_its_block(
    client: MeterClient, clock: ManualClock, outbox_path: str
) -> None:
    """The start is on the disk before the block runs, and what is cancelled within it ends it."""

    async def use() -> None:
        async with client.asession(*IDS) as receipt:
            assert (receipt["event_time"], len(stored(outbox_path))) == (NOON, 1)
            clock.advance(9)
            clock.jump(-3_600)
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(use())
        while not stored(outbox_path) or clock.now() == NOON:  # noqa: ASYNC110  # it is a real file
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stored(outbox_path) == [(NOON, None), (NOON + 9_000, None)]


def test_many_tasks_post_at_once(client: MeterClient, outbox_path: str) -> None:
    """A few threads record for any number of tasks, in any number of loops."""

    async def main() -> None:
        receipts = await asyncio.gather(*(client.apost(*IDS, n) for n in range(300)))
        assert len({receipt["idempotency_key"] for receipt in receipts}) == 300

    for _ in range(2):
        asyncio.run(main())
    assert sorted(units for _, units in stored(outbox_path)) == sorted([*range(300)] * 2)
    threads = [one for one in threading.enumerate() if one.name == "meter-lib posts"]
    assert 0 < len(threads) <= pool._MOST_THREADS


def test_errors_are_those_of_the_plain_methods(client: MeterClient, outbox_path: str) -> None:
    """What is wrong is raised where it is awaited, with the same words, and nothing is recorded."""

    async def main() -> None:
        with pytest.raises(InvalidUsage, match="total_usage"):
            await client.apost(*IDS, -1)
        with pytest.raises(InvalidUsage, match="total_usage"):
            await apost_meter_usage(*IDS, -1)
        with pytest.raises(InvalidUsage, match="event 1: total_usage"):
            await client.apost_many([EVENT, EVENT | {"total_usage": -1}])
        with pytest.raises(KeyConflict, match="event 1: ") as conflict:
            await client.apost_many([EVENT, EVENT | {"total_usage": 9, "idempotency_key": "first"}])
        assert conflict.value.index == 1
        with pytest.raises(InvalidUsage, match="tenant_id"):
            async with client.asession("", "d", "m"):
                pass
        assert await client.apost_many([]) == []

    asyncio.run(main())
    assert stored(outbox_path) == []


def test_what_the_outbox_cannot_take_is_none(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The functions answer with None, and the log tells why; a client raises."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("METER_OUTBOX", str(tmp_path / "file" / "outbox.db"))

    async def main() -> None:
        assert await apost_meter_usage(*IDS, 1) is None
        assert await apost_ai_meter_usage(*IDS, start_time=NOON) is None
        with pytest.raises(OutboxUnavailable):
            await MeterClient().apost(*IDS, 1)

    asyncio.run(main())
    said = {(record.levelno, "usage was not recorded" in record.msg) for record in caplog.records}
    assert said == {(logging.ERROR, True)}


# Python 3.12 warns about forks in programs with threads: that is the point here.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(client: MeterClient, outbox_path: str) -> None:
    """A server that forks after its first post goes on in the child."""
    asyncio.run(client.apost(*IDS, 1))
    child = os.fork()
    if not child:
        code = 1
        try:
            asyncio.run(client.apost(*IDS, 2))
            code = 0
        finally:
            os._exit(code)
    asyncio.run(client.apost(*IDS, 3))
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(units or 0 for _, units in stored(outbox_path)) == [1, 2, 3]


def test_where_no_thread_can_be_started_the_post_is_refused(
    client: MeterClient, outbox_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without room for a thread refuses; what is refused is not recorded later either."""

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool, "_pools", {})

    async def main() -> None:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", fails)
            with pytest.raises(OutboxUnavailable, match="no thread can be started"):
                await client.apost(*IDS, 1)
        await client.apost(*IDS, 2)
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", fails)
            await asyncio.gather(client.apost(*IDS, 3), client.apost(*IDS, 4))

    asyncio.run(main())
    assert stored(outbox_path) == [(NOON, 2), (NOON, 3), (NOON, 4)]


@pytest.mark.parametrize(
    ("owner", "name", "twin"),
    [
        (MeterClient, "post", "apost"),
        (MeterClient, "post_many", "apost_many"),
        (MeterClient, "session", "asession"),
        (MeterClient, "close", "aclose"),
        (meter_lib, "post_meter_usage", "apost_meter_usage"),
        (meter_lib, "post_ai_meter_usage", "apost_ai_meter_usage"),
    ],
)
def test_twins_take_the_same_arguments(owner: object, name: str, twin: str) -> None:
    """Whoever knows one knows the other; old arguments are for the functions only."""
    # A transaction of the caller's is no thing for another thread.
    left_out = {"kafka_url", "portal_url", "api_key", "connection"}
    one, other = (
        list(inspect.signature(getattr(owner, n)).parameters.values()) for n in (name, twin)
    )
    assert [p for p in one if p.name not in left_out] == other
