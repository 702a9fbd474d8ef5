"""Moves an outbox to another place: all of it, under its name and its numbers.

An outbox is moved as a whole. Its name and the numbers of its events go out on the wire, so
only what keeps both can send an event again as it was sent before, and shows the backend no
hole. It follows that the place it moves to has no events of its own.

    1. `fill`   the new store is written; whoever uses the old one notices nothing, save that
                writers wait
    2. `seal`   the new one is whole and durable; nobody can use it yet
    3. `leave`  the old one is closed for good: the one step that decides
    4. `open`   the new one is in use

Whatever ends the mover, it ends it between two steps. Before 3 the old one goes on as if
nothing had been; after it, neither can be used until the move is run again, and no event can
ever be delivered from both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from meter_lib.errors import OutboxHeld, OutboxMoved, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["Arriving", "Contents", "Departure", "Leaving", "Moved", "Rows", "Value", "move"]

Value = int | str | bytes | float | None


class Rows(NamedTuple):
    """Some rows of a table, as the migrations have named its columns."""

    table: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]


class Contents(NamedTuple):
    """What an outbox holds, counted row by row, and what it says of what has left it.

    Two stores that agree in all of it hold the same outbox. Units are those of the events.
    """

    outbox_id: str
    accepted: int
    pending: int
    pending_units: int
    dead: int
    dead_units: int
    delivered: int
    removed: int
    ledger_events: int
    """Delivered and removed, as the days of the ledger have them."""
    ledger_units: int
    unanswered: int
    """Requests that were sent and not answered."""
    known_keys: int


class Departure(NamedTuple):
    """What is left at the place of an outbox that has moved."""

    to: str
    """The location it moved to."""
    outbox_id: str
    kept: str
    """Where the old store is kept, for whoever wants to look at it; nothing uses it."""


class Moved(NamedTuple):
    """A move that is done."""

    departure: Departure
    contents: Contents
    was_finished: bool
    """True where an earlier run had come past the step that decides."""


class Leaving(Protocol):
    """The store that an outbox moves from."""

    @property
    def location(self) -> str:
        """Return where it is, in words fit for a log."""
        ...

    def departure(self) -> Departure | None:
        """Return where the outbox has moved to, or None where it is here.

        Raises `OutboxMissing` where there is none and never was.
        """
        ...

    def holder(self) -> int | None:
        """Return the process id of the flusher that holds it (0: unknown), or None."""
        ...

    def try_hold(self) -> bool:
        """Keep flushers away until `close`, or return False where there is one."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Make everybody else who would write wait, for the length of the block."""
        ...

    def contents(self) -> Contents:
        """Return what it holds at this instant."""
        ...

    def row_count(self) -> int:
        """Return how many rows `rows` yields."""
        ...

    def rows(self) -> Iterator[Rows]:
        """Yield all that it holds; memory does not grow with it. Within `alone`."""
        ...

    def leave(self, to: str, outbox_id: str) -> Departure:
        """Close it for good and durably, for all and at one instant. Within `alone`.

        From then on whoever opens it gets `OutboxMoved`. Raises `OutboxUnavailable` where that
        cannot be done now; then nothing has changed.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Arriving(Protocol):
    """The store that an outbox moves to."""

    @property
    def location(self) -> str:
        """Return where it is, in words fit for a log."""
        ...

    def try_hold(self) -> bool:
        """Keep flushers and other moves away until `close`, or return False."""
        ...

    def require_free(self, outbox_id: str) -> None:
        """Raise `OutboxUnavailable` where it has events, or waits for another outbox."""
        ...

    def fill(self, rows: Iterable[Rows]) -> Contents:
        """Write these rows, and nothing else, beside what is in use; return what is there then.

        What an earlier move has left unfinished is thrown away.
        """
        ...

    def seal(self, outbox_id: str) -> None:
        """Make what was written durable, and refuse all others until `open`.

        Raises as `require_free` does, and has changed nothing then.
        """
        ...

    def open(self, outbox_id: str) -> Contents:
        """Put it in use, durably, unless it is already; return what it holds.

        Raises `OutboxUnavailable` where it holds no such outbox.
        """
        ...

    def discard(self) -> None:
        """Throw away what was written and not opened."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def move(
    source: Leaving, destination: Arriving, *, progress: Callable[[int, int], object]
) -> Moved:
    """Move an outbox; return once it is in use at its new place, durably.

    Where an earlier run was cut short, this one finishes it. `progress` is told how many more
    rows are done, of how many in all. Raises `OutboxHeld` where a flusher holds either, and
    `OutboxUnavailable` where the old one is in use or the new one has events of its own; then
    the outbox is where it was, and in use.
    """
    departure = source.departure()
    if departure is not None and departure.to != destination.location:
        raise OutboxMoved(f"{source.location} has moved to {departure.to}; name that place")
    if not destination.try_hold():
        raise OutboxHeld(
            f"another process delivers from {destination.location} or moves an outbox there; end"
            f" it first"
        )
    if departure is not None:
        return Moved(departure, destination.open(departure.outbox_id), was_finished=True)
    if not source.try_hold():
        raise OutboxHeld(
            f"process {source.holder() or 0} delivers from {source.location}; stop it first"
        )
    with source.alone():
        contents = source.contents()
        destination.require_free(contents.outbox_id)
        try:
            _require_same(destination.fill(_told(source, progress)), contents)
            destination.seal(contents.outbox_id)
            departure = source.leave(destination.location, contents.outbox_id)
        except BaseException:
            # If the old one has left, what was sealed is all there is: whoever asks will tell.
            if source.departure() is None:
                destination.discard()
            raise
    return Moved(departure, destination.open(departure.outbox_id), was_finished=False)


def _require_same(arrived: Contents, contents: Contents) -> None:
    if arrived != contents:
        raise OutboxUnavailable(
            f"what was written is not what was read, but {arrived} instead of {contents}; nothing"
            f" was moved"
        )


def _told(source: Leaving, progress: Callable[[int, int], object]) -> Iterator[Rows]:
    total = source.row_count()
    for rows in source.rows():
        yield rows
        progress(len(rows.rows), total)
