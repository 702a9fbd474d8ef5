"""The flusher as a thread of the program that records."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.errors import OutboxFull
from meter_lib.opening import open_outbox
from meter_lib.settings import Settings
from meter_worker.assembly import flush_loop

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from typing_extensions import Self

    from meter_lib.outbox import OutboxStatus
    from meter_worker.flush_loop import FlushLoop

__all__ = ["BackgroundFlusher"]

_STOP_SECONDS = 10.0
_FLUSH_POLL_SECONDS = 0.05


class BackgroundFlusher:
    """Delivers from an outbox in a thread of its own, between `start` and `stop`.

    `outbox` is the path of the outbox file and wins over `settings.outbox`; with
    neither, the settings come from the environment. Where another flusher holds the
    outbox, this one waits for its end. Raises `InvalidSetting`.
    """

    def __init__(
        self, outbox: str | os.PathLike[str] | None = None, *, settings: Settings | None = None
    ) -> None:
        self.settings = (settings or Settings.load()).with_outbox(outbox)
        self._loop: FlushLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        """Start delivering; return at once. Does nothing where it has been started."""
        # A thread that has not yet ended by its `stop` lets go of the outbox before the new one.
        if self._thread is not None and self._thread.is_alive() and not self._stopped:
            return
        self._stopped = False
        self._loop = flush_loop(self.settings)
        # A daemon thread: a program that ends without stop() ends, and loses nothing.
        self._thread = threading.Thread(
            target=self._loop.run_to_its_end, name="meter-lib flusher", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = _STOP_SECONDS) -> bool:
        """Stop delivering within `timeout` seconds and return whether the thread has ended.

        A request under way is broken off; its events stay in the outbox and are sent
        again later under the same keys.
        """
        if self._loop is None or self._thread is None:
            return True
        self._stopped = True
        self._loop.stop()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def flush(self, timeout: float = 60.0) -> bool:
        """Wait until nothing is pending, at most `timeout` seconds; return whether that is so.

        False as well where only events remain that the backend refused, and nothing it
        accepts shows whether that is for good.
        """
        clock = SystemClock()
        deadline = time.monotonic() + timeout
        outbox = open_outbox(self.settings)
        try:
            started_at: int | None = None
            while True:
                is_late = time.monotonic() >= deadline
                try:
                    if started_at is None:
                        # Told by the time line that attempts are noted on.
                        clock.follow(outbox.resume_waits(now=clock.now(), uptime=clock.uptime()))
                        started_at = clock.steady()
                    status = outbox.status()
                except OutboxFull:
                    # No room for this yet: the reserve is given up for the next try.
                    if is_late:
                        raise
                else:
                    if status.pending == 0:
                        return True
                    if is_late or _waits_for_others(status, started_at):
                        return False
                time.sleep(_FLUSH_POLL_SECONDS)
        finally:
            outbox.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _waits_for_others(status: OutboxStatus, since: int) -> bool:
    """Return whether all that is pending was refused, was tried in vain since, and proves nothing.

    What an earlier process has left is no verdict on this attempt.
    """
    tried = any(
        link.name == "events" and link.failures and (link.last_error_at or 0) >= since
        for link in status.links
    )
    return tried and status.pending == status.in_doubt
