"""The plots of docs/performance.md, each as SVG in light and in dark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from measuring import PERCENTILES
from report import BYTES, PLOTS, medians, numbers
from rows import middle_half
from themes import THEMES, save, use

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

__all__ = ["draw_all"]

# Told from each other by those who see red and green alike, on both papers.
_OURS, _RAW, _OTHER = "#2f81f7", "#db6d28", "#8b949e"
_LINES = (_OURS, _RAW, "#a371f7", _OTHER)


def draw_all(results: Mapping[str, Any], folder: str) -> None:
    """Draw each plot into the folder, twice."""
    for theme in THEMES:
        use(theme, font_size=10)
        for name in PLOTS:
            figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
            axes.grid(visible=True, linewidth=0.6)
            axes.set_axisbelow(True)
            _DRAWN[name](axes, results)
            save(figure, folder, name, theme)


def _line(
    axes: Axes,
    figures: Mapping[str, Sequence[float]],
    at: Sequence[int],
    pattern: str,
    label: str,
    colour: str,
) -> None:
    places = [place for place in at if pattern.format(place) in figures]
    names = [pattern.format(place) for place in places]
    middle = medians(figures, names)
    ranges = [middle_half(figures[name]) for name in names]
    below = [one - low for one, (low, _) in zip(middle, ranges, strict=True)]
    above = [high - one for one, (_, high) in zip(middle, ranges, strict=True)]
    axes.errorbar(
        places, middle, yerr=(below, above), label=label, color=colour, marker="o", capsize=3
    )


def _plain_ticks(axes: Axes, at: Sequence[int]) -> None:
    axes.set_xticks(at, [f"{place:,}" for place in at])
    axes.minorticks_off()


def _threads(axes: Axes, results: Mapping[str, Any]) -> None:
    figures = results["figures"]
    at = numbers(figures, "post.", ".ratio")
    _line(axes, figures, at, "post.{}.ours", "MeterClient.post", _OURS)
    _line(axes, figures, at, "post.{}.raw", "raw INSERT + COMMIT", _RAW)
    axes.set_xscale("log", base=2)
    _plain_ticks(axes, at)
    axes.set(xlabel="threads", ylabel="events per second", ylim=(0, None))
    axes.legend()


def _latency(axes: Axes, results: Mapping[str, Any]) -> None:
    curves = results["curves"]
    styles = {1: "-", 8: "--", 64: ":"}
    for threads, style in styles.items():
        for whose, colour in (("ours", _OURS), ("raw", _RAW)):
            curve = curves.get(f"post.{threads}.{whose}.curve_ms")
            if curve:
                label = f"{whose}, {threads} thread{'s' * (threads > 1)}"
                axes.plot(PERCENTILES, curve, style, color=colour, label=label)
    axes.set_yscale("log")
    axes.set(xlabel="percent of the posts that take no longer", ylabel="milliseconds")
    axes.legend(ncols=3, fontsize=8)


def _backlog(axes: Axes, results: Mapping[str, Any]) -> None:
    figures = results["figures"]
    at = numbers(figures, "backlog.", ".open_ms")
    _line(axes, figures, at, "backlog.{}.post.ratio", "post", _OURS)
    _line(axes, figures, at, "backlog.{}.settle.ratio", "read + settle a hundred", _RAW)
    axes.set_xscale("log")
    _plain_ticks(axes, at)
    axes.set(xlabel="events pending", ylabel="speed, empty outbox = 1", ylim=(0, None))
    axes.legend()


def _bytes(axes: Axes, results: Mapping[str, Any]) -> None:
    figures = results["figures"]
    bars = {label: name for label, name in BYTES.items() if name in figures}
    bars |= {
        name.split(".")[1]: name
        for name in sorted(figures)
        if name.startswith("peers.") and name.endswith(".bytes")
    }
    heights = medians(figures, list(bars.values()))
    colours = [
        _RAW if label.startswith("raw") else _OURS if label in BYTES else _OTHER for label in bars
    ]
    drawn = axes.barh(list(bars), heights, color=colours)
    axes.bar_label(drawn, [f"{height:,.0f}" for height in heights], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="bytes written per event")


def _round_trip(axes: Axes, results: Mapping[str, Any]) -> None:
    figures = results["figures"]
    at = numbers(figures, "drain.", ".ours")
    _line(axes, figures, at, "drain.{}.ours", "1 request in flight", _OURS)
    _line(axes, figures, at, "drain.{}.in_flight_4.ours", "4 in flight", _LINES[2])
    _line(axes, figures, [one for one in at if one], "drain.{}.raw", "raw, 1 in flight", _RAW)
    axes.set(xlabel="milliseconds that the server takes", ylabel="events per second")
    axes.set_yscale("log")
    axes.legend()


def _slow_disk(axes: Axes, results: Mapping[str, Any]) -> None:
    figures = results["figures"]
    at = numbers(figures, "slow_", ".post.1.ratio")
    for threads, colour in zip((1, 8, 64), _LINES, strict=False):
        _line(axes, figures, at, f"slow_{{}}.post.{threads}.ours", f"{threads} threads", colour)
    _line(axes, figures, at, "slow_{}.post.64.raw", "raw, 64 threads", _OTHER)
    axes.set(xlabel="milliseconds added to each sync", ylabel="posts per second")
    axes.set_yscale("log")
    axes.legend()


_DRAWN = {
    "threads": _threads,
    "latency": _latency,
    "backlog": _backlog,
    "bytes": _bytes,
    "round-trip": _round_trip,
    "slow-disk": _slow_disk,
}
