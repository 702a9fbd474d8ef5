"""Probes of delivery: reading and settling, draining over a link, what goes over the wire."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from baselines import RawQueue, raw_poster
from measuring import Figures, Slice, compared, timed_slice
from recording import EVENT
from sink import Sink

from meter_lib import MeterClient, Settings
from meter_lib.opening import open_outbox
from meter_lib.outbox import Settlement
from meter_worker import BackgroundFlusher

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PROBES"]

_A_COMMIT = 1000
_DRAIN_TIMEOUT_SECONDS = 300.0
_IDLE_POLL_SECONDS = 0.005


def fill(settings: Settings, events: int, devices: int = 1) -> None:
    """Record so many events, of so many devices in turns."""
    kinds = [{**EVENT, "device_id": f"edge-{number}"} for number in range(devices)]
    with MeterClient(settings=settings) as client:
        for start in range(0, events, _A_COMMIT):
            count = min(_A_COMMIT, events - start)
            client.post_many([kinds[number % devices] for number in range(count)])


def settle(folder: str, *, batch: int, events: int, turns: int) -> Figures:
    """Read events and settle them as delivered; the baseline reads and deletes ready bytes."""
    settings = Settings(outbox=os.path.join(folder, "outbox.db"))
    raw = RawQueue(os.path.join(folder, "raw.db"), synchronous="NORMAL")
    outbox = open_outbox(settings)

    def a_batch() -> None:
        due = outbox.due(now=0, limit=batch, max_bytes=1_000_000)
        if len(due) != batch:
            raise SystemExit("there are too few events to settle")
        outbox.settle(Settlement(delivered=due), now=time.time_ns() // 1_000_000)

    def ours() -> Slice:
        fill(settings, events)
        return _all_of(a_batch, events // batch, batch)

    def theirs() -> Slice:
        raw.put_many(events)
        return _all_of(lambda: raw.take(batch), events // batch, batch)

    figures = compared(ours, theirs, turns=turns, name=f"settle.{batch}")
    outbox.close()
    return figures


def _all_of(act: Callable[[], object], times: int, batch: int) -> Slice:
    begun = time.perf_counter()
    for _ in range(times):
        act()
    return Slice(times * batch, time.perf_counter() - begun, [])


def drain(
    folder: str, *, delay_ms: float, events: int, turns: int, devices: int = 1, in_flight: int = 1
) -> Figures:
    """From a full outbox to a sink, 500 a request; the baseline sends ready bodies."""
    name = f"drain.{delay_ms:g}" + (f".in_flight_{in_flight}" if in_flight > 1 else "")
    with Sink(delay_ms) as sink:
        post = raw_poster(sink.port, records=500)
        cpu_us: list[float] = []
        settings = Settings(
            outbox=os.path.join(folder, "outbox.db"),
            stream_url=sink.url,
            accounts_url=sink.url,
            max_in_flight=in_flight,
        )

        def ours() -> Slice:
            fill(settings, events, devices)
            before, *_ = sink.stats()
            begun, cpu_before = time.time(), time.process_time()
            with BackgroundFlusher(settings=settings) as flusher:
                if not flusher.flush(timeout=_DRAIN_TIMEOUT_SECONDS):
                    raise SystemExit("the drain did not end")
            cpu_us.append(1e6 * (time.process_time() - cpu_before) / events)
            after, _, _, last_at = sink.stats()
            if after - before != events:
                raise SystemExit(f"{after - before} events arrived instead of {events}")
            # `flush` looks at the outbox every so often only.
            return Slice(events, last_at - begun, [])

        def theirs() -> Slice:
            one = timed_slice(post, seconds=0.3)
            return one._replace(count=500 * one.count, latencies=[])

        return {
            **compared(ours, theirs, turns=turns, name=name),
            f"{name}.cpu_us": cpu_us,
        }


def wire(folder: str, *, events: int) -> Figures:
    """Bytes that reach the sink for each event, headers included."""
    figures: Figures = {}
    for compression in ("none", "gzip"):
        with Sink() as sink:
            settings = Settings(
                outbox=os.path.join(folder, f"{compression}.db"),
                stream_url=sink.url,
                accounts_url=sink.url,
                compression=compression,
            )
            fill(settings, events)
            with BackgroundFlusher(settings=settings) as flusher:
                flusher.flush(timeout=_DRAIN_TIMEOUT_SECONDS)
            came, _, received, _ = sink.stats()
            figures[f"wire.{compression}"] = received / came
    return figures


def worker(
    folder: str, *, events: int, calm_after: float, idle_seconds: float, posts: int
) -> Figures:
    """A worker's memory, idle and while draining; its CPU idle; how soon it sees a post.

    Its CPU twice: right after a delivery, and once nothing has happened for `calm_after` seconds.
    """
    outbox = os.path.join(folder, "outbox.db")
    with Sink() as sink:
        settings = Settings(outbox=outbox, stream_url=sink.url, accounts_url=sink.url)
        fill(settings, 1)
        process = subprocess.Popen(
            [sys.executable, "-m", "meter_worker", "worker"],
            env={
                **os.environ,
                "METER_OUTBOX": outbox,
                "METER_STREAM_URL": sink.url,
                "METER_ACCOUNTS_URL": sink.url,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _until_delivered(sink, 1)
            time.sleep(2 * settings.poll_interval)
            at_first = _cpu_share(process.pid, idle_seconds)
            time.sleep(max(0.0, calm_after - idle_seconds))
            in_calm = _cpu_share(process.pid, idle_seconds)
            idle = _memory_mib(process.pid, "VmRSS")
            seen_after = [_seen_after(settings, sink) for _ in range(posts)]
            fill(settings, events)
            _until_delivered(sink, 1 + posts + events)
            return {
                "worker.idle_mib": idle,
                "worker.drain_mib": _memory_mib(process.pid, "VmHWM"),
                "worker.first_idle_cpu_percent": 100 * at_first,
                "worker.idle_cpu_percent": 100 * in_calm,
                "worker.notice_ms": 1000 * max(seen_after),
                "worker.notice_median_ms": 1000 * statistics.median(seen_after),
            }
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _seen_after(settings: Settings, sink: Sink) -> float:
    came, *_ = sink.stats()
    with MeterClient(settings=settings) as client:
        client.post_many([EVENT])
        posted_at = time.time()
    *_, last_at = _until_delivered(sink, came + 1)
    return last_at - posted_at


def _until_delivered(sink: Sink, events: int) -> tuple[int, int, int, float]:
    deadline = time.monotonic() + _DRAIN_TIMEOUT_SECONDS
    while True:
        stats = sink.stats()
        if stats[0] >= events:
            return stats
        if time.monotonic() > deadline:
            raise SystemExit("the worker did not deliver")
        time.sleep(_IDLE_POLL_SECONDS)


def _memory_mib(process_id: int, what: str) -> float:
    with open(f"/proc/{process_id}/status", encoding="ascii") as status:
        return int(status.read().partition(f"{what}:")[2].split()[0]) / 1024


def _cpu_share(process_id: int, seconds: float) -> float:
    before = _cpu_seconds(process_id)
    time.sleep(seconds)
    return (_cpu_seconds(process_id) - before) / seconds


def _cpu_seconds(process_id: int) -> float:
    total = 0
    for thread in os.listdir(f"/proc/{process_id}/task"):
        with open(f"/proc/{process_id}/task/{thread}/schedstat", encoding="ascii") as schedstat:
            total += int(schedstat.read().split()[0])
    return total / 1e9


PROBES = {"settle": settle, "drain": drain, "wire": wire, "worker": worker}
