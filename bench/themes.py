"""How the plots of docs/ look: each as SVG, in light and in dark."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["THEMES", "save", "use"]

THEMES = {
    "light": {"ink": "#1f2328", "paper": "#ffffff", "grid": "#d0d7de"},
    "dark": {"ink": "#e6edf3", "paper": "#0d1117", "grid": "#30363d"},
}


def use(theme: str, *, font_size: int) -> None:
    """Draw what follows in one of the themes."""
    colours = THEMES[theme]
    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "meter-lib",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": font_size,
            "text.color": colours["ink"],
            "axes.labelcolor": colours["ink"],
            "axes.edgecolor": colours["grid"],
            "axes.facecolor": colours["paper"],
            "figure.facecolor": colours["paper"],
            "grid.color": colours["grid"],
            "xtick.color": colours["ink"],
            "ytick.color": colours["ink"],
            "legend.labelcolor": colours["ink"],
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def save(figure: Figure, folder: str, name: str, theme: str) -> None:
    """Write a plot, the same bytes for the same figures, and close it."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{name}-{theme}.svg")
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
