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
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Interrupted,
    Unavailable,
)
from meter_worker.departures import UnderWay
from meter_worker.parcels import Parcel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery
    from meter_worker.arrivals import Arrivals, Flight
    from meter_worker.backend import AccountAnswer, AccountsApi, Backend, Outcome
    from meter_worker.clock_watch import ClockWatch
    from meter_worker.departures import Departures
    from meter_worker.links import LinkKeeper
    from meter_worker.pace import Pace
    from meter_worker.payers import Payers, Question

__all__ = ["Answer", "Call", "Flusher"]

_logger = logging.getLogger("meter_worker")

Answer: TypeAlias = "Outcome | AccountAnswer"


class Call(NamedTuple):
    """Something to ask a peer. It may take as long as the peer's time-outs allow."""

    number: int
    make: Callable[[], Answer]


class Flusher:
    """Delivers what is due from an outbox that the caller holds. For one thread at a time."""

    def __init__(
        self,
        outbox: Delivery,
        backend: Backend,
        accounts_api: AccountsApi,
        payers: Payers,
        departures: Departures,
        arrivals: Arrivals,
        link: LinkKeeper,
        pace: Pace,
        clock: Clock,
        clock_watch: ClockWatch,
        *,
        max_in_flight: int,
        goes_on: bool = True,
    ) -> None:
        """`goes_on` says whether `came` lets others go before what came is written down."""
        self._outbox = outbox
        self._backend = backend
        self._accounts_api = accounts_api
        self._payers = payers
        self._departures = departures
        self._arrivals = arrivals
        self._link = link
        self._pace = pace
        self._clock = clock
        self._clock_watch = clock_watch
        self._max_in_flight = max_in_flight
        self._goes_on = goes_on
        self._numbers = 0
        # Those that `start` has yet to return.
        self._calls: list[Call] = []
        self._flights: dict[int, Flight] = {}
        # Of which `came` knows that all was accepted, and that `finish` is yet to write down.
        self._accepted: dict[int, Flight] = {}
        self._question: tuple[int, Question] | None = None
        self._restored = False
        self._reads_later = False
        self._doubts_until: int | None = None
        self.next_at: int | None = None
        """When there may be something to do, if nothing else happens (milliseconds, steady)."""
        self.sees_more = False
        """Whether another `start` may find more to do at once."""

    def start(self) -> list[Call]:
        """Return the calls that are to be made now.

        Each is to be made once, and its answer handed to `finish`, in any order. Raises
        `OutboxUnavailable` if that let nothing be begun; it may be called again.
        """
        try:
            self._start()
        except OutboxUnavailable:
            # Whatever was half done in view is read anew; what was begun is made all the same.
            self._departures.window.forget()
            if not self._calls:
                raise
        calls, self._calls = self._calls, []
        return calls

    def came(self, call: Call, answer: Answer) -> bool:
        """Return whether another `start` may find more to do before `finish` is told of this.

        True where all events of a request were accepted, and nothing else is said: the next of
        their streams may go, for those have arrived. Should the process end before it is
        written down, they are sent again before any others, as if nobody had seen the answer.
        """
        flight = self._flights.get(call.number)
        if not self._goes_on or flight is None or isinstance(answer, AccountFound | AccountUnknown):
            return False
        if not self._arrivals.accepts_all(flight, answer):
            return False
        self._accepted[call.number] = self._flights.pop(call.number)
        return True

    def finish(self, call: Call, answer: Answer) -> int:
        """Write what came of a call; return how many events it delivered.

        Raises `OutboxUnavailable`; then what was delivered is written by the next `start`.
        """
        if self._question is not None and self._question[0] == call.number:
            (_, question), self._question = self._question, None
            if isinstance(answer, AccountFound | AccountUnknown | Unavailable | Interrupted):
                self._payers.answered(question, answer)
            return 0
        flight = self._accepted.pop(call.number, None) or self._flights.pop(call.number)
        if isinstance(answer, AccountFound | AccountUnknown):
            raise TypeError("the backend has answered with an account")
        try:
            return self._arrivals.settle(flight, answer)
        except OutboxUnavailable:
            self._departures.window.forget()
            raise

    def try_now(self) -> None:
        """End the pauses of the links, save those that a peer asked for: `start` has more to do.

        Raises `OutboxUnavailable`; then it may be called again.
        """
        now = self._clock.steady()
        pauses = {"events": self._link.try_now(now), "accounts": self._payers.try_now(now)}
        for name, paused_until in pauses.items():
            if paused_until is not None:
                _logger.warning(
                    "%s: the pause stays for %.1f s: the service or an earlier process wants it",
                    name,
                    (paused_until - now) / 1000,
                    extra={
                        "event": "pause_stays",
                        "link": name,
                        "wait_seconds": (paused_until - now) / 1000,
                    },
                )

    # -- what to do next --------------------------------------------------------------

    def _start(self) -> None:
        self._arrivals.write_down()
        if not self._restored:
            self._restore()
        if self._clock_watch.look(keep=self._departures.again.seqs):
            self._departures.window.forget()
        now = self._clock.steady()
        self._payers.refresh()
        is_down, paused_until = self._link.standing(now)
        if paused_until is None and self._arrivals.pause_is_new:
            self._arrivals.pause_is_new = False
            if is_down:
                self._departures.begin_round()
        # Where there is a request's worth in view, it goes before the outbox is read on.
        self._reads_later = not self._reads_later and not is_down and self._departures.has_plenty()
        self.sees_more = self._reads_later or self._look(now, is_down=is_down)
        self._ask()
        # A pause for doubts holds up those in doubt only.
        in_doubt = paused_until is not None and paused_until == self._doubts_until
        if paused_until is None or in_doubt:
            self._depart(now, is_down=is_down, in_doubt=in_doubt)
        instants = (
            self._link.paused_until(now),
            self._outbox.next_due_at(),
            self._payers.next_question_at(now),
            self._pace.allowed_at(now),
        )
        self.next_at = min((at for at in instants if at is not None and at > now), default=None)

    def _restore(self) -> None:
        """Take up what an earlier flusher has sent, and not seen answered."""
        parcels: list[Parcel] = []
        for request in self._outbox.unanswered():
            parts: list[Parcel] = []
            if request.events:
                outbox_id = self._outbox.outbox_id
                parts = [
                    Parcel.of(request.events, outbox_id=outbox_id, customer_id=request.customer_id)
                ]
            if [part.key for part in parts] != [request.idempotency_key]:
                # Some of its events are no longer here.
                self._outbox.begin(
                    [part.unanswered() for part in parts], forget=[request.idempotency_key]
                )
            parcels += parts
        self._departures.again.put_first(parcels, unanswered=True)
        self._restored = True

    def _look(self, now: int, *, is_down: bool) -> bool:
        flights = (*self._flights.values(), *self._accepted.values())
        under_way = [event for one in flights for event in one.parcel.events]
        unwritten = self._arrivals.unwritten
        sees_more = self._departures.look(
            now,
            self._under_way,
            seqs={event.seq for event in (*under_way, *unwritten)},
            is_down=is_down,
        )
        burial = self._payers.set_unknown_aside(self._departures.window)
        if burial:
            self._arrivals.write(burial)
            sees_more = True
        return sees_more

    def _ask(self) -> None:
        question = self._payers.to_ask() if self._question is None else None
        if question is not None:
            number = self._call(functools.partial(self._accounts_api.look_up, question.tenant_id))
            self._question = number, question

    def _depart(self, now: int, *, is_down: bool, in_doubt: bool) -> None:
        departures = self._departures
        words = departures.doubts.words
        if self._accepted and (is_down or words is not None):
            # Whether others have to wait is known once that is written down.
            self.sees_more = True
            return
        if not is_down and words is None:
            departures.call_suspects(self._under_way)
            count = self._max_in_flight - len(self._flights)
            parcels = departures.next_parcels(count, self._under_way, now=now)
            others = parcels or self._flights or self._accepted or self.sees_more
            if departures.some_wait_for_proof and not others:
                # Nothing else is left that could be accepted: they are asked about in turns.
                departures.doubts.refused(None, self._arrivals.last_refusal)
                self.sees_more = True
            self._send(parcels)
            return
        flights = self._flights.values()
        if any(self._arrivals.is_a_trial(flight, is_down=is_down) for flight in flights):
            # Until then nobody else is risked.
            return
        if len(self._flights) >= self._max_in_flight:
            return
        if in_doubt or not departures.doubts.round_is_over():
            parcel = departures.next_alone(self._under_way, now=now, unsuspected=in_doubt)
            if parcel:
                self._send([parcel])
                return
            if self.sees_more or self._flights:
                return
        if words is not None and not in_doubt:
            # Nobody is left to show whether it is the events or the backend.
            outage = Unavailable(words, wants_an_operator=True)
            self._doubts_until = self._arrivals.pause(outage)

    @property
    def _under_way(self) -> UnderWay:
        parcels = [flight.parcel for flight in self._flights.values()]
        return UnderWay(
            {stream for parcel in parcels for stream in parcel.streams},
            {parcel.tenant_id for parcel in parcels},
        )

    def _send(self, parcels: Sequence[Parcel]) -> None:
        if not parcels:
            return
        try:
            proves = self._outbox.begin([parcel.unanswered() for parcel in parcels])
            gone = self._outbox.gone([event.seq for one in parcels for event in one.events])
            if gone:
                # Dropped while they were in view, and counted: they must not be delivered too.
                kept = [part for one in parcels if (part := one.without(gone))]
                self._outbox.begin(
                    [part.unanswered() for part in kept], forget=[one.key for one in parcels]
                )
                parcels = kept
                self.sees_more = True
        except OutboxUnavailable:
            # Some of them may have been sent before.
            self._departures.again.put_first(parcels, unanswered=True)
            raise
        for parcel in parcels:
            number = self._call(functools.partial(self._backend.deliver, parcel.request))
            self._flights[number] = self._arrivals.flight(parcel, proves=proves)

    def _call(self, make: Callable[[], Answer]) -> int:
        self._numbers += 1
        self._calls.append(Call(self._numbers, make))
        return self._numbers
