"""Measures recording and delivery as ratios to plain SQLite and plain HTTP in the same run.

    python bench/bench.py [--events N] [--rounds N]

A disk and a machine that are shared drift by a factor within minutes; the ratio of two
measurements that take turns does not. Scratch files go to $TMPDIR, which must be on the disk
that is meant, never on tmpfs.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import requests

from meter_lib import MeterClient, Settings, __version__
from meter_worker import BackgroundFlusher
from meter_worker.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

# What an event of ours takes in the file, so that the baseline writes as much.
PAYLOAD = b"x" * 257


class Measured(NamedTuple):
    """What one measurement found; the seconds of a call where calls were timed."""

    events_a_second: float
    median_seconds: float = math.nan
    slow_seconds: float = math.nan
    """One call in a hundred took longer; where several processes post, one in a thousand."""


class Bench:
    """One round of every measurement, in a folder of its own."""

    def __init__(self, folder: str, events: int) -> None:
        self.folder = folder
        self.events = events
        self._files = 0

    def path(self) -> str:
        """Return a place for one more file."""
        self._files += 1
        return os.path.join(self.folder, f"{self._files}.db")

    def pairs(self) -> Iterator[tuple[str, tuple[Measured, Measured]]]:
        """Yield each measurement with its baseline, taken one after the other."""
        for threads in (1, 8, 64):
            yield (
                f"post, {threads} thread{'s' * (threads > 1)}",
                (self.posts(threads), self.raw_inserts(threads)),
            )
        yield "post, 4 processes", (self.apart(post_alone), self.apart(insert_alone))
        yield "post_many by 100", (self.posts_in_hundreds(), self.raw_inserts(1))
        yield "drain, 500 a request", (self.drain(), self.plain_requests())

    def raw_inserts(self, threads: int) -> Measured:
        """INSERT + COMMIT of ready bytes: WAL, synchronous=FULL."""
        insert = inserter(self.path())
        mutex = threading.Lock()

        def insert_in_turn() -> None:
            with mutex:
                insert()

        return self._timed(insert_in_turn, threads)

    def posts(self, threads: int) -> Measured:
        """`MeterClient.post`."""
        with MeterClient(settings=Settings(outbox=self.path())) as client:
            post = poster(client)
            post()
            return self._timed(post, threads)

    def apart(self, run: Callable[[str, int, Connection], None], processes: int = 4) -> Measured:
        """The same in several processes on one file."""
        path = self.path()
        inserter(path)
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(processes)]
        for _, theirs in pipes:
            context.Process(
                target=run, args=(path + run.__name__, self.events // processes, theirs)
            ).start()
        for ours, _ in pipes:
            ours.recv()
        for ours, _ in pipes:
            ours.send("go")
        runs: list[tuple[float, float, list[float]]] = [ours.recv() for ours, _ in pipes]
        took = max(end for _, end, _ in runs) - min(start for start, _, _ in runs)
        return measured(took, [second for _, _, seconds in runs for second in seconds], 0.999)

    def _timed(self, act: Callable[[], None], threads: int) -> Measured:
        share = self.events // threads
        seconds: list[float] = []

        def run() -> None:
            seconds.extend(timed(act, share))

        workers = [threading.Thread(target=run) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return measured(time.perf_counter() - start, seconds, 0.99)

    def posts_in_hundreds(self) -> Measured:
        """`post_many` with 100 events a call."""
        event = {
            "tenant_id": "tenant",
            "device_id": "device",
            "meter_id": "page.processed.basic",
            "total_usage": 24,
        }
        with MeterClient(settings=Settings(outbox=self.path())) as client:
            client.post_many([event])
            start = time.perf_counter()
            for _ in range(self.events // 100):
                client.post_many([event] * 100)
            return Measured(self.events // 100 * 100 / (time.perf_counter() - start))

    def plain_requests(self) -> Measured:
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
            return Measured(sends * 500 / (time.perf_counter() - start))

    def drain(self) -> Measured:
        """Events per second from a full outbox to the sandbox, 500 a request."""
        path = self.path()
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
            return Measured(5 * self.events / took)


def inserter(path: str) -> Callable[[], None]:
    """Return what inserts one row of ready bytes and commits, into a file made if need be."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    for statement in (
        "PRAGMA page_size = 1024",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, payload BLOB)",
    ):
        connection.execute(statement)

    def insert() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO events (payload) VALUES (?)", (PAYLOAD,))
        connection.execute("COMMIT")

    return insert


def poster(client: MeterClient) -> Callable[[], None]:
    """Return what posts one event."""

    def post() -> None:
        client.post("tenant", "device", "page.processed.basic", 24)

    return post


def insert_alone(path: str, count: int, pipe: Connection) -> None:
    """Be one of several processes that insert."""
    _one_of_several(inserter(path), count, pipe)


