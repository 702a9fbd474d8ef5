"""Events as operators select them, look at them and take them in from elsewhere.

Instants are integer milliseconds since the Unix epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_lib.usage import UsageEvent

__all__ = ["DeadLetter", "ImportedLetter", "PendingEvent", "Selector"]


class Selector(NamedTuple):
    """Which events an operator means: those that fit everything given. Nothing given: all."""

    keys: Sequence[str] = ()
    tenant_id: str | None = None
    device_id: str | None = None
    meter_id: str | None = None
    reason: str | None = None
    since: int | None = None
    """Event time, inclusive."""
    until: int | None = None
    """Event time, exclusive."""
    limit: int | None = None


class DeadLetter(NamedTuple):
    """An event that is no longer tried, and why."""

    seq: int
    tenant_id: str
    device_id: str
    meter_id: str
    idempotency_key: str
    event_time: int
    payload: str
    attempts: int
    reason: str
    detail: str
    dead_at: int
    replays: int = 0
    """How often an operator made it due again."""
    customer_id: str | None = None
    """JSON text of the customer it was sent with, and is sent with again, if it was."""
    unanswered: bool = False
    """True where it was also sent in a request of which nobody knows what became of it."""


class PendingEvent(NamedTuple):
    """An event that waits for its delivery, and for what."""

    seq: int
    tenant_id: str
    device_id: str
    meter_id: str
    idempotency_key: str
    event_time: int
    payload: str
    attempts: int
    state: str
    """`pending`: its turn has not come yet. `sent`: without a known outcome so far; it goes
    again as it was. `deferred`: set aside, with those of its stream behind it. `suspected`:
    refused together with others, and asked about alone next. `refused`: the backend refused
    this one, and it is not proven yet that it does so for good."""
    next_attempt_at: int | None
    """Not before; None: as soon as its turn comes."""
    replays: int
    customer_id: str | None
    """As that of a dead letter."""


class ImportedLetter(NamedTuple):
    """A dead letter to be taken in from elsewhere."""

    event: UsageEvent
    """With its idempotency key."""
    event_time: int
    attempts: int
    reason: str
    detail: str
    dead_at: int
    replays: int
    customer_id: str | None
