"""How the worker is: whether its loop turns, and how delivery goes in one line."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.errors import MeterError
from meter_worker.words import counted, shown_seconds

if TYPE_CHECKING:
    from meter_lib.outbox import Operations, OutboxStatus
    from meter_worker.notify import ServiceManager

__all__ = ["Pulse", "oldest_pending_seconds", "status_line"]

# No turn waits longer, so that a loop that does not turn can be told from one that waits.
_TURN_SECONDS = 5.0
# Turns wait for one another's writes, a checkpoint or a sync, on a slow disk for long.
_STUCK_SECONDS = 60.0
# A line that nobody may be reading is not worth more reads of the outbox.
_STATUS_SECONDS = 5.0


class Pulse:
    """Takes note of each turn of a loop, and tells the service manager by it.

    The watchdog is fed by nothing else: a loop that hangs is noticed, a request that takes
    long is not, for the loop turns meanwhile.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        watchdog = manager.watchdog_seconds
        self._feed_seconds = math.inf if watchdog is None else watchdog / 2
        self.turn_seconds = min(_TURN_SECONDS, self._feed_seconds / 2)
        """How long the loop may wait between two turns."""
        self._outbox: Operations | None = None
        self._is_ready = False
        self._turned_at = time.monotonic()
        self._fed_at = -math.inf
        self._told_at = -math.inf
        self._told = ""

    def begin(self, outbox: Operations) -> None:
        """Begin with another loop, which delivers from this outbox."""
        self._outbox = outbox
        self._told_at = -math.inf
        self._is_ready = False

    def turn(self) -> None:
        """Take note of a turn. For the thread of the loop."""
        now = self._turned_at = time.monotonic()
        if not self._is_ready:
            self._is_ready = True
            self._manager.ready()
        if now - self._fed_at >= self._feed_seconds:
            self._fed_at = now
            self._manager.alive()
        if self._manager.listens and now - self._told_at >= _STATUS_SECONDS:
            self._told_at = now
            self._tell_status()

    @property
    def stands_still_for(self) -> float:
        """Seconds since the last turn."""
        return time.monotonic() - self._turned_at

    @property
    def beats(self) -> bool:
        """Whether the loop makes progress."""
        return self.stands_still_for < _STUCK_SECONDS

    def _tell_status(self) -> None:
        if self._outbox is None:
            return
        try:
            line = status_line(self._outbox.status(), SystemClock().now())
        except MeterError as error:
            line = f"the outbox cannot be read: {error}"
        line = " ".join(line.split())
        if line != self._told:
            self._told = line
            self._manager.status(line)


def status_line(status: OutboxStatus, now: int) -> str:
    """Return how delivery goes in one line: backlog, age of the oldest, links, dead letters."""
    backlog = f"{counted(status.pending, 'event')} pending" if status.pending else "nothing pending"
    oldest = oldest_pending_seconds(status, now)
    if status.pending and oldest is not None:
        backlog += f", the oldest for {shown_seconds(oldest)}"
    down = [
        f"{link.name} down for {shown_seconds(max(0, now - link.down_since) / 1000)}"
        for link in status.links
        if link.down_since is not None
    ]
    parts = [backlog, *(down or ["links up"])]
    if status.dead:
        parts.append(counted(status.dead, "dead letter"))
    return "; ".join(parts)


def oldest_pending_seconds(status: OutboxStatus, now: int) -> float | None:
    """Return the age of the oldest pending event, or None where none is pending."""
    if status.oldest_recorded_at is None:
        return None
    # A clock that was set back makes no negative age.
    return max(0, now - status.oldest_recorded_at) / 1000
