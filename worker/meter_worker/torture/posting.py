"""The programs that are crashed: `python -m meter_worker.torture.posting WHAT OUTBOX ...`.

Each says on standard output, by one system call, `ack KEY...` once it has the receipts, and
`leaving KEY...` before it settles events as delivered or purges them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from meter_lib import MeterClient, Settings
from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_lib.outbox import Burial, Deferral, Selector, Settlement
from meter_worker.torture.events import MAX_BYTES, batch, event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meter_lib.outbox import Outbox

__all__ = ["SCENARIOS", "command"]

_EVENTS_A_LOOK = 60
# Of a storm: far from what fills the outbox.
_MOST_PENDING = 300
_REST_SECONDS = 0.002


def command(what: str, outbox: str, *, durability: str = "full", seed: int = 0) -> list[str]:
    """Return the command line that runs one of these programs."""
    module = "meter_worker.torture.posting"
    return [sys.executable, "-m", module, what, outbox, durability, str(seed)]


class _Poster:
    """Posts to one outbox, and says so."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.dice = random.Random(seed)  # noqa: S311  # nothing secret
        self.client = MeterClient(settings=settings)
        self._numbers = itertools.count()

    def lone(self, count: int) -> None:
        for _ in range(count):
            arguments = event(next(self._numbers), self.dice)
            _say("ack", [self.client.post(**arguments)["idempotency_key"]])

    def together(self, size: int) -> None:
        events = batch(next(self._numbers), size, self.dice, name=str(self.seed))
        _say("ack", [receipt["idempotency_key"] for receipt in self.client.post_many(events)])


def _first(poster: _Poster) -> None:
    """The first event of a new file in new folders; the process ends without closing it."""
    poster.lone(1)
    os._exit(0)


def _lone(poster: _Poster) -> None:
    """One by one, while the log is emptied and begun again."""
    poster.lone(150)


def _batches(poster: _Poster) -> None:
    """Many at a time."""
    for _ in range(14):
        poster.together(poster.dice.randrange(1, 30))


def _settling(poster: _Poster) -> None:
    """With a flusher that settles in between, which is not synced."""
    with contextlib.closing(open_outbox(poster.settings)) as outbox:
        for _ in range(16):
            poster.lone(poster.dice.randrange(1, 8))
            poster.together(poster.dice.randrange(2, 12))
            _settle_some(outbox, poster.dice)


def _settle_some(outbox: Outbox, dice: random.Random) -> None:
    now = SystemClock().now()
    if not outbox.try_hold():
        return
    due = outbox.due(now=now, limit=_EVENTS_A_LOOK, max_bytes=MAX_BYTES)
    # Most are delivered, or what is set aside would fill the outbox.
    delivered = due[: dice.randint(len(due) // 2, len(due))]
    rest = due[len(delivered) :]
    buried = dice.randrange(2) if len(due) > 5 else 0
    _say("leaving", [one.idempotency_key for one in delivered])
    settlement = Settlement(
        delivered=delivered,
        deferred=[Deferral(one, now + 20, counts=True) for one in rest[buried:]],
        buried=[Burial(one, "rejected", "for the sake of torture") for one in rest[:buried]],
    )
    outbox.settle(settlement, now=now)
    if dice.random() < 0.1:
        _clear_dead_letters(outbox, now)


def _clear_dead_letters(outbox: Outbox, now: int) -> None:
    letters = list(outbox.dead_letters(Selector(limit=_EVENTS_A_LOOK)))
    half = len(letters) // 2
    _say("leaving", [letter.idempotency_key for letter in letters[:half]])
    outbox.purge([letter.seq for letter in letters[:half]])
    outbox.replay([letter.seq for letter in letters[half:]], now=now)


def _restarting(poster: _Poster) -> None:
    """By processes that end without closing: each finds the log that the last one left."""
    for number in range(6):
        _run("abrupt", poster.settings, seed=poster.seed * 10 + number)


def _abrupt(poster: _Poster) -> None:
    poster.lone(3)
    poster.together(4)
    os._exit(0)


def _reopening(poster: _Poster) -> None:
    """Closing again and again: the last to close deletes the log."""
    for _ in range(12):
        poster.lone(poster.dice.randrange(4))
        poster.client.close()


def _forking(poster: _Poster) -> None:
    """With children of fork() that post too."""
    for _ in range(5):
        poster.lone(2)
        child = os.fork()
        if child == 0:
            poster.lone(3)
            poster.client.close()
            os._exit(0)
        poster.lone(3)
        os.waitpid(child, 0)


def _threads(poster: _Poster) -> None:
    """Three threads over one client."""

    def post() -> None:
        for _ in range(5):
            poster.lone(2)
            poster.together(3)

    _side_by_side([_thread(post) for _ in range(3)])
    poster.client.close()


def _crowd(poster: _Poster) -> None:
    """Three processes of three threads each."""
    seeds = range(poster.seed * 10, poster.seed * 10 + 3)
    _side_by_side([_thread(_run, "threads", poster.settings, seed) for seed in seeds])


def _run(what: str, settings: Settings, seed: int) -> None:
    arguments = command(what, settings.outbox, durability=settings.durability, seed=seed)
    if subprocess.run(arguments, check=False).returncode != 0:  # noqa: S603  # our own command
        os._exit(1)


def _storm(poster: _Poster) -> None:
    """All of it, without an end, from three threads: to be killed."""
    dice = random.Random(poster.seed)  # noqa: S311  # nothing secret

    def settle() -> None:
        with contextlib.closing(open_outbox(poster.settings)) as outbox:
            while True:
                _settle_some(outbox, dice)

    def post() -> None:
        with contextlib.closing(open_outbox(poster.settings)) as outbox:
            while True:
                # Those who settle, in this process or in another one, have to keep up.
                while outbox.status().pending > _MOST_PENDING:
                    time.sleep(_REST_SECONDS)
                poster.lone(poster.dice.randrange(1, 4))
                poster.together(poster.dice.randrange(2, 8))

    _side_by_side([_thread(settle), _thread(post), _thread(post)])


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    return threading.Thread(target=target, args=arguments)


def _side_by_side(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _say(verb: str, keys: Iterable[str]) -> None:
    # One system call: half a line is never taken for a receipt.
    os.write(1, f"{verb} {' '.join(keys)}\n".encode())


SCENARIOS: dict[str, Callable[[_Poster], None]] = {
    "first": _first,
    "lone": _lone,
    "batches": _batches,
    "settling": _settling,
    "restarting": _restarting,
    "reopening": _reopening,
    "forking": _forking,
    "crowd": _crowd,
}
"""What is recorded. Each ends by itself."""

_PROGRAMS = {**SCENARIOS, "abrupt": _abrupt, "threads": _threads, "storm": _storm}


def _end_the_process(error: threading.ExceptHookArgs) -> None:
    # Whoever waits for it must not take it for alive.
    threading.__excepthook__(error)
    os._exit(1)


def _main(what: str, outbox: str, durability: str, seed: str) -> None:
    threading.excepthook = _end_the_process
    settings = Settings(outbox=outbox, max_bytes=MAX_BYTES, durability=durability)
    _PROGRAMS[what](_Poster(settings, int(seed)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
