"""A device, its clock, its peers and its mishaps: everything drawn from one seed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import sqlite3
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

from meter_lib.errors import KeyConflict, OutboxFull, OutboxUnavailable
from meter_lib.opening import open_outbox
from meter_lib.outbox import ImportedLetter, Selector
from meter_lib.settings import Settings
from meter_lib.usage import usage_event
from meter_worker.assembly import flusher_over
from meter_worker.http_link import LinkFailed, LinkInterrupted
from meter_worker.rest_backend import RestAccounts, RestBackend
from tests.fakes import NOON, ManualClock
from tests.simulation.dialects import DIALECTS, STORED, UNKNOWN
from tests.simulation.flaky import FlakyOutbox
from tests.simulation.oracle import Broken, Oracle
from tests.simulation.proxy import Proxy, Said
from tests.simulation.rate import RateCheck
from tests.simulation.weather import change_weather, clear_up
from tests.simulation.wire import Letter, OnTheWire, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_lib.outbox import DeadLetter, Link
    from meter_worker.flusher import Call, Flusher

URL = "http://127.0.0.1:1"
_DAY = 86_400
_SMALL = 4 * 1024 * 1024
# At the outbox, until all is delivered in fair weather.
_MOST_LOOKS = 10_000
_LOGGERS = ("meter_lib", "meter_worker")
_TENANTS = ("alpha", "beta", "gamma", "ghost")


class Flight:
    """A call under way, what was sent, and what was said to it."""

    def __init__(self, call: Call, letter: Letter, sent_at: int, issued: int) -> None:
        self.call = call
        self.letter = letter
        self.sent_at = sent_at
        self.issued = issued
        """When it left, in ticks of the oracle."""
        self.said: Said | None = None
        self.handled = 0
        """When the peer handled it, in ticks of the oracle."""

    @property
    def is_delivery(self) -> bool:
        """Whether it carries events."""
        return self.letter.method == "POST"


class Limits(NamedTuple):
    """How long and how much it may take until everything is delivered after a storm."""

    seconds: float
    requests: int


class World:
    """One run. `step` makes something happen; `heal` lets the weather clear, and checks."""

    def __init__(self, seed: int, folder: str) -> None:
        self.draw = draw = random.Random(seed)  # noqa: S311  # no secret
        # tenacity draws from here.
        random.seed(seed)
        self.clock = ManualClock(NOON)
        drops = draw.random() < 0.15
        self._given: dict[str, Any] = {
            "outbox": os.path.join(folder, "outbox.db"),
            "stream_url": URL,
            "accounts_url": URL,
            "max_attempts": draw.choice([1, 2, 3, 5, 10]),
            "rate": draw.choice([None, None, 2, 100]),
            "reconnect_spread": draw.choice([0, 30]),
            "backoff_base": draw.choice([0.1, 1, 10]),
            "backoff_max": draw.choice([10, 300]),
            "account_ttl": draw.choice([1, 60, 3600]),
            "compression": draw.choice(["none", "none", "gzip"]),
            "max_bytes": _SMALL if drops else 16 * _SMALL,
            "when_full": "drop-oldest" if drops else "refuse",
        }
        self._choose_sizes()
        dialect = draw.choice(DIALECTS)
        self.pinned = dialect if draw.random() < 0.5 else "auto"
        limit = 10**6 if drops else draw.choice([2500, 20_000, 10**6])
        self.proxy = Proxy(draw, self.clock, dialect, limit=limit)
        self.proxy.pinned = self.pinned != "auto"
        self.proxy.customers = dict.fromkeys(_TENANTS, 1)
        self.drops = drops
        """Whether the outbox is small, its events are large, and the oldest make room for new."""
        self.oracle = Oracle(
            self.settings.outbox, max_attempts=self.settings.max_attempts, drops=drops
        )
        self.rate_check = RateCheck(self.settings.rate)
        self.oracle.stored = self.proxy.stored
        self.oracle.failed = self.proxy.failed
        self.wire = Wire()
        self.flights: list[Flight] = []
        self.orphans: list[Letter] = []
        """Requests that nobody waits for any more, and that may be stored all the same."""
        self.faults = FlakyOutbox(draw)
        self.story: list[str] = []
        self.tenants = _TENANTS[: draw.randint(1, 4)]
        self.has_poison = draw.random() < 0.6
        self._keys: dict[str, dict[str, Any]] = {}
        self._too_large: set[str] = set()
        self._purged: list[DeadLetter] = []
        self._number = 0
        self._ends_at = 0
        self._open()
        # The outbox draws its name, and from that the spread after an outage.
        self.outbox.status()
        with contextlib.closing(sqlite3.connect(self.settings.outbox)) as connection, connection:
            connection.execute("UPDATE outbox SET outbox_id = ?", (f"{seed:032x}",))

    # -- the device ---------------------------------------------------------------------

    def _open(self) -> None:
        # A new process knows of the time line of waits only what the outbox tells it.
        self.clock.follow(self.clock.now() - self.clock.uptime().milliseconds)
        self.outbox = open_outbox(self.settings)
        assert self.outbox.try_hold()
        self.faults.outbox = self.outbox
        backend = RestBackend(
            self.wire,  # type: ignore[arg-type]
            stream_url=URL,
            topic="usage-events",
            compression=self.settings.compression,
            clock=self.clock,
            dialect=self.pinned,
        )
        accounts = RestAccounts(self.wire, base_url=URL, clock=self.clock)  # type: ignore[arg-type]
        self.flusher: Flusher = flusher_over(
            self.settings,
            self.faults,  # type: ignore[arg-type]
            backend,
            accounts,
            self.clock,
        )

    def close(self) -> None:
        """Let go of the files."""
        self.oracle.close()
        self.outbox.close()

    def _tell(self, words: str) -> None:
        self.story.append(f"{self.oracle.tick:5} {self.clock.steady() - NOON:>12} {words}")

    # -- steps --------------------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen, whichever."""
        steps: list[tuple[Callable[[], None], float]] = [
            (self.post, 12),
            (self.start, 22),
            (self.handle, 22),
            (self.finish, 22),
            (self.wait, 12),
            (self.weather, 2),
            (self.orphan, 2),
            (self.crash, 1),
            (self.stop, 0.5),
            (self.set_clock, 0.5),
            (self.operate, 3),
            (self.try_now, 0.5),
            (self.rival, 0.3),
            (self.post_again, 0.5),
        ]
        names, weights = zip(*steps, strict=True)
        (step,) = self.draw.choices(names, weights)
        step()

    def post(self) -> None:
        """Record one event, or several at once."""
        events = []
        for _ in range(1 if self.draw.random() < 0.6 else self.draw.randint(2, 12)):
            self._number += 1
            key = f"e{self._number}" if self.draw.random() < 0.7 else None
            arguments = {
                "tenant_id": self.draw.choice(self.tenants),
                "device_id": self.draw.choice(["d1", "d2"]),
                "meter_id": self.draw.choice(["m", "n", "o"]),
                "total_usage": self.draw.randrange(2**40),
                "idempotency_key": key,
            }
            if self.draw.random() < 0.2:
                arguments["timestamp"] = NOON - self.draw.randrange(10**9)
            if self.has_poison and key and self.draw.random() < 0.06:
                style = self.draw.choice(["request", "record", "large"])
                if style == "large" and self.proxy.limit < 60_000:
                    filler = "x" * 8000
                    count = self.proxy.limit // 8000 + 1
                    arguments["metadata"] = {f"f{number}": filler for number in range(count)}
                    self._too_large.add(key)
                elif style != "large":
                    self.proxy.poison[key] = style
            if self.drops:
                filler = "x" * 8000
                arguments["metadata"] = {f"f{number}": filler for number in range(self._fillers())}
            events.append(arguments)
        try:
            receipts = self.outbox.append(
                [usage_event(**given) for given in events],
                now=self.clock.now(),
                uptime=self.clock.uptime(),
            )
        except OutboxFull:
            if not self.drops:
                raise
            self._tell("post: full, and nothing to drop")
            self.oracle.look()
            return
        for given, receipt in zip(events, receipts, strict=True):
            key = receipt["idempotency_key"]
            self._keys[key] = given
            stream = f"{given['tenant_id']}/{given['device_id']}/{given['meter_id']}"
            self.oracle.post(key, stream, given["total_usage"], given.get("timestamp"))
        self._tell(f"post {[receipt['idempotency_key'] for receipt in receipts]}")
        self.oracle.look()

    def _fillers(self) -> int:
        return self.draw.choice([0, 1, 4, 7])

    def post_again(self) -> None:
        """Record an event again under the caller's own key: nothing is added."""
        known = [
            (key, given)
            for key, given in self._keys.items()
            # One that was dropped, or purged, is unknown.
            if given["idempotency_key"] and not self.oracle.events[key].is_purged
        ]
        if not known:
            return
        key, given = self.draw.choice(known)
        (receipt,) = self.outbox.append([usage_event(**given)], now=self.clock.now())
        assert receipt["status"] == "duplicate", key
        with contextlib.suppress(KeyConflict):
            self.outbox.append(
                [usage_event(**given | {"total_usage": 1 + given["total_usage"]})],
                now=self.clock.now(),
            )
            raise Broken(f"[key-unique] {key} was taken with other content")
        self.oracle.look()

    def start(self) -> None:
        """Let the flusher say what to ask, and see it leave."""
        owed = self.oracle.owed
        before = self.outbox.link("events")
        try:
            calls = self.flusher.start()
        except OutboxUnavailable:
            self._tell("start: the outbox fails")
            self.oracle.look()
            return
        self.oracle.look()
        self.oracle.check_written(owed)
        self._note_failure(before)
        for call in calls:
            try:
                call.make()
            except OnTheWire as left:
                flight = Flight(call, left.letter, self.clock.steady(), self.oracle.tick)
            self.flights.append(flight)
            if flight.is_delivery:
                self._tell(f"#{call.number} leaves with {_keys_of(flight.letter)}")
                self._check_pause()
                self.oracle.issue(call.number, flight.letter)
                if self.rate_check.exceeds(self.clock.steady(), len(flight.letter.records)):
                    raise Broken(f"[rate] more than {self.settings.rate} a second")
            else:
                self._tell(f"#{call.number} asks {flight.letter.url.rpartition('/')[2]}")
        deliveries = sum(flight.is_delivery for flight in self.flights)
        if deliveries > self.settings.max_in_flight:
            raise Broken(f"[in-flight] {deliveries} requests are under way")
        if len(self.flights) - deliveries > 1:
            raise Broken("[in-flight] two questions are under way")
        self._check_probe()

    def _check_probe(self) -> None:
        if not self.outbox.link("events").failures:
            return
        probes = [
            flight
            for flight in self.flights
            if flight.is_delivery and flight.issued >= self._failed_at
        ]
        if len(probes) > 1 or any(len(flight.letter.records) > 1 for flight in probes):
            raise Broken(f"[probe] down, and {[_keys_of(one.letter) for one in probes]} are sent")

    def _note_failure(self, before: Link) -> None:
        link = self.outbox.link("events")
        if link.failures and link != before:
            self.oracle.tick += 1
            self._failed_at = self.oracle.tick

    def _check_pause(self) -> None:
        until = self.outbox.link("events").next_attempt_at
        if until is not None and until == self._paused_until and self.clock.steady() < until:
            raise Broken(f"[pause] a request leaves {until - self.clock.steady()} ms early")

    _paused_until: int | None = None
    _asked_until = 0
    _failed_at = 0

    def handle(self) -> None:
        """Let a peer handle one of the requests under way."""
        waiting = [flight for flight in self.flights if flight.said is None]
        if waiting:
            self._handle(self.draw.choice(waiting))

    def _handle(self, flight: Flight) -> None:
        self.oracle.tick += 1
        if flight.is_delivery:
            flight.said = self.proxy.handle(flight.letter)
            told = " ".join(flight.said.told)
            answer = flight.said.answer
            status = getattr(answer, "status", repr(answer))
            self._tell(f"#{flight.call.number} handled: {status}, {told}")
        else:
            flight.said = self.proxy.look_up(flight.letter)
            self._tell(f"#{flight.call.number} handled: account {flight.said.account}")
        flight.handled = self.oracle.tick

    def finish(self) -> None:
        """Let one of the answers come in, or time out."""
        if not self.flights:
            return
        flight = self.draw.choice(self.flights)
        late = self.clock.steady() - flight.sent_at > 1000 * self.settings.read_timeout
        if late and self.draw.random() < 0.8:
            self._time_out(flight)
        elif flight.said is None:
            self._handle(flight)
        self._finish(flight)

    def _time_out(self, flight: Flight) -> None:
        if flight.said is None and flight.is_delivery and self.draw.random() < 0.7:
            self.orphans.append(flight.letter)
        told = [UNKNOWN] * (len(flight.letter.records) if flight.is_delivery else 0)
        flight.said = Said(LinkFailed("late", timed_out=True), told, is_outage=True)

    def _finish(self, flight: Flight) -> None:
        assert flight.said is not None
        self.flights.remove(flight)
        number, said = flight.call.number, flight.said
        answer = self.wire.answering(flight.call.make, said.answer)
        is_written = True
        if self.draw.random() < 0.5 and self.flusher.came(flight.call, answer):
            self._tell(f"#{number} came: {type(answer).__name__}")
            self.oracle.came(number, said)
            self.start()
        before = self.outbox.link("events")
        paused_before = before.next_attempt_at
        try:
            self.flusher.finish(flight.call, answer)
        except OutboxUnavailable:
            is_written = False
        failed = "" if is_written else ", the outbox fails"
        self._tell(f"#{number} finished{failed}: {type(answer).__name__}")
        self._note_failure(before)
        if not flight.is_delivery:
            tenant_id = flight.letter.url.rpartition("/")[2]
            self.oracle.answer_account(tenant_id, said.account, is_written=is_written)
            return
        self.oracle.finish(number, said, handled=flight.handled, is_written=is_written)
        self.oracle.look()
        if is_written:
            keys = _keys_of(flight.letter)
            told = zip(keys, said.told, strict=True)
            self.oracle.check_written(key for key, fate in told if fate == STORED)
        if said.is_outage and is_written:
            self._note_pause(said, paused_before)

    def _note_pause(self, said: Said, paused_before: int | None) -> None:
        until = self.outbox.link("events").next_attempt_at
        if until != paused_before:
            # Else it is of an outage that is known, or of a pause for doubts.
            self._paused_until = until
        if isinstance(said.answer, LinkInterrupted):
            return
        if until is None:
            raise Broken("[pause] an outage, and no pause")
        asked_for = said.retry_after_seconds or 0
        if said.retry_after_at is not None:
            # By the wall clock as it is now.
            asked_for = said.retry_after_at - self.clock.now() / 1000
        asked_until = self.clock.steady() + round(1000 * max(0, min(asked_for, 3600)))
        if until < asked_until > self.clock.steady():
            raise Broken(f"[retry-after] asked for {asked_for} s, waits until {until}")
        self._asked_until = max(self._asked_until, asked_until)

    def wait(self) -> None:
        """Let time pass: a moment, until there is something to do, or long."""
        seconds = self.draw.choice([0.01, 0.5, 3, 20, 140, 400])
        until = self.flusher.next_at
        if until is not None and until > self.clock.steady() and self.draw.random() < 0.5:
            seconds = (until - self.clock.steady()) / 1000
        if self.draw.random() < 0.01:
            seconds = 2 * _DAY
        self.clock.advance(seconds)

    def weather(self) -> None:
        """Let the peers be in other moods."""
        self._tell(change_weather(self.proxy, self.faults, self.draw, self.tenants))

    def orphan(self) -> None:
        """Let something be stored that nobody waits for any more, or get lost."""
        if self.orphans:
            letter = self.orphans.pop(self.draw.randrange(len(self.orphans)))
            if self.draw.random() < 0.7:
                self._tell(f"stored late: {_keys_of(letter)}")
                self.proxy.store(letter)

    def crash(self) -> None:
        """Let the process die: what is under way may be stored all the same."""
        self._tell("crash")
        for flight in self.flights:
            if flight.said is None and flight.is_delivery and self.draw.random() < 0.5:
                self.orphans.append(flight.letter)
        self._restart()

    def _restart(self) -> None:
        self._forget_process()
        self.outbox.close()
        if self.draw.random() < 0.3:
            self._reboot()
        if self.draw.random() < 0.3:
            self._choose_sizes()
        self._open()
        self.oracle.look()

    def _forget_process(self) -> None:
        self.flights.clear()
        self.oracle.crash()
        self.rate_check.start_over()
        self._asked_until = 0

    def _choose_sizes(self) -> None:
        self.settings = Settings(
            **self._given,
            batch_size=self.draw.choice([1, 2, 5, 20, 50]),
            batch_bytes=self.draw.choice([1024, 4096, 1_000_000]),
            max_in_flight=self.draw.randint(1, 6),
        )

    def _reboot(self) -> None:
        jump = self.draw.choice([-40 * _DAY, -1800, -60, 0, 60, 1800, 40 * _DAY])
        self._tell(f"the machine comes up again, its clock {jump} s off")
        self._paused_until = None
        self.clock.reboot(now=self.clock.now() + 1000 * jump)
        self.clock.synchronised = self.draw.choice([None, True, False])

    def stop(self) -> None:
        """Let the process end in order: what is under way is broken off."""
        self._tell("stop")
        for flight in list(self.flights):
            if flight.said is None:
                if flight.is_delivery and self.draw.random() < 0.5:
                    self.orphans.append(flight.letter)
                told = [UNKNOWN] * (len(flight.letter.records) if flight.is_delivery else 0)
                flight.said = Said(LinkInterrupted(), told)
            self._finish(flight)
        self._restart()

    def set_clock(self) -> None:
        """Let the wall clock be set while the process runs."""
        self._tell("the wall clock is set")
        self.clock.jump(self.draw.choice([-30 * _DAY, -3600, 3600, 30 * _DAY]))

    def operate(self) -> None:
        """Let an operator replay or purge some dead letters, or import purged ones."""
        if self._purged and self.draw.random() < 0.3:
            self._import()
            return
        letters = list(self.outbox.dead_letters(Selector()))
        chosen = [letter for letter in letters if self.draw.random() < 0.5]
        if not chosen:
            return
        keys = [letter.idempotency_key for letter in chosen]
        seqs = [letter.seq for letter in chosen]
        if self.draw.random() < 0.5:
            self._tell(f"replay {keys}")
            self.outbox.replay(seqs, now=self.clock.now())
            self.oracle.look(replayed=keys)
        else:
            self._tell(f"purge {keys}")
            self.outbox.purge(seqs)
            self._purged += chosen
            self.oracle.look(purged=keys)

    def _import(self) -> None:
        letters = [
            ImportedLetter(
                usage_event(
                    **self._keys[one.idempotency_key] | {"idempotency_key": one.idempotency_key}
                ),
                *(one.event_time, one.attempts, one.reason, one.detail),
                *(one.dead_at, one.replays, one.customer_id),
            )
            for one in self._purged
        ]
        keys = [one.idempotency_key for one in self._purged]
        self._tell(f"import {keys}")
        # A second time, nothing is new.
        for is_new in (True, False):
            try:
                taken = self.outbox.import_letters(letters, now=self.clock.now())
            except OutboxFull:
                # Unlike a post, it drops nothing.
                if not self.drops:
                    raise
                if is_new:
                    return
                continue
            if taken != [is_new] * len(letters):
                raise Broken(f"[import] of {keys} these were taken: {taken}")
        for key in keys:
            self.oracle.take_in(key)
        self._purged.clear()
        self.oracle.look()

    def try_now(self) -> None:
        """Let an operator end the pauses, save what the backend has asked for."""
        with contextlib.suppress(OutboxUnavailable):
            self.flusher.try_now()
        until = self.outbox.link("events").next_attempt_at
        is_asked = self._asked_until > self.clock.steady()
        if is_asked and (until or 0) < self._asked_until:
            raise Broken(f"[try-now] asked to wait until {self._asked_until}, waits until {until}")
        if until != self._paused_until:
            self._paused_until = until if is_asked else None

    def rival(self) -> None:
        """Let another flusher try for the hold: it gets it only after our death."""
        with contextlib.closing(open_outbox(self.settings)) as other:
            if other.try_hold():
                raise Broken("[hold] two flushers hold one outbox")
            if self.draw.random() < 0.5:
                return
            self._tell("crash, and another takes over")
            self._forget_process()
            self.outbox.close()
            if not other.try_hold():
                raise Broken("[hold] the holder is dead, and nobody can take over")
        self._open()

    # -- and then the weather clears ----------------------------------------------------

    def heal(self) -> None:
        """Let all faults end, save what is poison; everything is delivered in good time."""
        clear_up(self.proxy, self.faults)
        self._tell("the weather clears")
        while self.orphans:
            self.orphan()
        for flight in list(self.flights):
            if flight.said is None:
                self._handle(flight)
            self._finish(flight)
        self._run_until_quiet()
        letters = [
            letter
            for letter in self.outbox.dead_letters(Selector())
            if not self._is_poison(letter.idempotency_key)
        ]
        if letters:
            # In the storm they were refused by all the rules.
            keys = [letter.idempotency_key for letter in letters]
            self._tell(f"replay {keys}")
            self.outbox.replay([letter.seq for letter in letters], now=self.clock.now())
            self.oracle.look(replayed=keys)
            self._run_until_quiet()
        for event in self.oracle.events.values():
            if event.is_dead and not self._is_poison(event.key):
                raise Broken(f"[only-poison] {event.key} is a dead letter in fair weather")
        self.oracle.check_sums()
        self.oracle.check_arrivals()

    def _run_until_quiet(self) -> None:
        left = len(self.oracle.left)
        limits = self._limits(left)
        began, sent = 0.0, self.oracle.requests
        looks = 0
        while self.oracle.left:
            looks += 1
            if looks > _MOST_LOOKS:
                raise Broken(f"[converge] {len(self.oracle.left)} left after {looks} looks")
            if all(self._is_poison(event.key) for event in self.oracle.left):
                # Something has to be accepted for a refusal to be proven.
                self._post_canary()
            self.start()
            answered = list(self.flights)
            for flight in answered:
                self._handle(flight)
                self._finish(flight)
            if answered or self.flusher.sees_more:
                continue
            if not self.oracle.left:
                break
            now = self.clock.steady()
            until = self.flusher.next_at
            # The loop looks at least as often as METER_POLL_INTERVAL; so often will do here.
            seconds = min(20.0, max(0.05, ((until or now) - now) / 1000))
            self.clock.advance(seconds)
            began += seconds
            if began > limits.seconds or self.oracle.requests - sent > limits.requests:
                keys = [event.key for event in self.oracle.left]
                raise Broken(
                    f"[converge] {len(keys)} of {left} left after {began:.0f} s and "
                    f"{self.oracle.requests - sent} requests, of {limits}: {keys[:20]}"
                )

    def _post_canary(self) -> None:
        given = {
            "tenant_id": self.tenants[0],
            "device_id": "canary",
            "meter_id": "m",
            "total_usage": 1,
            "idempotency_key": None,
        }
        (receipt,) = self.outbox.append([usage_event(**given)], now=self.clock.now())
        key = receipt["idempotency_key"]
        self._keys[key] = given
        self.oracle.post(key, f"{self.tenants[0]}/canary/m", 1)

    def _is_poison(self, key: str) -> bool:
        return key in self.proxy.poison or key in self._too_large

    def _limits(self, left: int) -> Limits:
        seconds = 2 * 3600 + 20 * self.settings.backoff_max
        seconds += 60 * self.settings.max_attempts
        if self.settings.rate:
            seconds += 4 * left / self.settings.rate
        return Limits(seconds, 200 + 20 * left)


def _keys_of(letter: Letter) -> list[str]:
    return [json.loads(record)["value"]["idempotency_key"] for record in letter.records]


class _Quiet:
    """The log of the product is not printed while many worlds run."""

    def __enter__(self) -> None:
        self._levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
        for logger in self._levels:
            logger.setLevel(logging.CRITICAL + 1)

    def __exit__(self, *_: object) -> None:
        for logger, level in self._levels.items():
            logger.setLevel(level)


def run(seed: int, steps: int, *, story: list[str] | None = None) -> int:
    """Run a world; return how many steps it took. Raises `Broken`."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  # in memory
    folder = tempfile.mkdtemp(prefix="meter-lib-simulation-", dir=base)
    state = random.getstate()
    try:
        with _Quiet():
            world = World(seed, folder)
            if story is not None:
                world.story = story
            try:
                for _ in range(steps):
                    world.step()
                world.heal()
            finally:
                world.close()
    finally:
        random.setstate(state)
        shutil.rmtree(folder, ignore_errors=True)
    return steps
