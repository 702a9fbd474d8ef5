"""P3: each accepted event is pending, dead, delivered or removed, and every one is counted."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import KeyConflict
from meter_lib.letters import ImportedLetter
from meter_lib.outbox import Burial, Deferral, Selector, Settlement
from meter_lib.usage import usage_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_lib.outbox import DueEvent
    from meter_lib.usage import UsageEvent

NOON = 1_760_000_000_000
DAY = 86_400_000
MOST_UNITS = 2**63 - 1


class Sum(NamedTuple):
    """Events and their units."""

    events: int
    units: int

    def plus(self, other: Sum) -> Sum:
        """Both together."""
        return Sum(self.events + other.events, self.units + other.units)


class Books(NamedTuple):
    """Where the accepted events are, counted row by row."""

    pending: Sum
    dead: Sum
    delivered: Sum
    removed: Sum

    def total(self) -> Sum:
        """All of them."""
        return self.pending.plus(self.dead).plus(self.delivered).plus(self.removed)


def books_of(path: str) -> Books:
    """Count the rows of the file without this library, and check its own counters by them."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    live = connection.execute("SELECT state = 'dead', total_usage FROM events").fetchall()
    left = connection.execute(
        "SELECT delivered_events, delivered_units, removed_events, removed_units FROM ledger"
    ).fetchall()
    accepted, *counters = connection.execute(
        """
        SELECT max(last_seq, coalesce((SELECT max(seq) FROM events), 0)),
               dead_events, delivered_events, removed_events
        FROM outbox
        """
    ).fetchone()
    held = connection.execute(
        """
        SELECT (SELECT count(*) FROM streams WHERE held_until IS NOT NULL),
               (SELECT count(DISTINCT stream_id) FROM events WHERE state = 'deferred'),
               (SELECT count(*) FROM events, outbox WHERE state = 'pending' AND seq <= frontier)
        """
    ).fetchone()
    sound = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()

    pending = [units or 0 for is_dead, units in live if not is_dead]
    dead = [units or 0 for is_dead, units in live if is_dead]
    books = Books(
        pending=Sum(len(pending), sum(pending)),
        dead=Sum(len(dead), sum(dead)),
        delivered=Sum(sum(row[0] for row in left), sum(int(row[1]) for row in left)),
        removed=Sum(sum(row[2] for row in left), sum(int(row[3]) for row in left)),
    )
    assert sound == ("ok",)
    assert counters == [books.dead.events, books.delivered.events, books.removed.events]
    assert books.total().events == accepted
    # A stream is held if and only if one of its events waits; none is left behind the frontier.
    assert held == (held[1], held[1], 0)
    return books


class RandomWalk:
    """A poster, a flusher and an operator who do whatever they may, in any order."""

    def __init__(self, path: str, seed: int) -> None:
        self._path = path
        self._seed = seed
        self._dice = random.Random(seed)  # noqa: S311  # nothing secret
        self._last = 0
        self._now = NOON
        self.accepted = Sum(0, 0)
        self._left: list[SqliteOutbox] = []
        self.outbox = self._open()

    def step(self) -> str:
        """Do one thing, and return what."""
        actions: list[Callable[[], None]] = [
            self.append,
            self.append,
            self.settle,
            self.settle,
            self.queue,
            self.ask_alone,
            self.replay,
            self.purge,
            self.take_in,
            self.crash,
            self.wait,
        ]
        action = self._dice.choice(actions)
        action()
        return action.__name__

    def _open(self) -> SqliteOutbox:
        return SqliteOutbox(self._path, max_bytes=16 * 2**20)

    def append(self) -> None:
        """Record a few events; some were recorded before, and now and then a key is abused."""
        events = [self._event() for _ in range(self._dice.randrange(6))]
        try:
            receipts = self.outbox.append(events, now=self._now)
        except KeyConflict:
            return
        for event, receipt in zip(events, receipts, strict=True):
            if receipt["status"] == "queued":
                self.accepted = self.accepted.plus(Sum(1, event.total_usage or 0))

    def _event(self) -> UsageEvent:
        self._last += 1
        number = self._dice.choice([self._last, self._dice.randint(1, self._last)])
        units = [0, 1, 24, MOST_UNITS][number % 4]
        return usage_event(
            f"tenant-{number % 2}",
            f"device-{number % 3}",
            "m",
            units if self._dice.random() < 0.98 else 7,
            timestamp=NOON + number % 5 * DAY,
            idempotency_key=f"{self._seed}-{number}" if number % 3 else None,
        )

    def settle(self) -> None:
        """Settle some of what is due, each in a way of its own."""
        fates: dict[str, list[DueEvent]] = {
            "delivered": [],
            "deferred": [],
            "refused": [],
            "refused_alone": [],
            "buried": [],
            "forgotten": [],
        }
        for event in self._due():
            if not event.held:
                fates[self._dice.choice(list(fates))].append(event)
        self._settle(fates)

    def ask_alone(self) -> None:
        """Settle some of what the backend refused."""
        fates: dict[str, list[DueEvent]] = {"delivered": [], "refused_alone": [], "buried": []}
        for event in self.outbox.suspects(limit=5, proven_only=self._dice.random() < 0.5):
            fates[self._dice.choice(list(fates))].append(event)
        self._settle(fates)

    def queue(self) -> None:
        """Put what is behind somebody behind him; sometimes, what is not, too."""
        everyone = self._dice.random() < 0.2
        self.outbox.queue([event for event in self._due() if event.held or everyone])

    def replay(self) -> None:
        """Bring some dead letters back."""
        self.outbox.replay(self._some_dead(), now=self._now)

    def purge(self) -> None:
        """Remove some dead letters."""
        self.outbox.purge(self._some_dead())

    def take_in(self) -> None:
        """Import dead letters: some that are here, were here, or come from elsewhere."""
        letters = [
            ImportedLetter(event, event.event_time(0), 1, "rejected", "", NOON, 0, None)
            for event in (self._event() for _ in range(self._dice.randrange(6)))
            if event.idempotency_key
        ]
        try:
            are_new = self.outbox.import_letters(letters, now=self._now)
        except KeyConflict:
            return
        for letter, is_new in zip(letters, are_new, strict=True):
            if is_new:
                self.accepted = self.accepted.plus(Sum(1, letter.event.total_usage or 0))

    def wait(self) -> None:
        """Let time pass, or let the clock jump."""
        self._now += self._dice.choice([1_000, 60_000, -30_000])

    def crash(self) -> None:
        """Go on with the file as it is; what this process held is just left where it was."""
        self._left.append(self.outbox)
        self.outbox = self._open()

    def close(self) -> None:
        """Close all that was opened."""
        for outbox in (*self._left, self.outbox):
            outbox.close()

    def _due(self) -> list[DueEvent]:
        return self.outbox.due(now=self._now, limit=self._dice.randrange(1, 12), max_bytes=2_000)

    def _settle(self, fates: dict[str, list[DueEvent]]) -> None:
        until = self._now + self._dice.randrange(60_000)
        self.outbox.settle(
            Settlement(
                delivered=fates["delivered"],
                deferred=[
                    Deferral(event, until, self._dice.random() < 0.5)
                    for event in fates.get("deferred", [])
                ],
                refused=fates.get("refused", []),
                refused_alone=fates["refused_alone"],
                buried=[Burial(event, "rejected", "no") for event in fates["buried"]],
            ),
            now=self._now,
        )

    def _some_dead(self) -> list[int]:
        seqs = [dead.seq for dead in self.outbox.dead_letters(Selector(limit=6))]
        return self._dice.sample(seqs, self._dice.randint(0, len(seqs)))


