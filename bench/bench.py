"""Measures recording and delivery as ratios to plain SQLite and plain HTTP in the same run.

    python bench/bench.py [--events N] [--rounds N]

A disk and a machine that are shared drift by a factor within minutes; the ratio of two
measurements that take turns does not. Scratch files go to $TMPDIR, which must be on the disk
that is meant, never on tmpfs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import requests

from meter_lib import MeterClient, Settings, __version__
from meter_worker import BackgroundFlusher
from meter_worker.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What an event of ours takes in the file, so that the baseline writes as much.
PAYLOAD = b"x" * 257


class Bench:
    """One round of every measurement, in a folder of its own."""

    def __init__(self, folder: str, events: int) -> None:
        self.folder = folder
        self.events = events
        self._files = 0

    def _path(self) -> str:
        self._files += 1
        return os.path.join(self.folder, f"{self._files}.db")

    def pairs(self) -> Iterator[tuple[str, tuple[float, float]]]:
        """Yield each measurement with its baseline, taken one after the other."""
        yield "post, 1 thread", (self.posts(1), self.raw_inserts(1))
        yield "post, 8 threads", (self.posts(8), self.raw_inserts(8))
        yield "post_many by 100", (self.posts_in_hundreds(), self.raw_inserts(1))
        yield "drain, 500 a request", (self.drain(), self.plain_requests())

    def raw_inserts(self, threads: int) -> float:
        """Events per second of INSERT + COMMIT of ready bytes: WAL, synchronous=FULL."""
        path = self._path()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA page_size = 1024")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, payload BLOB)")
        connection.close()
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        mutex = threading.Lock()

        def insert() -> None:
            with mutex:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO events (payload) VALUES (?)", (PAYLOAD,))
                connection.execute("COMMIT")

        speed = self._timed(insert, threads)
        connection.close()
        return speed

    def posts(self, threads: int) -> float:
        """Events per second of `MeterClient.post`."""
        with MeterClient(settings=Settings(outbox=self._path())) as client:

            def post() -> None:
                client.post("tenant", "device", "page.processed.basic", 24)

            post()
            return self._timed(post, threads)

    def _timed(self, act: Callable[[], None], threads: int) -> float:
        share = self.events // threads

        def run() -> None:
            for _ in range(share):
                act()

        workers = [threading.Thread(target=run) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return share * threads / (time.perf_counter() - start)

    def posts_in_hundreds(self) -> float:
        """Events per second of `post_many` with 100 events a call."""
        event = {
            "tenant_id": "tenant",
            "device_id": "device",
            "meter_id": "page.processed.basic",
            "total_usage": 24,
        }
        with MeterClient(settings=Settings(outbox=self._path())) as client:
            client.post_many([event])
            start = time.perf_counter()
            for _ in range(self.events // 100):
                client.post_many([event] * 100)
            return self.events // 100 * 100 / (time.perf_counter() - start)

    def plain_requests(self) -> float:
        """Records per second of requests.Session sending ready bodies of 500 to the sandbox."""
        record = '{"key":"k","value":{"idempotency_key":"k","payload":"' + "x" * 230 + '"}}'
        body = f'{{"records":[{",".join([record] * 500)}]}}'.encode()
        headers = {"Content-Type": "application/vnd.kafka.json.v2+json"}
        sends = max(1, 5 * self.events // 500)
        with Sandbox(port=0) as sandbox, requests.Session() as session:
            url = f"{sandbox.url}/topics/usage-events"
            session.post(url, data=body, headers=headers).raise_for_status()
            start = time.perf_counter()
            for _ in range(sends):
                session.post(url, data=body, headers=headers).raise_for_status()
            return sends * 500 / (time.perf_counter() - start)

    def drain(self) -> float:
        """Events per second from a full outbox to the sandbox, 500 a request."""
        path = self._path()
        event = {"tenant_id": "t", "device_id": "d", "meter_id": "page.processed.basic"}
        with Sandbox(port=0) as sandbox:
            settings = Settings(outbox=path, stream_url=sandbox.url, accounts_url=sandbox.url)
            with MeterClient(settings=settings) as client:
                client.post_many([{**event, "total_usage": n} for n in range(5 * self.events)])
            flusher = BackgroundFlusher(settings=settings)
            start = time.perf_counter()
            flusher.start()
            if not flusher.flush(timeout=120):
                raise SystemExit("the drain did not end within 120 s")
            took = time.perf_counter() - start
            flusher.stop()
            return 5 * self.events / took


def import_milliseconds() -> float:
    """Milliseconds that `import meter_lib` takes in a new interpreter."""
    probe = (
        "import time; start = time.perf_counter(); import meter_lib; "
        "print(1000 * (time.perf_counter() - start))"
    )
    return float(
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout
    )


def main() -> None:
    """Run the rounds, each measurement beside its baseline, and print a table of medians."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=2000)
    arguments.add_argument("--rounds", type=int, default=3)
    chosen = arguments.parse_args()
    rows: dict[str, list[tuple[float, float]]] = {}
    imports: list[float] = []
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
            for name, pair in Bench(folder, chosen.events).pairs():
                rows.setdefault(name, []).append(pair)
            imports.append(import_milliseconds())
    print(
        f"meter-lib {__version__}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{chosen.rounds} rounds of {chosen.events} events; medians"
    )
    print(f"{'':24}{'events/s':>12}{'baseline/s':>12}{'ratio':>8}{'(min .. max)':>16}")
    for name, pairs in rows.items():
        ratios = sorted(ours / baseline for ours, baseline in pairs)
        print(
            f"{name:24}{statistics.median(ours for ours, _ in pairs):12,.0f}"
            f"{statistics.median(baseline for _, baseline in pairs):12,.0f}"
            f"{statistics.median(ratios):8.2f}{ratios[0]:9.2f} .. {ratios[-1]:.2f}"
        )
    print(f"{'import meter_lib':24}{statistics.median(imports):10.1f} ms")


if __name__ == "__main__":
    main()
