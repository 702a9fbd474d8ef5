"""The port: what an outbox is, whatever stores it.

An outbox has three users, and each sees its own part: whoever records
(`Recorder`), the flusher (`Delivery`) and the operator (`Operations`, `Upkeep`). Every
implementation passes the same conformance suite.

Instants are integer milliseconds since the Unix epoch. Every method raises
`OutboxUnavailable` (or a subclass) where the store cannot do it; then nothing
has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from meter_lib.letters import DeadLetter, ImportedLetter, PendingEvent, Selector
from meter_lib.peers import Account, Link
from meter_lib.recording import Receipt, Recorder
from meter_lib.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from meter_lib.clock import ClockReading, Uptime

__all__ = [
    "Account",
    "Burial",
    "DeadLetter",
    "Deferral",
    "Delivery",
    "DueEvent",
    "ImportedLetter",
    "Link",
    "Operations",
    "Outbox",
    "OutboxStatus",
    "PendingEvent",
    "Receipt",
    "Recorder",
    "Selector",
    "Settlement",
    "Unanswered",
]


class DueEvent(NamedTuple):
    """An event that may be delivered now, with what delivering it needs."""

    seq: int
    stream_id: int
    tenant_id: str
    device_id: str
    meter_id: str
    idempotency_key: str
    event_time: int
    total_usage: int | None
    payload: str
    attempts: int
    customer_id: str | None
    """JSON text of the customer it was sent with before, and is sent with again, if it was."""
    lone_refusal: int | None
    """Which lone refusal the first of its own was, counted over all events; 0 where it was
    refused or asked for again in an answer that accepted others. Negative where, alone, it
    was asked for again only: its first real refusal gets a number of its own."""
    proven: bool
    """Something was accepted that was sent after that: it is not the backend."""
    fresh: bool
    """Nobody has set it aside so far."""
    held: bool
    """True where an earlier event of its stream waits: it must queue behind that one."""
    recorded_time: int | None = None
    """What our clock showed when it was recorded, where the event time was corrected since."""
    clock_uncertain: bool = False
    """The event time is our clock's own, which cannot have been right, and not corrected."""
    outbox_id: str | None = None
    """The name it was accepted under, where the outbox has had more than one."""


class Unanswered(NamedTuple):
    """A request that was sent, and of which nobody knows what became of it."""

    idempotency_key: str
    customer_id: str
    """JSON text of the customer id that its records carry."""
    events: Sequence[DueEvent]


class Deferral(NamedTuple):
    """An event to be tried again, and its stream held, until an instant."""

    event: DueEvent
    until: int
    counts: bool
    """True for a verdict of the backend on this event; false where the cause lies elsewhere."""
    alone: bool = False
    """True where that verdict was on this event alone: one of the two that condemn it."""
    beside_others: bool = False
    """True where others were accepted in the same answer, which is proof enough: it is not
    the backend."""


class Burial(NamedTuple):
    """An event that becomes a dead letter, and why."""

    event: DueEvent
    reason: str
    """A stable slug, such as `rejected`."""
    detail: str
    answers: int = 1
    """How many answers speak against it that its attempts do not count yet."""


class Settlement(NamedTuple):
    """What became of a request's events; whatever it does not name stays as it was."""

    delivered: Sequence[DueEvent] = ()
    deferred: Sequence[Deferral] = ()
    refused: Sequence[DueEvent] = ()
    """Refused by the backend in company: each is to be asked about alone."""
    refused_alone: Sequence[DueEvent] = ()
    buried: Sequence[Burial] = ()
    answered: Unanswered | None = None
    """The request that was answered: those of its events that stay keep its customer."""
    left_open: Unanswered | None = None
    """The part of it of which the answer says nothing."""
    proves: int = 0
    """Up to which lone refusal the delivered events are the proof: what `begin` returned."""
    recovers: bool = True
    """Whether that something was delivered shows the link `events` to be up."""


