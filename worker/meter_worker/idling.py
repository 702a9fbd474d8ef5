"""How long to wait while there is nothing to do."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from meter_worker.doorbell import Doorbell

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Idling"]

# A ring comes a moment before the commit can be seen: then looks follow each other closely, each
# wait twice the one before, until they are as rare as this.
_FIRST_WAIT_SECONDS = 0.005
_LAST_WAIT_SECONDS = 0.2
# After so long without anything to do, a doorbell that is known to work is relied on; a look now
# and then finds what it may have missed.
_CALM_SECONDS = 10.0
_RARE_LOOK_SECONDS = 5.0


class Idling:
    """Looks at an outbox are this far apart; `wake` ends a wait."""

    def __init__(self, outbox: str, poll_seconds: float, wake: Callable[[], None]) -> None:
        self._poll_seconds = poll_seconds
        self._wake = wake
        self._doorbell = Doorbell(outbox, self._ring)
        self._is_armed = False
        self._has_rung = False
        self._wait_seconds = _LAST_WAIT_SECONDS
        self._busy_at = -math.inf
        self._calm_since = time.monotonic()

    def begin(self) -> None:
        """Listen for those who write, where that is possible. The outbox is there."""
        self._doorbell.open()

    def end(self) -> None:
        """Listen no more."""
        self._doorbell.close()

    def seconds(self, *, is_busy: bool) -> float:
        """Return how long to wait after a look, which found something to do if `is_busy`."""
        now = time.monotonic()
        if is_busy or self._has_rung:
            self._disarm()
            self._wait_seconds = _LAST_WAIT_SECONDS if is_busy else _FIRST_WAIT_SECONDS
            self._calm_since = now
        if is_busy:
            self._busy_at = now
            return self._poll_seconds
        # What is posted within a poll interval may share a request, as whoever set it relies on.
        if (left := self._busy_at + self._poll_seconds - now) > 0:
            return left
        if self._wait_seconds < min(_LAST_WAIT_SECONDS, self._poll_seconds):
            self._wait_seconds *= 2
            return self._wait_seconds / 2
        if not self._doorbell.is_open():
            return self._poll_seconds
        if not self._is_armed:
            self._is_armed = True
            self._doorbell.arm()
            # What came before that rings for nobody: one more look.
            return 0.0
        if now - self._calm_since > _CALM_SECONDS and self._doorbell.has_rung:
            return max(self._poll_seconds, _RARE_LOOK_SECONDS)
        return self._poll_seconds

    def _disarm(self) -> None:
        self._doorbell.disarm()
        self._is_armed = self._has_rung = False

    def _ring(self) -> None:
        self._has_rung = True
        self._wake()