def post_alone(path: str, count: int, pipe: Connection) -> None:
    """Be one of several processes that post."""
    with MeterClient(settings=Settings(outbox=path)) as client:
        _one_of_several(poster(client), count, pipe)


def _one_of_several(act: Callable[[], None], count: int, pipe: Connection) -> None:
    act()
    pipe.send("ready")
    pipe.recv()
    start = time.perf_counter()
    seconds = timed(act, count)
    pipe.send((start, time.perf_counter(), seconds))


def timed(act: Callable[[], None], count: int) -> list[float]:
    """Do it so many times and return how long each took, in seconds."""
    seconds: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return seconds


def measured(took: float, seconds: list[float], share: float) -> Measured:
    """Sum up: how long all took, how long each, and what share of them is not slow."""
    seconds.sort()
    return Measured(
        len(seconds) / took, statistics.median(seconds), seconds[int(len(seconds) * share)]
    )


def bytes_written(act: Callable[[], None], count: int) -> float:
    """Bytes that this process gives to the disk each time, by the count of the system."""

    def so_far() -> int:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(file.read().partition("\nwrite_bytes: ")[2].split()[0])

    act()
    before = so_far()
    timed(act, count)
    return (so_far() - before) / count


def print_bytes(bench: Bench) -> None:
    """Print what a lone post and one of a hundred write, beside the plain INSERT."""
    if not os.path.exists("/proc/self/io"):
        print("bytes written: not known on this system")
        return
    event = {"tenant_id": "t", "device_id": "d", "meter_id": "page.processed.basic"}
    hundred = [{**event, "total_usage": 24}] * 100
    with MeterClient(settings=Settings(outbox=bench.path())) as client:
        lone = bytes_written(poster(client), bench.events)
        grouped = bytes_written(lambda: client.post_many(hundred) and None, bench.events // 100)
    raw = bytes_written(inserter(bench.path()), bench.events)
    print(
        f"bytes written an event: lone post {lone:,.0f}, by 100 {grouped / 100:,.0f}, "
        f"plain INSERT {raw:,.0f}"
    )


def print_syncs(bench: Bench) -> None:
    """Print how many syncs a lone post takes, counted from outside."""
    strace = shutil.which("strace")
    if strace is None:
        print("syncs a lone post: not counted, strace is not installed")
        return
    script = (
        "import sys; from meter_lib import MeterClient; client = MeterClient(sys.argv[1]);"
        "[client.post('t', 'd', 'page.processed.basic', 1) for _ in range(int(sys.argv[2]))]"
    )
    counts: list[int] = []
    for posts in ("10", "210"):
        trace = bench.path()
        options = ["-f", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,msync,sync_file_range"]
        poster = [sys.executable, "-c", script, bench.path(), posts]
        subprocess.run([strace, *options, *poster], check=True)
        with open(trace, encoding="utf-8") as file:
            counts.append(len(file.readlines()))
    print(f"syncs a lone post: {(counts[1] - counts[0]) / 200:.2f}")


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
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    rows: dict[str, list[tuple[Measured, Measured]]] = {}
    imports: list[float] = []
    print(
        f"meter-lib {__version__}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{chosen.rounds} rounds of {chosen.events} events; medians"
    )
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
            for name, pair in Bench(folder, chosen.events).pairs():
                rows.setdefault(name, []).append(pair)
            imports.append(import_milliseconds())
    print(
        f"{'':22}{'events/s':>10}{'baseline/s':>11}{'ratio':>7}{'(min .. max)':>15}"
        f"{'median ms':>11}{'slow ms':>9}{'baseline slow ms':>18}"
    )
    for name, pairs in rows.items():
        ratios = sorted(ours.events_a_second / raw.events_a_second for ours, raw in pairs)
        print(
            f"{name:22}{statistics.median(ours.events_a_second for ours, _ in pairs):10,.0f}"
            f"{statistics.median(raw.events_a_second for _, raw in pairs):11,.0f}"
            f"{statistics.median(ratios):7.2f}{ratios[0]:8.2f} .. {ratios[-1]:.2f}"
            f"{1000 * statistics.median(ours.median_seconds for ours, _ in pairs):10.2f}"
            f"{1000 * statistics.median(ours.slow_seconds for ours, _ in pairs):10.2f}"
            f"{1000 * statistics.median(raw.slow_seconds for _, raw in pairs):13.2f}"
        )
    print("slow: one call in a hundred takes longer; with processes, one in a thousand")
    with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
        bench = Bench(folder, chosen.events)
        print_bytes(bench)
        print_syncs(bench)
    print(f"import meter_lib: {statistics.median(imports):.1f} ms")


if __name__ == "__main__":
    main()
