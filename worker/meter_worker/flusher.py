"""One pass over what is due: claim, deliver, settle. No loop, no sleep, no signal, no thread.

What a pass decides by:

- an outage belongs to the link: it pauses everything and is charged to no event;
- a wait belongs to a stream: the streams beside it go on;
- a refusal belongs to an event only once it is proven: refused alone, another one
  accepted after that, refused alone again. Until then its stream waits, if need be.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from meter_lib.outbox import Burial, Deferral, Settlement
from meter_worker.accounts import Customer, NoAnswer, NoCustomer
from meter_worker.backend import (
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Rejected,
    Retriable,
    Unavailable,
    Undecided,
)
from meter_worker.batches import Ready, batches, by_tenant
from meter_worker.doubts import Doubts
from meter_worker.exhaustive import assert_never
from meter_worker.wire import record_text, request_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery, DueEvent
    from meter_worker.accounts import CustomerAccounts
    from meter_worker.backend import Backend
    from meter_worker.links import LinkKeeper
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["Flusher", "Pass"]

_logger = logging.getLogger("meter_worker")

# Events looked at in a pass, in full requests: enough to fill the requests of a few
# devices that record in turns, little enough to hold in memory.
_REQUESTS_A_PASS = 4
# Refused events asked about alone in one pass, between two requests that carry many.
_SUSPECTS_A_PASS = 20
# Refused events that take turns in being asked about while nothing else is due.
_SUSPECTS_IN_TURN = 100
# After a time-out the size of the requests is halved at once, and comes back slowly:
# each request that is too large costs a whole read time-out.
_STEPS_TO_FULL_SIZE = 16


class Pass(NamedTuple):
    """What one pass did."""

    delivered: int = 0
    progressed: bool = False
    """True where another pass may find more to do at once."""
    next_at: int | None = None
    """When the next attempt is due (milliseconds, steady time), if one is set."""


class Flusher:
    """Delivers what is due from an outbox that the caller holds."""

    def __init__(
        self,
        outbox: Delivery,
        backend: Backend,
        accounts: CustomerAccounts,
        link: LinkKeeper,
        policy: RetryPolicy,
        clock: Clock,
        *,
        batch_size: int,
        batch_bytes: int,
        max_attempts: int,
    ) -> None:
        self._outbox = outbox
        self._backend = backend
        self._accounts = accounts
        self._link = link
        self._policy = policy
        self._clock = clock
        self._batch_size = batch_size
        self._batch_bytes = batch_bytes
        self._max_attempts = max_attempts
        # Smaller after a time-out, so that a slow link still moves.
        self._batch_size_now = batch_size
        self._doubts = Doubts()
        self._turn = 0
        # What the outbox could not take down: written first of all, before more is sent.
        self._unwritten: Settlement | None = None
        self._held_streams: set[int] = set()
        self._suspects: set[int] = set()
        self._delivered = 0
        # Whether the pass has sent or written anything: if not, another one would not either.
        self._acted = False

    def flush_once(self) -> Pass:
        """Make one pass and return what it did. Raises `OutboxUnavailable`."""
        self._delivered = 0
        self._held_streams = set()
        self._acted = False
        if self._unwritten is not None:
            self._settle(self._unwritten)
        now = self._clock.steady()
        paused_until = self._link.paused_until(now)
        # A pause for doubts holds up those in doubt only.
        in_doubt = paused_until is not None and paused_until == self._doubts.ends_at
        if paused_until is not None and not in_doubt:
            return Pass(delivered=self._delivered, next_at=paused_until)
        self._doubts.begin_pass(in_doubt=in_doubt)
        due = self._due(now)
        behind = [event for event in due if event.held]
        if behind:
            self._outbox.queue(behind)
            self._acted = True
        if paused_until is not None:
            # Out of the way, so that others come into view.
            self._put_off(self._doubts.to_hold(due), paused_until)
        ready = self._with_customers(
            [e for e in due if not e.held and e.stream_id not in self._held_streams]
        )
        suspects = self._with_customers(
            self._outbox.suspects(limit=_SUSPECTS_A_PASS, proven_only=True), refused=True
        )
        self._suspects = {one.event.seq for one in suspects}
        link_is_up = (
            self._probe(ready, in_doubt=in_doubt)
            and self._deliver_all(ready)
            and self._ask_alone(suspects)
        )
        if link_is_up and self._doubts.last_refusal is not None:
            # Nothing was accepted after the last refusal: is it the event or the backend?
            outage = Unavailable(self._doubts.last_refusal)
            self._doubts.ends_at = self._link.failed(outage, self._clock.steady())
        self._put_off(self._doubts.to_free(), self._clock.steady())
        return Pass(
            delivered=self._delivered,
            progressed=link_is_up and self._acted,
            next_at=self._link.paused_until(now) or self._outbox.next_due_at(),
        )

    # -- what to send -----------------------------------------------------------------

    def _due(self, now: int) -> Sequence[DueEvent]:
        """Return what is due; after an outage, tenants that met none come into view first."""
        limit = self._batch_size * _REQUESTS_A_PASS
        max_bytes = self._batch_bytes * _REQUESTS_A_PASS
        troubled = self._doubts.tenants_in_trouble() if self._link.is_down() else []
        if troubled:
            others = self._outbox.due(now=now, limit=limit, max_bytes=max_bytes, beside=troubled)
            if others:
                return others
        return self._outbox.due(now=now, limit=limit, max_bytes=max_bytes)

    def _with_customers(self, events: Sequence[DueEvent], *, refused: bool = False) -> list[Ready]:
        """Return the events whose customer is known; the others are put off, or buried.

        Those that were `refused` hold up nobody: they just stay as they are.
        """
        ready: list[Ready] = []
        for tenant_id, theirs in by_tenant(events).items():
            who = self._accounts.who_pays(tenant_id)
            match who:
                case Customer(customer_id):
                    ready.extend(
                        Ready(
                            event,
                            record_text(
                                event, outbox_id=self._outbox.outbox_id, customer_id=customer_id
                            ),
                        )
                        for event in theirs
                    )
                case NoCustomer():
                    if who.misses >= self._max_attempts:
                        self._give_up_tenant(tenant_id, theirs, who)
                    elif not refused:
                        self._put_off(theirs, who.until)
                case NoAnswer(until):
                    if not refused:
                        self._put_off(theirs, until)
                case Interrupted():
                    return []
                case _:
                    assert_never(who)
        ready.sort(key=lambda one: one.event.seq)
        return ready

    def _give_up_tenant(
        self, tenant_id: str, events: Sequence[DueEvent], unknown: NoCustomer
    ) -> None:
        self._settle(
            Settlement(
                buried=[
                    Burial(e, "customer_not_found", unknown.detail, answers=unknown.misses)
                    for e in events
                ]
            )
        )
        self._accounts.start_over(tenant_id)

    def _put_off(self, events: Sequence[DueEvent], until: int) -> None:
        if events:
            self._settle(Settlement(deferred=[Deferral(e, until, counts=False) for e in events]))

    def _batches(self, ready: Sequence[Ready]) -> Iterator[list[Ready]]:
        return batches(
            ready,
            self._doubts,
            most=lambda: self._batch_size_now,
            most_bytes=self._batch_bytes,
        )

    # -- sending; each returns whether the link is up ---------------------------------

    def _probe(self, ready: list[Ready], *, in_doubt: bool) -> bool:
        """After an outage, or while in doubt, send one event first; it is taken out of `ready`."""
        if not self._link.is_down():
            return True
        if ready:
            first = min(ready, key=lambda one: self._doubts.turn(one.event))
            ready.remove(first)
            if not in_doubt:
                self._doubts.try_again(first.event)
            return self._deliver([first])
        if in_doubt:
            return True
        suspects = self._with_customers(
            self._outbox.suspects(limit=_SUSPECTS_IN_TURN, proven_only=False), refused=True
        )
        if not suspects:
            return True
        # In turns: the oldest may be refused for ever, and another one be accepted by now.
        self._turn += 1
        suspect = suspects[self._turn % len(suspects)]
        self._suspects.add(suspect.event.seq)
        return self._deliver([suspect])

    def _deliver_all(self, ready: Sequence[Ready]) -> bool:
        return all(self._deliver(batch) for batch in self._batches(ready))

    def _ask_alone(self, suspects: Sequence[Ready]) -> bool:
        return all(self._deliver([one]) for one in suspects)

    def _deliver(self, batch: Sequence[Ready]) -> bool:
        # A stream that was told to wait meanwhile must not be overtaken by itself.
        batch = [
            one
            for one in batch
            if one.event.stream_id not in self._held_streams or one.event.seq in self._suspects
        ]
        if not batch:
            return True
        request = request_for([one.event for one in batch], [one.record for one in batch])
        outcome = self._backend.deliver(request)
        self._acted = True
        match outcome:
            case Answered():
                link_is_up = self._settle_answer(batch, outcome)
            case Refused(reason, detail):
                link_is_up = self._settle_refusal(batch, reason, detail)
            case Unavailable():
                self._doubts.failed(batch[0].event)
                self._pause(outcome, sent=len(batch))
                link_is_up = False
            case Interrupted():
                link_is_up = False
            case _:
                assert_never(outcome)
        return link_is_up

    # -- what became of it ------------------------------------------------------------

    def _settle_answer(self, batch: Sequence[Ready], answer: Answered) -> bool:
        delivered: list[DueEvent] = []
        retriable: list[tuple[DueEvent, Retriable]] = []
        rejected: list[tuple[DueEvent, Rejected]] = []
        for one, verdict in zip(batch, answer.verdicts, strict=True):
            match verdict:
                case Delivered():
                    delivered.append(one.event)
                case Retriable():
                    retriable.append((one.event, verdict))
                case Rejected():
                    rejected.append((one.event, verdict))
                case Undecided():
                    pass
                case _:
                    assert_never(verdict)
        if retriable and not delivered:
            words = f"it stores nothing: {retriable[0][1].detail}"
            if self._doubts.stores_nothing([event for event, _ in retriable], words):
                return self._go_on_beside_those_in_doubt(words)
        if len(rejected) == len(batch):
            # Each in its own words, yet the same as to refuse the request.
            _, (reason, detail) = rejected[0]
            return self._settle_refusal(batch, reason, detail)
        deferred, buried = self._charged(retriable)
        refused = [event for event, _ in rejected]
        self._settle(
            Settlement(delivered=delivered, deferred=deferred, refused=refused, buried=buried)
        )
        if answer.outage is not None:
            self._pause(answer.outage)
            return False
        return True

    def _charged(
        self, retriable: Sequence[tuple[DueEvent, Retriable]]
    ) -> tuple[list[Deferral], list[Burial]]:
        """Return who of these is to be tried again, and who has had all its attempts."""
        deferred: list[Deferral] = []
        buried: list[Burial] = []
        for event, (detail,) in retriable:
            attempts = event.attempts + 1
            if attempts < self._max_attempts:
                until = self._later(self._policy.wait_seconds(attempts))
                deferred.append(Deferral(event, until, counts=True))
            else:
                buried.append(Burial(event, "attempts_exhausted", detail))
        return deferred, buried

    def _settle_refusal(self, batch: Sequence[Ready], reason: str, detail: str) -> bool:
        if len(batch) > 1:
            middle = len(batch) // 2
            return self._deliver(batch[:middle]) and self._deliver(batch[middle:])
        event = batch[0].event
        if self._outbox.refused_before(event):
            # Alone twice, of which its attempts count none.
            self._settle(Settlement(buried=[Burial(event, reason, detail, answers=2)]))
            return True
        self._settle(Settlement(refused_alone=[event]))
        words = f"it refused the last event: {detail}"
        self._doubts.refused(event, words, once_more=event.seq in self._suspects)
        return self._go_on_beside_those_in_doubt(words)

    def _go_on_beside_those_in_doubt(self, words: str) -> bool:
        # To the end of the pass, even if the doubts end before: a stream of which some
        # events were passed over must not go on with those behind.
        self._held_streams |= self._doubts.waiting_streams
        if not self._doubts.is_the_backend():
            return True
        self._pause(Unavailable(words))
        return False

    def _settle(self, settlement: Settlement) -> None:
        # Only what was delivered must not be forgotten; all else is found out again.
        self._unwritten = settlement._replace(deferred=(), refused=(), refused_alone=(), buried=())
        self._outbox.settle(settlement, now=self._clock.now())
        self._unwritten = None
        self._acted = True
        self._held_streams.update(deferral.event.stream_id for deferral in settlement.deferred)
        if settlement.delivered:
            self._delivered += len(settlement.delivered)
            self._doubts.accepted(settlement.delivered)
            if len(settlement.delivered) >= self._batch_size_now:
                step = -(-self._batch_size // _STEPS_TO_FULL_SIZE)
                self._batch_size_now = min(self._batch_size, self._batch_size_now + step)
        for event, reason, detail, _ in settlement.buried:
            _logger.error(
                "event %s of tenant %r became a dead letter: %s (%s)",
                event.idempotency_key,
                event.tenant_id,
                reason,
                detail,
            )

    def _pause(self, outage: Unavailable, *, sent: int = 1) -> None:
        if outage.timed_out:
            if sent > 1:
                # Requests may be smaller than allowed, for their bytes.
                self._batch_size_now = min(self._batch_size_now, sent)
            self._batch_size_now = max(1, self._batch_size_now // 2)
        self._link.failed(outage, self._clock.steady())

    def _later(self, seconds: float) -> int:
        return self._clock.steady() + round(seconds * 1000)
