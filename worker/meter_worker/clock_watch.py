"""Notices that the wall clock was set, and has the outbox correct what a wrong one has stamped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meter_lib.clock import ClockReading

if TYPE_CHECKING:
    from collections.abc import Collection

    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery

__all__ = ["ClockWatch"]

_logger = logging.getLogger("meter_worker")

# A step shorter than this is a leap second, or what lay between two looks at two clocks.
_STEP_MILLISECONDS = 2_000


class ClockWatch:
    """Compares the wall clock with the one that counts from boot, at each look."""

    def __init__(self, outbox: Delivery, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock
        self._offset: int | None = None
        self._synchronised = False
        self._unsynchronised_until: int | None = None

    def look(self, *, keep: Collection[int]) -> bool:
        """Return whether event times were corrected: what was read before is stale then.

        `keep` are the seqs of events that are in hand and stay as they are. Raises
        `OutboxUnavailable`; then the next look does it.
        """
        now, uptime = self._clock.now(), self._clock.uptime()
        offset = now - uptime.milliseconds
        if self._offset is None:
            self._clock.follow(self._outbox.resume_waits(now=now, uptime=uptime))
        has_news = self._offset is None or abs(offset - self._offset) > _STEP_MILLISECONDS
        unsynchronised_until = None
        if not self._synchronised:
            # Asked until the first yes. Later ones prove nothing of what was recorded before.
            self._synchronised = self._clock.is_synchronised() is True
            if self._synchronised:
                unsynchronised_until = self._unsynchronised_until
                has_news = has_news or unsynchronised_until is not None
            else:
                self._unsynchronised_until = uptime.milliseconds
        corrected = 0
        if has_news:
            reading = ClockReading(now, uptime, self._synchronised, unsynchronised_until)
            try:
                corrected = self._outbox.correct_times(reading, keep=keep)
            except BaseException:
                # As if it had not been seen.
                self._synchronised = False
                raise
            self._offset = offset
        if corrected:
            _logger.warning(
                "the clock was set: corrected the times of %d events recorded before",
                corrected,
                extra={"event": "times_corrected", "events": corrected},
            )
        return corrected > 0
