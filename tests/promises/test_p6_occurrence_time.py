"""P6. Occurrence time is kept.

An event delivered a week late says when it happened, not when it was sent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import MeterClient
from meter_worker import BackgroundFlusher
from tests.fakes import ManualClock
from tests.promises.delivering import eventually

if TYPE_CHECKING:
    from tests.promises.delivering import Device

WEEK = 7 * 86_400_000


def now() -> int:
    """The wall time in milliseconds."""
    return time.time_ns() // 1_000_000


def test_an_event_delivered_a_week_late_says_when_it_happened(device: Device) -> None:
    """A worker process started today delivers last week's events with last week's times."""
    clock = ManualClock(now() - WEEK)
    times = []
    with MeterClient(settings=device.settings(), clock=clock) as client:
        for _ in range(5):
            times.append(client.post("t", "d", "m", 1)["event_time"])
            clock.advance(3600)
    worker = device.start_worker()
    device.drained()
    worker.terminate()
    assert worker.wait(10) == 0

    records = device.sandbox.records
    assert [record.value["event_time"] for record in records] == times
    assert times == [clock.now() - 3_600_000 * hours for hours in (5, 4, 3, 2, 1)]
    assert all(abs(record.received_at - now()) < 60_000 for record in records)


@pytest.mark.parametrize(
    ("given", "event_time"),
    [
        ({"timestamp": 1_700_000_000_001, "end_time": 1_700_000_000_003}, 1_700_000_000_001),
        ({"start_time": 1_700_000_000_002, "end_time": 1_700_000_000_003}, 1_700_000_000_003),
        ({"start_time": 1_700_000_000_002}, 1_700_000_000_002),
        ({"timestamp": 9_999_999_999_999}, 9_999_999_999_999),
    ],
)
def test_the_time_that_the_caller_gave_is_what_arrives(
    device: Device, given: dict[str, int], event_time: int
) -> None:
    """Explicit times, past or future, arrive to the millisecond, and so do those of sessions."""
    device.post("e", **{"total_usage": None if "start_time" in given else 1} | given)
    with BackgroundFlusher(settings=device.settings()) as flusher:
        assert flusher.flush(15)
    [record] = device.sandbox.records

    boundaries = {name: at for name, at in given.items() if name != "timestamp"}
    assert record.value | {"event_time": event_time} | boundaries == record.value


def test_a_device_that_believes_in_1970_is_taken_at_its_word(device: Device) -> None:
    """A clock that was never set is no reason to lose an event, nor to make up another time."""
    with MeterClient(settings=device.settings(), clock=ManualClock(86_400_000)) as client:
        client.post("t", "d", "m", 1)
    with BackgroundFlusher(settings=device.settings()) as flusher:
        assert flusher.flush(15)

    assert [record.value["event_time"] for record in device.sandbox.records] == [86_400_000]


def test_retries_and_replays_do_not_touch_the_time(device: Device) -> None:
    """After lost answers, a dead letter and its replay, every copy says the same time."""
    device.sandbox.fault("drop_reply", times=3)
    device.sandbox.fault("reject_records", match={"meter_id": "m"}, error_code=2)
    happened = now() - WEEK
    device.post("retried", timestamp=happened)
    device.post("replayed", timestamp=happened + 1, meter_id="m")
    with BackgroundFlusher(settings=device.settings(max_attempts=2)) as flusher:
        eventually(lambda: device.status.refused)
        # Until another event is accepted it may as well be the backend's fault.
        device.post("accepted", timestamp=happened + 2)
        eventually(lambda: device.letters)
        assert flusher.flush(15)
        device.sandbox.heal()
        with device.opened() as outbox:
            outbox.replay([letter.seq for letter in device.letters], now=now())
        assert flusher.flush(15)

    seen: dict[str, set[Any]] = {}
    for record in device.sandbox.records:
        seen.setdefault(record.idempotency_key or "", set()).add(record.value["event_time"])
    assert seen == {
        "retried": {happened},
        "replayed": {happened + 1},
        "accepted": {happened + 2},
    }
    assert device.sandbox.duplicates >= 2
