from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import MeterClient, Settings
from meter_lib._sqlite import SqliteOutbox
from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_lib.outbox import Link, Settlement
from meter_worker import BackgroundFlusher
from meter_worker.rest_backend import RestBackend
from meter_worker.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meter_lib.outbox import OutboxStatus
    from meter_worker.backend import Outcome, Request


class Program:
    """A program that records usage and delivers it from a thread of its own."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.settings = Settings(
            outbox=str(folder / "outbox.db"),
            stream_url=sandbox.url,
            accounts_url=sandbox.url,
            poll_interval=0.02,
            backoff_base=0.05,
        )
        self.flushers: list[BackgroundFlusher] = []

    def flusher(self, **settings: Any) -> BackgroundFlusher:
        """Make a flusher of this outbox; it is stopped when the test ends."""
        given = {name: getattr(self.settings, name) for name in self.settings.origins}
        changed = {k: v for k, v in given.items() if self.settings.origins[k] != "default"}
        self.flushers.append(BackgroundFlusher(settings=Settings(**changed | settings)))
        return self.flushers[-1]

    def post(self, count: int = 1, **arguments: Any) -> None:
        """Record some events."""
        given = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 1} | arguments
        with MeterClient(settings=self.settings) as client:
            client.post_many([given] * count)

    @property
    def status(self) -> OutboxStatus:
        """The outbox at this instant."""
        with contextlib.closing(open_outbox(self.settings)) as outbox:
            return outbox.status()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A backend."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def program(tmp_path: Path, sandbox: Sandbox) -> Iterator[Program]:
    """A program that knows this backend; none of its threads is left when the test ends."""
    made = Program(tmp_path, sandbox)
    yield made
    assert all(flusher.stop() for flusher in made.flushers)


def eventually(look: Callable[[], object], *, seconds: float = 10) -> None:
    """Look until it is so; fail where it is not within the time."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def threads() -> list[threading.Thread]:
    """The flushers' threads that live."""
    return [thread for thread in threading.enumerate() if thread.name == "meter-lib flusher"]


def test_between_start_and_stop_it_delivers_what_is_recorded(
    program: Program, sandbox: Sandbox
) -> None:
    """What was there, and what comes while it runs; nothing before and nothing after."""
    flusher = program.flusher()
    program.post(3)
    assert sandbox.requests == []

    flusher.start()
    eventually(lambda: sandbox.distinct == 3)
    program.post(2)
    eventually(lambda: program.status.delivered == 5)
    assert flusher.stop()
    assert threads() == []

    program.post(1)
    status = program.status
    assert (status.pending, status.delivered, sandbox.count) == (1, 5, 5)


def test_start_and_stop_may_be_called_again_and_again(program: Program, sandbox: Sandbox) -> None:
    """A second start or stop does nothing; after a stop it can be started anew."""
    flusher = program.flusher()
    assert flusher.stop()
    for round_number in range(1, 4):
        flusher.start()
        flusher.start()
        assert len(threads()) == 1
        program.post()
        assert flusher.flush(10)
        assert sandbox.count == round_number
        assert flusher.stop()
        assert flusher.stop()


def test_a_with_block_starts_and_stops_it_however_it_ends(program: Program) -> None:
    """The thread has ended when the block has, also when the block raised."""
    with program.flusher() as flusher:
        program.post(2)
        assert flusher.flush(10)
        assert len(threads()) == 1
    assert threads() == []

    with pytest.raises(ZeroDivisionError), program.flusher():
        raise ZeroDivisionError
    assert threads() == []


def test_flush_waits_until_nothing_is_pending(program: Program, sandbox: Sandbox) -> None:
    """It waits out failures and returns True once all is delivered."""
    sandbox.fault("down", times=2)
    sandbox.fault("slow", seconds=0.2, times=1)
    program.post(700)
    with program.flusher() as flusher:
        assert flusher.flush(20)
        assert (sandbox.distinct, program.status.pending) == (700, 0)


