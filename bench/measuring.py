"""How things are timed: in turns with what they are compared to, many times."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Figures", "Slice", "compared", "percentile", "percentiles", "timed_slice"]

Figures: TypeAlias = "dict[str, float | list[float]]"
"""What a probe found, by name; where it took turns, the value of each turn."""

# Where the curve of latencies is read off.
PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9)


class Slice(NamedTuple):
    """One thing done again and again for a short while."""

    count: int
    seconds: float
    latencies: list[float]
    """Seconds of each call."""


def timed_slice(act: Callable[[], object], *, seconds: float, threads: int = 1) -> Slice:
    """Do it for so many seconds, in this thread or in several others at the same time."""
    latencies: list[list[float]] = [[] for _ in range(threads)]
    start_together = threading.Barrier(threads)

    def run(mine: list[float]) -> None:
        clock = time.perf_counter
        start_together.wait()
        now = clock()
        end = now + seconds
        while now < end:
            before = now
            act()
            now = clock()
            mine.append(now - before)

    begun = time.perf_counter()
    if threads == 1:
        run(latencies[0])
    else:
        workers = [threading.Thread(target=run, args=(mine,)) for mine in latencies]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    took = time.perf_counter() - begun
    return Slice(sum(map(len, latencies)), took, [one for mine in latencies for one in mine])


def compared(
    ours: Callable[[], Slice], raw: Callable[[], Slice], *, turns: int, name: str
) -> Figures:
    """Let both take turns; return the rates and their ratio turn by turn, and the latencies.

    A disk and a machine that are shared drift by a factor within minutes; the ratio of two
    measurements that take turns does not.
    """
    ours(), raw()
    pairs = [(ours(), raw()) for _ in range(turns)]
    rates = [(one.count / one.seconds, other.count / other.seconds) for one, other in pairs]
    mine = sorted(latency for one, _ in pairs for latency in one.latencies)
    theirs = sorted(latency for _, other in pairs for latency in other.latencies)
    figures: Figures = {
        f"{name}.ours": [rate for rate, _ in rates],
        f"{name}.raw": [rate for _, rate in rates],
        f"{name}.ratio": [rate / other for rate, other in rates],
    }
    for whose, latencies in (("ours", mine), ("raw", theirs)):
        if latencies:
            figures[f"{name}.{whose}.p50_ms"] = 1000 * percentile(latencies, 50)
            figures[f"{name}.{whose}.p99_ms"] = 1000 * percentile(latencies, 99)
            figures[f"{name}.{whose}.tail"] = percentile(latencies, 99.9) / percentile(
                latencies, 50
            )
            figures[f"{name}.{whose}.curve_ms"] = percentiles(latencies)
    return figures


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of the ordered ones do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def percentiles(ordered: Sequence[float]) -> list[float]:
    """Return the curve of latencies in milliseconds, at `PERCENTILES`."""
    return [1000 * percentile(ordered, percent) for percent in PERCENTILES]
