"""Workers against a real broker: everything arrives, in order, whatever is killed meanwhile."""

from __future__ import annotations

import random
import signal
import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("confluent_kafka", reason="the extra 'kafka' is not installed")

from meter_lib.outbox import Selector
from meter_worker.sandbox import Sandbox
from tests.kafka.brokers import TOPIC, Broker
from tests.kafka.workers import (
    KafkaDevice,
    came,
    copies,
    in_order,
    one_partition_each,
    usage_by_key,
)
from tests.promises.delivering import eventually, killed
from tests.unit.flusher_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def device(tmp_path: Path, broker: Broker) -> Iterator[KafkaDevice]:
    """A device that delivers to the broker; no worker of it is left when the test ends."""
    with Sandbox() as sandbox:
        made = KafkaDevice(tmp_path, sandbox, f"kafka://{broker.address}/{TOPIC}")
        yield made
        made.end()


def test_every_event_arrives_once_and_in_order(device: KafkaDevice, broker: Broker) -> None:
    """Sums, keys and the order of each stream are those of what was recorded."""
    device.record(300)
    device.start_worker(batch_size=20, compression="gzip")
    device.record(100)
    device.drained()

    found = came(broker.stored())
    assert usage_by_key(found) == device.usage
    assert copies(found) == {1}
    assert in_order(found)
    assert one_partition_each(found)
    status = device.status
    assert (status.accepted, status.delivered, status.dead) == (400, 400, 0)
    assert f"events to kafka://{broker.address}/{TOPIC}" in device.log


@pytest.mark.parametrize(("sink", "at_once"), [(f"kafka://127.0.0.1:1/{TOPIC}", 1), ("rest", 3)])
def test_one_request_is_under_way_to_a_broker(tmp_path: Path, sink: str, at_once: int) -> None:
    """All but the last transaction are settled, so the position need not name more than that."""
    bench = Bench(tmp_path / "outbox.db", sink=sink, max_in_flight=4)
    for device_id in "abc":
        bench.post(f"of-{device_id}", device_id=device_id)
    [question] = bench.flusher.start()
    bench.flusher.finish(question, question.make())

    assert len(bench.flusher.start()) == at_once


def test_what_a_killed_worker_had_stored_is_not_stored_again(
    device: KafkaDevice, broker: Broker
) -> None:
    """Workers are killed between commit and settlement, time and again: each event comes once."""
    device.record(120)
    ends = [device.die_after(answers, batch_size=7) for answers in (1, 1, 2, 3, 2)]
    assert ends == [-signal.SIGKILL] * 5
    before = device.status
    assert before.pending > 0

    device.start_worker(batch_size=50)
    device.drained()

    found = came(broker.stored())
    assert copies(found) == {1}
    assert usage_by_key(found) == device.usage
    assert in_order(found)


def test_nothing_is_lost_by_workers_killed_under_load(device: KafkaDevice, broker: Broker) -> None:
    """Killed at any instant, over and over, while events are recorded: sums and order hold."""
    moment = random.Random(7)  # noqa: S311 - any instants do
    recording = threading.Thread(target=device.record, args=(400,))
    recording.start()
    for _ in range(6):
        worker = device.start_worker(batch_size=10)
        delivered = device.status.delivered
        eventually(
            lambda delivered=delivered: (
                device.status.delivered > delivered or not recording.is_alive()
            )
        )
        threading.Event().wait(moment.random() * 0.05)
        killed(worker)
    recording.join()
    device.start_worker()
    device.drained()

    found = came(broker.stored())
    assert usage_by_key(found) == device.usage
    assert in_order(found)
    status = device.status
    assert (status.accepted, status.delivered, status.dead) == (400, 400, 0)


def test_a_killed_broker_loses_what_it_held_and_nothing_else(
    device: KafkaDevice, broker: Broker
) -> None:
    """What was not settled when the broker died, with all its memory, is in its successor."""
    recording = threading.Thread(target=device.record, args=(300,))
    device.record(1)
    device.start_worker(batch_size=10, read_timeout=5)
    eventually(lambda: device.status.delivered > 0)
    recording.start()
    eventually(lambda: device.status.delivered > 50)
    broker.kill()
    # What it answered with its last breath has been settled by then.
    eventually(lambda: any(link.failures for link in device.status.links))
    with device.opened() as outbox:
        pending = {event.idempotency_key for event in outbox.pending_events(Selector())}
    broker.start()
    recording.join()
    device.drained()

    found = came(broker.stored())
    missing = device.usage.keys() - usage_by_key(found).keys()
    assert missing.isdisjoint(pending)
    assert in_order(found)
    status = device.status
    assert (status.accepted, status.delivered, status.dead) == (301, 301, 0)
