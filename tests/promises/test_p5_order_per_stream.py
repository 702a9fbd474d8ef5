"""P5. Order per stream.

Events of one (tenant, device, meter) reach the backend in the order they were posted, save one
that the backend itself refused. A dead letter does not hold up those behind it, and one tenant's
trouble does not hold up another tenant.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import MeterClient
from meter_worker import BackgroundFlusher
from tests.promises.delivering import eventually, first_arrivals, killed, numbered

if TYPE_CHECKING:
    from tests.promises.delivering import Device


def arrived(device: Device, tenant: str) -> list[str]:
    """The keys of a tenant's events, in the order of their first arrival."""
    values = (record.value for record in device.sandbox.records)
    return list(dict.fromkeys(v["idempotency_key"] for v in values if v["tenant_id"] == tenant))


def test_streams_keep_their_order_through_faults_and_crashes(device: Device) -> None:
    """Many streams at once, lost answers, busy records, a stopped backend, killed workers."""
    meters = ("m1", "m2", "m3")
    for faults in range(3):
        device.sandbox.fault("reject_records", match={"meter_id": "m2"}, error_code=2, times=3)
        device.sandbox.fault("drop_reply", times=1, after=2)
        device.sandbox.fault("down", times=1, after=3)
        device.sandbox.fault("garbled", how="short", stored=True, times=1, after=1)
        device.sandbox.fault("throttle", times=1, api="accounts", after=faults)
    device.sandbox.fault("slow", seconds=0.01)

    def record(tenant: str) -> None:
        with MeterClient(settings=device.settings()) as client:
            for number in range(150):
                for meter in meters:
                    client.post(tenant, f"d{number % 2}", meter, number)

    recording = [threading.Thread(target=record, args=(t,)) for t in ("a", "b", "c")]
    for thread in recording:
        thread.start()
    for life in range(1, 4):
        worker = device.start_worker(batch_size=20, account_ttl=0.05)
        eventually(lambda life=life: device.sandbox.count >= 250 * life)
        killed(worker)
    for thread in recording:
        thread.join()
    device.sandbox.stop()
    device.start_worker(batch_size=100)
    eventually(lambda: any(link.failures for link in device.status.links))
    device.sandbox.start()
    device.drained()

    orders = first_arrivals(device.sandbox.records)
    assert len(orders) == 3 * 2 * 3
    assert {stream: seqs for stream, seqs in orders.items() if seqs != sorted(seqs)} == {}
    assert sum(map(len, orders.values())) == 3 * 150 * 3 == device.status.delivered


def test_events_of_a_stream_lie_in_one_partition_in_their_order(device: Device) -> None:
    """The record key pins a stream to a partition, where offsets keep its order for readers."""
    device.post(*numbered("a", 50), meter_id="m1")
    device.post(*numbered("b", 50), meter_id="m2")
    device.post(*numbered("c", 50), tenant_id="ü/2")
    with BackgroundFlusher(settings=device.settings(batch_size=7)) as flusher:
        assert flusher.flush(15)
    partitions: dict[str, set[int]] = {}
    for record in device.sandbox.records:
        partitions.setdefault(record.key, set()).add(record.partition)

    assert {key: len(used) for key, used in partitions.items()} == {
        "t/d/m1": 1,
        "t/d/m2": 1,
        "ü/2/d/page.processed.basic": 1,
    }


@pytest.mark.parametrize("fault", ["refuse_records", "reject_records"])
def test_a_dead_letter_does_not_hold_up_those_behind_it(device: Device, fault: str) -> None:
    """All around a refused event arrives in order, and the refused one alone is missing."""
    device.sandbox.fault(fault, match={"idempotency_key": "bad"})
    device.post(*numbered("e", 20), "bad", *numbered("e", 20, start=20))
    with BackgroundFlusher(settings=device.settings()) as flusher:
        for number in range(40, 42):
            eventually(lambda number=number: device.sandbox.count == number)
            device.post(f"e{number}")
        assert flusher.flush(15)

    assert arrived(device, "t") == numbered("e", 42)
    assert [letter.idempotency_key for letter in device.letters] == ["bad"]


TROUBLES: list[Any] = [
    ("refuse_records", {"match": {"tenant_id": "bad"}}),
    ("reject_records", {"match": {"tenant_id": "bad"}}),
    ("reject_records", {"match": {"tenant_id": "bad"}, "error_code": 2}),
    ("refuse", {"tenant": "bad", "status": 500}),
    ("refuse", {"tenant": "bad", "status": 413}),
    ("throttle", {"tenant": "bad"}),
    ("down", {"tenant": "bad"}),
    ("refuse", {"tenant": "bad", "status": 500, "api": "accounts"}),
    ("unknown", {}),
]


@pytest.mark.parametrize(
    ("fault", "parameters"),
    TROUBLES,
    ids=[f"{f} {' '.join(map(str, p.values()))}" for f, p in TROUBLES],
)
def test_one_tenants_trouble_does_not_hold_up_another(
    device: Device, fault: str, parameters: dict[str, Any]
) -> None:
    """Refused, unknown or unlucky with every request: the other tenant's events pass it by."""
    if fault == "unknown":
        device.sandbox.unknown_tenants.add("bad")
    else:
        device.sandbox.fault(fault, **parameters)
    device.post(*numbered("x", 60), tenant_id="bad")
    device.post(*numbered("y", 30), tenant_id="good")
    settings = device.settings(max_attempts=1000, batch_size=20)
    with BackgroundFlusher(settings=settings):
        eventually(lambda: len(arrived(device, "good")) == 30)
        device.post("y30", tenant_id="good")
        eventually(lambda: device.status.delivered == 31)
    assert arrived(device, "good") == numbered("y", 31)
    assert arrived(device, "bad") == []


def test_a_tenants_events_arrive_in_order_once_its_trouble_is_over(device: Device) -> None:
    """What waited for an account, or for a busy backend, goes before what was posted later."""
    device.sandbox.unknown_tenants.add("t")
    device.sandbox.fault("reject_records", match={"tenant_id": "t"}, error_code=2, times=2)
    device.post(*numbered("e", 30))
    settings = device.settings(max_attempts=1000, batch_size=7)
    with BackgroundFlusher(settings=settings) as flusher:
        eventually(lambda: len(device.sandbox.requests) >= 3)
        device.post(*numbered("e", 30, start=30))
        device.sandbox.unknown_tenants.clear()
        assert flusher.flush(15)

    assert arrived(device, "t") == numbered("e", 60)
