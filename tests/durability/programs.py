"""Programs and processes of the durability tests, and how their outboxes are looked at."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from meter_lib import Settings
from meter_lib.opening import open_outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self

    from meter_lib.outbox import OutboxStatus

METER = "page.processed.basic"

# Posts from two threads without an end. Every event can be told from all others by its content.
ENDLESS_POSTER = """
import itertools, os, sys, threading
from meter_lib import MeterClient

client = MeterClient(sys.argv[1])

def post(device):
    for number in itertools.count():
        receipt = client.post(f"t{number % 3}", device, "page.processed.basic", number)
        os.write(1, (receipt["idempotency_key"] + "\\n").encode())

for thread in "ab":
    threading.Thread(target=post, args=(f"{sys.argv[2]}-{thread}",)).start()
"""


class Row(NamedTuple):
    """An event as it is in the file."""

    seq: int
    key: str
    state: str


class Counts(NamedTuple):
    """The counts of an outbox, taken from its file by plain SQLite."""

    rows: list[Row]
    accepted: int
    delivered: int
    removed: int
    dead: int


def counts_in(path: Path | str) -> Counts:
    """Read a file with plain SQLite, and prove that it is whole and that its counts add up."""
    connection = sqlite3.connect(path)
    try:
        [*problems] = connection.execute("PRAGMA integrity_check")
        assert problems == [("ok",)]
        connection.execute("BEGIN")
        rows = [
            Row(*row)
            for row in connection.execute(
                "SELECT seq, idempotency_key, state FROM events ORDER BY seq"
            )
        ]
        [(last_seq, delivered, removed, dead)] = connection.execute(
            "SELECT last_seq, delivered_events, removed_events, dead_events FROM outbox"
        )
    finally:
        connection.close()
    accepted = max([last_seq, *(row.seq for row in rows[-1:])])
    assert accepted == len(rows) + delivered + removed
    assert dead == sum(row.state == "dead" for row in rows)
    assert len({row.key for row in rows}) == len(rows)
    return Counts(rows, accepted, delivered, removed, dead)


class Programs:
    """Starts processes on one outbox; none of them is left when the block is left."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.path = str(folder / "outbox.db")
        self._environment = {
            **os.environ,
            "METER_CONFIG": os.devnull,
            "METER_OUTBOX": self.path,
            **{f"METER_{name.upper()}": value for name, value in settings.items()},
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._said: list[Path] = []

    def poster(self, name: str) -> subprocess.Popen[bytes]:
        """Start a program that posts without an end."""
        return self._started(sys.executable, "-c", ENDLESS_POSTER, self.path, name)

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `meter-lib` command."""
        return self._started(sys.executable, "-m", "meter_worker", *arguments)

    def result(self, *arguments: str) -> int:
        """Run a `meter-lib` command to its end and return its exit code."""
        return self.command(*arguments).wait(timeout=120)

    def _started(self, *command: str) -> subprocess.Popen[bytes]:
        said = self.folder / f"{len(self._said)}.said"
        log = self.folder / f"{len(self._said)}.log"
        with said.open("wb") as stdout, log.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=self._environment)
        self._said.append(said)
        self._processes.append(process)
        return process

    @property
    def acknowledged(self) -> set[str]:
        """The keys that posters have printed, in whole lines."""
        texts = [said.read_text() for said in self._said]
        return {key for text in texts for key in text[: text.rfind("\n") + 1].splitlines()}

    @property
    def logs(self) -> str:
        """What all of them have said on stderr."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """Kill whatever runs."""
        for process in self._processes:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def status_of(path: str) -> OutboxStatus:
    """Look into an outbox as an operator does."""
    with contextlib.closing(open_outbox(Settings(outbox=path), read_only=True)) as outbox:
        return outbox.status()


def eventually(look: Callable[[], object], *, seconds: float = 30) -> None:
    """Look until it is so; fail where it is not within the time."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.002)


@contextlib.contextmanager
def written_to(path: str) -> Iterator[Callable[[], bool]]:
    """Tell whether anything was written to an outbox since the block was entered."""

    def written() -> tuple[int, int]:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(f"{path}-wal")
            return found.st_size, found.st_mtime_ns
        return 0, 0

    before = written()
    # A log that was made just now holds nothing yet.
    yield lambda: written() != before and written()[0] > 0
