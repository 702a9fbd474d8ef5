"""The adapter against a real broker: what is said to be delivered is stored, and stored once."""

from __future__ import annotations

import gc
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("confluent_kafka", reason="the extra 'kafka' is not installed")

from confluent_kafka import Consumer, Producer, TopicPartition

from meter_lib import Settings
from meter_worker.backend import (
    AccountFound,
    Interrupted,
    Request,
    Unavailable,
)
from meter_worker.http_link import HttpLink
from meter_worker.kafka_link import KafkaBackend, KafkaConfiguration
from meter_worker.kafka_link.records import Record
from meter_worker.rest_backend import RestBackend
from meter_worker.sandbox import Sandbox
from tests.kafka.brokers import END_TXN, TOPIC, Broker, Line
from tests.kafka.requests import all_delivered, record, request_of
from tests.unit.flusher_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meter_worker.backend import Outcome

POSITIONS = f"{TOPIC}-positions"


def backend_to(address: str, **settings: Any) -> KafkaBackend:
    """Make the adapter, as the assembly does."""
    sink = f"kafka://{address}/{TOPIC}"
    return KafkaBackend(KafkaConfiguration.of(Settings(sink=sink, **settings)))


def keys_in(broker: Broker) -> list[str]:
    """The idempotency keys of what is stored, as the headers have them."""
    return [dict(one.headers)["idempotency_key"].decode() for one in broker.stored()]


def test_an_accepted_request_is_told_record_by_record(broker: Broker) -> None:
    """There is one verdict a record, and what is said to be delivered is stored, in order."""
    outcome = backend_to(broker.address).deliver(request_of("a", "b", "c"))

    assert all_delivered(outcome, 3)
    assert keys_in(broker) == ["a", "b", "c"]


class Both:
    """Two backends that are sent the same."""

    def __init__(self, rest: RestBackend, kafka: KafkaBackend) -> None:
        self._rest = rest
        self._kafka = kafka

    def deliver(self, request: Request) -> Outcome:
        """Deliver to both."""
        self._rest.deliver(request)
        return self._kafka.deliver(request)


def test_the_records_are_those_that_a_proxy_stores(broker: Broker, tmp_path: Path) -> None:
    """Whoever reads the topic sees no difference in keys and values, to the byte."""
    bench = Bench(tmp_path / "outbox.db")
    bench.accounts.answers["t"] = AccountFound('"K\\u00fcrbis & S\\u00f6hne"')
    bench.post("a", meter_id="mätér/1", metadata={"größe": '😀 "\\', "n": "1.50", "e": ""})
    bench.post("b", start_time=1_759_791_552_000, end_time=1_759_791_553_000, total_usage=None)
    bench.post("c", total_usage=2**63 - 1, timestamp=1_759_791_552_001)
    with Sandbox() as sandbox:
        link = HttpLink(connect_timeout=5, read_timeout=20)
        rest = RestBackend(
            link, stream_url=sandbox.url, topic=TOPIC, compression="none", clock=bench.clock
        )
        both: Any = Both(rest, backend_to(broker.address))
        bench.backend = both
        bench.restarted()
        bench.flush_all()
        rest.interrupt()
        by_proxy = sorted(
            (str(one.key_json).encode(), str(one.value_json).encode()) for one in sandbox.records
        )

    assert len(by_proxy) == 3
    assert sorted((one.key, one.value) for one in broker.stored()) == by_proxy


def test_a_stream_stays_in_its_partition(broker: Broker) -> None:
    """Whoever produces, the records of a stream are in one partition, in the order of sending."""
    meters = [f"m{number}" for number in range(12)]
    for number in range(3):
        backend = backend_to(broker.address)
        for meter in meters:
            assert all_delivered(
                backend.deliver(request_of(f"{meter}-{number}", meter_id=meter)), 1
            )

    stored = broker.stored()
    partitions = {one.partition for one in stored}
    by_stream = {
        meter: [
            (one.partition, dict(one.headers)["idempotency_key"].decode())
            for one in stored
            if one.key == f'"t/d/{meter}"'.encode()
        ]
        for meter in meters
    }
    assert len(partitions) > 1
    for meter, found in by_stream.items():
        assert found == [(found[0][0], f"{meter}-{number}") for number in range(3)]


