"""Whether METER_RATE is kept, reckoned from what leaves and when."""

from __future__ import annotations


class RateCheck:
    """Sees the events that leave; instants are milliseconds of steady time."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._left: list[tuple[int, int]] = []

    def start_over(self) -> None:
        """Another process is at work, which knows nothing of what has left."""
        self._left.clear()

    def exceeds(self, now: int, events: int) -> bool:
        """Return whether with these more have left, since any instant, than the rate allows."""
        if self._rate is None:
            return False
        self._left.append((now, events))
        total = 0
        for at, count in reversed(self._left):
            total += count
            # One second's worth may go at once, and one may be due that was half due before.
            if total > max(1.0, self._rate) + self._rate * (now - at) / 1000 + 1:
                return True
        return False