@pytest.mark.parametrize("seed", range(6))
def test_the_books_balance_after_every_step(outbox_path: str, seed: int) -> None:
    """Whatever poster, flusher and operator do, each event and each unit is accounted for."""
    walk = RandomWalk(outbox_path, seed)
    walk.outbox.append([], now=NOON)
    for _ in range(120):
        step = walk.step()
        books = books_of(outbox_path)
        assert books.total() == walk.accepted, step
        status = walk.outbox.status()
        assert (
            status.accepted,
            status.pending,
            status.dead,
            status.delivered,
            status.removed,
        ) == (books.total().events, *(part.events for part in books)), step
        with walk.outbox.audit(progress=lambda _done, _of: None) as audit:
            assert (audit.problems, audit.accepted) == ([], books.total()), step
            assert (audit.pending, audit.dead, audit.delivered, audit.removed) == books, step
    walk.close()


def test_the_walk_goes_everywhere(outbox_path: str) -> None:
    """The walk of this test file brings events to each of the four places."""
    walk = RandomWalk(outbox_path, 0)
    visited: set[str] = set()
    for _ in range(20):
        for _ in range(20):
            walk.step()
        visited.update(
            place for place, sum_ in books_of(outbox_path)._asdict().items() if any(sum_)
        )
    walk.close()
    assert visited == {"pending", "dead", "delivered", "removed"}


def test_units_are_exact_beyond_64_bits(outbox_path: str) -> None:
    """The sum of units may pass what an integer of SQLite holds; not one unit is rounded away."""
    outbox = SqliteOutbox(outbox_path, max_bytes=16 * 2**20)
    for _ in range(3):
        outbox.append([usage_event("t", "d", "m", MOST_UNITS) for _ in range(7)], now=NOON)
        due = outbox.due(now=NOON, limit=7, max_bytes=2**20)
        buried = [Burial(event, "rejected", "no") for event in due[5:]]
        outbox.settle(Settlement(delivered=due[:5], buried=buried), now=NOON)
        outbox.purge([dead.seq for dead in outbox.dead_letters(Selector(limit=1))])
    outbox.close()
    assert books_of(outbox_path) == Books(
        pending=Sum(0, 0),
        dead=Sum(3, 3 * MOST_UNITS),
        delivered=Sum(15, 15 * MOST_UNITS),
        removed=Sum(3, 3 * MOST_UNITS),
    )


WALKER = """
import runpy, sys
walk = runpy.run_path(sys.argv[1])["RandomWalk"](sys.argv[2], int(sys.argv[3]))
while True:
    print(walk.step(), *walk.accepted, flush=True)
"""


def test_the_books_balance_after_a_crash_at_any_point(outbox_path: str) -> None:
    """Killed in the middle of whatever it does, a process leaves balanced books."""
    dice = random.Random(3)  # noqa: S311  # nothing secret
    least = Sum(0, 0)
    for life in range(6):
        command = [sys.executable, "-c", WALKER, __file__, outbox_path, str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as walker:
            assert walker.stdout is not None
            said = [walker.stdout.readline() for _ in range(dice.randrange(20, 80))]
            walker.kill()
            said += [line for line in walker.stdout.readlines() if line.endswith("\n")]
        _, events, units = said[-1].split()
        least = least.plus(Sum(int(events), int(units)))
        total = books_of(outbox_path).total()
        # The last step may have recorded events, and died before it could say so.
        assert (total.events >= least.events, total.units >= least.units) == (True, True)
        least = total
    # How far a life gets before its kill depends on the machine; some of it there was.
    assert least.events > 10
