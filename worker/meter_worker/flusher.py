"""One pass over what is due: claim, deliver, settle. No loop, no sleep, no signal, no thread.

What a pass decides by:

- an outage belongs to the link: it pauses everything and is charged to no event;
- a wait belongs to a stream: the streams beside it go on;
- a refusal belongs to an event only once it is proven: refused alone, another one
  accepted after that, refused alone again.
"""

from __future__ import annotations

import logging
from itertools import groupby
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
from meter_worker.exhaustive import assert_never
from meter_worker.wire import BODY_OVERHEAD_BYTES, record_text, request_for

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


class Pass(NamedTuple):
    """What one pass did."""

    delivered: int = 0
    progressed: bool = False
    """True where another pass may find more to do at once."""
    next_at: int | None = None
    """When the next attempt is due (milliseconds, steady time), if one is set."""


class _Ready(NamedTuple):
    """An event whose customer is known, and its record."""

    event: DueEvent
    record: str


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
        # Lone refusals since the backend last accepted anything.
        self._refusals = 0
        self._held_streams: set[int] = set()
        self._delivered = 0

    def flush_once(self) -> Pass:
        """Make one pass and return what it did. Raises `OutboxUnavailable`."""
        now = self._clock.steady()
        paused_until = self._link.paused_until(now)
        if paused_until is not None:
            return Pass(next_at=paused_until)
        self._held_streams = set()
        self._delivered = 0
        due = self._outbox.due(
            now=now,
            limit=self._batch_size * _REQUESTS_A_PASS,
            max_bytes=self._batch_bytes * _REQUESTS_A_PASS,
        )
        behind = [event for event in due if event.held]
        if behind:
            self._outbox.queue(behind)
        ready = self._with_customers([event for event in due if not event.held])
        suspects = self._with_customers(
            self._outbox.suspects(limit=_SUSPECTS_A_PASS, proven_only=True)
        )
        refusals_before = self._refusals
        link_is_up = self._probe(ready) and self._deliver_all(ready) and self._ask_alone(suspects)
        if link_is_up and self._refusals > refusals_before:
            # Nothing was accepted after the last refusal: is it the event or the backend?
            self._pause(Unavailable("the backend refused the last event that it was sent"))
            link_is_up = False
        return Pass(
            delivered=self._delivered,
            progressed=link_is_up and bool(due or suspects),
            next_at=self._link.paused_until(now) or self._outbox.next_due_at(),
        )

    # -- what to send -----------------------------------------------------------------

    def _with_customers(self, events: Sequence[DueEvent]) -> list[_Ready]:
        """Return the events whose customer is known; the others are put off, or buried."""
        ready: list[_Ready] = []
        for tenant_id, theirs in _by_tenant(events).items():
            who = self._accounts.who_pays(tenant_id)
            match who:
                case Customer(customer_id):
                    ready.extend(
                        _Ready(
                            event,
                            record_text(
                                event, outbox_id=self._outbox.outbox_id, customer_id=customer_id
                            ),
                        )
                        for event in theirs
                    )
                case NoCustomer(misses, detail):
                    self._settle_unknown_tenant(tenant_id, theirs, misses, detail)
                case NoAnswer(until):
                    self._settle(
                        Settlement(deferred=[Deferral(e, until, counts=False) for e in theirs])
                    )
                case Interrupted():
                    return []
                case _:
                    assert_never(who)
        ready.sort(key=lambda one: one.event.seq)
        return ready

    def _settle_unknown_tenant(
        self, tenant_id: str, events: Sequence[DueEvent], misses: int, detail: str
    ) -> None:
        if misses < self._max_attempts:
            until = self._later(self._policy.wait_seconds(misses))
            self._settle(Settlement(deferred=[Deferral(e, until, counts=False) for e in events]))
            _logger.warning(
                "tenant %r has no customer account (answer %d of %d): its %d events wait",
                tenant_id,
                misses,
                self._max_attempts,
                len(events),
            )
            return
        self._settle(Settlement(buried=[Burial(e, "customer_not_found", detail) for e in events]))
        self._accounts.start_over(tenant_id)

    def _batches(self, ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
        """Yield the events in requests: one tenant and device each, bounded by count and bytes."""

        def device(one: _Ready) -> tuple[str, str]:
            return one.event.tenant_id, one.event.device_id

        # sorted() keeps the order within a device.
        for _, theirs in groupby(sorted(ready, key=device), key=device):
            batch: list[_Ready] = []
            size = BODY_OVERHEAD_BYTES
            for one in theirs:
                # With its comma; characters beyond ASCII count as what they are in UTF-8.
                record_size = len(one.record.encode()) + 1
                full = len(batch) >= self._batch_size_now or size + record_size > self._batch_bytes
                if batch and full:
                    yield batch
                    batch, size = [], BODY_OVERHEAD_BYTES
                batch.append(one)
                size += record_size
            if batch:
                yield batch

    # -- sending; each returns whether the link is up ---------------------------------

    def _probe(self, ready: list[_Ready]) -> bool:
        """After an outage, send one event first; it is taken out of `ready`."""
        if not self._link.is_down():
            return True
        if ready:
            return self._deliver([ready.pop(0)])
        suspects = self._outbox.suspects(limit=1, proven_only=False)
        for one in self._with_customers(suspects):
            return self._deliver([one])
        return True

    def _deliver_all(self, ready: Sequence[_Ready]) -> bool:
        return all(self._deliver(batch) for batch in self._batches(ready))

    def _ask_alone(self, suspects: Sequence[_Ready]) -> bool:
        return all(self._deliver([one]) for one in suspects)

    def _deliver(self, batch: Sequence[_Ready]) -> bool:
        # A stream that was told to wait meanwhile must not be overtaken by itself.
        batch = [one for one in batch if one.event.stream_id not in self._held_streams]
        if not batch:
            return True
        events = [one.event for one in batch]
        outcome = self._backend.deliver(request_for(events, [one.record for one in batch]))
        match outcome:
            case Answered():
                return self._settle_answer(events, outcome)
            case Refused(reason, detail):
                if len(batch) == 1:
                    return self._settle_lone_refusal(events[0], reason, detail)
                middle = len(batch) // 2
                return self._deliver(batch[:middle]) and self._deliver(batch[middle:])
            case Unavailable():
                self._pause(outcome)
                return False
            case Interrupted():
                return False
            case _:
                return assert_never(outcome)

    # -- what became of it ------------------------------------------------------------

    def _settle_answer(self, events: Sequence[DueEvent], answer: Answered) -> bool:
        delivered: list[DueEvent] = []
        deferred: list[Deferral] = []
        refused: list[DueEvent] = []
        buried: list[Burial] = []
        lone_refusal: Rejected | None = None
        for event, verdict in zip(events, answer.verdicts, strict=True):
            match verdict:
                case Delivered():
                    delivered.append(event)
                case Retriable(detail):
                    attempts = event.attempts + 1
                    if attempts >= self._max_attempts:
                        buried.append(Burial(event, "attempts_exhausted", detail))
                    else:
                        until = self._later(self._policy.wait_seconds(attempts))
                        deferred.append(Deferral(event, until, counts=True))
                case Rejected():
                    if len(events) == 1:
                        lone_refusal = verdict
                    else:
                        refused.append(event)
                case Undecided():
                    pass
                case _:
                    assert_never(verdict)
        self._settle(
            Settlement(delivered=delivered, deferred=deferred, refused=refused, buried=buried)
        )
        if lone_refusal is not None:
            return self._settle_lone_refusal(events[0], lone_refusal.reason, lone_refusal.detail)
        if answer.outage is not None:
            self._pause(answer.outage)
            return False
        return True

    def _settle_lone_refusal(self, event: DueEvent, reason: str, detail: str) -> bool:
        if self._outbox.refused_before(event):
            self._settle(Settlement(buried=[Burial(event, reason, detail)]))
            return True
        self._settle(Settlement(refused_alone=[event]))
        self._refusals += 1
        if self._refusals == 1:
            # The next event will show whether it is this one or the backend.
            return True
        self._pause(Unavailable(f"the backend refuses everything: {detail}"))
        return False

    def _settle(self, settlement: Settlement) -> None:
        self._outbox.settle(settlement, now=self._clock.now())
        self._held_streams.update(deferral.event.stream_id for deferral in settlement.deferred)
        if settlement.delivered:
            self._delivered += len(settlement.delivered)
            self._refusals = 0
            self._batch_size_now = min(self._batch_size, self._batch_size_now * 2)
        for event, reason, detail in settlement.buried:
            _logger.error(
                "event %s of tenant %r became a dead letter: %s (%s)",
                event.idempotency_key,
                event.tenant_id,
                reason,
                detail,
            )

    def _pause(self, outage: Unavailable) -> None:
        if outage.timed_out:
            self._batch_size_now = max(1, self._batch_size_now // 2)
        self._link.failed(outage, self._clock.steady())

    def _later(self, seconds: float) -> int:
        return self._clock.steady() + round(seconds * 1000)


def _by_tenant(events: Sequence[DueEvent]) -> dict[str, list[DueEvent]]:
    tenants: dict[str, list[DueEvent]] = {}
    for event in events:
        tenants.setdefault(event.tenant_id, []).append(event)
    return tenants
