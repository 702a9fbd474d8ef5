"""What to ask the peers next, and what to make of their answers. No loop, no sleep, no thread.

Whoever drives it calls `start`, makes the calls that come of it, in any order and side by
side, and hands each answer to `finish`. It decides by this:

- an outage belongs to the link: it pauses everything and is charged to no event;
- a wait belongs to a stream: the streams beside it go on;
- a refusal belongs to an event only once it is proven (see `settling`); while nothing is
  accepted, one event at a time is risked;
- of a stream, one request is under way at a time; what was sent and not answered goes
  again, as it was, before anything new of its streams.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from meter_lib.errors import OutboxUnavailable
from meter_lib.outbox import Settlement
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Ambiguous,
    Answered,
    Interrupted,
    Refused,
    Unavailable,
)
from meter_worker.exhaustive import assert_never
from meter_worker.parcels import Parcel
from meter_worker.settling import charge, refused_alone, sort_verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery, DueEvent
    from meter_worker.backend import AccountAnswer, AccountsApi, Backend, Outcome
    from meter_worker.departures import Departures
    from meter_worker.links import LinkKeeper
    from meter_worker.pace import Pace
    from meter_worker.payers import Payers, Question
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["Answer", "Call", "Flusher"]

_logger = logging.getLogger("meter_worker")

Answer: TypeAlias = "Outcome | AccountAnswer"


class Call(NamedTuple):
    """Something to ask a peer. It may take as long as the peer's time-outs allow."""

    number: int
    make: Callable[[], Answer]


class _Flight(NamedTuple):
    """A parcel under way, and what was known when it left."""

    parcel: Parcel
    proves: int
    """Lone refusals until then: if it is accepted, it is the proof of those."""
    doubts: int
    outage: int


