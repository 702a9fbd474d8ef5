"""The part of the outbox that the flusher has in view: events read, and not yet sent.

It is bounded, whatever the backlog. Events that may not be sent now fill half of it at
the most; beyond that they are passed over, so that whoever is behind them comes into
view, and are read again when they may.
"""

from __future__ import annotations

from collections import deque
from heapq import merge
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from meter_lib.outbox import Delivery, DueEvent

__all__ = ["Device", "Window"]

# How soon those that were set aside, and for which there is no room, are looked at again.
_LATER_MILLISECONDS = 1000

Device: TypeAlias = "tuple[str, str]"
"""Tenant and device: whose events may share a request."""
Waits: TypeAlias = "Callable[[DueEvent], bool]"


class Window:
    """Events in view, those of a stream in their order; at most `events` and about `max_bytes`."""

    def __init__(self, outbox: Delivery, *, events: int, max_bytes: int) -> None:
        self._outbox = outbox
        self._most = events
        self._max_bytes = max_bytes
        self.devices: dict[Device, dict[int, deque[DueEvent]]] = {}
        """The streams of each device that have events in view."""
        self._seqs: set[int] = set()
        # Fresh events up to here have been read.
        self._position = 0
        # Streams with events before that point that were read and not kept: one event of each,
        # and before which point the first of them is.
        self._passed_over: dict[int, DueEvent] = {}
        self._first_passed_over = 0

    def __len__(self) -> int:
        return len(self._seqs)

    def forget(self) -> None:
        """Start anew from the outbox."""
        self.devices.clear()
        self._seqs.clear()
        self._position = 0
        self._passed_over.clear()

    def read(
        self, now: int, *, waits: Waits, elsewhere: Collection[int], streams: Collection[int]
    ) -> bool:
        """Read on where there is room; return whether there may be more to see.

        `elsewhere` are the seqs, and `streams` the streams, of events in other hands.
        """
        if any(not waits(event) for event in self._passed_over.values()):
            self._position = self._first_passed_over
            self._passed_over.clear()
        waiting = sum(len(events) for events in self._all() if waits(events[0]))
        if len(self._seqs) - waiting > self._most // 2:
            return False
        position = self._position
        in_view = {events[0].stream_id for events in self._all()}
        read = self._outbox.due(
            now=now,
            limit=self._most,
            max_bytes=self._max_bytes,
            after=position,
            beside=sorted(in_view.union(streams)),
        )
        self._position = max([position, *(event.seq for event in read if event.fresh)])
        known = self._seqs.union(elsewhere)
        new = [event for event in read if event.seq not in known]
        behind = [event for event in new if event.held and event.stream_id not in self._passed_over]
        later = self._take_in([event for event in new if not event.held], waits, waiting)
        if behind:
            # Those in view go before them, also with whoever reads them after us.
            streams = {event.stream_id for event in behind}
            before = [event for events in self._all() for event in events if event.fresh]
            self._outbox.queue([*(e for e in before if e.stream_id in streams), *behind])
        if later:
            # Out of the way of those that were not set aside yet.
            self._outbox.queue(later, until=now + _LATER_MILLISECONDS)
        return bool(new) or self._position != position

    def _take_in(self, new: list[DueEvent], waits: Waits, waiting: int) -> list[DueEvent]:
        """Take events into view; return those that were set aside and have no room."""
        later: list[DueEvent] = []
        taken: list[int] = []
        queues: dict[int, deque[DueEvent]] = {}
        for event in new:
            stream_id = event.stream_id
            if event.fresh and stream_id in self._passed_over:
                self._pass_over(event)
                continue
            if waits(event):
                if waiting >= self._most // 2:
                    if event.fresh:
                        self._pass_over(event)
                    else:
                        later.append(event)
                    continue
                waiting += 1
            queue = queues.get(stream_id)
            if queue is None:
                queue = queues[stream_id] = self._queue_of(event)
            queue.append(event)
            taken.append(event.seq)
        self._seqs.update(taken)
        return later

    def _pass_over(self, event: DueEvent) -> None:
        # One that became visible late may be before those that were passed over first.
        first = self._first_passed_over if self._passed_over else event.seq
        self._first_passed_over = min(first, event.seq - 1)
        # Whether it waits is told without what it carries, and there may be many streams.
        self._passed_over[event.stream_id] = event._replace(payload="")

    def _queue_of(self, event: DueEvent) -> deque[DueEvent]:
        device = self.devices.setdefault((event.tenant_id, event.device_id), {})
        return device.setdefault(event.stream_id, deque())

    def _all(self) -> Iterator[deque[DueEvent]]:
        return (events for device in self.devices.values() for events in device.values())

    def heads(self) -> Iterator[DueEvent]:
        """Return the next event of each stream."""
        return (events[0] for events in self._all())

    def of(self, device: Device, streams: Iterable[int]) -> Iterator[DueEvent]:
        """Yield the events of these streams of a device, the oldest first."""
        theirs = self.devices[device]
        return merge(*(theirs[stream_id] for stream_id in streams), key=lambda event: event.seq)

    def take(self, events: Iterable[DueEvent]) -> None:
        """Let events, each among the first of its stream, out of view."""
        queues: dict[int, deque[DueEvent]] = {}
        taken: list[int] = []
        touched: dict[int, Device] = {}
        for event in events:
            queue = queues.get(event.stream_id)
            if queue is None:
                name = touched[event.stream_id] = event.tenant_id, event.device_id
                queue = queues[event.stream_id] = self.devices[name][event.stream_id]
            queue.remove(event)
            taken.append(event.seq)
        self._seqs.difference_update(taken)
        for stream_id, name in touched.items():
            if not queues[stream_id]:
                del self.devices[name][stream_id]
                if not self.devices[name]:
                    del self.devices[name]

    def take_all(self, chosen: Callable[[DueEvent], bool]) -> list[DueEvent]:
        """Let all events of the streams chosen by their next event out of view; return them."""
        taken = [event for events in self._all() if chosen(events[0]) for event in events]
        self.take(taken)
        return taken
