"""What shares a request: events of one tenant and device, with the customer that pays for them."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from meter_lib.outbox import Unanswered
from meter_worker.wire import BODY_OVERHEAD_BYTES, record_texts, request_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meter_lib.outbox import DueEvent
    from meter_worker.backend import Request

__all__ = ["Parcel", "cut"]


class Parcel:
    """Events that travel together, and the request that carries them: the same on every attempt."""

    def __init__(
        self, events: Sequence[DueEvent], records: Sequence[str], customer_id: str
    ) -> None:
        self.events = events
        self.records = records
        self.customer_id = customer_id
        """JSON text of the customer id in each record."""
        self.streams = frozenset(event.stream_id for event in events)
        self.request: Request = request_for(events, records)

    @classmethod
    def of(cls, events: Sequence[DueEvent], *, outbox_id: str, customer_id: str) -> Parcel:
        """Return the parcel of these events."""
        records = record_texts(events, outbox_id=outbox_id, customer_id=customer_id)
        return cls(events, records, customer_id)

    @property
    def key(self) -> str:
        """The idempotency key of its request, derived from exactly its records."""
        return self.request.idempotency_key

    @property
    def tenant_id(self) -> str:
        """The tenant of all its events."""
        return self.request.tenant_id

    @property
    def body_bytes(self) -> int:
        """The size of the request's body, at most."""
        return BODY_OVERHEAD_BYTES + _size(",".join(self.records))

    def records_within(self, body_bytes: int) -> int:
        """Return how many of its records a body of that size holds, at least one."""
        if self.body_bytes <= body_bytes:
            return len(self.records)
        sizes = accumulate((_size(record) for record in self.records), initial=BODY_OVERHEAD_BYTES)
        return max(1, sum(size <= body_bytes for size in sizes) - 1)

    def unanswered(self) -> Unanswered:
        """Return what the outbox has to remember of its request."""
        return Unanswered(self.key, self.customer_id, self.events)

    def part(self, start: int, end: int | None = None) -> Parcel:
        """Return the parcel of a part of its events."""
        return Parcel(self.events[start:end], self.records[start:end], self.customer_id)

    def halves(self) -> list[Parcel]:
        """Return two parcels with about half of its events each, a stream's in order.

        Of several streams each goes to one of them as a whole, so that neither has to wait
        for the other.
        """
        if len(self.streams) == 1:
            middle = len(self.events) // 2
            return [self.part(0, middle), self.part(middle)]
        sizes = Counter(event.stream_id for event in self.events)
        first: set[int] = set()
        taken = 0
        for stream_id in list(sizes)[:-1]:
            if first and taken + sizes[stream_id] > len(self.events) // 2:
                break
            first.add(stream_id)
            taken += sizes[stream_id]
        return [
            self._where(lambda event: event.stream_id in first),
            self._where(lambda event: event.stream_id not in first),
        ]

    def singles(self) -> list[Parcel]:
        """Return each of its events alone, in order."""
        return [self.part(place, place + 1) for place in range(len(self.events))]

    def without(self, seqs: Iterable[int]) -> Parcel | None:
        """Return the parcel of its other events, or None where there are none."""
        gone = set(seqs)
        if all(event.seq in gone for event in self.events):
            return None
        return self._where(lambda event: event.seq not in gone)

    def _where(self, chosen: Callable[[DueEvent], bool]) -> Parcel:
        kept = [
            (event, record)
            for event, record in zip(self.events, self.records, strict=True)
            if chosen(event)
        ]
        return Parcel(
            [event for event, _ in kept], [record for _, record in kept], self.customer_id
        )


def cut(
    events: Iterable[DueEvent],
    *,
    outbox_id: str,
    customer_id: str | None,
    most: int,
    most_bytes: int,
    alone_from: int,
) -> Parcel:
    """Return the largest parcel that begins with the first of `events`, all of one device.

    `customer_id` pays for those that were not sent before; without it they stay. Events
    that were asked for so many times as `alone_from` travel alone; behind one that is
    tried again nothing of its stream does, for it would be stored first.
    """
    taken: list[DueEvent] = []
    size = 0
    closed: set[int] = set()
    pays: str | None = None
    for event in events:
        if len(taken) >= most or (taken and event.attempts >= alone_from):
            break
        customer = event.customer_id or customer_id
        pays = pays or customer
        if customer is None or customer != pays:
            break
        if event.stream_id in closed:
            continue
        # A record is longer than its payload; how long it is, is known once it is made.
        size += len(event.payload)
        if taken and size > most_bytes:
            break
        taken.append(event)
        if event.attempts:
            closed.add(event.stream_id)
            if event.attempts >= alone_from:
                break
    parcel = Parcel.of(taken, outbox_id=outbox_id, customer_id=str(pays))
    records = parcel.records_within(most_bytes)
    return parcel if records == len(taken) else parcel.part(0, records)


def _size(record: str) -> int:
    # With its comma; characters beyond ASCII count as what they are in UTF-8.
    return len(record) + 1 if record.isascii() else len(record.encode()) + 1
