"""The part of the port `Outbox` that finds damage and mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Inspection", "Taken", "Upkeep"]


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
    """What operators ask of an outbox that may be damaged."""

    def inspect(self, *, seconds: float) -> Inspection:
        """Look the outbox through, for about so many seconds at most; change nothing."""
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
