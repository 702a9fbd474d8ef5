"""Threads that make requests, so that several may be under way at once."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from meter_worker.flusher import Answer, Call

__all__ = ["Couriers", "Made"]


class Made(NamedTuple):
    """A call that was made, and what came of it."""

    call: Call
    answer: Answer | None
    fault: BaseException | None = None
    """What went wrong with us, not with the peer."""


class Couriers:
    """Make calls in threads of their own, as many at once as there are calls."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[Made | None] = queue.SimpleQueue()
        self._threads = 0
        self._under_way = 0

    @property
    def under_way(self) -> int:
        """How many calls have been sent out and not come back."""
        return self._under_way

    def send_out(self, call: Call) -> None:
        """Make the call, at once."""
        self._under_way += 1
        if self._under_way > self._threads:
            self._threads += 1
            # Daemon threads: a program that ends does not wait for an answer.
            threading.Thread(
                target=self._work, name=f"meter-lib courier {self._threads}", daemon=True
            ).start()
        self._calls.put(call)

    def back(self, timeout_seconds: float) -> Made | None:
        """Return a call that has been made, or None after the time-out or a `wake`."""
        try:
            made = self._made.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if made is not None:
            self._under_way -= 1
        return made

    def wake(self) -> None:
        """Let `back` return at once, from any thread."""
        self._made.put(None)

    def dismiss(self) -> None:
        """End the threads, each after the call it is at."""
        for _ in range(self._threads):
            self._calls.put(None)
        self._threads = 0

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                made = Made(call, call.make())
            except BaseException as fault:  # noqa: BLE001  # raised again where it is waited for
                made = Made(call, None, fault)
            self._made.put(made)
