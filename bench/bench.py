"""Measures all that the project has targets for, each beside its baseline in the same process.

    python bench/bench.py [--runs N] [--write FILE] [--no-peers] [--backlog N] [--brief | --tiny]

Prints a table and writes the figures of all runs as JSON, for `report.py`. Scratch files go to
$TMPDIR, which must be on the disk that is meant, never on tmpfs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import requests
from peers import __file__ as peers_script
from peers import installed_peers
from probe import probe
from rows import ROWS, spread
from slow_disk import slow_disk

from meter_lib import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from measuring import Figures

_FOLDER = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(_FOLDER, "results.json")
PEERS_ENVIRONMENT = os.path.join(os.path.dirname(_FOLDER), "build", "bench-peers")


class Scale(NamedTuple):
    """How much is measured."""

    seconds: float = 0.2
    turns: int = 8
    threads: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    processes: tuple[int, ...] = (2, 4)
    events: int = 20_000
    drained: int = 1_000_000
    backlogs: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    round_trips: tuple[int, ...] = (1, 5, 20, 50, 100, 200)
    slow_disks: tuple[int, ...] = (2, 10, 30)
    slow_threads: tuple[int, ...] = (1, 8, 64)
    calm_after: float = 15.0
    idle_seconds: float = 10.0


# Half an hour less where many others use the machine.
BRIEF = Scale(0.12, 5, (1, 8, 64), (4,), 10_000, 200_000, (1_000, 1_000_000), (5, 50, 200))
# Enough to see that all of it runs.
TINY = Scale(0.01, 1, (1,), (2,), 1000, 100, (1000,), (1,), (2,), (1,), 0.0, 0.1)


class Step(NamedTuple):
    """A probe with its arguments."""

    name: str
    arguments: dict[str, Any]  # Any: each probe has its own
    slow_ms: int = 0
    """How much longer each sync takes."""


def steps(scale: Scale) -> Iterator[Step]:
    """Yield what one run consists of."""
    turns = {"seconds": scale.seconds, "turns": scale.turns}
    for threads in scale.threads:
        yield Step("post", {"threads": threads, **turns})
    for count in scale.processes:
        yield Step("processes", {"count": count, **turns})
    yield Step("many", turns)
    yield Step("written", {"events": max(200, scale.events // 10)})
    yield Step("syncs", {"posts": 100})
    for batch, events in ((100, scale.events), (1, scale.events // 10)):
        yield Step("settle", {"batch": batch, "events": events, "turns": scale.turns})
    yield Step("weight", {"runs": 2 * scale.turns + 1})
    yield Step("drain", {"delay_ms": 0, "events": 2 * scale.events, "turns": 3})
    yield Step("drain", {"delay_ms": 20, "events": scale.events, "turns": 2})
    for events in scale.backlogs:
        yield Step("backlog", {"events": events, **turns})


def long_steps(scale: Scale) -> Iterator[Step]:
    """Yield what is done in the first run only: it takes long, or hardly varies."""
    yield Step("wire", {"events": scale.events})
    yield Step(
        "worker",
        {
            "events": scale.drained,
            "calm_after": scale.calm_after,
            "idle_seconds": scale.idle_seconds,
            "posts": 10,
        },
    )
    for delay in scale.round_trips:
        for in_flight in (1, 4):
            devices = {"devices": 2 * in_flight, "in_flight": in_flight}
            size = {"delay_ms": delay, "events": scale.events // 2, "turns": 1}
            if (delay, in_flight) != (20, 1):
                yield Step("drain", {**size, **devices})
    slow = {"seconds": 3 * scale.seconds, "turns": max(1, scale.turns // 3)}
    for milliseconds in scale.slow_disks:
        for threads in scale.slow_threads:
            yield Step("post", {"threads": threads, **slow}, slow_ms=milliseconds)
        for count in scale.processes[-1:]:
            yield Step("processes", {"count": count, **slow}, slow_ms=milliseconds)


def measure(scale: Scale, *, runs: int, with_peers: bool, path: str) -> dict[str, Any]:
    """Return the figures of all runs, and where and when they were found; write them as they come.

    Whoever interrupts it keeps what was measured so far.
    """
    python, peers = installed_peers(PEERS_ENVIRONMENT) if with_peers else (sys.executable, {})
    results = {
        "machine": _machine(),
        "date": f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d %H:%M} UTC",
        "versions": {
            "meter-lib": f"{__version__} ({_commit()})",
            "Python": platform.python_version(),
            "SQLite": sqlite3.sqlite_version,
            "requests": requests.__version__,
            **peers,
        },
        "runs": runs,
        "turns": scale.turns,
        "load": [],
        "skipped": [],
        "figures": {},
        "curves": {},
    }
    turns = {"seconds": scale.seconds, "turns": scale.turns}
    with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
        for run in range(runs):
            for step in (*steps(scale), *(() if run else long_steps(scale))):
                found = _step(step, folder)
                if not found:
                    missing = f"{step.name} {step.arguments}: a tool it needs is missing"
                    results["skipped"].append(missing)
                _keep(found, results)
                _write(results, path)
            for name, threads in ((name, threads) for name in peers for threads in (1, 8)):
                arguments = {"threads": threads, **turns}
                try:
                    _keep(probe(name, arguments, python=python, script=peers_script), results)
                except subprocess.CalledProcessError:
                    results["skipped"].append(f"{name} with {threads} threads: it fails")
                _write(results, path)
    return results


def _write(results: dict[str, Any], path: str) -> None:
    results["load"].append(os.getloadavg()[0])
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1, sort_keys=True)
        file.write("\n")


def _step(step: Step, folder: str) -> Figures:
    print(f"{step.name} {step.arguments}", file=sys.stderr)
    if not step.slow_ms:
        return probe(step.name, step.arguments)
    environment = slow_disk(folder, step.slow_ms)
    if environment is None:
        return {}
    found = probe(step.name, step.arguments, environment=environment)
    return {f"slow_{step.slow_ms}.{name}": value for name, value in found.items()}


def _keep(found: Figures, results: dict[str, Any]) -> None:
    for name, value in found.items():
        if name.endswith(".curve_ms") and isinstance(value, list):
            results["curves"][name] = value
        else:
            found_now = value if isinstance(value, list) else [value]
            results["figures"].setdefault(name, []).extend(found_now)


def _machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        lines = [line for line in cpuinfo if line.startswith("model name")]
    model = lines[0].partition(":")[2].strip() if lines else platform.machine()
    file_system = _file_system(tempfile.gettempdir())
    return (
        f"{os.cpu_count()} cores, {model}, {platform.system()} {platform.release()}, {file_system}"
    )


def _file_system(path: str) -> str:
    df = shutil.which("df")
    if df is None:
        return "file system not known"
    shown = subprocess.run(
        [df, "--output=fstype,source", path], capture_output=True, text=True, check=False
    )
    return " on ".join(shown.stdout.split()[-2:]) or "file system not known"


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "commit not known"
    shown = subprocess.run(
        [git, "-C", _FOLDER, "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or "commit not known"


def print_table(figures: Mapping[str, list[float]]) -> None:
    """Print each target with what was measured."""
    for row in ROWS:
        values = figures.get(row.figure)
        found = spread(values, row.unit) if values else "not measured"
        verdict = "" if not values else "met" if row.is_met(values) else "NOT MET"
        print(f"{row.name:4}{row.what:52}{row.target:>14}  {found:36}{verdict}")


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--write", metavar="FILE", default=RESULTS)
    arguments.add_argument("--no-peers", action="store_true")
    arguments.add_argument("--backlog", type=int, metavar="N", help="one more, of N events")
    arguments.add_argument("--brief", action="store_true", help="fewer turns and sizes")
    arguments.add_argument("--tiny", action="store_true", help="see that it runs, measure nothing")
    chosen = arguments.parse_args()
    scale = TINY if chosen.tiny else BRIEF if chosen.brief else Scale()
    if chosen.backlog:
        scale = scale._replace(backlogs=(*scale.backlogs, chosen.backlog))
    results = measure(scale, runs=chosen.runs, with_peers=not chosen.no_peers, path=chosen.write)
    print_table(results["figures"])
    print(f"written: {chosen.write}")


if __name__ == "__main__":
    main()
