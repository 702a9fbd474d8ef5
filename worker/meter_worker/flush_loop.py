"""The only place that waits: one pass after the other, until told to stop."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from meter_lib.errors import OutboxUnavailable, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Outbox
    from meter_worker.flusher import Flusher

__all__ = ["FlushLoop"]

_logger = logging.getLogger("meter_worker")

# How soon a flusher that waits for another one's death takes over.
_TAKEOVER_POLL_SECONDS = 0.2
# After the outbox itself failed (disk full, file locked), before it is tried again.
_OUTBOX_RETRY_SECONDS = 1.0


class FlushLoop:
    """Holds an outbox and flushes it, in whatever thread calls `run`."""

    def __init__(
        self,
        outbox: Outbox,
        flusher: Flusher,
        clock: Clock,
        *,
        interrupt: Sequence[Callable[[], None]],
        poll_seconds: float,
    ) -> None:
        self.outbox = outbox
        self._flusher = flusher
        self._clock = clock
        self._interrupt = interrupt
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()

    def run(self) -> None:
        """Wait for the outbox, then deliver from it until `stop`; let go of it at the end.

        An outage, of the network or of the outbox, ends nothing: it is waited out.
        """
        try:
            if not self._wait_for_hold():
                return
            _logger.info("delivering from %s", self.outbox.location)
            while not self._stopping.is_set():
                self._pause(self._flush_once())
        finally:
            self.outbox.close()

    def stop(self) -> None:
        """Make `run` return soon, from any thread; a request under way is broken off.

        What it carried stays in the outbox and is sent again, under the same keys.
        """
        self._stopping.set()
        for interrupt in self._interrupt:
            interrupt()

    def _wait_for_hold(self) -> bool:
        waiting_for = None
        while not self._stopping.is_set():
            try:
                if self.outbox.try_hold():
                    return True
                holder = self.outbox.holder()
                if holder is not None and holder != waiting_for:
                    waiting_for = holder
                    _logger.warning(
                        "%s is held by process %d, which delivers; waiting for its end",
                        self.outbox.location,
                        holder,
                    )
            except SchemaTooNew:
                # No waiting makes this program newer.
                raise
            except OutboxUnavailable as error:
                _logger.error("waiting for the outbox: %s", error)
                self._stopping.wait(_OUTBOX_RETRY_SECONDS)
            self._stopping.wait(_TAKEOVER_POLL_SECONDS)
        return False

    def _flush_once(self) -> float:
        """Make a pass and return how many seconds to wait before the next one."""
        try:
            done = self._flusher.flush_once()
        except OutboxUnavailable as error:
            _logger.error("delivery waits for the outbox: %s", error)
            return _OUTBOX_RETRY_SECONDS
        if done.delivered:
            _logger.info("delivered %d events", done.delivered)
        if done.progressed:
            return 0.0
        until_next = self._poll_seconds
        if done.next_at is not None:
            until_next = min(until_next, max(0.0, (done.next_at - self._clock.steady()) / 1000))
        return until_next

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._stopping.wait(seconds)
        else:
            # Let the other threads of an embedding program have a turn.
            time.sleep(0)
