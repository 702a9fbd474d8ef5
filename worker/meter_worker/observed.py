"""A backend that tells somebody of each request: what became of it, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from meter_worker.backend import Backend, Outcome, Request

__all__ = ["Observe", "ObservedBackend"]

Observe: TypeAlias = Callable[["Outcome", float], None]
"""Called with the outcome and its seconds, from several threads at once."""


class ObservedBackend:
    """Another backend, with `observe` called after each request."""

    def __init__(self, backend: Backend, observe: Observe) -> None:
        self._backend = backend
        self._observe = observe

    def deliver(self, request: Request) -> Outcome:
        """Send the request once and return what became of it."""
        begun_at = time.monotonic()
        outcome = self._backend.deliver(request)
        self._observe(outcome, time.monotonic() - begun_at)
        return outcome

    def interrupt(self) -> None:
        """Break off what is under way, from any thread, and every further `deliver`."""
        self._backend.interrupt()
