"""Renders docs/performance.md and its plots from what `bench.py` wrote.

    python bench/report.py [--from FILE] [--text-only]

`--text-only` prints the page and draws nothing: that needs no matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from typing import TYPE_CHECKING, Any

from rows import ROWS, spread

from bench import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["page"]

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_DOCS = os.path.join(os.path.dirname(_FOLDER), "docs")
_REASONS = os.path.join(_FOLDER, "reasons.md")
PLOTS = {
    "threads": "Posts per second over threads",
    "latency": "How long a post takes",
    "backlog": "Cost of a post and of a settlement over the backlog",
    "bytes": "Bytes written to the disk per event",
    "round-trip": "Events per second over the time that the server takes",
    "slow-disk": "Posts per second where a sync takes longer",
}


def page(results: Mapping[str, Any]) -> str:  # Any: the JSON that `bench.py` wrote
    """Return docs/performance.md."""
    figures: Mapping[str, Sequence[float]] = results["figures"]
    with open(_REASONS, encoding="utf-8") as file:
        reasons = file.read().strip()
    lines = [
        "<!-- Made by `make bench-report` from bench/results.json and bench/reasons.md. -->",
        "",
        "# Performance",
        "",
        *_circumstances(results),
        "",
        "## Targets",
        "",
        "| | what | target | measured | |",
        "|---|---|---|---|---|",
        *_targets(figures),
        "",
        reasons,
        "",
    ]
    for name, title in PLOTS.items():
        lines += [f"## {title}", "", *_picture(name, title), "", *_TABLES[name](figures), ""]
    lines += [*_peers(results), ""]
    return "\n".join(lines)


def _circumstances(results: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield f"Measured {results['date']} on {results['machine']}."
    yield f"Versions: {versions}."
    yield f"Load average meanwhile: {spread(results['load'])}."
    yield ""
    yield (
        f"Of {results['runs']} run(s); in a run, ours and the baseline take turns in one process, "
        f"{results['turns']} times as a rule. A figure is the median of all turns, with the range "
        f"of the middle half of them (of fewer than five: of all), where there were turns. A "
        f"machine that is shared drifts by a factor within minutes, so the ratios are worth more "
        f"than the rates. *Raw* is Python's `sqlite3` with ready bytes of the same size: WAL, "
        f"pages of 1 KiB, one INSERT a commit at `synchronous=FULL`; for delivery, `http.client` "
        f"sending ready bodies. `make bench` measures it anew."
    )
    for skipped in results["skipped"]:
        yield f"- left out: {skipped}"


def _targets(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    for row in ROWS:
        values = figures.get(row.figure)
        found = spread(values, row.unit) if values else "not measured"
        verdict = "" if not values else "met" if row.is_met(values) else "**missed**"
        yield f"| {row.name} | {row.what} | {row.target} | {found} | {verdict} |"


def _picture(name: str, title: str) -> Iterator[str]:
    yield "<picture>"
    yield (f'  <source media="(prefers-color-scheme: dark)" srcset="performance/{name}-dark.svg">')
    yield f'  <img alt="{title}" src="performance/{name}-light.svg">'
    yield "</picture>"


def _table(
    figures: Mapping[str, Sequence[float]], head: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    """Yield a table: of each row the first cell is text, the others name figures."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for first, *names in rows:
        cells = [spread(figures[name]) if name in figures else "" for name in names]
        yield f"| {first} | {' | '.join(cells)} |"


def numbers(figures: Mapping[str, Sequence[float]], before: str, after: str) -> list[int]:
    """Return the numbers that stand between these in the names of figures, in order."""
    found = {
        name[len(before) : -len(after)]
        for name in figures
        if name.startswith(before) and name.endswith(after)
    }
    return sorted(int(text) for text in found if text.isdigit())


