"""A fleet of devices that comes back after an outage, on a clock that only counts.

How long each device waits, how much it sends and when it is told to spread is decided by the
code that ships: `LinkKeeper`, `RetryPolicy` and `Pace`. The model supplies the time, the
network, the backend, and a backlog in place of an outbox. Nothing in it depends on the machine:
the same seed gives the same figures.

One thing is shortened. Of an outage of more than an hour the last hour is played; a device has
then failed often enough to be at its longest wait, where it remembers nothing of the hours before.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from meter_lib import Settings
from meter_lib.outbox import Link
from meter_worker.backend import Unavailable
from meter_worker.links import LinkKeeper
from meter_worker.pace import Pace
from meter_worker.retry_policy import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WAYS", "Fleet", "Outage", "Result", "Way", "play"]

SETTINGS = Settings()
_HOUR = 3_600_000
_DAY = 24 * _HOUR
_PLAYED_FAILURES = 12  # the longest wait is reached at the ninth
# An answer takes so long, the proxy's linger included. Where nobody answers it fails at once, which
# keeps devices in step that are in step.
_ANSWER_MILLISECONDS = (60, 260)
_REFUSED_MILLISECONDS = 20
_LOST = Unavailable("connection reset")
_BUSY = Unavailable("503 Service Unavailable")


class Fleet(NamedTuple):
    """How many devices there are, and what they talk to."""

    devices: int = 10_000
    events_a_day: int = 10_000
    backend_requests_a_second: int = 2_000
    backend_queue_seconds: float = 2.0
    """What has to wait longer than this is refused with 503."""
    lost_answers: float = 0.01
    """The share of requests that are stored, and whose answer is lost on the way."""
    seed: int = 7


class Outage(NamedTuple):
    """How long nobody could reach the backend, and how the devices come back."""

    name: str
    seconds: int
    retry_after_seconds: float | None = None
    """What the backend asked for meanwhile, where it was not gone but said 503 to everybody."""
    boots: bool = False
    """True where the devices themselves were without power: they start when it is back."""


class InStep:
    """What a client does that doubles its wait, and neither jitters nor spreads it."""

    def wait_seconds(self, failures: int, *, retry_after_seconds: float | None = None) -> float:
        """Return the wait after so many failures in a row."""
        wait = min(SETTINGS.backoff_max, SETTINGS.backoff_base * 2.0 ** (failures - 1))
        return max(wait, retry_after_seconds or 0.0)


class Way(NamedTuple):
    """How devices wait."""

    name: str
    policy: Callable[[], RetryPolicy | InStep]
    spread_seconds: float


def _ours() -> RetryPolicy:
    return RetryPolicy(base_seconds=SETTINGS.backoff_base, max_seconds=SETTINGS.backoff_max)


WAYS = (
    Way("in step", InStep, 0.0),
    Way("jitter", _ours, 0.0),
    Way("jitter and spread", _ours, SETTINGS.reconnect_spread),
)


class Result(NamedTuple):
    """What came of it. Seconds count from the moment the backend can be reached again."""

    requests: list[int]
    """By second, whatever the backend made of them."""
    contacts: list[int]
    """Devices that reach the backend for the first time, by second."""
    refused: int
    drained_after: list[float]
    """Seconds until its backlog is delivered, of each device, the fastest first."""
    backlog: int
    """Events that waited."""
    delivered: int
    """Of them, told apart by their keys: the backend has each."""
    duplicates: int
    """Events that the backend got once more, under the same key."""


class _Links:
    """What a `LinkKeeper` asks of an outbox, in memory."""

    def __init__(self, outbox_id: str) -> None:
        self.outbox_id = outbox_id
        self._link = Link("events")

    def link(self, _: str) -> Link:
        """Return how it stands with the backend."""
        return self._link

    def set_link(self, link: Link) -> None:
        """Write how it stands with the backend."""
        self._link = link


class _Parcel(NamedTuple):
    events: int
    is_stored: bool


class _Device:
    def __init__(self, name: str, way: Way, backlog: int) -> None:
        self.links = _Links(name)
        self.keeper = LinkKeeper(
            self.links,
            "events",
            way.policy(),
            longest_wait_seconds=SETTINGS.backoff_max,
            spread_seconds=way.spread_seconds,
        )
        self.pace = Pace(
            batch_size=SETTINGS.batch_size, batch_bytes=SETTINGS.batch_bytes, rate=SETTINGS.rate
        )
        self.fresh = backlog
        self.left = backlog
        self.again: list[_Parcel] = []
        self.under_way = 0
        self.was_there = False

    def parcels(self, now: int) -> list[_Parcel]:
        """Return what leaves now, as the flusher has it: after a failure a lone event."""
        is_down, paused_until = self.keeper.standing(now)
        if paused_until is not None:
            return []
        if is_down:
            return [] if self.under_way else self._take(1)
        parcels: list[_Parcel] = []
        while self.under_way + len(parcels) < SETTINGS.max_in_flight:
            taken = self._take(min(self.pace.records, self.pace.allowed(now)))
            if not taken:
                break
            self.pace.spend(taken[0].events)
            parcels += taken
        return parcels

    def _take(self, most: int) -> list[_Parcel]:
        if self.again:
            parcel = self.again.pop(0)
            if parcel.events > most:
                self.again.insert(0, parcel._replace(events=parcel.events - most))
            return [parcel._replace(events=min(most, parcel.events))]
        events = min(most, self.fresh)
        self.fresh -= events
        return [_Parcel(events, is_stored=False)] if events else []

    def answered(
        self, parcel: _Parcel, failure: Unavailable | None, sent_in: int, now: int
    ) -> None:
        """Take note of what became of a parcel."""
        if failure is None:
            if sent_in == self.keeper.outage:
                self.keeper.succeeded(now)
            self.pace.accepted(parcel.events)
            self.left -= parcel.events
        else:
            self.again.insert(0, parcel)
            self.keeper.failed(failure, now, sent_in=sent_in)


class _World:
    """The backend, the network and the time. Milliseconds; the backend is back at 0."""

    def __init__(self, fleet: Fleet, outage: Outage) -> None:
        self._fleet = fleet
        self._down = Unavailable("no answer", retry_after_seconds=outage.retry_after_seconds)
        self._random = random.Random(f"{fleet.seed} {outage.name}")  # noqa: S311  # no secret
        self._things: list[tuple[int, int, Callable[[int], None]]] = []
        self._number = 0
        self._free_at = 0.0
        self.requests: Counter[int] = Counter()
        self.contacts: Counter[int] = Counter()
        self.refused = 0
        self.duplicates = 0
        self.stored = 0
        self.drained: list[float] = []

    def draw(self, low: float, high: float) -> float:
        """Return a number between these."""
        return self._random.uniform(low, high)

    def at(self, instant: int, thing: Callable[[int], None]) -> None:
        """Let it happen then."""
        self._number += 1
        heapq.heappush(self._things, (instant, self._number, thing))

    def run(self) -> None:
        """Let everything happen, in order."""
        while self._things:
            now, _, thing = heapq.heappop(self._things)
            thing(now)

    def look(self, device: _Device, now: int) -> None:
        """Send what the device sends now, and look again when it has to wait."""
        for parcel in device.parcels(now):
            device.under_way += 1
            self._send(device, parcel, now)
        paused_until = device.keeper.paused_until(now)
        if paused_until is not None and not device.under_way:
            self.at(paused_until, lambda then: self.look(device, then))

    def _send(self, device: _Device, parcel: _Parcel, now: int) -> None:
        sent_in = device.keeper.outage
        parcel, failure, answered_at = self._outcome(device, parcel, now)

        def come_back(then: int) -> None:
            device.under_way -= 1
            had = device.left
            device.answered(parcel, failure, sent_in, then)
            if had and not device.left:
                self.drained.append(then / 1000)
            self.look(device, then)

        self.at(answered_at, come_back)

    def _outcome(
        self, device: _Device, parcel: _Parcel, now: int
    ) -> tuple[_Parcel, Unavailable | None, int]:
        """Return what becomes of a parcel, and when its device knows."""
        if now < 0:
            return parcel, self._down, now + _REFUSED_MILLISECONDS
        second = now // 1000
        self.requests[second] += 1
        if not device.was_there:
            device.was_there = True
            self.contacts[second] += 1
        answer_at = now + round(self.draw(*_ANSWER_MILLISECONDS))
        waits = max(0.0, self._free_at - now)
        if waits > 1000 * self._fleet.backend_queue_seconds:
            self.refused += 1
            return parcel, _BUSY, answer_at
        self._free_at = now + waits + 1000 / self._fleet.backend_requests_a_second
        if parcel.is_stored:
            self.duplicates += parcel.events
        else:
            self.stored += parcel.events
        failure = _LOST if self._random.random() < self._fleet.lost_answers else None
        return parcel._replace(is_stored=True), failure, answer_at + round(waits)


def play(fleet: Fleet, outage: Outage, way: Way) -> Result:
    """Let a fleet come back after an outage; return once every backlog is delivered."""
    world = _World(fleet, outage)
    random.seed(f"{fleet.seed} {outage.name} {way.name}")  # the jitter's own
    length = 1000 * outage.seconds
    gap = _DAY / fleet.events_a_day
    backlog = 0
    for number in range(fleet.devices):
        events = max(1, round(length / gap * world.draw(0.5, 1.5)))
        backlog += events
        device = _Device(f"device {number}", way, events)
        # Each notices the outage with its next event, or starts when the power is back.
        begins = round(world.draw(0, gap)) - min(length, _HOUR)
        if outage.boots:
            begins = round(world.draw(0, 10_000))
        elif length > _HOUR:
            link = Link("events", failures=_PLAYED_FAILURES, down_since=-length)
            device.links.set_link(link)
        world.at(begins, lambda now, device=device: world.look(device, now))
    world.run()
    last = max(world.requests, default=0)
    return Result(
        requests=[world.requests[second] for second in range(last + 1)],
        contacts=[world.contacts[second] for second in range(last + 1)],
        refused=world.refused,
        drained_after=sorted(world.drained),
        backlog=backlog,
        delivered=world.stored,
        duplicates=world.duplicates,
    )
