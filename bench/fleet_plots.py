"""The plots of docs/fleet.md, each as SVG in light and in dark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from themes import THEMES, save, use

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

__all__ = ["draw_all"]

# Told from each other by those who see red and green alike, on both papers.
_COLOURS = {"in step": "#db6d28", "jitter": "#8b949e", "jitter and spread": "#2f81f7"}
_SHOWN = ("2 minutes", "1 day", "maintenance, 10 minutes", "power cut, 1 day")
_SECONDS_SHOWN = 360
_SECONDS_A_STEP = 5
_Run = dict[str, Any]  # Any: what JSON carries


def draw_all(runs: Sequence[_Run], folder: str) -> None:
    """Draw each plot into the folder, twice."""
    for name in _PLOTS:
        for theme in THEMES:
            _draw(runs, name, theme, folder)


def _contacts(axes: Axes, run: _Run, colour: str) -> None:
    _steps(axes, run["contacts_by_second"], run["way"], colour)
    axes.set(ylabel="devices/s", yscale="symlog", ylim=(0, None))


def _requests(axes: Axes, run: _Run, colour: str) -> None:
    _steps(axes, run["requests_by_second"], run["way"], colour)
    axes.set(ylabel="requests/s", yscale="symlog", ylim=(0, None))


def _drained(axes: Axes, run: _Run, colour: str) -> None:
    drained = run["drained_after_percentiles"]
    axes.plot(drained, range(len(drained)), color=colour, label=run["way"])
    axes.set(ylabel="% of devices", ylim=(0, 100))


def _steps(axes: Axes, by_second: Sequence[int], label: str, colour: str) -> None:
    starts = range(0, _SECONDS_SHOWN, _SECONDS_A_STEP)
    means = [sum(by_second[at : at + _SECONDS_A_STEP]) / _SECONDS_A_STEP for at in starts]
    axes.step(starts, means, where="post", color=colour, label=label, linewidth=1.4)


_PLOTS: Mapping[str, Callable[[Axes, _Run, str], None]] = {
    "contacts": _contacts,
    "requests": _requests,
    "drained": _drained,
}


def _draw(runs: Sequence[_Run], name: str, theme: str, folder: str) -> None:
    use(theme, font_size=9)
    figure, grid = plt.subplots(2, 2, figsize=(8.4, 5.2), layout="constrained", sharex=True)
    for axes, outage in zip(grid.flat, _SHOWN, strict=True):
        axes.grid(visible=True, linewidth=0.6)
        axes.set_title(outage, fontsize=9)
        for run in runs:
            if run["outage"] == outage:
                _PLOTS[name](axes, run, _COLOURS[run["way"]])
        axes.set(xlim=(0, _SECONDS_SHOWN))
    grid[0][0].legend(fontsize=8)
    for axes in grid[1]:
        axes.set_xlabel("seconds since the backend is back")
    save(figure, folder, name, theme)
