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

from meter_lib.errors import OutboxHeld
from meter_worker.assembly import flush_loop

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

    from meter_lib.outbox import Outbox
    from meter_lib.settings import Settings
    from meter_worker.flush_loop import FlushLoop

__all__ = ["StopSignals", "run_worker"]

_logger = logging.getLogger("meter_worker")

# A worker ends within 10 s of the signal; the rest is for the interpreter's own end.
_STOP_SECONDS = 5.0


def run_worker(settings: Settings, *, wait: bool = True) -> bool:
    """Deliver until SIGTERM or SIGINT; return False where delivery ended by itself, by a fault.

    Where another process holds the outbox, wait for its end, or without `wait` raise
    `OutboxHeld`. To be called from the main thread. Does not return, but ends the
    process with exit code 0, where something still hangs 5 s after the signal.
    """
    loop = flush_loop(settings)
    _logger.info(
        "worker %d starts: outbox %s, events to %s/topics/%s",
        os.getpid(),
        loop.outbox.location,
        settings.stream_url,
        settings.topic,
    )
    if not wait:
        _hold(loop.outbox)
    with StopSignals() as signals:
        thread = _LoopThread(loop, signals)
        thread.start()
        received = signals.wait()
        if received is None:
            return False
        _logger.info("%s: stopping", received.name)
        loop.stop()
        thread.join(_STOP_SECONDS)
        if thread.is_alive():
            _end_at_once()
    return thread.ended_well


class StopSignals:
    """SIGTERM and SIGINT, as something that the main thread can wait for.

    A signal handler may run while the main thread holds any lock, so it must not take
    one: it writes to a pipe, and `wait` reads from that.
    """

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._others_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._others = {
            number: signal.signal(number, _leave_it_to_the_pipe)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._others.items():
            signal.signal(number, handler)
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
    def __init__(self, loop: FlushLoop, signals: StopSignals) -> None:
        # A daemon: a look-up of a name that hangs cannot be broken off, only left behind.
        super().__init__(name="meter-lib flusher", daemon=True)
        self._loop = loop
        self._signals = signals
        self.ended_well = False

    def run(self) -> None:
        try:
            self._loop.run()
            self.ended_well = True
        except Exception as error:
            # Not to be waited out: what is known about it is logged, and a supervisor starts anew.
            _logger.critical("delivery ended by a fault: %s: %s", type(error).__name__, error)
            _logger.debug("this is where it happened", exc_info=True)
        finally:
            self._signals.wake()


def _hold(outbox: Outbox) -> None:
    if not outbox.try_hold():
        holder = outbox.holder()
        outbox.close()
        raise OutboxHeld(
            f"{outbox.location} is held by "
            + (f"process {holder}, which delivers" if holder else "another process")
        )


def _end_at_once() -> None:
    """End the process, whatever its threads do. Nothing is lost: every state is in the outbox."""
    _logger.warning("something still hangs after %.0f s: ending without it", _STOP_SECONDS)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)
