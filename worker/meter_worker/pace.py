"""How much one request may carry, by what became of earlier ones; and how many events a second."""

from __future__ import annotations

__all__ = ["Pace"]

# After a time-out the size is halved at once, and comes back slowly: each request that is too
# large costs a whole read time-out.
_STEPS_TO_FULL_SIZE = 16
# Records sent alone before it is tried whether several are understood by now: an answer may
# have been garbled once, and whoever always answers so stores each trial twice.
_SINGLY = 2000
# Where a rate limits the events, a request has those of so long a time.
_WORTHWHILE_SECONDS = 0.25


class Pace:
    """Limits on requests. `rate` is in events a second; instants are milliseconds."""

    def __init__(self, *, batch_size: int, batch_bytes: int, rate: float | None) -> None:
        self._batch_size = batch_size
        self._rate = rate
        # One second's worth at the most: a drain must not begin with a burst.
        self._most_allowed = max(1.0, rate or 0.0)
        self._allowed = self._most_allowed
        # Once all is spent, nothing goes until this many may: not a request for each event.
        self._worthwhile = max(1.0, min(batch_size, (rate or 0.0) * _WORTHWHILE_SECONDS))
        self._needed = 1.0
        self._counted_at: int | None = None
        self.records = batch_size
        """Most records in a request."""
        self.body_bytes = batch_bytes
        """Most bytes in its body."""
        self._singly = 0

    def accepted(self, records: int) -> None:
        """A request of so many records was answered: the next may be a little larger."""
        self._singly = max(0, self._singly - records)
        if records >= self.records and not self._singly:
            step = -(-self._batch_size // _STEPS_TO_FULL_SIZE)
            self.records = min(self._batch_size, self.records + step)

    def timed_out(self, records: int) -> None:
        """A request of so many records took too long: the next ones are half as large."""
        if records > 1:
            # Requests may be smaller than allowed, for their bytes.
            self.records = min(self.records, records)
        self.records = max(1, self.records // 2)

    def too_large(self, body_bytes: int) -> None:
        """A body of so many bytes was too large: none is that large again."""
        self.body_bytes = max(1, min(self.body_bytes, body_bytes // 2))

    def one_by_one(self) -> bool:
        """Send every record alone, for long; return whether that is new."""
        is_new = not self._singly
        self._singly = _SINGLY
        self.records = 1
        return is_new

    def allowed(self, now: int) -> int:
        """Return how many events may be sent at this instant."""
        if self._rate is None:
            return self._batch_size
        if self._counted_at is not None:
            passed = max(0, now - self._counted_at) / 1000
            self._allowed = min(self._most_allowed, self._allowed + passed * self._rate)
        self._counted_at = now
        if self._allowed < self._needed:
            return 0
        self._needed = 1.0
        return int(self._allowed)

    def spend(self, events: int) -> None:
        """So many events are sent."""
        if self._rate is not None:
            self._allowed -= events
            if self._allowed < 1:
                self._needed = self._worthwhile

    def allowed_at(self, now: int) -> int | None:
        """Return when the next events may be sent, or None where there is no limit."""
        if self._rate is None:
            return None
        return now + max(0, round(1000 * (self._needed - self._allowed) / self._rate))
