"""P4. Only the backend's verdict on an event counts against that event.

Everything else is an outage: it consumes no attempt and makes no dead letter, however long it
lasts. An event is refused for good only if it was refused alone, another one was accepted, and it
was refused alone again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from meter_worker import BackgroundFlusher
from tests.promises.delivering import eventually, killed, numbered

if TYPE_CHECKING:
    from tests.promises.delivering import Device

OUTAGES: list[Any] = [
    ("down", {}),
    ("stall", {}),
    ("drop_reply", {}),
    ("captive_portal", {}),
    ("redirect", {"location": "http://127.0.0.1:1/login"}),
    ("redirect", {"location": "http://["}),
    *[("garbled", {"how": how}) for how in ("text", "short", "empty", "missing_offsets")],
    ("garbled", {"how": "fewer_offsets"}),
    ("throttle", {}),
    ("throttle", {"retry_after": "Mon, 01 Jan 99999999999 00:00:00 GMT"}),
    *[
        ("refuse", {"status": status})
        for status in (401, 403, 404, 405, 407, 408, 409, 415, 425, 429, 500, 502, 503, 504, 599)
    ],
]


def charged_attempts(device: Device) -> int:
    """Read from the file itself how many attempts were charged to events."""
    with contextlib.closing(sqlite3.connect(device.path)) as connection:
        [(attempts,)] = connection.execute("SELECT coalesce(sum(attempts), 0) FROM events")
    return int(attempts)


@pytest.mark.parametrize(
    ("fault", "parameters"),
    OUTAGES,
    ids=[f"{f} {' '.join(map(str, p.values()))}" for f, p in OUTAGES],
)
def test_an_outage_is_charged_to_no_event(
    device: Device, fault: str, parameters: dict[str, Any]
) -> None:
    """Even where one verdict would be one too many, everything is delivered once it is over."""
    device.sandbox.fault(fault, **parameters)
    device.post("a", "b")
    device.post("c", tenant_id="t2")
    settings = device.settings(max_attempts=1, read_timeout=0.15)
    with BackgroundFlusher(settings=settings) as flusher:
        eventually(lambda: device.sandbox.faults[0]["struck"] >= 3)
        assert charged_attempts(device) == 0
        status = device.status
        assert (status.pending, status.dead, status.delivered) == (3, 0, 0)

        device.sandbox.heal()
        assert flusher.flush(15)
    status = device.status
    assert (status.pending, status.dead, status.delivered) == (0, 0, 3)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://127.0.0.1:{port}/no/such/place"],
    ids=["nobody listens", "no TLS there", "another server"],
)
def test_a_wrong_address_is_charged_to_no_event(device: Device, url: str) -> None:
    """Refused connections, TLS failures and strangers' 404s are outages until it is put right."""
    device.post("a", "b")
    wrong = url.format(port=device.sandbox.port)
    with BackgroundFlusher(settings=device.settings(max_attempts=1, stream_url=wrong)):
        eventually(lambda: any(link.failures >= 3 for link in device.status.links))
    assert (device.letters, charged_attempts(device)) == ([], 0)

    with BackgroundFlusher(settings=device.settings()) as flusher:
        assert flusher.flush(15)
    assert device.status.delivered == 2


@pytest.mark.parametrize(
    ("fault", "parameters"),
    [
        ("down", {}),
        ("captive_portal", {}),
        ("refuse", {"status": 401}),
        ("refuse", {"status": 500}),
        ("garbled", {"how": "text"}),
        ("garbled", {"how": "missing_offsets"}),
    ],
)
def test_an_outage_of_the_accounts_api_is_charged_to_no_event(
    device: Device, fault: str, parameters: dict[str, Any]
) -> None:
    """A tenant whose customer cannot be asked for is not a tenant without one."""
    device.sandbox.fault(fault, api="accounts", **parameters)
    device.post("a", "b")
    with BackgroundFlusher(settings=device.settings(max_attempts=1)) as flusher:
        eventually(lambda: device.sandbox.faults[0]["struck"] >= 3)
        assert (device.letters, charged_attempts(device)) == ([], 0)

        device.sandbox.heal()
        assert flusher.flush(15)
    assert device.status.delivered == 2


def test_a_backend_that_refuses_everything_makes_no_dead_letter_over_any_restart(
    device: Device,
) -> None:
    """A bad deploy at the other end costs time, not events, also where workers die meanwhile."""
    device.post(*numbered("e", 200))
    device.post(*numbered("f", 200), tenant_id="t2")
    device.sandbox.fault("refuse", status=422, message="Invalid request format")
    for _ in range(3):
        asked = len(device.sandbox.requests)
        worker = device.start_worker()
        eventually(lambda asked=asked: len(device.sandbox.requests) > asked + 25)
        killed(worker)
    status = device.status
    assert (status.pending, status.dead, status.delivered) == (400, 0, 0)

    device.sandbox.heal()
    device.start_worker()
    device.drained()
    status = device.status
    assert (status.dead, status.delivered, device.sandbox.distinct) == (0, 400, 400)


def test_an_event_is_dead_only_after_it_was_refused_alone_on_both_sides_of_a_success(
    device: Device,
) -> None:
    """The requests themselves show it: alone and refused, another accepted, alone and refused."""
    device.sandbox.fault("refuse_records", match={"idempotency_key": "bad"})
    device.post(*numbered("e", 30), "bad", *numbered("f", 30))
    worker = device.start_worker()
    eventually(lambda: device.letters)
    device.drained()
    worker.terminate()
    assert worker.wait(10) == 0

    [letter] = device.letters
    assert (letter.idempotency_key, letter.reason, letter.attempts) == ("bad", "rejected", 2)
    asked = [
        (request.records, request.status)
        for request in device.sandbox.requests
        if request.method == "POST"
    ]
    alone = [place for place, one in enumerate(asked) if one == (1, 422)]
    assert len(alone) == 2
    assert (200 in [status for _, status in asked[alone[0] : alone[1]]], len(asked) < 20) == (
        True,
        True,
    )
    assert device.sandbox.count == 60


def test_a_lone_bad_event_stays_pending_and_status_says_so(device: Device) -> None:
    """With nothing to compare it to, it is neither lost nor given up, however long it takes."""
    device.sandbox.fault("reject_records", match={"idempotency_key": "bad"})
    device.post("bad")
    with BackgroundFlusher(settings=device.settings(max_attempts=1)) as flusher:
        eventually(lambda: device.sandbox.faults[0]["struck"] >= 5)
        status = device.status
        assert (status.pending, status.refused, status.dead) == (1, 1, 0)
        [events] = [link for link in status.links if link.name == "events"]
        assert "rejected by the sandbox" in str(events.last_error)

        device.post("good")
        assert flusher.flush(15)
    status = device.status
    assert (status.pending, status.refused, status.dead, status.delivered) == (0, 0, 1, 1)