def _threads(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    rows = [
        (f"{count} threads", f"post.{count}.ours", f"post.{count}.raw", f"post.{count}.ratio")
        for count in numbers(figures, "post.", ".ratio")
    ] + [
        (f"{count} processes", *(f"processes.{count}.{one}" for one in ("ours", "raw", "ratio")))
        for count in numbers(figures, "processes.", ".ratio")
    ]
    return _table(figures, ("", "ours, /s", "raw, /s", "ratio"), rows)


def _latency(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    whats = [
        (f"{count} thread{'s' * (count > 1)}", f"post.{count}")
        for count in numbers(figures, "post.", ".ratio")
    ] + [(f"{n} processes", f"processes.{n}") for n in numbers(figures, "processes.", ".ratio")]
    rows = [
        (what, *(f"{name}.{who}.{one}" for who in ("ours", "raw") for one in ("p50_ms", "p99_ms")))
        for what, name in whats
    ]
    head = ("", "ours: median, ms", "ours: p99, ms", "raw: median, ms", "raw: p99, ms")
    return _table(figures, head, rows)


def _backlog(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    rows = [
        (
            f"{count:,}",
            f"backlog.{count}.post.ratio",
            f"backlog.{count}.settle.ratio",
            f"backlog.{count}.open_ms",
        )
        for count in numbers(figures, "backlog.", ".open_ms")
    ]
    head = ("pending", "post, to an empty outbox", "settle, to an empty outbox", "open, ms")
    return _table(figures, head, rows)


BYTES = {
    "lone post": "bytes.lone",
    "in hundreds": "bytes.grouped",
    "raw, pages of 1 KiB": "bytes.raw_1024",
    "raw, pages of 4 KiB": "bytes.raw_4096",
}


def _bytes(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    return _table(figures, ("", "bytes an event"), list(BYTES.items()))


def _round_trip(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    rows = [
        (
            f"{count} ms",
            f"drain.{count}.ours",
            f"drain.{count}.in_flight_4.ours",
            f"drain.{count}.raw",
            f"drain.{count}.cpu_us",
        )
        for count in numbers(figures, "drain.", ".ours")
    ]
    head = (
        "server takes",
        "1 in flight, /s",
        "4 in flight, /s",
        "raw, 1 in flight, /s",
        "our CPU, µs an event",
    )
    return _table(figures, head, rows)


def _slow_disk(figures: Mapping[str, Sequence[float]]) -> Iterator[str]:
    rows = [
        (
            f"{milliseconds} ms, {what}",
            *(f"slow_{milliseconds}.{name}.{one}" for one in ("ours", "raw", "ratio")),
        )
        for milliseconds in numbers(figures, "slow_", ".post.1.ratio")
        for what, name in (
            ("1 thread", "post.1"),
            ("8 threads", "post.8"),
            ("64 threads", "post.64"),
            ("4 processes", "processes.4"),
        )
    ]
    return _table(figures, ("added to each sync", "ours, /s", "raw, /s", "ratio"), rows)


_TABLES = {
    "threads": _threads,
    "latency": _latency,
    "backlog": _backlog,
    "bytes": _bytes,
    "round-trip": _round_trip,
    "slow-disk": _slow_disk,
}


def _peers(results: Mapping[str, Any]) -> Iterator[str]:
    figures: Mapping[str, Sequence[float]] = results["figures"]
    names = sorted({name.split(".")[1] for name in figures if name.startswith("peers.")})
    if not names:
        return
    yield "## Other queues"
    yield ""
    yield (
        "Each as durable as its settings allow, in an environment of its own; ratios to raw in "
        "the same process. They take ready text and check nothing."
    )
    yield ""
    ours = ("meter-lib", "post.1.ratio", "post.8.ratio", "post.8.ours.p99_ms", "bytes.lone")
    rows = [
        (
            name,
            f"peers.{name}.1.ratio",
            f"peers.{name}.8.ratio",
            f"peers.{name}.8.ours.p99_ms",
            f"peers.{name}.bytes",
        )
        for name in names
    ]
    head = ("", "1 thread, to raw", "8 threads, to raw", "its p99, ms", "bytes an event")
    yield from _table(figures, head, [ours, *rows])


def medians(figures: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[float]:
    """Return the medians of these figures."""
    return [statistics.median(figures[name]) for name in names]


def main() -> None:
    """Render the page, and the plots unless only the text is wanted."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--from", dest="source", metavar="FILE", default=RESULTS)
    arguments.add_argument("--text-only", action="store_true")
    chosen = arguments.parse_args()
    with open(chosen.source, encoding="utf-8") as file:
        results = json.load(file)
    if chosen.text_only:
        print(page(results), end="")
        return
    from plots import draw_all  # noqa: PLC0415  # needs matplotlib

    draw_all(results, os.path.join(_DOCS, "performance"))
    with open(os.path.join(_DOCS, "performance.md"), "w", encoding="utf-8") as file:
        file.write(page(results))
    print("written: docs/performance.md and docs/performance/")


if __name__ == "__main__":
    main()
