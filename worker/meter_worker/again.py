"""Parcels that must go as they are, before anything else of their streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from meter_lib.outbox import Delivery, DueEvent
    from meter_worker.parcels import Parcel

__all__ = ["Again"]


class Again:
    """Parcels in the order in which those that share a stream must go.

    Parts of what was refused, what was sent and not answered, refused events that are to be
    asked about alone. Of those whose outcome nobody knows, the outbox knows the make-up.
    """

    def __init__(self, outbox: Delivery) -> None:
        self._outbox = outbox
        self._parcels: list[Parcel] = []
        # Keys of the parcels that may have been stored, and that the outbox remembers.
        self._unanswered: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._parcels)

    @property
    def seqs(self) -> set[int]:
        """The events of all parcels."""
        return {event.seq for parcel in self._parcels for event in parcel.events}

    @property
    def streams(self) -> set[int]:
        """The streams of all parcels."""
        return {stream_id for parcel in self._parcels for stream_id in parcel.streams}

    def put_first(self, parcels: Sequence[Parcel], *, unanswered: bool = False) -> None:
        """Let these go before all others; `unanswered` if the outbox remembers them as sent."""
        self._parcels[0:0] = parcels
        if unanswered:
            self._unanswered.update(parcel.key for parcel in parcels)

    def free(self, blocked: Collection[int]) -> Iterator[Parcel]:
        """Yield the parcels that may go while the streams `blocked` are under way."""
        taken = set(blocked)
        for parcel in self._parcels:
            if taken.isdisjoint(parcel.streams):
                yield parcel
            taken |= parcel.streams

    def take(self, parcel: Parcel) -> Parcel:
        """Let a parcel go; return it."""
        self._parcels.remove(parcel)
        self._unanswered.discard(parcel.key)
        return parcel

    def take_first(self, parcel: Parcel, records: int) -> Parcel:
        """Let the first so many records of a parcel go; return them as a parcel of their own."""
        if records >= len(parcel.events):
            return self.take(parcel)
        first, rest = parcel.part(0, records), parcel.part(records)
        self.replace(parcel, [first, rest])
        return self.take(first)

    def replace(self, parcel: Parcel, parts: Sequence[Parcel]) -> None:
        """Let the parts of a parcel go in its place."""
        is_unanswered = parcel.key in self._unanswered
        if is_unanswered:
            self._outbox.begin([part.unanswered() for part in parts], forget=[parcel.key])
        place = self._parcels.index(parcel)
        self._parcels[place : place + 1] = parts
        self._unanswered.discard(parcel.key)
        if is_unanswered:
            self._unanswered.update(part.key for part in parts)

    def set_aside(self, chosen: Callable[[DueEvent], bool]) -> None:
        """Put the events chosen back behind those of their streams that wait, in the outbox."""
        # The last first: should the outbox fail half-way, those that stay here are before them.
        for parcel in self._parcels[::-1]:
            theirs = [event for event in parcel.events if chosen(event)]
            if theirs:
                self._outbox.queue(theirs, customer_id=parcel.customer_id)
                rest = parcel.without({event.seq for event in theirs})
                self.replace(parcel, [rest] if rest else [])
