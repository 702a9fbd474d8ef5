"""P2. Delivered at least once, billed once.

Every record carries the same idempotency key on every attempt, after every restart and in every
replay.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meter_lib.clock import SystemClock
from meter_worker import BackgroundFlusher
from tests.promises.delivering import eventually, killed, numbered, values_by_key

if TYPE_CHECKING:
    from tests.promises.delivering import Device


def test_a_worker_killed_again_and_again_in_the_middle_bills_each_event_once(
    device: Device,
) -> None:
    """After kill -9 at any point every event arrives, and repeated ones are just the same."""
    draw = random.Random(2)  # noqa: S311 - no secret
    device.post(*numbered("e", 3000))
    device.sandbox.fault("slow", seconds=0.02)
    device.sandbox.fault("drop_reply", times=1, after=5)
    kills = 4
    for _ in range(kills):
        stored = device.sandbox.count + draw.randrange(100, 400)
        worker = device.start_worker(batch_size=50)
        eventually(lambda stored=stored: device.sandbox.count >= stored)
        killed(worker)
    device.sandbox.heal()
    device.start_worker(batch_size=50)
    device.drained()

    values = values_by_key(device.sandbox.records)
    assert sorted(values) == sorted(numbered("e", 3000))
    assert [key for key, said in values.items() if any(value != said[0] for value in said)] == []
    assert {value["seq"] for [value, *_] in values.values()} == set(range(1, 3001))
    assert device.status.delivered == 3000
    # What the dead workers had under way, or not yet written down, was sent twice, and what had
    # lost its answer; no more.
    assert device.sandbox.duplicates <= 50 * (2 * kills + 1)


def test_without_a_crash_nothing_is_sent_twice(device: Device) -> None:
    """Two workers on one outbox, refused connections and busy answers cost no copy."""
    device.sandbox.fault("down", times=2, api="all")
    device.sandbox.fault("throttle", times=2)
    device.post(*numbered("e", 1000))
    workers = [device.start_worker(batch_size=100) for _ in range(2)]
    eventually(lambda: "waiting for its end" in device.log)
    device.post(*numbered("f", 1000), tenant_id="t2")
    device.drained()
    for worker in workers:
        worker.terminate()
        assert worker.wait(10) == 0

    assert (device.sandbox.count, device.sandbox.distinct) == (2000, 2000)


@pytest.mark.parametrize("fault", ["drop_reply", "stall", "garbled"])
def test_an_answer_that_never_came_leads_to_the_same_record_again(
    device: Device, fault: str
) -> None:
    """Whether or not it was stored, the event is sent again under its key, with its content."""
    parameters = {"garbled": {"how": "short", "stored": True}}.get(fault, {})
    device.sandbox.fault(fault, times=1, **parameters)
    device.post("own-key", metadata={"a": "ü"}, total_usage=2**53 + 1)
    with BackgroundFlusher(settings=device.settings(read_timeout=0.3)) as flusher:
        assert flusher.flush(15)

    [said] = values_by_key(device.sandbox.records).values()
    assert said == [said[0]] * (1 if fault == "stall" else 2)
    assert said[0] == {
        "idempotency_key": "own-key",
        "metadata": {"a": "ü"},
        "total_usage": 2**53 + 1,
        "seq": 1,
        **{
            name: said[0][name]
            for name in (
                "customer_id",
                "tenant_id",
                "device_id",
                "meter_id",
                "event_time",
                "outbox_id",
            )
        },
    }


def test_a_replayed_dead_letter_keeps_its_key_and_content(device: Device) -> None:
    """What was given up and is made due again is the same event to the backend."""
    device.sandbox.fault("drop_reply", times=1)
    device.post("first")
    device.post("second", meter_id="rule.evaluated")
    with BackgroundFlusher(settings=device.settings()) as flusher:
        assert flusher.flush(15)
        before = values_by_key(device.sandbox.records)

        device.sandbox.fault("reject_records", match={"idempotency_key": "third"})
        device.post("third")
        device.post("fourth", tenant_id="other")
        eventually(lambda: device.status.refused == 1 or device.letters)
        device.post("fifth")
        assert flusher.flush(15)
        [letter] = device.letters
        assert letter.idempotency_key == "third"

        device.sandbox.heal()
        with device.opened() as outbox:
            outbox.replay([letter.seq], now=SystemClock().now())
        assert flusher.flush(15)

    after = values_by_key(device.sandbox.records)
    assert before == {key: after[key] for key in before}
    assert [value["seq"] for value in after["third"]] == [3]
    assert sorted(after) == ["fifth", "first", "fourth", "second", "third"]
    status = device.status
    assert (status.pending, status.dead, status.delivered) == (0, 0, 5)
