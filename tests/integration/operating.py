"""What the commands of operators are tried with: an outbox, and command lines run on it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from meter_lib import MeterClient
from meter_lib.opening import open_outbox
from meter_lib.outbox import Burial, Settlement
from meter_lib.settings import Settings
from meter_worker.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from meter_lib.outbox import Outbox

EVENT = {"tenant_id": "t", "device_id": "d", "meter_id": "page.processed.basic", "total_usage": 1}
TIME = 1_790_000_000_000
DIED_AT = 1_791_000_000_000


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What it printed, parsed."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[Any]:
        """What it printed, each line parsed."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class Operator:
    """Somebody at the command line of a device with an outbox at `path`."""

    def __init__(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def run(self, *arguments: str) -> Ended:
        """Run a command line in this process."""
        code: object = None
        try:
            main([*arguments])
        except SystemExit as ended:
            code = ended.code
        printed = self._capsys.readouterr()
        assert isinstance(code, int)
        return Ended(code, printed.out, printed.err)

    def process(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command line as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "meter_worker", *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[Outbox]:
        """The outbox, opened as a program does."""
        with contextlib.closing(open_outbox(Settings(outbox=self.path))) as outbox:
            yield outbox

    def post(self, *keys: str, **arguments: Any) -> None:
        """Record events under these keys, a millisecond apart."""
        with MeterClient(self.path) as client:
            client.post_many(
                EVENT | {"timestamp": TIME + number} | arguments | {"idempotency_key": key}
                for number, key in enumerate(keys)
            )

    def bury(
        self, *keys: str, reason: str = "rejected", died_at: int = DIED_AT, **arguments: Any
    ) -> None:
        """Record events under these keys and make dead letters of them."""
        self.post(*keys, **arguments)
        with self.opened() as outbox:
            for event in outbox.due(now=TIME, limit=10_000, max_bytes=10**9):
                if event.idempotency_key in keys:
                    burial = Burial(event, reason, "no\N{SNOWMAN}")
                    outbox.settle(Settlement(buried=[burial]), now=died_at)

    def keys(self, group: str = "dead-letters") -> list[str]:
        """Return the keys that a group lists."""
        return [event["idempotency_key"] for event in self.run(group, "list", "--json").json]