class Delivery(Protocol):
    """The part that one flusher at a time works through."""

    @property
    def outbox_id(self) -> str:
        """Return the outbox's own name; it changes only where the outbox is found to be a copy."""
        ...

    def accepted(self) -> int:
        """Return the seq of the latest event; none that is recorded from now on has it."""
        ...

    def try_hold(self) -> bool:
        """Become the one flusher of this outbox, or return False where another is.

        The hold ends with `release`, `close`, or the death of the process; no clock
        is involved. Where a store has room for several flushers, each holds a share of the
        streams, and the rest of this part shows it those only.
        """
        ...

    def keeps_hold(self) -> bool:
        """Return whether what was held by `try_hold` still is, and is to be.

        False where it was lost, where another outbox has come to the place, or where others have
        come or gone so that it is to be shared out anew: then nothing more is to be begun, and
        `try_hold` called again by a flusher that knows nothing.
        """
        ...

    def call_when_posted(self, wake: Callable[[], None]) -> None:
        """Let `wake` be called, in any thread, soon after events are recorded, until `release`.

        A store that cannot tell does nothing: whoever delivers looks for itself now and then.
        """
        ...

    def release(self) -> None:
        """End the hold, if there is one."""
        ...

    def due(
        self,
        *,
        now: int,
        limit: int,
        max_bytes: int,
        after: int = 0,
        beside: Sequence[int] = (),
    ) -> list[DueEvent]:
        """Return what may be delivered now, oldest first within a stream; change nothing.

        First those set aside whose wait is over, save those of the streams `beside`; then
        fresh ones with a seq `after` that one, flagged where their stream is held: they
        must be put behind it with `queue`. At most `limit` events and, beyond the first,
        `max_bytes` of payload.
        """
        ...

    def suspects(self, *, limit: int, proven_only: bool) -> list[DueEvent]:
        """Return refused events that are to be asked about alone, oldest first.

        With `proven_only`, just those after whose lone refusal something was sent and
        accepted (the next refusal condemns them), and those not yet refused alone.
        """
        ...

    def queue(
        self, events: Sequence[DueEvent], *, until: int = 0, customer_id: str | None = None
    ) -> None:
        """Set events aside: behind those of their stream that wait, and not before `until`.

        `customer_id` is that with which they were sent before, if they were.
        """
        ...

    def unanswered(self) -> list[Unanswered]:
        """Return the requests that were begun and not answered, oldest first.

        Each with those of its events that are still here.
        """
        ...

    def begin(self, requests: Sequence[Unanswered], *, forget: Sequence[str] = ()) -> int:
        """Write that these requests are about to be sent, before they are.

        The requests with the keys `forget`, whose events these carry instead, are
        forgotten. Return how many lone refusals there have been: if something of these is
        accepted, it proves that many. Not synced: after a power cut their events are as
        they were before.
        """
        ...

    def gone(self, seqs: Sequence[int]) -> set[int]:
        """Return which of these events are no longer here: dropped to make room for others.

        Of a request that was begun, none goes any more.
        """
        ...

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events, with its ledger counts, in one transaction.

        Delivered events also mark the link `events` as up. Not synced: what a power
        cut undoes here is delivered again under the same key.
        """
        ...

    def resume_waits(self, *, now: int, uptime: Uptime) -> int:
        """Return what is to be added to the uptime for the time line that waits are on.

        It is the same for all of a boot, so that no setting of the wall clock makes a wait
        longer or shorter. In another boot than the one they were set in, waits for peers
        last no longer than they were meant to, and streams are due at once.
        """
        ...

    def correct_times(self, reading: ClockReading, *, keep: Collection[int]) -> int:
        """Correct event times that this outbox's own clock gave while it was wrong.

        Those of this boot, which the wall clock as it is now contradicts; see
        `DueEvent.recorded_time`. Never what a caller gave, what was sent before or may have
        been, or the seqs to `keep`. Returns how many; what was read of them is then stale.
        """
        ...

    def next_due_at(self) -> int | None:
        """Return when the next held stream is due, or None where none is held."""
        ...

    def link(self, name: str) -> Link:
        """Return how it stands with the link of that name."""
        ...

    def set_link(self, link: Link) -> None:
        """Write how it stands with a link."""
        ...

    def account(self, tenant_id: str) -> Account | None:
        """Return what the accounts API last answered for the tenant, or None."""
        ...

    def set_account(self, tenant_id: str, account: Account) -> None:
        """Write what the accounts API answered for the tenant."""
        ...


class OutboxStatus(NamedTuple):
    """The outbox at one instant. `accepted = pending + dead + delivered + removed`."""

    location: str
    outbox_id: str
    schema_version: int
    accepted: int
    pending: int
    dead: int
    delivered: int
    removed: int
    refused: int
    """Of the pending: refused by the backend, and not yet known whether for good."""
    held_streams: int
    """Streams that wait for another attempt."""
    oldest_recorded_at: int | None
    """When the oldest pending event was recorded."""
    bytes: int
    """On disk: database and write-ahead log."""
    next_attempt_at: int | None
    links: Sequence[Link]
    set_aside: Sequence[str] = ()
    """Damaged stores that were set aside from this place and are still there."""
    in_doubt: int = 0
    """Of the refused: nothing was delivered since, so it may as well be the backend's fault."""
    copied_from: str | None = None
    """The name it had until, `copied_at`, it was found to be of another machine."""
    copied_at: int | None = None
    dead_lettered: int = 0
    """Events that ever became dead letters, those replayed or removed since included."""
    workers: int | None = None
    """How many flushers hold a share of it, where several can."""


class Operations(Protocol):
    """The part that operators look into and steer."""

    def status(self) -> OutboxStatus:
        """Return the outbox at this instant; the cost does not grow with the backlog."""
        ...

    def holder(self) -> int | None:
        """Return the process id of the flusher that holds the outbox (0: unknown), or None."""
        ...

    def dead_letters(self, selector: Selector) -> Iterator[DeadLetter]:
        """Yield the dead letters meant, oldest first; memory does not grow with their number."""
        ...

    def pending_events(self, selector: Selector) -> Iterator[PendingEvent]:
        """Yield the pending events meant, oldest first; memory does not grow with their number.

        The selector names no reason.
        """
        ...

    def state_of(self, seq: int, idempotency_key: str) -> str | None:
        """Return the state of an event, as of `PendingEvent` or `dead`; None where it has left."""
        ...

    def replay(self, seqs: Sequence[int], *, now: int) -> int:
        """Make these dead letters due again, each under its own key; return how many there were.

        Each counts one replay more.
        """
        ...

    def purge(self, seqs: Sequence[int]) -> int:
        """Remove these dead letters for good, counted as removed; return how many there were."""
        ...

    def import_letters(self, letters: Sequence[ImportedLetter], *, now: int) -> list[bool]:
        """Accept dead letters from elsewhere, all or none; return which of them are new.

        On return they are durable. One whose key is known with the same content is not new:
        it is here, or was delivered from here. One that was purged is accepted again. Raises
        `KeyConflict` where a key is known with other content, and `OutboxFull` at the limit.
        """
        ...


class Outbox(Recorder, Delivery, Operations, Upkeep, Protocol):
    """Where events are kept between post and delivery."""
