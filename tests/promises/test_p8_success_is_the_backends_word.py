"""P8. A success is the backend's own word.

An answer counts as delivered only if it is what the backend sends: 2xx, JSON, one offset entry for
each record, no error in it.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from meter_worker import BackgroundFlusher
from tests.promises.delivering import eventually, numbered

if TYPE_CHECKING:
    from tests.promises.delivering import Device

LIES: list[Any] = [
    ("captive_portal", {}),
    ("redirect", {"location": "/topics/usage-events"}),
    *[
        ("garbled", {"how": how, "stored": stored})
        for how in ("text", "short", "empty", "missing_offsets", "fewer_offsets")
        for stored in (False, True)
    ],
    ("refuse", {"status": 500}),
]


@pytest.mark.parametrize(
    ("fault", "parameters"), LIES, ids=[f"{f} {' '.join(map(str, p.values()))}" for f, p in LIES]
)
def test_nothing_else_is_taken_for_a_delivery(
    device: Device, fault: str, parameters: dict[str, Any]
) -> None:
    """What somebody else says, or half says, moves no event out of the outbox."""
    device.sandbox.fault(fault, **parameters)
    device.post("a", "b", "c")
    with BackgroundFlusher(settings=device.settings()) as flusher:
        eventually(lambda: device.sandbox.faults[0]["struck"] >= 2)
        status = device.status
        assert (status.pending, status.delivered, status.dead) == (3, 0, 0)

        device.sandbox.heal()
        assert flusher.flush(15)
    status = device.status
    assert (status.pending, status.delivered, device.sandbox.distinct) == (0, 3, 3)


def take_request(asked: BinaryIO) -> None:
    """Read one request to its end, or the end of the connection."""
    length = 0
    while line := asked.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    asked.read(length)


@pytest.mark.parametrize(
    "entries",
    [
        '{"offset":1,"partition":0},{"offset":null,"partition":null,"error_code":2,"error":"x"}',
        '{"offset":1,"partition":0},{"offset":2,"partition":0,"error_code":2,"error":null}',
        '{"offset":1,"partition":0},{"offset":2,"partition":0,"error":"x"}',
        '{"offset":1,"partition":0},{"offset":2,"partition":0,"message":"x"}',
        '{"offset":1,"partition":0},{"partition":0}',
        '{"offset":1,"partition":0},null',
        '{"offset":1,"partition":0}',
    ],
)
def test_a_200_counts_for_the_records_whose_entries_are_sound_only(
    device: Device, entries: str
) -> None:
    """Records fail within a 200; where it cannot be told which, none of them counts."""
    body = f'{{"offsets":[{entries}]}}'.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    device.post("a", "b")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as asked:
                take_request(asked)
                connection.sendall(head + body)
                # What is asked next, if anything, gets no answer: the connection ends.
                take_request(asked)

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = device.settings(stream_url=url, backoff_base=60, backoff_max=60)
        with BackgroundFlusher(settings=settings):
            eventually(
                lambda: (
                    device.status.delivered or any(link.failures for link in device.status.links)
                )
            )
    sound = 1 if '"error' in entries or "message" in entries else 0
    status = device.status
    assert (status.pending, status.delivered, status.dead) == (2 - sound, sound, 0)


def test_a_worker_behind_a_captive_portal_loses_nothing(device: Device) -> None:
    """A real worker in a guest network: 200 to everything, until somebody logs in."""
    device.post(*numbered("e", 500))
    device.sandbox.fault("captive_portal", api="all")
    worker = device.start_worker()
    eventually(lambda: device.sandbox.faults[0]["struck"] >= 5)
    assert (device.status.pending, device.status.delivered) == (500, 0)

    device.sandbox.heal()
    device.drained()
    worker.terminate()
    assert worker.wait(10) == 0
    assert (device.status.delivered, device.sandbox.count) == (500, 500)
