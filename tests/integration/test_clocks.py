from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.outbox import ImportedLetter
from meter_lib.usage import usage_event
from meter_worker.backend import AccountUnknown, Unavailable
from tests.fakes import NOON
from tests.unit.flusher_bench import DOWN, LONGEST, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN_1970 = 86_400_000
DAY = 86_400


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Bench]:
    """A device without a battery: it has come up, and its clock shows a day in 1970."""
    bench = Bench(tmp_path / "outbox.db")
    bench.clock.reboot(now=IN_1970)
    bench.restarted()
    yield bench
    bench.outbox.close()


def record(device: Bench, key: str, **arguments: Any) -> None:
    """Record an event as a client does, with both clocks."""
    given = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 1} | arguments
    event = usage_event(**given, idempotency_key=key)
    device.outbox.append([event], now=device.clock.now(), uptime=device.clock.uptime())


def times(device: Bench) -> dict[str, tuple[int, int | None, bool | None]]:
    """What each delivered event says of its time: event time, recorded time, uncertain."""
    return {
        value["idempotency_key"]: (
            value["event_time"],
            value.get("recorded_time"),
            value.get("clock_uncertain"),
        )
        for value in device.backend.stored
    }


def test_an_event_recorded_before_the_device_got_its_time_is_corrected(device: Bench) -> None:
    """While the boot lasts it is known when it was; what the clock showed then is kept."""
    record(device, "e")
    device.clock.advance(100)
    device.clock.jump((NOON - IN_1970) / 1000)
    record(device, "later")
    device.flush_all()

    assert times(device) == {
        "e": (NOON, IN_1970, None),
        "later": (NOON + 100_000, None, None),
    }


def test_what_is_known_of_a_key_is_corrected_with_its_event(tmp_path: Path) -> None:
    """An event whose time was corrected is the same event still: posted again, or imported."""
    device = Bench(tmp_path / "outbox.db", max_attempts=1)
    device.clock.reboot(now=IN_1970)
    record(device, "e")
    device.restarted()
    device.accounts.answers["t"] = AccountUnknown("no such tenant")
    device.clock.jump((NOON - IN_1970) / 1000)
    device.flush_all()
    event = usage_event("t", "d", "m", 1, idempotency_key="e")
    assert device.outbox.append([event], now=device.clock.now()) == [
        {"status": "duplicate", "idempotency_key": "e", "event_time": NOON}
    ]
    [letter] = device.letters
    device.outbox.purge([letter.seq])
    imported = ImportedLetter(event, letter.event_time, 1, letter.reason, "", NOON, 0, None)
    assert device.outbox.import_letters([imported], now=device.clock.now()) == [True]
    device.outbox.close()


def test_what_cannot_be_corrected_says_so(device: Bench) -> None:
    """After another boot nobody knows how long ago it was."""
    record(device, "e")
    device.clock.reboot(now=NOON)
    record(device, "later")
    device.flush_all()

    assert times(device) == {"e": (IN_1970, None, True), "later": (NOON, None, None)}


def test_a_time_that_the_caller_gave_is_never_corrected(device: Bench) -> None:
    """Whatever our clock shows, the caller may have a better one."""
    record(device, "e", timestamp=1_700_000_000_000)
    record(device, "s", total_usage=None, start_time=1_700_000_000_001)
    device.clock.jump((NOON - IN_1970) / 1000)
    device.flush_all()

    assert times(device) == {
        "e": (1_700_000_000_000, None, None),
        "s": (1_700_000_000_001, None, None),
    }


def test_what_was_sent_once_is_sent_with_the_same_time_again(device: Bench) -> None:
    """One key, one content: a correction comes too late for it."""
    record(device, "e")
    device.backend.script(DOWN)
    device.flush_all()
    record(device, "unsent")
    device.clock.advance(LONGEST)
    device.clock.jump((NOON - IN_1970) / 1000)
    device.restarted()
    device.flush_all()

    first, *_ = device.backend.requests
    assert times(device) == {
        "e": (IN_1970, None, True),
        "unsent": (NOON, IN_1970, None),
    }
    assert first.records[0] in [record for r in device.backend.requests[1:] for record in r.records]


def test_a_correction_is_the_same_after_a_restart(device: Bench) -> None:
    """It is written to the outbox, not made up at each attempt."""
    record(device, "e")
    device.clock.jump((NOON - IN_1970) / 1000)
    device.backend.otherwise = DOWN
    device.flush_all()
    device.clock.jump(3 * DAY)
    device.clock.advance(LONGEST)
    device.restarted()
    device.flush_all()
    device.clock.jump(-9 * DAY)
    device.clock.advance(LONGEST)
    device.restarted()
    device.flush_all()

    sent = [record for request in device.backend.requests for record in request.records]
    assert len(sent) >= 3
    assert set(sent) == {sent[0]}
    assert f'"event_time":{NOON},"recorded_time":{IN_1970}' in sent[0]


def test_a_right_clock_that_is_slewed_a_little_corrects_nothing(device: Bench) -> None:
    """A leap second, or what a time service takes back, is no wrong clock."""
    device.clock.jump((NOON - IN_1970) / 1000)
    record(device, "first")
    device.flush_all()
    record(device, "e")
    device.clock.jump(1)
    device.flush_all()
    assert times(device) == {"first": (NOON, None, None), "e": (NOON, None, None)}


@pytest.mark.parametrize("days", [-3650, -1, 1, 3650])
def test_a_pause_lasts_as_long_over_a_restart_whatever_the_wall_clock_does(
    device: Bench, days: float
) -> None:
    """Within a boot, waits are on a clock that nobody sets."""
    device.clock.jump((NOON - IN_1970) / 1000)
    record(device, "e")
    device.backend.script(Unavailable("HTTP 503: down", retry_after_seconds=600))
    device.flush_all()
    device.clock.jump(days * DAY)
    device.restarted()
    device.clock.advance(599)
    device.flush_all()
    assert len(device.backend.requests) == 1

    device.clock.advance(1)
    device.flush_all()
    assert device.backend.stored_keys == ["e"]


def test_a_pause_is_not_longer_than_it_was_meant_to_be_in_another_boot(device: Bench) -> None:
    """Where the clock has gone back with the power, nobody waits for years."""
    device.clock.jump((NOON - IN_1970) / 1000)
    record(device, "e")
    device.backend.script(Unavailable("HTTP 503: down", retry_after_seconds=600))
    device.flush_all()
    device.clock.reboot(now=IN_1970)
    device.restarted()
    device.flush_all()
    assert len(device.backend.requests) == 1

    device.clock.advance(600)
    device.flush_all()
    assert device.backend.stored_keys == ["e"]
