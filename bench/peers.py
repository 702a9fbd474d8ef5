"""The peers: queues that other projects keep in files, in an environment of their own, never ours.

    python bench/peers.py NAME '{"threads": 1, "seconds": 0.5, "turns": 5}'

runs in that environment and prints what it found as JSON. Each peer is set as durable as its
settings allow; what does not sync before `put` returns is marked, and is no peer in speed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from typing import TYPE_CHECKING, NamedTuple

from baselines import PAYLOAD, RawQueue
from measuring import Figures, compared, timed_slice

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PEERS", "installed_peers"]

_INSTALL_TIMEOUT_SECONDS = 120
_TEXT = PAYLOAD.decode()


class Peer(NamedTuple):
    """A queue of somebody else's."""

    distribution: str
    module: str
    open: Callable[[str], Callable[[], object]]
    """Returns what puts one event into a queue in that folder."""


def _persist_queue(folder: str) -> Callable[[], object]:
    import persistqueue  # noqa: PLC0415  # there in the peers' environment only

    queue = persistqueue.FIFOSQLiteQueue(folder, multithreading=True, auto_commit=True)
    return lambda: queue.put(_TEXT)


def _litequeue(folder: str) -> Callable[[], object]:
    import litequeue  # noqa: PLC0415

    queue = litequeue.LiteQueue(os.path.join(folder, "queue.db"), timeout=30)
    queue.conn.execute("PRAGMA synchronous = FULL")
    return lambda: queue.put(_TEXT)


def _huey(folder: str) -> Callable[[], object]:
    from huey import SqliteHuey  # noqa: PLC0415

    storage = SqliteHuey("bench", filename=os.path.join(folder, "queue.db")).storage
    return lambda: storage.enqueue(PAYLOAD)


def _simplebroker(folder: str) -> Callable[[], object]:
    from simplebroker import Queue  # noqa: PLC0415

    queue = Queue("usage", db_path=os.path.join(folder, "queue.db"), persistent=True)
    return lambda: queue.write(_TEXT)


def _diskcache(folder: str) -> Callable[[], object]:
    import diskcache  # noqa: PLC0415

    cache = diskcache.Cache(folder, eviction_policy="none", sqlite_synchronous=2)
    queue = diskcache.Deque.fromcache(cache)
    return lambda: queue.append(_TEXT)


def _localqueue(folder: str) -> Callable[[], object]:
    from localqueue import DurabilityMode, SimpleQueue  # noqa: PLC0415

    queue = SimpleQueue(folder, durability=DurabilityMode["DURABLE"])
    return lambda: queue.put(_TEXT)


PEERS = {
    "persist-queue": Peer("persist-queue", "persistqueue", _persist_queue),
    "litequeue": Peer("litequeue", "litequeue", _litequeue),
    "huey": Peer("huey", "huey", _huey),
    "simplebroker": Peer("simplebroker", "simplebroker", _simplebroker),
    "diskcache": Peer("diskcache", "diskcache", _diskcache),
    "localqueue": Peer("localqueue", "localqueue", _localqueue),
}


def installed_peers(folder: str) -> tuple[str, dict[str, str]]:
    """Return the peers' interpreter, and the version of each that installs here."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        venv.create(folder, with_pip=True)
    versions: dict[str, str] = {}
    for name, peer in PEERS.items():
        version = _version(python, peer)
        if version is None:
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run(
                    [*pip, peer.distribution],
                    check=True,
                    timeout=_INSTALL_TIMEOUT_SECONDS,
                    capture_output=True,
                )
            version = _version(python, peer)
        if version is None:
            print(f"{name} does not install here: skipped", file=sys.stderr)
        else:
            versions[name] = version
    return python, versions


def _version(python: str, peer: Peer) -> str | None:
    """Return the version of the peer that can be imported there, or None."""
    shown = f"import importlib.metadata as m; print(m.version({peer.distribution!r}))"
    ran = subprocess.run(
        [python, "-c", f"import {peer.module}; {shown}"],
        check=False,
        capture_output=True,
        text=True,
    )
    return ran.stdout.strip() if ran.returncode == 0 else None


def main() -> None:
    """Measure the peer that the command line names, beside the plain INSERT."""
    name = sys.argv[1]
    peer, options = PEERS[name], json.loads(sys.argv[2])
    threads, seconds, turns = options["threads"], options["seconds"], options["turns"]
    with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
        place = os.path.join(folder, "peer")
        os.mkdir(place)
        put = peer.open(place)
        raw = RawQueue(os.path.join(folder, "raw.db"))
        end = time.perf_counter() + 4 * seconds
        while time.perf_counter() < end:
            put()
            raw.put()
        figures: Figures = compared(
            lambda: timed_slice(put, seconds=seconds, threads=threads),
            lambda: timed_slice(raw.put, seconds=seconds, threads=threads),
            turns=turns,
            name=f"peers.{name}.{threads}",
        )
        figures[f"peers.{name}.bytes"] = _bytes_each(put)
    print(json.dumps(figures))


def _bytes_each(put: Callable[[], object]) -> float:
    def so_far() -> int:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(file.read().partition("\nwrite_bytes: ")[2].split()[0])

    count = 500
    before = so_far()
    for _ in range(count):
        put()
    return (so_far() - before) / count


if __name__ == "__main__":
    main()