def test_what_was_stored_before_a_crash_is_settled_and_not_stored_again(broker: Broker) -> None:
    """A worker that died between commit and settlement leaves word of it with the broker."""
    backend_to(broker.address).deliver(request_of("a", "b"))

    again = backend_to(broker.address).deliver(request_of("a", "b", "c"))

    assert all_delivered(again, 3)
    assert keys_in(broker) == ["a", "b", "c"]


def test_the_events_of_another_device_under_the_same_key_are_others(broker: Broker) -> None:
    """A key that callers choose tells events of one device apart, and no more."""
    backend = backend_to(broker.address)
    backend.deliver(request_of("a"))
    other = json.loads(record("a"))
    other["value"]["device_id"] = "e"

    assert all_delivered(backend.deliver(Request("t", "e", "r", [json.dumps(other)])), 1)
    assert keys_in(broker) == ["a", "a"]


def test_a_position_that_was_never_committed_is_not_believed(broker: Broker) -> None:
    """What a worker had written when it died within its transaction counts for nothing."""
    backend_to(broker.address).deliver(request_of("a"))
    dying = Producer({"bootstrap.servers": broker.address, "transactional.id": "meter-lib-box"})
    dying.init_transactions(10)
    group = Consumer({"bootstrap.servers": broker.address, "group.id": "meter-lib-box"})
    offsets: list[int] = []
    dying.begin_transaction()
    lie = {"outbox_id": "box", "stored": [Record.of(record("b")).fingerprint]}
    dying.produce(
        POSITIONS,
        json.dumps(lie).encode(),
        partition=0,
        on_delivery=lambda _, message: offsets.append(message.offset()),
    )
    assert dying.flush(10) == 0
    dying.send_offsets_to_transaction(
        [TopicPartition(POSITIONS, 0, offsets[0])], group.consumer_group_metadata(), 10
    )

    assert all_delivered(backend_to(broker.address).deliver(request_of("a", "b")), 2)
    assert keys_in(broker) == ["a", "b"]


