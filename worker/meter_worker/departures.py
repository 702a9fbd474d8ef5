"""Who goes next: what is in view, in which order, and in whose company.

Those with the least trouble go first, so that nobody waits for others'; where nobody is
in trouble, the oldest. Of a stream nothing goes while a request with it is under way.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from meter_lib.errors import OutboxUnavailable
from meter_worker.again import Again
from meter_worker.doubts import Doubts
from meter_worker.parcels import Parcel, cut
from meter_worker.settling import alone_from
from meter_worker.window import Window

if TYPE_CHECKING:
    from collections.abc import Collection

    from meter_lib.outbox import Delivery, DueEvent
    from meter_worker.pace import Pace
    from meter_worker.payers import Payers
    from meter_worker.window import Device

__all__ = ["Departures", "UnderWay"]

# Events in view, in full requests for each that may be under way: none waits for the outbox.
_VIEW_IN_REQUESTS = 2
# How often to read on before one event is tried after an outage.
_LOOKS_AT_ONCE = 25
# Proven suspects asked about before others have a turn.
_SUSPECTS_AT_ONCE = 20
# Refused events that take turns in being asked about while nothing is accepted.
_SUSPECTS_IN_TURN = 100


class UnderWay(NamedTuple):
    """Whose events are in requests that have not been answered."""

    streams: set[int]
    tenants: set[str]


class Departures:
    """The events in view, and the choice among them."""

    def __init__(
        self,
        outbox: Delivery,
        payers: Payers,
        pace: Pace,
        *,
        max_in_flight: int,
        max_attempts: int,
    ) -> None:
        self._outbox = outbox
        self._payers = payers
        self._pace = pace
        self._alone_from = alone_from(max_attempts)
        view = _VIEW_IN_REQUESTS * max_in_flight
        self.window = Window(outbox, events=view * pace.records, max_bytes=view * pace.body_bytes)
        self.again = Again(outbox)
        self.doubts = Doubts()
        self.trouble: Counter[str] = Counter()
        """Requests of each tenant that failed since one was accepted."""
        self.some_wait_for_proof = False
        """Whether there are refused events that wait for something to be accepted."""
        self._may_have_suspects = True
        self._turn = 0
        self._suspect_is_next = False

    # -- what is in view --------------------------------------------------------------

    def look(self, now: int, under_way: UnderWay, *, seqs: set[int], is_down: bool) -> bool:
        """Read on in the outbox; return whether there may be more to see.

        `seqs` are those of events that are in other hands.
        """
        # Asked of many events, and the same for all of a stream that were sent before, or not.
        known: dict[tuple[int, str | None], bool] = {}

        def waits(event: DueEvent) -> bool:
            kind = event.stream_id, event.customer_id
            answer = known.get(kind)
            if answer is None:
                answer = known[kind] = (
                    self._payers.customer_of(event) is None
                    or self.doubts.waits(event.stream_id)
                    or self.trouble[event.tenant_id] > 0
                )
            return answer

        sees_more = True
        for _ in range(_LOOKS_AT_ONCE):
            sees_more = self.window.read(
                now,
                waits=waits,
                elsewhere=seqs | self.again.seqs,
                streams=self.again.streams | under_way.streams,
            )
            # Down, one event is tried, of whoever has the least trouble of all in view.
            if not (is_down and sees_more and all(map(waits, self.window.heads()))):
                break
        return sees_more

    def has_plenty(self) -> bool:
        """Return whether a request can be filled with what is in view, and nobody is in trouble."""
        is_calm = not self.trouble and self.doubts.words is None
        return is_calm and len(self.window) >= self._pace.records

    def call_suspects(self, under_way: UnderWay) -> None:
        """Let the refused events whose next refusal is the last go first, each alone."""
        if not self._may_have_suspects:
            return
        known = self.again.seqs
        suspects = self._outbox.suspects(limit=_SUSPECTS_AT_ONCE, proven_only=True)
        if not suspects:
            self._may_have_suspects = False
            self.some_wait_for_proof = bool(self._outbox.suspects(limit=1, proven_only=False))
        self.again.put_first(
            [
                self._alone(suspect)
                for suspect in suspects
                if suspect.seq not in known
                and suspect.stream_id not in under_way.streams
                and self._payers.customer_of(suspect) is not None
            ]
        )

    def expect_suspects(self) -> None:
        """Look for refused events again: some were refused, or something was accepted."""
        self._may_have_suspects = True

    def begin_round(self) -> None:
        """A pause is over: a few may be risked, a refused event first.

        Should the backend accept again, the first that it refused goes before those behind it.
        """
        self.doubts.begin_round()
        self._suspect_is_next = True

    def set_aside(self, streams: Collection[int]) -> None:
        """Put what is in view of these streams behind those of them that wait."""

        def theirs(event: DueEvent) -> bool:
            return event.stream_id in streams

        self.again.set_aside(theirs)
        events = self.window.take_all(theirs)
        if events:
            self._outbox.queue(events)

    # -- who goes ---------------------------------------------------------------------

    def next_parcels(self, count: int, under_way: UnderWay, *, now: int) -> list[Parcel]:
        """Return at most so many parcels that may go side by side; they are out of view."""
        parcels: list[Parcel] = []
        out = UnderWay(set(under_way.streams), set(under_way.tenants))
        while len(parcels) < count:
            allowed = min(self._pace.records, self._pace.allowed(now))
            if allowed < 1:
                break
            try:
                parcel = self._next_parcel(out, slots=count - len(parcels), records=allowed)
            except OutboxUnavailable:
                # Some of them may have been sent before.
                self.again.put_first(parcels, unanswered=True)
                raise
            if parcel is None:
                break
            self._pace.spend(len(parcel.events))
            out.streams.update(parcel.streams)
            out.tenants.add(parcel.tenant_id)
            parcels.append(parcel)
        return parcels

    def next_alone(self, under_way: UnderWay, *, now: int, unsuspected: bool) -> Parcel | None:
        """Return one event to try the backend with, or None; it is out of view.

        `unsuspected` asks for one of a stream of which nothing was refused.
        """
        if self._pace.allowed(now) < 1:
            return None
        parcel = None
        if self._suspect_is_next and not unsuspected:
            self._suspect_is_next = False
            parcel = self._suspect_in_turn(under_way)
        parcel = parcel or self._least_troubled(under_way, unsuspected=unsuspected)
        if parcel:
            self._pace.spend(1)
        return parcel

    def _next_parcel(self, out: UnderWay, *, slots: int, records: int) -> Parcel | None:
        again = min(
            (one for one in self.again.free(out.streams) if self._may_leave(one.tenant_id, out)),
            key=self._turn_of_parcel,
            default=None,
        )
        blocked = out.streams | self.again.streams
        device = self._next_device(blocked, out)
        if again and (device is None or self._turn_of_parcel(again) <= self._turn_of(device[1])):
            return self.again.take_first(
                again, min(records, again.records_within(self._pace.body_bytes))
            )
        if device is None:
            return None
        return self._cut(device[0], blocked, slots=slots, records=records)

    def _may_leave(self, tenant_id: str, out: UnderWay) -> bool:
        """Return whether the tenant may have another request under way.

        One whose requests fail has one at a time: should they all hang, others can go.
        """
        return tenant_id not in out.tenants or not self.trouble[tenant_id]

    def _next_device(
        self, blocked: Collection[int], out: UnderWay
    ) -> tuple[Device, DueEvent] | None:
        """Return the device whose turn it is, and its oldest event that may go."""
        found: tuple[Device, DueEvent] | None = None
        for name, streams in self.window.devices.items():
            heads = (events[0] for stream, events in streams.items() if stream not in blocked)
            oldest = min(
                (event for event in heads if self._may_go(event)),
                key=lambda event: event.seq,
                default=None,
            )
            if oldest is None or not self._may_leave(name[0], out):
                continue
            if found is None or self._turn_of(oldest) < self._turn_of(found[1]):
                found = name, oldest
                if not self.trouble:
                    # Devices are in the order in which their oldest events came into view.
                    break
        return found

    def _cut(self, device: Device, blocked: set[int], *, slots: int, records: int) -> Parcel:
        streams = self.window.devices[device]
        free = [
            stream_id
            for stream_id, events in streams.items()
            if stream_id not in blocked and self._may_go(events[0])
        ]
        if slots > 1 and sum(len(streams[stream_id]) for stream_id in free) > records:
            # More than one request's worth: its streams are shared out among those to come.
            free = free[:: min(slots, len(free))]
        parcel = cut(
            self.window.of(device, free),
            outbox_id=self._outbox.outbox_id,
            customer_id=self._payers.customer_id(device[0]),
            most=records,
            most_bytes=self._pace.body_bytes,
            alone_from=self._alone_from,
        )
        self.window.take(parcel.events)
        return parcel

    def _least_troubled(self, out: UnderWay, *, unsuspected: bool) -> Parcel | None:
        def may_show(event: DueEvent) -> bool:
            suspected = self.doubts.refusals_of(event.stream_id) > 0
            return not (unsuspected and suspected) and not self.doubts.waits(event.stream_id)

        blocked = out.streams | self.again.streams
        parcel = min(
            (one for one in self.again.free(out.streams) if may_show(one.events[0])),
            key=self._turn_of_parcel,
            default=None,
        )
        event = min(
            (
                head
                for head in self.window.heads()
                if head.stream_id not in blocked and may_show(head) and self._may_go(head)
            ),
            key=self._turn_of,
            default=None,
        )
        if parcel and (event is None or self._turn_of_parcel(parcel) <= self._turn_of(event)):
            return self.again.take_first(parcel, 1)
        if event is None:
            return None
        self.window.take([event])
        return self._alone(event)

    def _suspect_in_turn(self, out: UnderWay) -> Parcel | None:
        """Return a refused event: one may be refused for ever, and another be accepted by now."""
        known = self.again.seqs
        suspects = [
            suspect
            for suspect in self._outbox.suspects(limit=_SUSPECTS_IN_TURN, proven_only=False)
            if suspect.seq not in known
            and suspect.stream_id not in out.streams
            and self._payers.customer_of(suspect) is not None
        ]
        if not suspects:
            return None
        self._turn += 1
        return self._alone(suspects[(self._turn - 1) % len(suspects)])

    def _alone(self, event: DueEvent) -> Parcel:
        customer_id = self._payers.customer_of(event)
        return Parcel.of([event], outbox_id=self._outbox.outbox_id, customer_id=str(customer_id))

    def _may_go(self, event: DueEvent) -> bool:
        return self._payers.customer_of(event) is not None

    def _turn_of(self, event: DueEvent) -> tuple[int, int, int]:
        return (
            self.trouble[event.tenant_id],
            self.doubts.refusals_of(event.stream_id),
            event.seq,
        )

    def _turn_of_parcel(self, parcel: Parcel) -> tuple[int, int, int]:
        return self._turn_of(parcel.events[0])
