"""The targets, one row each: which figure, how good it has to be, and how it is measured."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ROWS", "Row", "middle_half", "shown", "spread"]


class Row(NamedTuple):
    """A target."""

    name: str
    what: str
    figure: str
    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = ""

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_most < math.inf:
            return f"≤ {shown(self.at_most)}{self.unit}"
        return f"≥ {shown(self.at_least)}{self.unit}"

    def is_met(self, values: Sequence[float]) -> bool:
        """Return whether the median reaches the target."""
        return self.at_least <= statistics.median(values) <= self.at_most


# Rates that depend on the machine stand beside their ratio, which hardly does.
ROWS = (
    Row("S1", "post, 1 thread, to raw INSERT + COMMIT", "post.1.ratio", 0.95),
    Row("S2", "post, 8 threads, to raw with 8 threads", "post.8.ratio", 3.0),
    Row("S2", "its p99", "post.8.ours.p99_ms", at_most=3.0, unit=" ms"),
    Row("S3", "post, 64 threads, to raw with 64 threads", "post.64.ratio", 5.0),
    Row("S4", "post, 4 processes, to raw with 4 processes", "processes.4.ratio", 1.4),
    Row("S4", "its p99.9 to its median", "processes.4.ours.tail", at_most=20),
    Row("S5", "`post_many` in hundreds, events to raw commits", "many.ratio", 18),
    Row("S6", "read + settle in hundreds", "settle.100.ours", 280_000, unit=" /s"),
    Row("S6", "read + settle one by one", "settle.1.ours", 50_000, unit=" /s"),
    Row("S7", "post at 1 M pending, to an empty outbox", "backlog.1000000.post.ratio", 0.85),
    Row("S7", "settle at 1 M pending, to an empty outbox", "backlog.1000000.settle.ratio", 0.85),
    Row("S7", "opening at 1 M pending", "backlog.1000000.open_ms", at_most=10, unit=" ms"),
    Row("S8", "bytes written per lone post", "bytes.lone", at_most=6300),
    Row("S8", "bytes written per event in hundreds", "bytes.grouped", at_most=450),
    Row(
        "S8",
        "a whole life, settled in hundreds, to the post",
        "bytes.life_by_100_ratio",
        at_most=1.15,
    ),
    Row("S8", "a whole life, settled alone, to the post", "bytes.life_ratio", at_most=1.15),
    Row("S9", "syncs per lone post", "syncs.lone", at_most=1),
    Row("S10", "drain over loopback, one connection", "drain.0.ours", 100_000, unit=" /s"),
    Row("S11", "drain, server takes 20 ms, one connection", "drain.20.ours", 20_000, unit=" /s"),
    Row("S12", "bytes on the wire per event, plain", "wire.none", at_most=450),
    Row("S12", "bytes on the wire per event, gzip", "wire.gzip", at_most=50),
    Row(
        "S13",
        "`import meter_lib` over bare Python, CPU",
        "weight.import_ms",
        at_most=20,
        unit=" ms",
    ),
    Row("S13", "first post in a new process, CPU", "weight.first_post_ms", at_most=40, unit=" ms"),
    Row("S13", "memory added by import and post", "weight.memory_mib", at_most=3, unit=" MiB"),
    Row("S14", "worker's memory, idle", "worker.idle_mib", at_most=40, unit=" MiB"),
    Row("S14", "worker's memory, its peak in a drain", "worker.drain_mib", at_most=60, unit=" MiB"),
    Row("S14", "worker's CPU, idle for 15 s", "worker.idle_cpu_percent", at_most=0.2, unit=" %"),
    Row(
        "S14",
        "a post is noticed, the slowest of several",
        "worker.notice_ms",
        at_most=200,
        unit=" ms",
    ),
)


def shown(value: float) -> str:
    """Return a figure with as many digits as are worth reading."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return in words the median, and between which the middle half lies, or all of a few."""
    middle = f"{shown(statistics.median(values))}{unit}"
    if len(values) == 1:
        return middle
    low, high = middle_half(values)
    return f"{middle} ({shown(low)} … {shown(high)})"


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Return between which the middle half lies; of fewer than five, all."""
    if len(values) < 5:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high
