"""The part of the port `Outbox` that looks it through, finds damage and mends it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

__all__ = ["Audit", "AuditRow", "Inspection", "Taken", "Tally", "Upkeep", "shown_day"]


_FIRST_DAY = dt.date(1970, 1, 1).toordinal()


class Tally(NamedTuple):
    """A number of events, and the units of them all; both exact, however large."""

    events: int
    units: int

    def plus(self, other: Tally) -> Tally:
        """Return both together."""
        return Tally(self.events + other.events, self.units + other.units)


def shown_day(day: int) -> str:
    """Return the UTC day so many days after the first of 1970, as YYYY-MM-DD."""
    try:
        return dt.date.fromordinal(_FIRST_DAY + day).isoformat()
    except (ValueError, OverflowError):  # no calendar has it, but a clock may have said so
        return f"day {day}"


class AuditRow(NamedTuple):
    """What became of the events of one stream that happened on one day."""

    day: str
    """The UTC day of their event time, as YYYY-MM-DD."""
    tenant_id: str
    device_id: str
    meter_id: str
    pending: Tally
    dead: Tally
    delivered: Tally
    removed: Tally

    @property
    def accepted(self) -> Tally:
        """All of them: each is in exactly one place."""
        return self.pending.plus(self.dead).plus(self.delivered).plus(self.removed)


class Audit(NamedTuple):
    """The books of an outbox at one instant, recomputed from its events and its ledger."""

    problems: Sequence[str]
    """What does not add up or cannot be. None: the books are balanced."""
    accepted: Tally
    """Events by their seqs, which have no gap."""
    pending: Tally
    dead: Tally
    delivered: Tally
    removed: Tally
    rows: Iterator[AuditRow]
    """By day, tenant, device and meter. They are read as they are asked for, once."""


class Inspection(NamedTuple):
    """What is found when a store is looked through from end to end."""

    engine: str
    """What stores it, such as `SQLite 3.46.1`."""
    method: str
    """How it was looked through."""
    is_complete: bool
    """Whether there was time for all of it."""
    problems: Sequence[str]
    """What is wrong with it, in the words of whoever stores it. None: nothing was found."""
    accepted: int
    """This and the others are 0 where there are problems, or there was no time to count."""
    pending: int
    """Counted event by event, as are the dead. The others are counted as they happen."""
    dead: int
    delivered: int
    removed: int


class Taken(NamedTuple):
    """What was taken over from a file."""

    events: int
    there_already: int
    """Left out, because the outbox had them, or has delivered them."""


class Upkeep(Protocol):
    """What operators ask of an outbox as a whole, which may be damaged."""

    def pending_since(self, instants: Sequence[int]) -> list[int]:
        """Return how many pending events were recorded at each of these instants or later.

        For people: a flusher at work may make it a few more than there are, a clock that was
        set may blur it. It counts one by one only what was set aside.
        """
        ...

    def inspect(self, *, seconds: float) -> Inspection:
        """Look the outbox through, for about so many seconds at most; change nothing."""
        ...

    def audit(self, *, progress: Callable[[int, int], object]) -> AbstractContextManager[Audit]:
        """Add up all there is, and compare it with what was counted as it happened.

        Of one instant, whoever works with the outbox meanwhile; change nothing. The rows
        can be read until the context ends. `progress` is told how many more events are
        done, of how many in all. Nobody waits for it: it raises `OutboxUnavailable` where
        so much is written meanwhile that others would have to.
        """
        ...

    def salvage(self) -> bool:
        """Set the outbox aside if it is damaged, with a new one in its place that has its events.

        Returns whether it was. Each event that can be read is there once, under its key.
        """
        ...

    def take_over(self, path: str, *, progress: Callable[[int, int], object]) -> Taken:
        """Take the events of an outbox file, damaged or whole, that this one never had.

        They go on under their keys, as accepted anew; nothing is taken twice, however
        often this is done. The file is only read. `progress` is told how many more events
        are done, of how many in all. Raises `OutboxMissing` where there is no such file.
        """
        ...