def test_the_next_request_is_sent_while_an_answer_is_written_down(
    program: Program, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server far away waits for no disk of ours."""
    requests: list[Request] = []
    second = threading.Event()
    deliver, settle = RestBackend.deliver, SqliteOutbox.settle
    waited: list[bool] = []

    def counted(backend: RestBackend, request: Request) -> Outcome:
        requests.append(request)
        if len(requests) == 2:
            second.set()
        return deliver(backend, request)

    def slow(outbox: SqliteOutbox, settlement: Settlement, *, now: int) -> None:
        waited.append(second.wait(10))
        settle(outbox, settlement, now=now)

    monkeypatch.setattr(RestBackend, "deliver", counted)
    monkeypatch.setattr(SqliteOutbox, "settle", slow)
    program.post(4)
    with program.flusher(batch_size=2) as flusher:
        assert flusher.flush(10)
    assert (waited, sandbox.distinct) == ([True, True], 4)


def test_flush_gives_up_at_its_time_out(program: Program, sandbox: Sandbox) -> None:
    """During an outage it returns False when the time is over, and what is pending stays."""
    sandbox.fault("down")
    program.post(2)
    with program.flusher() as flusher:
        began = time.monotonic()
        assert not flusher.flush(0.4)
        assert 0.4 <= time.monotonic() - began < 5
    assert program.status.pending == 2


def test_flush_ends_early_when_only_refused_events_remain(
    program: Program, sandbox: Sandbox
) -> None:
    """No waiting helps an event of which only another event can show why it was refused."""
    sandbox.fault("refuse_records", match={"meter_id": "bad"})
    program.post(1)
    program.post(1, meter_id="bad")
    with program.flusher() as flusher:
        assert not flusher.flush(60)
        status = program.status
        assert (status.pending, status.refused, status.delivered) == (1, 1, 1)

        program.post(1)
        assert flusher.flush(10)
        status = program.status
        assert (status.pending, status.dead, status.delivered) == (0, 1, 2)


def test_flush_does_not_take_an_unfinished_proof_for_the_end(program: Program) -> None:
    """While refused events are still being asked about, it waits for what becomes of them."""
    program.post()
    with contextlib.closing(open_outbox(program.settings)) as outbox:
        [event] = outbox.due(now=0, limit=1, max_bytes=1)
        outbox.settle(Settlement(refused_alone=[event]), now=0)
    flusher = program.flusher()
    began = time.monotonic()
    assert not flusher.flush(0.4)
    assert time.monotonic() - began >= 0.4

    # What an earlier process has left is no verdict either.
    with contextlib.closing(open_outbox(program.settings)) as outbox:
        outbox.set_link(Link("events", failures=1, down_since=0, last_error_at=0))
    assert not flusher.flush(0.4)
    assert time.monotonic() - began >= 0.8

    tried_at = SystemClock().steady() + 60_000
    with contextlib.closing(open_outbox(program.settings)) as outbox:
        outbox.set_link(Link("events", failures=1, down_since=0, last_error_at=tried_at))
    assert not flusher.flush(60)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("api", ["events", "accounts"])
def test_stop_returns_in_time_while_the_backend_stalls_and_nothing_is_lost(
    program: Program, sandbox: Sandbox, api: str
) -> None:
    """A request without an answer is broken off; its events are delivered by the next flusher."""
    sandbox.fault("stall", api=api)
    program.post(20)
    flusher = program.flusher()
    flusher.start()
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    began = time.monotonic()
    assert flusher.stop(5)
    assert time.monotonic() - began < 5
    status = program.status
    assert (status.pending, status.links) == (
        20,
        [link for link in status.links if not link.failures],
    )

    sandbox.heal()
    with program.flusher() as successor:
        assert successor.flush(10)
    assert (sandbox.count, sandbox.distinct) == (20, 20)


def test_a_second_flusher_takes_over_when_the_holder_stops(
    program: Program, sandbox: Sandbox
) -> None:
    """One delivers, the other waits; when the first stops, the second goes on at once."""
    first, second = program.flusher(), program.flusher()
    first.start()
    program.post()
    assert first.flush(10)
    second.start()
    program.post()
    assert second.flush(10)
    assert first.stop()

    program.post()
    assert second.flush(2)
    assert (sandbox.count, program.status.delivered) == (3, 3)


def test_an_outbox_that_is_made_anew_is_delivered_from_its_first_event_on(
    program: Program, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Where another outbox comes to the place of the one that was open, it is held and read."""
    with program.flusher() as flusher:
        program.post(5)
        assert flusher.flush(10)
        for file in tmp_path.iterdir():
            file.unlink()
        program.post(3)
        assert flusher.flush(10)
        with contextlib.closing(open_outbox(program.settings)) as other:
            assert other.holder() == os.getpid()
    assert (sandbox.count, program.status.delivered) == (8, 3)


def test_what_ends_delivery_is_said_in_the_log(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that cannot go on prints no traceback into the program that it is part of."""
    program.post()
    with contextlib.closing(sqlite3.connect(program.settings.outbox)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    flusher = program.flusher()
    flusher.start()
    eventually(lambda: "delivery ended by a fault: SchemaTooNew" in caplog.text)
    assert flusher.stop()


def test_several_flushers_at_once_send_nothing_twice(program: Program, sandbox: Sandbox) -> None:
    """However many are started, one at a time delivers, also while they take turns."""
    program.post(500)
    flushers = [program.flusher(batch_size=10) for _ in range(3)]
    for flusher in flushers:
        flusher.start()
    for flusher in flushers[:2]:
        eventually(lambda before=sandbox.count: sandbox.count > before + 20)
        sandbox.fault("slow", seconds=0.05)
        assert flusher.stop()
        sandbox.heal()
    assert flushers[2].flush(20)

    # At most the request under way is sent again at each stop.
    assert (sandbox.distinct, sandbox.duplicates <= 20) == (500, True)


def test_recording_goes_on_beside_delivery(program: Program, sandbox: Sandbox) -> None:
    """Posts from many threads, while the flusher works on the same file, all arrive once."""
    with program.flusher() as flusher, MeterClient(settings=program.settings) as client:

        def record(device: str) -> None:
            for _ in range(50):
                client.post("t", device, "m", 1)

        recording = [threading.Thread(target=record, args=(f"d{n}",)) for n in range(4)]
        for thread in recording:
            thread.start()
        for thread in recording:
            thread.join()
        assert flusher.flush(20)
    assert (sandbox.count, sandbox.distinct) == (200, 200)


def test_an_outbox_that_cannot_be_used_is_waited_for(
    program: Program, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Where its lock cannot be taken, it is waited for; once that is mended, delivery begins."""
    lock = tmp_path / "outbox.db.lock"
    lock.mkdir()
    flusher = program.flusher()
    flusher.start()
    flusher._thread.join(0.3)  # type: ignore[union-attr]  # started just now
    assert len(threads()) == 1

    lock.rmdir()
    program.post()
    assert flusher.flush(10)
    assert sandbox.count == 1


def test_the_path_given_wins_over_the_settings(
    program: Program, sandbox: Sandbox, tmp_path: Path
) -> None:
    """`BackgroundFlusher(outbox)` delivers from that file, by the other settings as they are."""
    with MeterClient(tmp_path / "other.db", settings=program.settings) as client:
        client.post("t", "d", "m", 1)
    with BackgroundFlusher(tmp_path / "other.db", settings=program.settings) as flusher:
        assert flusher.flush(10)

    assert sandbox.count == 1
    assert not (tmp_path / "outbox.db").exists()
