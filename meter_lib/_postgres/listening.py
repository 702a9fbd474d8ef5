"""Hears from the server that events were recorded, on any host: LISTEN."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_lib._postgres.server import Server

__all__ = ["CHANNEL", "Listener"]

# What a post notifies.
CHANNEL = "meter_lib_posted"
# How soon the thread sees that it is to end, and tries again after the connection was lost.
# Meanwhile nobody is called: the flusher looks for itself now and then.
_SECONDS_A_LOOK = 0.5


class Listener:
    """A thread with a connection of its own, from `start` to `stop`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stopping: threading.Event | None = None

    def start(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever events were recorded, from now on. Does nothing if started."""
        if self._stopping is None:
            self._stopping = threading.Event()
            threading.Thread(
                target=self._listen,
                args=(wake, self._stopping),
                name="meter-lib listener",
                daemon=True,
            ).start()

    def stop(self) -> None:
        """Let the thread end soon."""
        if self._stopping is not None:
            self._stopping.set()
            self._stopping = None

    def _listen(self, wake: Callable[[], None], stopping: threading.Event) -> None:
        while not stopping.is_set():
            with contextlib.suppress(psycopg.Error), self._server.connect() as connection:
                connection.execute(f"LISTEN {CHANNEL}")
                # What was recorded before it listened.
                wake()
                while not stopping.is_set():
                    for _ in connection.notifies(timeout=_SECONDS_A_LOOK, stop_after=1):
                        wake()
            stopping.wait(_SECONDS_A_LOOK)
