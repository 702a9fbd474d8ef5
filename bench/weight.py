"""Probe of what the library weighs in the program that records: time and memory.

The time is that of the processor, which others who use the machine make no longer; on a machine
that is not busy an import takes as long by the clock.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from measuring import Figures

__all__ = ["PROBES"]

# What a host program has loaded as a rule; what ours adds to it is ours.
_HOST = "import json, logging, threading, sqlite3"
_MEMORY = "print(open('/proc/self/status').read().partition('VmRSS:')[2].split()[0])"
_FIRST_POST = (
    "import sys; from meter_lib import MeterClient; client = MeterClient(sys.argv[1]);"
    "client.post('t', 'd', 'page.processed.basic', 1)"
)


def weight(folder: str, *, runs: int) -> Figures:
    """Milliseconds that importing and a first post add to a bare interpreter; MiB they add."""
    outbox = os.path.join(folder, "outbox.db")
    # As installed: compiled once, wherever the tree is.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(folder, "compiled")
    programs = {"bare": "pass", "import": "import meter_lib", "first post": _FIRST_POST}
    for program in programs.values():
        _seconds(program, outbox)
    pairs = [
        {name: _seconds(program, outbox) for name, program in programs.items()} for _ in range(runs)
    ]
    import_ms = [1000 * (one["import"] - one["bare"]) for one in pairs]
    post_ms = [1000 * (one["first post"] - one["bare"]) for one in pairs]
    host = [_kib(f"{_HOST}\n{_MEMORY}", outbox) for _ in range(3)]
    with_post = [_kib(f"{_HOST}\n{_FIRST_POST}\n{_MEMORY}", outbox) for _ in range(3)]
    return {
        "weight.import_ms": import_ms,
        "weight.first_post_ms": post_ms,
        "weight.bare_ms": statistics.median(1000 * one["bare"] for one in pairs),
        "weight.memory_mib": (statistics.median(with_post) - statistics.median(host)) / 1024,
    }


def _seconds(program: str, outbox: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program, outbox], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _kib(program: str, outbox: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", program, outbox], check=True, capture_output=True, text=True
    )
    return int(ran.stdout)


PROBES = {"weight": weight}
