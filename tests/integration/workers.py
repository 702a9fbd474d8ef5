"""Processes that deliver beside a test, and what can be seen of them from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

from meter_lib import MeterClient, OutboxUnavailable, Settings
from meter_lib.opening import open_outbox

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from meter_lib.outbox import OutboxStatus


class Child:
    """A `meter-lib` command that runs beside the test; its output goes to files."""

    def __init__(self, folder: Path, *command: str) -> None:
        self._stdout, self._stderr = (folder / f"{os.urandom(4).hex()}.{n}" for n in ("out", "err"))
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(command, stdout=stdout, stderr=stderr)

    @property
    def stdout(self) -> str:
        """What it printed so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """What it logged so far."""
        return self._stderr.read_text()

    def says(self, words: str, *, seconds: float = 10) -> None:
        """Wait until these words are in its log."""
        eventually(lambda: words in self.stderr, seconds=seconds)

    def ends(self, number: signal.Signals | None = None, *, seconds: float = 10) -> int:
        """Send a signal, and return the exit code once it has ended within the time."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout=seconds)


def eventually(look: Callable[[], object], *, seconds: float = 10) -> None:
    """Look until it is so; fail where it is not within the time."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def post(path: Path, count: int = 1, meter_id: str = "page.processed.basic") -> None:
    """Record events."""
    with MeterClient(settings=Settings(outbox=str(path))) as client:
        event = {"tenant_id": "t", "device_id": "d", "meter_id": meter_id, "total_usage": 1}
        client.post_many([event] * count)


def status(path: Path) -> OutboxStatus:
    """Look into the outbox."""
    with contextlib.closing(open_outbox(Settings(outbox=str(path)), read_only=True)) as outbox:
        return outbox.status()


def holder(path: Path) -> int | None:
    """Return the process that holds the outbox, None as well where there is no outbox yet."""
    with contextlib.closing(open_outbox(Settings(outbox=str(path)), read_only=True)) as outbox:
        try:
            return outbox.holder()
        except OutboxUnavailable:
            return None
