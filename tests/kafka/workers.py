"""A device whose workers deliver straight to a broker, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from meter_lib import MeterClient
from tests.promises.delivering import Device

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meter_lib import Settings
    from meter_worker.sandbox import Sandbox
    from tests.kafka.brokers import Stored

# A worker that is killed when a request has been answered, before its outbox can be told: the
# so manieth of its life.
DYING_WORKER = """
import os, signal, sys
from meter_lib import Settings
from meter_worker.assembly import flush_loop

left = int(sys.argv[1])

def observe(outcome, seconds):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

flush_loop(Settings.load(), observe=observe).run()
"""
TENANTS = ("t0", "t1")
METERS = ("page.processed.basic", "page.processed.premium", "m3")


class Came(NamedTuple):
    """A record that was read back."""

    stream: tuple[str, str, str]
    seq: int
    key: str
    usage: int
    partition: int


class KafkaDevice(Device):
    """A device that delivers to a broker; the sandbox tells it whose customers its tenants are."""

    def __init__(self, folder: Path, sandbox: Sandbox, sink: str) -> None:
        super().__init__(folder, sandbox)
        self._sink = sink
        self.usage: dict[str, int] = {}
        """What was recorded under each key."""

    def settings(self, **given: Any) -> Settings:
        """Those of any device, with the broker for a sink."""
        return super().settings(**{"sink": self._sink, **given})

    def record(self, count: int) -> None:
        """Record so many events of six streams, one after the other."""
        with MeterClient(settings=self.settings()) as client:
            for number in range(len(self.usage), len(self.usage) + count):
                usage = number * number + 1
                receipt = client.post(
                    TENANTS[number % 2], "d", METERS[number % 3], usage, metadata={"n": number}
                )
                self.usage[receipt["idempotency_key"]] = usage

    def environment(self, **given: Any) -> dict[str, str]:
        """The environment of its workers."""
        made = self.settings(**given)
        kept = {name: value for name, value in os.environ.items() if name[:6] != "METER_"}
        said = {
            f"METER_{field.upper()}": str(getattr(made, field))
            for field, origin in made.origins.items()
            if origin != "default"
        }
        return kept | said | {"METER_CONFIG": os.devnull}

    def die_after(self, answers: int, **given: Any) -> int:
        """Let a worker be killed at its so manieth answer; return how it ended."""
        return subprocess.run(
            [sys.executable, "-c", DYING_WORKER, str(answers)],
            env=self.environment(**given),
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        ).returncode


def came(stored: Iterable[Stored]) -> list[Came]:
    """What the records say, in their order; each says the same in its header and its key."""
    found: list[Came] = []
    for one in stored:
        value = json.loads(one.value)
        stream = (value["tenant_id"], value["device_id"], value["meter_id"])
        assert one.headers == [("idempotency_key", value["idempotency_key"].encode())]
        assert json.loads(one.key) == "/".join(stream)
        found.append(
            Came(
                stream,
                value["seq"],
                value["idempotency_key"],
                value["total_usage"],
                one.partition,
            )
        )
    return found


def copies(found: Iterable[Came]) -> set[int]:
    """How often events came: `{1}` where each came once."""
    return set(Counter(one.key for one in found).values())


def usage_by_key(found: Iterable[Came]) -> dict[str, int]:
    """What a consumer adds up that drops repeated keys."""
    return {one.key: one.usage for one in found}


def in_order(found: Iterable[Came]) -> bool:
    """Return whether the first arrivals of each stream are in the order they were recorded."""
    streams: dict[tuple[str, str, str], dict[int, None]] = defaultdict(dict)
    for one in found:
        streams[one.stream][one.seq] = None
    return all(list(seqs) == sorted(seqs) for seqs in streams.values())


def one_partition_each(found: Iterable[Came]) -> bool:
    """Return whether no stream is spread over partitions."""
    return len({(one.stream, one.partition) for one in found}) == len({one.stream for one in found})
