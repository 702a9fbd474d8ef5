"""What an outbox remembers of an event by its idempotency key."""

from typing import NamedTuple

from meter_lib.errors import KeyConflict
from meter_lib.usage import UsageEvent

__all__ = ["KnownKey"]


class KnownKey(NamedTuple):
    """Its content and times, also after the event has left."""

    fingerprint: bytes
    event_time: int
    timestamp: int | None
    """The occurrence time as given; None where it was left to us."""
    removed: bool = False

    def check(self, event: UsageEvent, index: int) -> None:
        """Raise `KeyConflict` where a post under the same key has other content."""
        # A time that was defaulted, now or then, says nothing about the content.
        other_time = self.timestamp is not None and event.timestamp not in (None, self.timestamp)
        if self.fingerprint != event.fingerprint() or other_time:
            raise KeyConflict(
                f"idempotency_key {event.idempotency_key!r} is known already with other content; "
                f"use a new key for a new event",
                index=index,
            )
