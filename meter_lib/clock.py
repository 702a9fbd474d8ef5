"""The clocks: when something happened, how long to wait, and how far either can be believed."""

import contextlib
import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from meter_lib.usage import digest

__all__ = ["FIRST_POSSIBLE_TIME", "Clock", "ClockReading", "SystemClock", "Uptime"]

# The start of 2025, before any release of this library: a clock that shows an earlier time is
# wrong. It never changes, or what was sent under one version would be sent otherwise under the
# next.
FIRST_POSSIBLE_TIME = 1_735_689_600_000

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# A container may have a boot clock of its own.
_BOOT_CLOCK_NAMESPACE = "/proc/self/ns/time"
_SYSTEMD_MARK = "/run/systemd/timesync/synchronized"
_TIME_ERROR = 5  # what adjtimex(2) returns for a clock that nobody keeps right
_LARGEST_TIMEX_BYTES = 512
# Goes on while the machine sleeps, where there is such a clock.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Uptime(NamedTuple):
    """How long a machine has been running: no setting of the wall clock changes it."""

    milliseconds: int
    boot: int | None
    """Which boot it is counted from; None where the system does not tell: then it can be
    compared only within this process."""


class ClockReading(NamedTuple):
    """Both clocks of one moment, and what the wall clock is worth."""

    now: int
    uptime: Uptime
    synchronised: bool
    """Something keeps the wall clock right."""
    unsynchronised_until: int | None
    """Milliseconds of uptime: until then nothing did, in this boot, where that is known."""


class Clock(Protocol):
    """What the library asks of time. Tests drive their own."""

    def now(self) -> int:
        """Return the wall time, milliseconds since the Unix epoch; it may jump either way."""
        ...

    def uptime(self) -> Uptime:
        """Return how long the machine has been running."""
        ...

    def is_synchronised(self) -> bool | None:
        """Return whether something keeps the wall clock right, None where that is not known."""
        ...

    def steady(self) -> int:
        """Return milliseconds on a time line that never jumps while this process lives.

        It starts at the wall time, until `follow` says otherwise.
        """
        ...

    def follow(self, offset: int) -> None:
        """Let the time line be the uptime plus so many milliseconds from now on."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self._offset = self.now() - _uptime_milliseconds()

    def now(self) -> int:
        """Return the wall time, milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def uptime(self) -> Uptime:
        """Return how long the machine has been running, sleep included where the system can."""
        return Uptime(_uptime_milliseconds(), _boot())

    def is_synchronised(self) -> bool | None:
        """Return what systemd or the kernel says, or None where neither does."""
        if os.path.exists(_SYSTEMD_MARK):
            return True
        adjtimex = _adjtimex()
        state = adjtimex() if adjtimex else -1
        return None if state < 0 else state != _TIME_ERROR

    def steady(self) -> int:
        """Return the uptime plus an offset: the wall time at construction, or what it follows."""
        return self._offset + _uptime_milliseconds()

    def follow(self, offset: int) -> None:
        """Let the time line be the uptime plus so many milliseconds from now on."""
        self._offset = offset


def _uptime_milliseconds() -> int:
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


@functools.lru_cache(maxsize=1)
def _adjtimex() -> Callable[[], int] | None:
    """Return adjtimex(2), or None where there is none; an idle flusher asks five times a second."""
    try:
        # Only those who deliver ask, and a host that records need not wait for it.
        import ctypes  # noqa: PLC0415  # see above

        function = ctypes.CDLL(None).adjtimex
    except (ImportError, OSError, AttributeError):  # of a Python that was built without, too
        return None
    # All zero, it asks and changes nothing.
    return lambda: int(function(ctypes.create_string_buffer(_LARGEST_TIMEX_BYTES)))


@functools.lru_cache(maxsize=1)
def _boot() -> int | None:
    """Return a number that is this boot's own, or None where the system does not name it."""
    try:
        with open(_BOOT_ID, encoding="utf-8") as boot_id:
            name = boot_id.read().strip()
    except OSError:
        return None
    # Without it, an older kernel: all containers share one boot clock.
    with contextlib.suppress(OSError):
        name += os.readlink(_BOOT_CLOCK_NAMESPACE)
    return int.from_bytes(digest(name)[:8], "big", signed=True)
