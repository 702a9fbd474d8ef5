"""A flusher on the bench: over a real outbox, with a scripted backend and a clock in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from meter_lib._sqlite import SqliteOutbox
from meter_lib.outbox import Selector
from meter_lib.settings import Settings
from meter_lib.usage import usage_event
from meter_worker.assembly import flusher_over
from meter_worker.backend import Interrupted, Unavailable
from tests.fakes import ManualClock, ScriptedAccounts, ScriptedBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meter_lib.outbox import DeadLetter, Link
    from meter_worker.flusher import Flusher

MIB = 1024 * 1024
BASE = 10.0
LONGEST = 300.0
DOWN = Unavailable("HTTP 503: down")
LATE = Unavailable("no whole answer within 130 s", timed_out=True)


class Pass(NamedTuple):
    """What one pass did: calls made one after the other, until there are none."""

    delivered: int
    progressed: bool
    next_at: int | None


class Bench:
    """A flusher over a real outbox, with a backend and a clock in hand."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = str(path)
        self.outbox = SqliteOutbox(self.path, max_bytes=64 * MIB)
        self.clock = ManualClock()
        self.backend = ScriptedBackend()
        self.accounts = ScriptedAccounts()
        usual = {
            "backoff_base": BASE,
            "backoff_max": LONGEST,
            "reconnect_spread": 0,
            "max_in_flight": 1,
        }
        self.settings = Settings(outbox=self.path, **usual | settings)
        self.flusher = self.restarted()

    def restarted(self) -> Flusher:
        """Another flusher over the same outbox, as after a restart of the worker."""
        self.flusher = flusher_over(
            self.settings, self.outbox, self.backend, self.accounts, self.clock
        )
        return self.flusher

    def post(self, *posted: str, **arguments: Any) -> None:
        """Record events under these keys, all of one tenant, device and meter."""
        given = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 1} | arguments
        events = [usage_event(**given, idempotency_key=key) for key in posted]
        self.outbox.append(events, now=self.clock.now())

    def flush(self) -> Pass:
        """Make one pass: ask what there is to ask, and once more until nothing is left."""
        delivered = 0
        progressed = False
        for _ in range(100_000):
            calls = self.flusher.start()
            for call in calls:
                answer = call.make()
                delivered += self.flusher.finish(call, answer)
                progressed |= not isinstance(answer, Interrupted)
                if isinstance(answer, Interrupted):
                    return Pass(delivered, progressed, self.flusher.next_at)
            if not calls and not self.flusher.sees_more:
                return Pass(delivered, progressed, self.flusher.next_at)
        raise AssertionError("the flusher finds work for ever")

    def flush_all(self) -> int:
        """Make passes at this instant until there is nothing more to do; return how many."""
        for passes in range(1, 10_000):
            if not self.flush().progressed:
                return passes
        raise AssertionError("the flusher finds work for ever")

    def wait(self) -> None:
        """Let the longest possible wait pass."""
        self.clock.advance(LONGEST)

    def live(self, seconds: float, *, step: float = 1.0) -> None:
        """Let time pass as the loop does: a look every `step` seconds."""
        ends_at = self.clock.steady() + seconds * 1000
        while self.clock.steady() < ends_at:
            self.flush_all()
            self.clock.advance(step)

    @property
    def counts(self) -> dict[str, int]:
        """How many events there are of each kind."""
        status = self.outbox.status()
        return {
            "pending": status.pending,
            "dead": status.dead,
            "delivered": status.delivered,
            "refused": status.refused,
        }

    @property
    def dead(self) -> list[tuple[str, str]]:
        """Key and reason of each dead letter."""
        return [(letter.idempotency_key, letter.reason) for letter in self.letters]

    @property
    def letters(self) -> list[DeadLetter]:
        """The dead letters."""
        return list(self.outbox.dead_letters(Selector()))

    @property
    def events_link(self) -> Link:
        """How it stands with the backend."""
        return self.outbox.link("events")


def numbered(name: str, count: int, start: int = 0) -> list[str]:
    """Make keys name0, name1, ..."""
    return [f"{name}{number}" for number in range(start, start + count)]


def named(*names: str) -> Callable[[dict[str, Any]], bool]:
    """Match values whose key is one of these."""
    return lambda value: value["idempotency_key"] in names


def called(prefix: str) -> Callable[[dict[str, Any]], bool]:
    """Match values whose key begins like this."""
    return lambda value: value["idempotency_key"].startswith(prefix)


def of_tenant(tenant: str) -> Callable[[dict[str, Any]], bool]:
    """Match values of this tenant."""
    return lambda value: value["tenant_id"] == tenant


def all_delivered(count: int) -> dict[str, int]:
    """The counts of an outbox that has delivered all it had."""
    return {"pending": 0, "dead": 0, "delivered": count, "refused": 0}
