"""P7. Bounded, as far as delivery goes.

Memory does not grow with the backlog, nor does the cost of delivering an event; and an outbox
moved to another path delivers as before.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import sqlite3
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib.clock import SystemClock
from meter_lib.errors import OutboxFull
from meter_lib.settings import Settings
from meter_lib.usage import usage_event
from meter_worker.assembly import flusher_over
from meter_worker.backend import AccountUnknown
from tests.fakes import NOON, ScriptedAccounts, accept, refuse_where
from tests.promises.delivering import eventually, killed, numbered, values_by_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meter_worker.backend import Outcome, Request
    from tests.promises.delivering import Device

MIB = 1024 * 1024
BATCH = 100
# With four or six times the backlog. What grew with it would be far beyond; what the garbage
# collector and the captured log add differs from run to run.
FLAT = 1.5
IN_FLIGHT = 2
LOOK = 2 * IN_FLIGHT * BATCH
"""How many events are in view at once."""


class Swallow:
    """A backend that keeps nothing, so that only our own memory is measured."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], Outcome] = accept

    def deliver(self, request: Request) -> Outcome:
        """Answer as told."""
        return self.answer(request)

    def interrupt(self) -> None:
        """Do nothing: there is no thread to break off."""


class Line:
    """An outbox with a backlog, and a flusher for it."""

    def __init__(self, path: Path) -> None:
        self.clock = SystemClock()
        self.outbox = SqliteOutbox(str(path), max_bytes=256 * MIB)
        self.backend = Swallow()
        self.accounts = ScriptedAccounts()
        settings = Settings(
            outbox=str(path),
            batch_size=BATCH,
            batch_bytes=MIB,
            max_in_flight=IN_FLIGHT,
            backoff_base=1000,
            backoff_max=1000,
            reconnect_spread=0,
        )
        self.flusher = flusher_over(settings, self.outbox, self.backend, self.accounts, self.clock)

    def record(self, count: int, *, size: int = 10, **who: str) -> None:
        """Add to the backlog."""
        given: dict[str, Any] = {"tenant_id": "t", "device_id": "d", "meter_id": "m"} | who
        event = usage_event(**given, total_usage=1, metadata={"x": "x" * size})
        for begin in range(0, count, 1000):
            self.outbox.append([event] * min(1000, count - begin), now=self.clock.now())

    def deliver(self, count: int | None = None) -> int:
        """Deliver so many events or a few more, or all that can be; return how many they were."""
        delivered = 0
        while count is None or delivered < count:
            calls = self.flusher.start()
            answers = [(call, call.make()) for call in calls]
            delivered += sum(self.flusher.finish(call, answer) for call, answer in answers)
            if not calls and not self.flusher.sees_more:
                break
        return delivered


@pytest.fixture
def line_with(tmp_path: Path) -> Iterator[Callable[[int], Line]]:
    """A maker of outboxes with so many events."""
    lines: list[Line] = []

    def make(backlog: int) -> Line:
        lines.append(Line(tmp_path / f"outbox-{len(lines)}.db"))
        lines[-1].record(backlog, size=500)
        return lines[-1]

    yield make
    for line in lines:
        line.outbox.close()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number: the steps that SQLite has taken in connections opened from now on."""
    taken = [0]
    connect = sqlite3.connect

    def counting(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)

        def count() -> int:
            taken[0] += 10
            return 0

        connection.set_progress_handler(count, 10)
        return connection

    monkeypatch.setattr(sqlite3, "connect", counting)
    return taken


def test_memory_does_not_grow_with_the_backlog(line_with: Callable[[int], Line]) -> None:
    """Six times as many events pending, and no more memory to deliver them."""
    peaks = []
    for backlog in (5 * LOOK, 30 * LOOK):
        line = line_with(backlog)
        line.deliver(LOOK)
        gc.collect()
        tracemalloc.start()
        line.deliver()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert line.outbox.status().delivered == backlog

    assert peaks[1] < FLAT * peaks[0]
    assert peaks[1] < 8 * MIB


def test_memory_does_not_grow_with_what_cannot_be_delivered(
    line_with: Callable[[int], Line],
) -> None:
    """Neither with a stuck tenant's events nor with refused ones, however many."""
    peaks = []
    for backlog in (5 * LOOK, 20 * LOOK):
        line = line_with(backlog)
        line.record(backlog, tenant_id="unknown")
        line.accounts.answers["unknown"] = AccountUnknown("no")
        line.backend.answer = refuse_where(lambda value: value["tenant_id"] == "t")
        line.deliver(LOOK)
        gc.collect()
        tracemalloc.start()
        line.deliver()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert line.outbox.status().pending == 2 * backlog

    assert peaks[1] < FLAT * peaks[0]


