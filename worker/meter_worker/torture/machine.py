"""What is being tortured: the machine, and how fast a folder of it is synced."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from typing import NamedTuple

__all__ = ["SyncTimes", "machine", "sync_times"]

_SYNCS = 100
# What a small commit writes.
_PAGE_BYTES = 4096


class SyncTimes(NamedTuple):
    """How long it takes to put a page on the disk, in milliseconds."""

    median: float
    p99: float


def machine() -> str:
    """Return the system, its kernel, the processor and the Python, in words."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{platform.system()} {platform.release()} on {platform.machine()}, Python {python}"


def sync_times(folder: str) -> SyncTimes:
    """Write and sync a page again and again in a file of its own, which is removed."""
    path = os.path.join(folder, "sync-times")
    page = os.urandom(_PAGE_BYTES)
    times: list[float] = []
    with open(path, "wb", buffering=0) as file:
        for number in range(_SYNCS):
            os.pwrite(file.fileno(), page, number * _PAGE_BYTES)
            begun_at = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - begun_at) * 1000)
    os.unlink(path)
    return SyncTimes(statistics.median(times), statistics.quantiles(times, n=100)[98])