@pytest.mark.parametrize("record", [b"junk", b"[]", b'{"outbox_id":"box"}', b'{"stored":[]}', None])
def test_a_position_that_is_lost_is_told_and_delivery_goes_on(
    broker: Broker, record: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the topic was made anew the offset leads to a stranger's record, which says nothing."""
    backend_to(broker.address).deliver(request_of("a"))
    offsets: list[int] = []
    stranger = Producer({"bootstrap.servers": broker.address})
    stranger.produce(
        POSITIONS,
        record,
        partition=0,
        on_delivery=lambda _, message: offsets.append(message.offset()),
    )
    assert stranger.flush(10) == 0
    group = Consumer({"bootstrap.servers": broker.address, "group.id": "meter-lib-box"})
    group.commit(offsets=[TopicPartition(POSITIONS, 0, offsets[0])], asynchronous=False)
    group.close()

    assert all_delivered(backend_to(broker.address).deliver(request_of("a")), 1)
    assert keys_in(broker) == ["a", "a"]
    [said] = [one for one in caplog.records if one.levelname == "ERROR"]
    assert said.__dict__["event"] == "position_lost"


@pytest.fixture
def line(broker_program: str) -> Iterator[tuple[Line, Broker]]:
    """A broker that is reached by a line that can break."""
    line = Line()
    broker = Broker(broker_program, advertised=line.port)
    line.lead_to(broker.port)
    broker.start()
    yield line, broker
    line.close()
    broker.kill()


def test_a_lost_answer_to_a_commit_makes_no_second_copy(line: tuple[Line, Broker]) -> None:
    """Where nobody can say whether it is stored, it is an outage, and the broker is asked."""
    to_broker, broker = line
    backend = backend_to(broker.address)
    backend.deliver(request_of("a"))

    to_broker.break_after(END_TXN)
    unknown = backend.deliver(request_of("b"))
    assert isinstance(unknown, Unavailable)
    assert to_broker.is_broken.is_set()
    to_broker.mend()

    assert all_delivered(backend.deliver(request_of("b")), 1)
    assert all_delivered(backend.deliver(request_of("c")), 1)
    assert keys_in(broker) == ["a", "b", "c"]


def test_a_worker_that_has_been_followed_stores_nothing_more(broker: Broker) -> None:
    """Of two with one outbox, or a copy of it, the later one goes on; the other one says why."""
    first, second = backend_to(broker.address), backend_to(broker.address)
    first.deliver(request_of("a"))
    second.deliver(request_of("b"))

    outcome = first.deliver(request_of("c"))

    assert isinstance(outcome, Unavailable)
    assert outcome.wants_an_operator
    assert outcome.detail.startswith("another worker has taken over, with this outbox or a copy")
    assert keys_in(broker) == ["a", "b"]


def test_a_broker_out_of_reach_is_an_outage(broker: Broker) -> None:
    """Refused and lost connections are told at once, and leave nothing behind that would stay."""
    backend = backend_to(broker.address)
    broker.kill()
    refused = backend.deliver(request_of("a"))
    broker.start()
    assert all_delivered(backend.deliver(request_of("a")), 1)
    broker.kill()
    lost = backend.deliver(request_of("b"))
    broker.start()

    for outcome in (refused, lost):
        assert isinstance(outcome, Unavailable)
        assert (outcome.timed_out, outcome.wants_an_operator) == (False, False)
        assert "Connection refused" in outcome.detail
    assert all_delivered(backend.deliver(request_of("b")), 1)
    assert keys_in(broker) == ["b"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted on Linux")
def test_an_outage_leaves_nothing_running(broker: Broker) -> None:
    """However many attempts fail, each takes its threads and connections with it."""
    backend = backend_to(broker.address)
    broker.kill()
    threads = []
    gc.disable()
    try:
        for _ in range(8):
            assert isinstance(backend.deliver(request_of("a")), Unavailable)
            threads.append(len(os.listdir("/proc/self/task")))
    finally:
        gc.enable()

    assert max(threads) == threads[0]


def test_no_answer_is_an_outage_after_the_time_set(broker: Broker) -> None:
    """A broker that hears and does not answer is not waited for without an end.

    A smaller request is only tried where records were under way.
    """
    backend = backend_to(broker.address, read_timeout=0.3)
    broker.stall()
    opening = backend.deliver(request_of("a"))
    broker.go_on()
    backend = backend_to(broker.address, read_timeout=3)
    assert all_delivered(backend.deliver(request_of("a")), 1)
    broker.stall()
    sending = backend.deliver(request_of("b"))
    broker.go_on()

    for outcome, seconds, timed_out in ((opening, "0.3", False), (sending, "3", True)):
        assert isinstance(outcome, Unavailable)
        assert outcome.detail == f"no answer within {seconds} s"
        assert outcome.timed_out == timed_out
    assert all_delivered(backend.deliver(request_of("b")), 1)


@pytest.mark.parametrize("when", ["at the start", "in a session"])
def test_a_stalled_request_is_broken_off_from_another_thread(broker: Broker, when: str) -> None:
    """`interrupt` ends what is under way, and every further request at once."""
    backend = backend_to(broker.address)
    if when == "in a session":
        backend.deliver(request_of("before"))
    broker.stall()
    outcomes: list[Outcome] = []
    waiting = threading.Thread(target=lambda: outcomes.append(backend.deliver(request_of("a"))))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()

    backend.interrupt()
    waiting.join(10)
    outcomes.append(backend.deliver(request_of("b")))
    broker.go_on()

    assert repr(outcomes) == repr([Interrupted(), Interrupted()])
