"""Threads that record for event loops, so that no loop waits for a disk or a lock."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, TypeVar

from meter_lib.errors import OutboxUnavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from concurrent.futures import Future
    from queue import SimpleQueue

__all__ = ["in_thread"]

T = TypeVar("T")

# Threads that wait for the disk share its syncs: with one alone, a slow disk would set the pace.
_MOST_THREADS = 16

_logger = logging.getLogger("meter_lib")


async def in_thread(call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises; the event loop goes on meanwhile.

    Once this has begun the call is made, whatever becomes of the task that waits for it: a
    cancelled one goes on being cancelled when the call is over, and an error of the call,
    which then nobody would get, is logged. Raises `OutboxUnavailable` where there is no thread
    to make it in; then it is not made.
    """
    # Whoever gets here has loaded these; whoever only records in the plain way need not.
    import asyncio  # noqa: PLC0415  # see above
    import contextvars  # noqa: PLC0415  # see above

    in_context = contextvars.copy_context().run
    future = asyncio.wrap_future(_pool().add(lambda: in_context(call)))
    cancellation: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as cancelled:
            cancellation = cancelled
    if cancellation is None:
        return future.result()
    error = future.exception()
    if error is not None:
        _logger.error(
            "a task was cancelled and cannot be told: %s",
            error,
            extra={"event": "usage_not_recorded", "detail": str(error)},
        )
    raise cancellation


class _Pool:
    """Threads, made as there is work for them.

    Not those of `concurrent.futures`: where a thread cannot be started, these raise, keep the
    call, and may make it later, when it has long been reported as refused.
    """

    def __init__(self) -> None:
        import queue  # noqa: PLC0415  # as above

        self._calls: SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._under_way = 0

    def add(self, call: Callable[[], T]) -> Future[T]:
        """Let a thread make the call."""
        from concurrent.futures import Future  # noqa: PLC0415  # as above

        future: Future[T] = Future()

        def make() -> None:
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._under_way >= self._threads and self._threads < _MOST_THREADS:
                self._start_another()
            self._under_way += 1
        # Nobody calls it off any more: whoever is cancelled waits on.
        future.set_running_or_notify_cancel()
        self._calls.put(make)
        return future

    def _start_another(self) -> None:
        # Daemons: nobody has a receipt for what they are at, so the end of a program need not wait.
        thread = threading.Thread(target=self._work, name="meter-lib posts", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise OutboxUnavailable(
                    f"no thread can be started ({error}); nothing was recorded"
                ) from error
        else:
            self._threads += 1

    def _work(self) -> None:
        while True:
            make = self._calls.get()
            make()
            del make  # or what it has made would live on until the next call
            with self._lock:
                self._under_way -= 1


# By process: a child has none of its parent's threads, and a lock as the fork found it.
_pools: dict[int, _Pool] = {}


def _pool() -> _Pool:
    process = os.getpid()
    return _pools.get(process) or _pools.setdefault(process, _Pool())
