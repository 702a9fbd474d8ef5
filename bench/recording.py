"""Probes of recording: how fast, how it spreads over threads and processes, what it writes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from baselines import RawQueue
from measuring import Figures, Slice, compared, timed_slice

from meter_lib import MeterClient, Settings
from meter_lib.opening import open_outbox
from meter_lib.outbox import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from meter_lib.outbox import Outbox

__all__ = ["EVENT", "PROBES"]

# With what delivery adds (customer, key, time, outbox, seq), 257 bytes of JSON and more.
EVENT = {
    "tenant_id": "tenant-0042",
    "device_id": "edge-7f3a91",
    "meter_id": "page.processed.basic",
    "total_usage": 24,
    "metadata": {"region": "eu-west-1", "site": "store-118", "fw": "4.12.7"},
}
_SYNCS = "trace=fsync,fdatasync,msync,sync_file_range"


def _client(folder: str) -> MeterClient:
    return MeterClient(settings=Settings(outbox=os.path.join(folder, "outbox.db")))


def _post(client: MeterClient) -> Callable[[], object]:
    metadata = {"region": "eu-west-1", "site": "store-118", "fw": "4.12.7"}
    return lambda: client.post(
        "tenant-0042", "edge-7f3a91", "page.processed.basic", 24, metadata=metadata
    )


def post(folder: str, *, threads: int, seconds: float, turns: int) -> Figures:
    """`MeterClient.post` in so many threads, beside as many that insert ready bytes."""
    with _client(folder) as client:
        post_one = _post(client)
        raw = RawQueue(os.path.join(folder, "raw.db"))
        _warm_up([post_one, raw.put], seconds)
        return compared(
            lambda: timed_slice(post_one, seconds=seconds, threads=threads),
            lambda: timed_slice(raw.put, seconds=seconds, threads=threads),
            turns=turns,
            name=f"post.{threads}",
        )


def _warm_up(acts: Sequence[Callable[[], object]], seconds: float) -> None:
    """Write until the logs are overwritten and grow no more: growing takes longer syncs."""
    for act in acts:
        end = time.perf_counter() + min(1.0, 4 * seconds)
        for _ in range(1500):
            act()
            if time.perf_counter() > end:
                break


def processes(folder: str, *, count: int, seconds: float, turns: int) -> Figures:
    """The same in several processes on one file."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    for _, theirs in pipes:
        context.Process(target=_one_process, args=(folder, theirs), daemon=True).start()
    for ours, _ in pipes:
        ours.recv()

    def together(what: str) -> Slice:
        for ours, _ in pipes:
            ours.send((what, seconds))
        slices: list[Slice] = [ours.recv() for ours, _ in pipes]
        return Slice(
            sum(one.count for one in slices),
            max(one.seconds for one in slices),
            [latency for one in slices for latency in one.latencies],
        )

    figures = compared(
        lambda: together("post"), lambda: together("raw"), turns=turns, name=f"processes.{count}"
    )
    for ours, _ in pipes:
        ours.send(("end", 0.0))
    return figures


def _one_process(folder: str, pipe: Connection) -> None:
    with _client(folder) as client:
        acts = {"post": _post(client), "raw": RawQueue(os.path.join(folder, "raw.db")).put}
        acts["post"]()
        acts["raw"]()
        pipe.send("ready")
        while True:
            what, seconds = pipe.recv()
            if what == "end":
                return
            pipe.send(timed_slice(acts[what], seconds=seconds))


def many(folder: str, *, seconds: float, turns: int) -> Figures:
    """`post_many` of a hundred; the baseline is one INSERT a commit."""
    hundred = [EVENT] * 100
    with _client(folder) as client:
        raw = RawQueue(os.path.join(folder, "raw.db"))
        _warm_up([_post(client), raw.put], seconds)

        def by_hundred() -> Slice:
            one = timed_slice(lambda: client.post_many(hundred), seconds=seconds)
            return one._replace(count=one.count * 100, latencies=[])

        return compared(
            by_hundred, lambda: timed_slice(raw.put, seconds=seconds), turns=turns, name="many"
        )


def written(folder: str, *, events: int) -> Figures:
    """Bytes that the process gives to the disk for each event, by the count of the system."""
    figures: Figures = {}
    with _client(folder) as client:
        lone = _bytes_each(_post(client), events)
        outbox = open_outbox(client.settings)
        settled = _bytes_each(lambda: _settle(outbox, 100), max(1, events // 100 - 1)) / 100
        outbox.close()
    figures["bytes.lone"] = lone
    figures["bytes.life_by_100_ratio"] = (lone + settled) / lone
    with _client(os.path.join(folder, "grouped")) as client:
        hundred = [EVENT] * 100
        grouped = _bytes_each(lambda: client.post_many(hundred), max(1, events // 100))
        figures["bytes.grouped"] = grouped / 100
    with _client(os.path.join(folder, "alone")) as client:
        post_one = _post(client)
        outbox = open_outbox(client.settings)

        def whole_life() -> None:
            post_one()
            _settle(outbox, 1)

        figures["bytes.life_ratio"] = _bytes_each(whole_life, events) / lone
        outbox.close()
    for page_bytes in (1024, 4096):
        raw = RawQueue(os.path.join(folder, f"raw-{page_bytes}.db"), page_bytes=page_bytes)
        figures[f"bytes.raw_{page_bytes}"] = _bytes_each(raw.put, events)
    return figures


def _settle(outbox: Outbox, count: int) -> None:
    due = outbox.due(now=0, limit=count, max_bytes=1_000_000)
    outbox.settle(Settlement(delivered=due), now=time.time_ns() // 1_000_000)


def _bytes_each(act: Callable[[], object], count: int) -> float:
    def so_far() -> int:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(file.read().partition("\nwrite_bytes: ")[2].split()[0])

    act()
    before = so_far()
    for _ in range(count):
        act()
    return (so_far() - before) / count


def syncs(folder: str, *, posts: int) -> Figures:
    """Syncs of the disk for each lone post, counted by strace from outside."""
    strace = shutil.which("strace")
    if strace is None:
        return {}
    script = (
        "import sys; from meter_lib import MeterClient; client = MeterClient(sys.argv[1]);"
        "[client.post('t', 'd', 'page.processed.basic', 1) for _ in range(int(sys.argv[2]))]"
    )
    counts: list[int] = []
    for count in (10, 10 + posts):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            trace = os.path.join(place, "trace")
            options = ["-f", "-qq", "-o", trace, "-e", _SYNCS]
            program = [sys.executable, "-c", script, os.path.join(place, "outbox.db"), str(count)]
            subprocess.run([strace, *options, *program], check=True)
            with open(trace, encoding="utf-8") as file:
                counts.append(len(file.readlines()))
    return {"syncs.lone": (counts[1] - counts[0]) / posts}


PROBES = {
    "post": post,
    "processes": processes,
    "many": many,
    "written": written,
    "syncs": syncs,
}
