"""The worker as a process: a loop in a thread, and a main thread that waits for signals."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING

from meter_lib.errors import MeterError, OutboxHeld
from meter_lib.opening import open_outbox
from meter_lib.settings import SETTINGS
from meter_worker.assembly import destination, flush_loop
from meter_worker.health import Pulse
from meter_worker.notify import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from typing_extensions import Self

    from meter_lib.outbox import OutboxStatus
    from meter_lib.settings import Settings
    from meter_worker.flush_loop import FlushLoop
    from meter_worker.observed import Observe

__all__ = ["StopSignals", "Worker"]

_logger = logging.getLogger("meter_worker")

# A worker ends within 10 s of the signal; the rest is for the interpreter's own end.
_STOP_SECONDS = 5.0
# For requests under way when new settings come; what is broken off is sent again.
_HAND_OVER_SECONDS = 10.0


class Worker:
    """A loop in a thread, and what the main thread makes of each signal."""

    def __init__(
        self, settings: Settings, reload: Callable[[], Settings], *, observe: Observe | None = None
    ) -> None:
        """Set up a worker; nothing is opened or connected yet.

        `reload` reads the settings again; it raises `InvalidSetting`. `observe` is told of each
        request to the events API.
        """
        self.settings = settings
        """Those that are in force."""
        self._reload = reload
        self._observe = observe
        self._manager = ServiceManager()
        self.pulse = Pulse(self._manager)
        self._loop = flush_loop(settings, observe=observe)
        self._next: tuple[Settings, FlushLoop] | None = None

    def hold(self) -> None:
        """Become the one who delivers; raise `OutboxHeld` where another process is."""
        outbox = self._loop.outbox
        if not outbox.try_hold():
            holder = outbox.holder()
            outbox.close()
            raise OutboxHeld(
                f"{outbox.location} is held by "
                + (f"process {holder}, which delivers" if holder else "another process")
            )

    def look(self) -> OutboxStatus:
        """Return the outbox at this instant, from any thread; raise `OutboxUnavailable`."""
        with contextlib.closing(open_outbox(self.settings, read_only=True)) as outbox:
            return outbox.status()

    def run(self) -> bool:
        """Deliver until SIGTERM or SIGINT; return False where delivery ended by itself, by a fault.

        SIGHUP reads the settings again, SIGUSR1 tries at once what waits for its time. Where
        another process holds the outbox, wait for its end. To be called from the main thread.
        Does not return, but ends the process with exit code 0, where something still hangs 5 s
        after the signal.
        """
        with StopSignals(signal.SIGHUP, signal.SIGUSR1) as signals:
            thread = self._start(signals)
            while (received := signals.wait()) not in {signal.SIGTERM, signal.SIGINT}:
                if received == signal.SIGHUP:
                    self._read_settings_again()
                elif received == signal.SIGUSR1:
                    _logger.info("SIGUSR1: trying again now", extra={"event": "flush_now"})
                    self._loop.try_now()
                else:
                    thread.join()
                    if not thread.ended_well or self._next is None:
                        return False
                    self.settings, self._loop = self._next
                    self._next = None
                    thread = self._start(signals)
            name = "SIGTERM" if received == signal.SIGTERM else "SIGINT"
            _logger.info("%s: stopping", name, extra={"event": "stopping", "signal": name})
            self._manager.stopping()
            self._loop.stop()
            thread.join(_STOP_SECONDS)
            if thread.is_alive():
                _end_at_once()
        return thread.ended_well

    def _start(self, signals: StopSignals) -> _LoopThread:
        _logger.info(
            "worker %d starts: outbox %s, events to %s",
            os.getpid(),
            self._loop.outbox.location,
            destination(self.settings),
            extra={
                "event": "worker_started",
                "pid": os.getpid(),
                "outbox": self._loop.outbox.location,
            },
        )
        self.pulse.begin(self._loop.outbox)
        thread = _LoopThread(self._loop, self.pulse, signals)
        thread.start()
        return thread

    def _read_settings_again(self) -> None:
        """Let a loop by the new settings follow this one, or say why not and leave all as it is."""
        self._manager.reloading()
        try:
            settings = self._reload()
            loop = flush_loop(settings, observe=self._observe)
        except MeterError as error:  # also an outbox where none may be
            _logger.error(
                "SIGHUP: the new settings are refused, the old ones stay: %s",
                error,
                extra={"event": "settings_refused", "detail": str(error)},
            )
            self._manager.ready()
            return
        changed = [
            setting.variable
            for setting in SETTINGS
            if getattr(settings, setting.field) != getattr(self.settings, setting.field)
        ]
        _logger.info(
            "SIGHUP: settings read again; changed: %s",
            ", ".join(changed) or "none",
            extra={"event": "settings_read", "changed": changed},
        )
        self._next = settings, loop
        self._loop.stop(within_seconds=_HAND_OVER_SECONDS)


class StopSignals:
    """SIGTERM, SIGINT and `others`, as something that the main thread can wait for.

    A signal handler may run while the main thread holds any lock, so it must not take
    one: it writes to a pipe, and `wait` reads from that. After the `with`, they are ignored.
    """

    def __init__(self, *others: signal.Signals) -> None:
        self._numbers = (signal.SIGTERM, signal.SIGINT, *others)

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._others_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, _leave_it_to_the_pipe)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The process is about to end: told so once more, it would end with another code.
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._others_writer)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self) -> signal.Signals | None:
        """Wait for a signal and return it, or None where `wake` was called instead."""
        select.select([self._reader], [], [])
        number = os.read(self._reader, 1)[0]
        return signal.Signals(number) if number else None

    def wake(self) -> None:
        """End the wait, from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: there is enough to read
            os.write(self._writer, b"\0")


def _leave_it_to_the_pipe(number: int, frame: FrameType | None) -> None:
    """Do nothing: a signal without a handler of Python's would not reach the pipe."""


class _LoopThread(threading.Thread):
    def __init__(self, loop: FlushLoop, pulse: Pulse, signals: StopSignals) -> None:
        # A daemon: a look-up of a name that hangs cannot be broken off, only left behind.
        super().__init__(name="meter-lib flusher", daemon=True)
        self._loop = loop
        self._pulse = pulse
        self._signals = signals
        self.ended_well = False

    def run(self) -> None:
        try:
            self.ended_well = self._loop.run_to_its_end(
                self._pulse.turn, turn_seconds=self._pulse.turn_seconds
            )
        finally:
            self._signals.wake()


def _end_at_once() -> None:
    """End the process, whatever its threads do. Nothing is lost: every state is in the outbox."""
    _logger.warning(
        "something still hangs after %.0f s: ending without it",
        _STOP_SECONDS,
        extra={"event": "stopped_hanging"},
    )
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)