def test_a_delivery_costs_the_same_whatever_the_backlog(
    line_with: Callable[[int], Line], steps: list[int]
) -> None:
    """SQLite takes as many steps to deliver some events of many as of few."""
    costs = []
    for backlog in (3 * LOOK, 30 * LOOK):
        line = line_with(backlog)
        line.deliver(LOOK)
        before = steps[0]
        assert line.deliver(LOOK) == LOOK
        costs.append(steps[0] - before)

    assert 0 < costs[1] < 1.1 * costs[0]


def stuck(line: Line, count: int) -> None:
    """Add events that wait for an account."""
    line.record(count, tenant_id="unknown")
    line.accounts.answers["unknown"] = AccountUnknown("no")


def dead(line: Line, count: int) -> None:
    """Add dead letters."""
    line.record(count, meter_id="bad")
    line.record(2, meter_id="good")
    line.backend.answer = refuse_where(lambda value: value["meter_id"] == "bad")
    line.deliver()
    for _ in range(2 * count):
        line.record(1, meter_id="good")
        line.deliver()
    assert line.outbox.status().dead == count


@pytest.mark.parametrize(("burden", "few", "many"), [(stuck, 500, 10_000), (dead, 10, 200)])
def test_a_delivery_costs_the_same_whatever_is_set_aside(
    line_with: Callable[[int], Line],
    steps: list[int],
    burden: Callable[[Line, int], None],
    few: int,
    many: int,
) -> None:
    """Events that cannot be delivered, waiting or dead, do not slow down those that can."""
    costs = []
    for count in (few, many):
        line = line_with(0)
        burden(line, count)
        # Whoever was passed over meanwhile is set aside, once.
        line.record(LOOK, meter_id="good")
        line.deliver()
        line.record(LOOK, meter_id="good")
        before = steps[0]
        assert line.deliver(LOOK) == LOOK
        costs.append(steps[0] - before)

    assert 0 < costs[1] < 1.1 * costs[0]


def test_the_smallest_outbox_can_be_emptied_once_it_is_full(device: Device) -> None:
    """A request holds as much as is asked for; what no transaction has room for takes several."""
    outbox = SqliteOutbox(str(device.path), max_bytes=4 * MIB)
    event = usage_event("t", "d", "m", 1, metadata={"x": "y" * 500})
    accepted = 0
    with contextlib.suppress(OutboxFull):
        while True:
            outbox.append([event._replace(idempotency_key=f"e{accepted}")], now=NOON)
            accepted += 1
    outbox.close()
    device.start_worker(max_bytes=4 * MIB, batch_size=500)
    device.drained()
    assert (device.status.delivered, device.sandbox.count) == (accepted, accepted)


@pytest.mark.parametrize("crash", [False, True], ids=["after a stop", "after a crash"])
def test_an_outbox_moved_to_another_path_delivers_as_before(device: Device, crash: bool) -> None:
    """The file, with its log if there is one, is all there is: no path is written in it."""
    device.sandbox.fault("slow", seconds=0.02)
    device.post(*numbered("e", 600))
    worker = device.start_worker(batch_size=50)
    eventually(lambda: device.sandbox.count >= 150)
    if crash:
        killed(worker)
    else:
        worker.terminate()
        assert worker.wait(10) == 0
    before = device.status
    assert 0 < before.pending < 600

    elsewhere = device.folder / "another place" / "100%?#.db"
    elsewhere.parent.mkdir()
    for suffix in ("", "-wal", "-shm"):
        if device.path.with_name(f"outbox.db{suffix}").exists():
            shutil.move(f"{device.path}{suffix}", f"{elsewhere}{suffix}")
    device.path = elsewhere
    device.sandbox.heal()
    device.post("later")
    device.start_worker(batch_size=50)
    device.drained()

    after = device.status
    assert (after.outbox_id, after.delivered, after.dead) == (before.outbox_id, 601, 0)
    values = values_by_key(device.sandbox.records)
    assert {value["outbox_id"] for [value, *_] in values.values()} == {before.outbox_id}
    assert sorted(value["seq"] for [value, *_] in values.values()) == list(range(1, 602))
    assert device.sandbox.duplicates <= 50
