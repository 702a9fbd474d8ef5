"""Three days without a network, in seconds: `python -m tests.docs.outage EVENTS`.

Records that many events in the outbox that the environment names, spread over the three days until
now, while a worker with the same clock tries to deliver them to a backend that is down. The
outbox, the requests and the worker are real; only the clock is not. The worker's log goes to
stderr.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from typing import TYPE_CHECKING

from meter_lib import METERS, Settings
from meter_lib.opening import open_outbox
from meter_lib.usage import usage_event
from meter_worker.assembly import flusher_over
from meter_worker.http_link import HttpLink
from meter_worker.logs import log_as_set
from meter_worker.rest_backend import RestAccounts, RestBackend
from tests.fakes import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.flusher import Flusher

DAYS = 3
_POST_EVERY_SECONDS = 600
_POSTS = DAYS * 86_400 // _POST_EVERY_SECONDS
# Whatever the last pause is, it is over when the three days are: nobody has to wait for it.
_LAST_TRY_SECONDS = 400
_TENANTS = ("acme", "globex", "initech")
_DEVICES = ("press-1", "press-2")
_SOME_METERS = [meter.id for meter in METERS if meter.type == "volume"][:4]
# The backend will never have heard of this one.
POISONOUS = "page.scanned"
POISONED = 12


def main() -> None:
    """Let three days pass."""
    settings = log_as_set(Settings.load)
    count = int(sys.argv[1])
    begun = time.time_ns() // 1_000_000 - DAYS * 86_400_000
    clock = ManualClock(begun)
    logging.getLogger().handlers[0].addFilter(_dated(clock))
    outbox = open_outbox(settings)
    assert outbox.try_hold()
    flusher = _flusher(settings, outbox, clock)
    draw = random.Random(3)  # noqa: S311  # no secret
    random.seed(3)  # the waits are drawn from here
    last_try = begun + DAYS * 86_400_000 - 1000 * _LAST_TRY_SECONDS
    for number in range(_POSTS):
        share = count * (number + 1) // _POSTS - count * number // _POSTS
        # On the first day: what comes behind them, and is accepted, is what proves them bad.
        is_poisoned = number < _POSTS // DAYS and number % (_POSTS // DAYS // POISONED) == 0
        events = [
            usage_event(
                draw.choice(_TENANTS),
                draw.choice(_DEVICES),
                draw.choice(_SOME_METERS),
                draw.randint(1, 40),
            )
            for _ in range(share - is_poisoned)
        ]
        if is_poisoned:
            events.insert(0, usage_event(_TENANTS[0], _DEVICES[0], POISONOUS, 1))
        outbox.append(events, now=clock.now(), uptime=clock.uptime())
        until = clock.steady() + 1000 * _POST_EVERY_SECONDS
        while (at := flusher.next_at or clock.steady()) < min(until, last_try):
            clock.advance_to(max(at, clock.steady()))
            _try(flusher)
        clock.advance_to(until)
    outbox.close()


def _flusher(settings: Settings, outbox: object, clock: ManualClock) -> Flusher:
    link = HttpLink(connect_timeout=1, read_timeout=5, token=None)
    backend = RestBackend(
        link, stream_url=settings.stream_url, topic=settings.topic, compression="none", clock=clock
    )
    accounts = RestAccounts(link, base_url=settings.accounts_url, clock=clock)
    return flusher_over(settings, outbox, backend, accounts, clock)  # type: ignore[arg-type]


def _try(flusher: Flusher) -> None:
    for call in flusher.start():
        flusher.finish(call, call.make())


def _dated(clock: ManualClock) -> Callable[[logging.LogRecord], bool]:
    def date(record: logging.LogRecord) -> bool:
        record.created = clock.now() / 1000
        return True

    return date


if __name__ == "__main__":
    main()
