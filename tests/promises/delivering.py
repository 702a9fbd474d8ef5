"""What the promises of delivery are tried with: real worker processes against a real socket."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from meter_lib import MeterClient, Settings
from meter_lib.opening import open_outbox
from meter_lib.outbox import Selector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from meter_lib.outbox import DeadLetter, Outbox, OutboxStatus
    from meter_worker.sandbox import Sandbox, StoredRecord

METER = "page.processed.basic"


class Device:
    """A device with an outbox, a backend out there, and workers that come and go."""

    def __init__(self, folder: Path, sandbox: Sandbox, *, outbox: str | None = None) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.path = outbox or folder / "outbox.db"
        self._workers: list[subprocess.Popen[bytes]] = []

    def settings(self, **given: Any) -> Settings:
        """The settings of everything on this device: quick to retry, else as they come."""
        quick = {"poll_interval": 0.02, "backoff_base": 0.02, "backoff_max": 0.1}
        urls = {"stream_url": self.sandbox.url, "accounts_url": self.sandbox.url}
        return Settings(**{"outbox": str(self.path), **urls, **quick, **given})

    def post(self, *posted: str, **arguments: Any) -> None:
        """Record events under these keys, in one commit."""
        given = {"tenant_id": "t", "device_id": "d", "meter_id": METER, "total_usage": 1}
        with MeterClient(settings=self.settings()) as client:
            client.post_many(given | arguments | {"idempotency_key": key} for key in posted)

    def start_worker(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start `meter-lib worker` as a process of its own."""
        made = self.settings(**settings)
        environment = {key: value for key, value in os.environ.items() if key[:6] != "METER_"}
        for field, origin in made.origins.items():
            if origin != "default":
                environment[f"METER_{field.upper()}"] = str(getattr(made, field))
        log = (self.folder / "worker.log").open("ab")
        with log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "meter_worker", "worker"],
                env=environment | {"METER_CONFIG": os.devnull},
                stderr=log,
            )
        self._workers.append(worker)
        return worker

    @property
    def log(self) -> str:
        """What the workers have logged."""
        return (self.folder / "worker.log").read_text()

    @contextlib.contextmanager
    def opened(self) -> Any:
        """The outbox, to look into or to steer."""
        with contextlib.closing(open_outbox(self.settings())) as outbox:
            yield outbox

    @property
    def status(self) -> OutboxStatus:
        """The outbox at this instant."""
        outbox: Outbox
        with self.opened() as outbox:
            return outbox.status()

    @property
    def letters(self) -> list[DeadLetter]:
        """The dead letters."""
        outbox: Outbox
        with self.opened() as outbox:
            return list(outbox.dead_letters(Selector()))

    def drained(self, *, seconds: float = 30) -> None:
        """Wait until nothing is pending."""
        eventually(lambda: self.status.pending == 0, seconds=seconds)

    def end(self) -> None:
        """Leave no process behind."""
        for worker in self._workers:
            worker.kill()
            worker.wait()


def killed(worker: subprocess.Popen[bytes]) -> None:
    """End a process as the kernel does when memory is short: at once, in the middle of anything."""
    worker.kill()
    worker.wait()


def eventually(look: Callable[[], object], *, seconds: float = 15) -> None:
    """Look until it is so; fail where it is not within the time."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def numbered(name: str, count: int, start: int = 0) -> list[str]:
    """Make keys name0, name1, ..."""
    return [f"{name}{number}" for number in range(start, start + count)]


def values_by_key(records: Iterable[StoredRecord]) -> dict[str, list[Any]]:
    """The values stored under each idempotency key, in the order they came."""
    values: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        values[record.value["idempotency_key"]].append(record.value)
    return dict(values)


def first_arrivals(records: Iterable[StoredRecord]) -> dict[tuple[str, str, str], list[int]]:
    """The numbers of the events of each stream, in the order of their first arrival."""
    numbers: dict[tuple[str, str, str], dict[int, None]] = defaultdict(dict)
    for record in records:
        value = record.value
        stream = (value["tenant_id"], value["device_id"], value["meter_id"])
        numbers[stream][value["seq"]] = None
    return {stream: list(seqs) for stream, seqs in numbers.items()}
