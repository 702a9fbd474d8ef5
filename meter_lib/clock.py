"""The two clocks: one that says when something happened, one that says how long to wait."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the library asks of time. Tests drive their own."""

    def now(self) -> int:
        """Return the wall time, milliseconds since the Unix epoch; it may jump either way."""
        ...

    def steady(self) -> int:
        """Return milliseconds on a time line that never jumps while this process lives.

        It starts at the wall time, so that what is stored of it can be read by the
        next process; whoever reads it there must expect a jump in between.
        """
        ...


class SystemClock:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self._start = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000

    def now(self) -> int:
        """Return the wall time, milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def steady(self) -> int:
        """Return the wall time at construction plus what has passed since."""
        return self._start + time.monotonic_ns() // 1_000_000
