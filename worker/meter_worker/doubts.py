"""What a refusal leaves in doubt until the backend accepts something: whose fault was it?

Bookkeeping of one process. What has to outlive it is in the outbox: which events
were refused alone, and when the backend may be tried again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meter_lib.outbox import DueEvent

__all__ = ["Doubts"]

# The event after a refused one shows which of both it is; after two, their stream waits.
_FIRST_LIMIT = 2
# How many more a waiting stream may show when its turn comes: twice as many each time,
# so that a run of bad events is soon passed, and a backend that refuses everything is
# not sent much.
_FIRST_STEP = 2
_LONGEST_STEP = 16
# Refusals in one pass after which it is taken for the backend, whichever streams they met.
_REFUSALS_A_PASS = 20


class Doubts:
    """Who was refused or failed since they were last accepted, and who waits for that."""

    def __init__(self) -> None:
        self.last_refusal: str | None = None
        """What was wrong with the last answer of this pass, if it stored nothing."""
        self.ends_at: int | None = None
        """When the streams that wait may be tried again (milliseconds, steady time)."""
        self.waiting_streams: set[int] = set()
        """Those that wait until something is accepted, or for their turn."""
        self._held: dict[int, DueEvent] = {}
        self._refusals = 0
        self._refusals_in_pass = 0
        self._limit = _FIRST_LIMIT
        self._step = _FIRST_STEP
        self._trouble_of_tenant: Counter[str] = Counter()
        self._trouble_of_stream: Counter[int] = Counter()
        # Events (and their streams) that asked for another attempt since anything was accepted;
        # and streams that did so while others were accepted: it is not the backend.
        self._failing: dict[int, int] = {}
        self._failing_streams: set[int] = set()

    def begin_pass(self, *, in_doubt: bool) -> None:
        """Start to count what one pass sees. What was held is due by itself unless `in_doubt`."""
        self.last_refusal = None
        self._refusals_in_pass = 0
        if not in_doubt:
            self._held.clear()

    def accepted(self, events: Sequence[DueEvent]) -> None:
        """The backend accepts: nobody has to wait, and these are above suspicion."""
        self.last_refusal = None
        self._refusals = 0
        self._refusals_in_pass = 0
        self._limit = _FIRST_LIMIT
        self._step = _FIRST_STEP
        self.waiting_streams.clear()
        for event in events:
            self._trouble_of_tenant.pop(event.tenant_id, None)
            self._trouble_of_stream.pop(event.stream_id, None)
        self._failing_streams.update(self._failing.values())
        self._failing_streams.difference_update(event.stream_id for event in events)
        self._failing.clear()

    def refused(self, event: DueEvent, words: str, *, once_more: bool) -> None:
        """The backend refused the event alone; `once_more` if it was asked about that one."""
        self.last_refusal = words
        self._refusals += 1
        if once_more:
            return
        self._refusals_in_pass += 1
        self._trouble_of_tenant[event.tenant_id] += 1
        self._trouble_of_stream[event.stream_id] += 1
        if self._refusals >= self._limit:
            self.waiting_streams.add(event.stream_id)

    def stores_nothing(self, events: Sequence[DueEvent], words: str) -> bool:
        """The backend accepted none, and wants these again: return whether that is its own fault.

        So it is where more than one event was told so since anything was accepted, as when
        the proxy has lost its broker. Then their streams wait, and nobody is charged.
        """
        failing = {e.seq: e.stream_id for e in events if e.stream_id not in self._failing_streams}
        self._failing |= failing
        if not failing or len(self._failing) == 1:
            return False
        self.last_refusal = words
        self._refusals += 1
        self._refusals_in_pass += 1
        self._trouble_of_tenant[events[0].tenant_id] += 1
        self._trouble_of_stream.update(set(failing.values()))
        self.waiting_streams.update(failing.values())
        return True

    def failed(self, event: DueEvent) -> None:
        """A request that began with this event met an outage."""
        self._trouble_of_tenant[event.tenant_id] += 1

    def try_again(self, event: DueEvent) -> None:
        """Let the stream of this event show a few of its events."""
        self.waiting_streams.discard(event.stream_id)
        self._limit = self._refusals + self._step
        self._step = min(self._step * 2, _LONGEST_STEP)

    def to_hold(self, due: Iterable[DueEvent]) -> list[DueEvent]:
        """Return one event of each stream that waits, enough to hold it in the outbox."""
        firsts: dict[int, DueEvent] = {}
        for event in due:
            if event.stream_id in self.waiting_streams and not event.held:
                firsts.setdefault(event.stream_id, event)
        self._held.update(firsts)
        return list(firsts.values())

    def to_free(self) -> list[DueEvent]:
        """Return those of the held events whose streams need not wait any more."""
        freed = [held for held in self._held.values() if held.stream_id not in self.waiting_streams]
        for event in freed:
            del self._held[event.stream_id]
        return freed

    def is_the_backend(self) -> bool:
        """Return whether so many were refused in this pass that nobody else need be tried."""
        return self._refusals_in_pass >= _REFUSALS_A_PASS

    def goes_alone(self, event: DueEvent) -> bool:
        """Return whether others had better not share a request with it."""
        return (
            self._refusals > 0
            or self._trouble_of_tenant[event.tenant_id] > 0
            or self._trouble_of_stream[event.stream_id] > 0
        )

    def turn(self, event: DueEvent) -> tuple[int, int, int]:
        """Sort the events: those with the least trouble first, so that nobody waits for others'."""
        return (
            self._trouble_of_tenant[event.tenant_id],
            self._trouble_of_stream[event.stream_id],
            event.seq,
        )

    def tenants_in_trouble(self) -> list[str]:
        """Return the tenants whose requests have been in vain since one was accepted."""
        return [tenant_id for tenant_id, trouble in self._trouble_of_tenant.items() if trouble]

    def trouble_of(self, tenant_id: str) -> int:
        """Return how many requests of the tenant have been in vain since one was accepted."""
        return self._trouble_of_tenant[tenant_id]
