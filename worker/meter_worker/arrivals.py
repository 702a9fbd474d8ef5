"""What becomes of what was sent: answers in, settlements out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from meter_lib.errors import OutboxUnavailable
from meter_lib.outbox import Settlement
from meter_worker.backend import (
    Ambiguous,
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Unavailable,
)
from meter_worker.exhaustive import assert_never
from meter_worker.log_events import LinesAMinute
from meter_worker.settling import charge, refused_alone, sort_verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery, DueEvent
    from meter_worker.backend import Outcome
    from meter_worker.departures import Departures
    from meter_worker.links import LinkKeeper
    from meter_worker.pace import Pace
    from meter_worker.parcels import Parcel
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["Arrivals", "Flight"]

_logger = logging.getLogger("meter_worker")

# One by one in the log, in a minute; the list of dead letters has them all.
_MOST_BURIALS_TOLD = 10


class Flight(NamedTuple):
    """A parcel under way, and what was known when it left."""

    parcel: Parcel
    proves: int
    """Lone refusals until then: if it is accepted, it is the proof of those."""
    doubts: int
    outage: int


class Arrivals:
    """Writes what became of parcels, and what it says of the link and the backend."""

    def __init__(
        self,
        outbox: Delivery,
        departures: Departures,
        link: LinkKeeper,
        policy: RetryPolicy,
        pace: Pace,
        clock: Clock,
        *,
        max_attempts: int,
    ) -> None:
        self._outbox = outbox
        self._departures = departures
        self._link = link
        self._policy = policy
        self._pace = pace
        self._clock = clock
        self._max_attempts = max_attempts
        # Told from each other by number: only what was sent after the last one clears it.
        self._doubts = 0
        self._told = LinesAMinute(_MOST_BURIALS_TOLD)
        # What the outbox could not take down.
        self._unwritten: list[Settlement] = []
        self.last_refusal = "it accepted nothing since it refused an event"
        """In the backend's words, as far as this process has heard them."""
        # At first, too: an earlier flusher may have begun one.
        self.pause_is_new = True
        """Whether the link was paused since this was last looked at."""

    @property
    def unwritten(self) -> list[DueEvent]:
        """The events that were delivered, which the outbox could not take down."""
        return [event for settlement in self._unwritten for event in settlement.delivered]

    def write_down(self) -> None:
        """Write what the outbox could not take down before. Raises `OutboxUnavailable`."""
        while self._unwritten:
            self._outbox.settle(self._unwritten[0], now=self._clock.now())
            del self._unwritten[0]

    def flight(self, parcel: Parcel, *, proves: int) -> Flight:
        """Note what is known as a parcel leaves."""
        return Flight(parcel, proves, self._doubts, self._link.outage)

    def is_a_trial(self, flight: Flight, *, is_down: bool) -> bool:
        """Return whether its answer will show how it stands: with the link, or with the backend.

        It left after the last failure and, unless the link is down, after the last refusal: of
        a link that is down, a refusal of what was sent before shows nothing.
        """
        is_new = flight.outage == self._link.outage
        return is_new and (is_down or flight.doubts == self._doubts)

    def accepts_all(self, flight: Flight, answer: Outcome) -> bool:
        """Return whether there is nothing in an answer but that all is well, as it was before.

        What was never sent before, nothing waits behind: then no event is moved by it.
        """
        return (
            isinstance(answer, Answered)
            and answer.outage is None
            and all(type(verdict) is Delivered for verdict in answer.verdicts)
            and all(event.fresh for event in flight.parcel.events)
            and (flight.outage, flight.doubts) == (self._link.outage, self._doubts)
        )

    def pause(self, outage: Unavailable, *, sent_in: int | None = None) -> int:
        """Let nothing be sent for a while; return until when."""
        self.pause_is_new = True
        return self._link.failed(outage, self._clock.steady(), sent_in=sent_in)

    def settle(self, flight: Flight, answer: Outcome) -> int:
        """Write what became of a parcel and return how many of its events were delivered.

        Raises `OutboxUnavailable`; then `write_down` writes what was delivered.
        """
        parcel = flight.parcel
        again = self._departures.again
        match answer:
            case Answered():
                return self._settle_answer(flight, answer)
            case Refused(reason, detail):
                self._settle_refusal(flight, reason, detail)
            case Ambiguous(detail, lasting):
                if lasting and self._pace.one_by_one():
                    _logger.error(
                        "each event is sent alone; is it Redpanda? Then set"
                        " METER_DIALECT=redpanda: %s",
                        detail,
                        extra={"event": "sent_one_by_one", "detail": detail},
                    )
                again.put_first([parcel], unanswered=True)
                again.replace(parcel, parcel.singles())
            case Unavailable():
                again.put_first([parcel], unanswered=True)
                self._departures.trouble[parcel.tenant_id] += 1
                self.pause(answer, sent_in=flight.outage)
                if answer.timed_out:
                    self._pace.timed_out(len(parcel.events))
                    if len(parcel.events) > 1:
                        again.replace(parcel, parcel.halves())
            case Interrupted():
                again.put_first([parcel], unanswered=True)
            case _:
                assert_never(answer)
        return 0

    def _settle_answer(self, flight: Flight, answer: Answered) -> int:
        parcel = flight.parcel
        by_verdict = sort_verdicts(parcel.events, answer)
        if by_verdict.retriable and not by_verdict.delivered:
            events = [event for event, _ in by_verdict.retriable]
            if self._departures.doubts.stores_nothing(events):
                words = f"it stores nothing: {by_verdict.retriable[0][1]}"
                self._departures.again.put_first([parcel], unanswered=True)
                self._doubts += 1
                self._departures.doubts.stored_nothing(parcel.streams, words)
                return 0
        if len(by_verdict.rejected) == len(parcel.events):
            # Each in its own words, yet the same as to refuse the request.
            _, (reason, detail) = by_verdict.rejected[0]
            self._settle_refusal(flight, reason, detail)
            return 0
        left_open = None
        if by_verdict.undecided:
            decided = [event.seq for event in parcel.events if event not in by_verdict.undecided]
            left_open = parcel.without(decided)
        deferred, buried, exhausted = charge(
            by_verdict.retriable,
            alone=len(parcel.events) == 1,
            beside_others=bool(by_verdict.delivered),
            max_attempts=self._max_attempts,
            until=self._wait_until,
        )
        settlement = Settlement(
            delivered=by_verdict.delivered,
            deferred=deferred,
            refused=[event for event, _ in by_verdict.rejected],
            refused_alone=[event for event, _ in exhausted],
            buried=buried,
            left_open=left_open.unanswered() if left_open else None,
        )
        self.write(settlement, flight)
        if left_open:
            self._departures.again.put_first([left_open], unanswered=True)
        for event, detail in exhausted:
            self._doubt(event, f"it asks for the last event again: {detail}")
        if by_verdict.delivered:
            self._accepted(flight, by_verdict.delivered)
        if answer.outage is not None:
            self.pause(answer.outage, sent_in=flight.outage)
        return len(by_verdict.delivered)

    def _wait_until(self, attempts: int) -> int:
        return self._clock.steady() + round(self._policy.wait_seconds(attempts) * 1000)

    def _settle_refusal(self, flight: Flight, reason: str, detail: str) -> None:
        parcel = flight.parcel
        again = self._departures.again
        if len(parcel.events) > 1:
            if reason == "too_large":
                self._pace.too_large(parcel.body_bytes)
            # Remembered as sent until each is answered: they keep their customer over a restart.
            again.put_first([parcel], unanswered=True)
            again.replace(parcel, parcel.halves())
            return
        event = parcel.events[0]
        burial = refused_alone(event, reason, detail)
        if burial:
            self.write(Settlement(buried=[burial]), flight)
            return
        self.write(Settlement(refused_alone=[event]), flight)
        self._doubt(event, f"it refused the last event: {detail}")

    def _accepted(self, flight: Flight, delivered: Sequence[DueEvent]) -> None:
        self._departures.trouble.pop(flight.parcel.tenant_id, None)
        self._pace.accepted(len(delivered))
        if flight.doubts == self._doubts:
            self._departures.doubts.accepted(delivered)
            self._departures.expect_suspects()

    def _doubt(self, event: DueEvent, words: str) -> None:
        self._doubts += 1
        self._departures.expect_suspects()
        self.last_refusal = words
        if event.lone_refusal == 0:
            # Others were accepted beside it: no doubt, as long as there is something to send.
            return
        # One that is asked about once more shows nothing new of its stream.
        is_new = (event.lone_refusal or 0) <= 0
        self._departures.doubts.refused(event.stream_id if is_new else None, words)

    def write(self, settlement: Settlement, flight: Flight | None = None) -> None:
        """Write a settlement: of the flight's parcel, or of events that were not sent at all."""
        if flight is not None:
            settlement = settlement._replace(
                answered=flight.parcel.unanswered(),
                proves=flight.proves,
                recovers=flight.outage == self._link.outage,
            )
        try:
            # First, so that nobody finds those behind a deferred event before it.
            if settlement.deferred:
                streams = {deferral.event.stream_id for deferral in settlement.deferred}
                self._departures.set_aside(streams)
            self._outbox.settle(settlement, now=self._clock.now())
        except OutboxUnavailable:
            if flight is not None:
                self._keep(flight.parcel, settlement)
            raise
        if settlement.delivered and settlement.recovers:
            self._link.answers_again()
        if settlement.refused:
            self._departures.expect_suspects()
        now = self._clock.steady()
        for event, reason, detail, _ in settlement.buried:
            _logger.log(
                logging.ERROR if self._told.has_room(now) else logging.DEBUG,
                "event %s of tenant %r became a dead letter: %s (%s)",
                event.idempotency_key,
                event.tenant_id,
                reason,
                detail,
                extra={
                    "event": "dead_lettered",
                    "idempotency_key": event.idempotency_key,
                    "tenant_id": event.tenant_id,
                    "reason": reason,
                    "detail": detail,
                },
            )

    def _keep(self, parcel: Parcel, settlement: Settlement) -> None:
        """Forget nothing of what was delivered; let the rest go again, as it was."""
        rest = parcel.without(event.seq for event in settlement.delivered)
        if settlement.delivered:
            self._unwritten.append(
                Settlement(
                    delivered=settlement.delivered,
                    answered=settlement.answered,
                    left_open=rest.unanswered() if rest else None,
                    proves=settlement.proves,
                    recovers=settlement.recovers,
                )
            )
        if rest:
            self._departures.again.put_first([rest], unanswered=True)