class Flusher:
    """Delivers what is due from an outbox that the caller holds. For one thread at a time."""

    def __init__(
        self,
        outbox: Delivery,
        backend: Backend,
        accounts_api: AccountsApi,
        payers: Payers,
        departures: Departures,
        link: LinkKeeper,
        policy: RetryPolicy,
        pace: Pace,
        clock: Clock,
        *,
        max_in_flight: int,
        max_attempts: int,
    ) -> None:
        self._outbox = outbox
        self._backend = backend
        self._accounts_api = accounts_api
        self._payers = payers
        self._departures = departures
        self._link = link
        self._policy = policy
        self._pace = pace
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._max_attempts = max_attempts
        self._numbers = 0
        self._flights: dict[int, _Flight] = {}
        self._question: tuple[int, Question] | None = None
        self._restored = False
        # After a pause that an earlier flusher began, too.
        self._pause_is_new = self._link.is_down()
        # Told from each other by number: only what was sent after the last one clears it.
        self._doubts = 0
        self._doubts_until: int | None = None
        # Of an event whose refusal leaves no doubt yet: others were accepted beside it.
        self._last_refusal: str | None = None
        # What the outbox could not take down: written first of all, before more is sent.
        self._unwritten: list[Settlement] = []
        self.next_at: int | None = None
        """When there may be something to do, if nothing else happens (milliseconds, steady)."""
        self.sees_more = False
        """Whether another `start` may find more to do at once."""

    def start(self) -> list[Call]:
        """Return the calls that are to be made now.

        Each is to be made once, and its answer handed to `finish`, in any order. Raises
        `OutboxUnavailable`; then nothing is lost, and it may be called again.
        """
        try:
            return self._start()
        except OutboxUnavailable:
            # Whatever was half done in view is read anew.
            self._departures.window.forget()
            raise

    def finish(self, call: Call, answer: Answer) -> int:
        """Write what came of a call; return how many events it delivered.

        Raises `OutboxUnavailable`; then what was delivered is written by the next `start`.
        """
        if self._question is not None and self._question[0] == call.number:
            (_, question), self._question = self._question, None
            if isinstance(answer, AccountFound | AccountUnknown | Unavailable | Interrupted):
                self._payers.answered(question, answer)
            return 0
        flight = self._flights.pop(call.number)
        try:
            return self._settle(flight, answer)
        except OutboxUnavailable:
            self._departures.window.forget()
            raise

    # -- what to do next --------------------------------------------------------------

    def _start(self) -> list[Call]:
        while self._unwritten:
            self._outbox.settle(self._unwritten[0], now=self._clock.now())
            del self._unwritten[0]
        if not self._restored:
            self._restore()
        now = self._clock.steady()
        self._payers.refresh()
        paused_until = self._link.paused_until(now)
        is_down = self._link.is_down()
        if paused_until is None and self._pause_is_new:
            self._pause_is_new = False
            self._departures.begin_round()
        self.sees_more = self._look(now, is_down=is_down)
        calls = self._ask()
        # A pause for doubts holds up those in doubt only.
        in_doubt = paused_until is not None and paused_until == self._doubts_until
        if paused_until is None or in_doubt:
            calls += self._depart(now, is_down=is_down, in_doubt=in_doubt)
        instants = (
            self._link.paused_until(now),
            self._outbox.next_due_at(),
            self._payers.next_question_at(now),
            self._pace.allowed_at(now),
        )
        self.next_at = min((at for at in instants if at is not None and at > now), default=None)
        return calls

    def _restore(self) -> None:
        """Take up what an earlier flusher has sent, and not seen answered."""
        for request in self._outbox.unanswered():
            parcel = None
            if request.events:
                parcel = Parcel.of(
                    request.events,
                    outbox_id=self._outbox.outbox_id,
                    customer_id=request.customer_id,
                )
                self._departures.again.put_last(parcel)
            if parcel is None or parcel.key != request.idempotency_key:
                # Some of its events are no longer here.
                self._outbox.begin(
                    [parcel.unanswered()] if parcel else [], forget=[request.idempotency_key]
                )
        self._restored = True

    def _look(self, now: int, *, is_down: bool) -> bool:
        under_way = [event for one in self._flights.values() for event in one.parcel.events]
        unwritten = [event for settlement in self._unwritten for event in settlement.delivered]
        sees_more = self._departures.look(
            now,
            busy=self._busy,
            seqs={event.seq for event in (*under_way, *unwritten)},
            is_down=is_down,
        )
        burial = self._payers.set_unknown_aside(self._departures.window)
        if burial:
            self._write(burial)
            sees_more = True
        return sees_more

    def _ask(self) -> list[Call]:
        question = self._payers.to_ask() if self._question is None else None
        if question is None:
            return []
        call = self._call(functools.partial(self._accounts_api.look_up, question.tenant_id))
        self._question = call.number, question
        return [call]

    def _depart(self, now: int, *, is_down: bool, in_doubt: bool) -> list[Call]:
        departures = self._departures
        words = departures.doubts.words
        if not is_down and words is None:
            departures.call_suspects(busy=self._busy)
            count = self._max_in_flight - len(self._flights)
            parcels = departures.next_parcels(count, busy=self._busy, now=now)
            if self._last_refusal and not (parcels or self._flights or self.sees_more):
                # Nothing else is left that could be accepted.
                departures.doubts.refused(None, self._last_refusal)
                self.sees_more = True
            return self._send(parcels)
        if self._flights:
            # They may show how it stands: until then nobody else is risked.
            return []
        if in_doubt or not departures.doubts.round_is_over():
            parcel = departures.next_alone(now=now, unsuspected=in_doubt)
            if parcel:
                return self._send([parcel])
            if self.sees_more:
                return []
        if words is not None and not in_doubt:
            # Nobody is left to show whether it is the events or the backend.
            outage = Unavailable(words, wants_an_operator=True)
            self._doubts_until = self._pause(outage)
        return []

    @property
    def _busy(self) -> set[int]:
        return {stream for one in self._flights.values() for stream in one.parcel.streams}

    def _send(self, parcels: Sequence[Parcel]) -> list[Call]:
        if not parcels:
            return []
        try:
            proves = self._outbox.begin([parcel.unanswered() for parcel in parcels])
        except OutboxUnavailable:
            self._departures.again.put_first(parcels)
            raise
        calls = []
        for parcel in parcels:
            call = self._call(functools.partial(self._backend.deliver, parcel.request))
            self._flights[call.number] = _Flight(parcel, proves, self._doubts, self._link.outage)
            calls.append(call)
        return calls

    def _call(self, make: Callable[[], Answer]) -> Call:
        self._numbers += 1
        return Call(self._numbers, make)

    # -- what became of it ------------------------------------------------------------

    def _settle(self, flight: _Flight, answer: Answer) -> int:
        parcel = flight.parcel
        again = self._departures.again
        match answer:
            case Answered():
                return self._settle_answer(flight, answer)
            case Refused(reason, detail):
                self._settle_refusal(flight, reason, detail)
            case Ambiguous(detail):
                if self._pace.one_by_one():
                    _logger.error("from now on each event is sent alone: %s", detail)
                again.put_first([parcel], unanswered=True)
                again.replace(parcel, parcel.singles())
            case Unavailable():
                again.put_first([parcel], unanswered=True)
                self._departures.trouble[parcel.tenant_id] += 1
                self._pause(answer, sent_in=flight.outage)
                if answer.timed_out:
                    self._pace.timed_out(len(parcel.events))
                    if len(parcel.events) > 1:
                        again.replace(parcel, parcel.halves())
            case Interrupted():
                again.put_first([parcel], unanswered=True)
            case AccountFound() | AccountUnknown():
                raise AssertionError("a backend does not answer with accounts")
            case _:
                assert_never(answer)
        return 0

    def _settle_answer(self, flight: _Flight, answer: Answered) -> int:
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
        self._write(settlement, flight)
        if left_open:
            self._departures.again.put_first([left_open], unanswered=True)
        for event, detail in exhausted:
            self._doubt(event, f"it asks for the last event again: {detail}")
        if deferred:
            self._departures.set_aside({one.event.stream_id for one in deferred})
        if by_verdict.delivered:
            self._accepted(flight, by_verdict.delivered)
        if answer.outage is not None:
            self._pause(answer.outage, sent_in=flight.outage)
        return len(by_verdict.delivered)

    def _wait_until(self, attempts: int) -> int:
        return self._clock.steady() + round(self._policy.wait_seconds(attempts) * 1000)

    def _settle_refusal(self, flight: _Flight, reason: str, detail: str) -> None:
        parcel = flight.parcel
        again = self._departures.again
        if len(parcel.events) > 1:
            if reason == "too_large":
                self._pace.too_large(parcel.body_bytes)
            self._outbox.begin([], forget=[parcel.key])
            again.put_first(parcel.halves())
            return
        event = parcel.events[0]
        burial = refused_alone(event, reason, detail)
        if burial:
            self._write(Settlement(buried=[burial]), flight)
            return
        self._write(Settlement(refused_alone=[event]), flight)
        self._doubt(event, f"it refused the last event: {detail}")

    def _accepted(self, flight: _Flight, delivered: Sequence[DueEvent]) -> None:
        self._departures.trouble.pop(flight.parcel.tenant_id, None)
        self._pace.accepted(len(delivered))
        if flight.doubts == self._doubts:
            self._last_refusal = None
            self._departures.doubts.accepted(delivered)
            self._departures.expect_suspects()

    def _doubt(self, event: DueEvent, words: str) -> None:
        self._doubts += 1
        self._departures.expect_suspects()
        if event.lone_refusal == 0:
            self._last_refusal = words
            return
        # One that is asked about once more shows nothing new of its stream.
        is_new = event.lone_refusal is None
        self._departures.doubts.refused(event.stream_id if is_new else None, words)

    def _pause(self, outage: Unavailable, *, sent_in: int | None = None) -> int:
        self._pause_is_new = True
        return self._link.failed(outage, self._clock.steady(), sent_in=sent_in)

    def _write(self, settlement: Settlement, flight: _Flight | None = None) -> None:
        if flight is not None:
            settlement = settlement._replace(
                answered=flight.parcel.unanswered(),
                proves=flight.proves,
                recovers=flight.outage == self._link.outage,
            )
        try:
            self._outbox.settle(settlement, now=self._clock.now())
        except OutboxUnavailable:
            # Only what was delivered must not be forgotten; all else is found out again.
            if settlement.delivered:
                self._unwritten.append(
                    settlement._replace(deferred=(), refused=(), refused_alone=(), buried=())
                )
            raise
        if settlement.refused:
            self._departures.expect_suspects()
        for event, reason, detail, _ in settlement.buried:
            _logger.error(
                "event %s of tenant %r became a dead letter: %s (%s)",
                event.idempotency_key,
                event.tenant_id,
                reason,
                detail,
            )
