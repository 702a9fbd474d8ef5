"""DELIVER: what brings recorded usage to the backend, as a daemon or as a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meter_worker.background import BackgroundFlusher

__all__ = ["BackgroundFlusher"]


def __getattr__(name: str) -> object:
    # On first use: `meter-lib post` and `status` need no HTTP client, which is slow to load.
    if name == "BackgroundFlusher":
        from meter_worker.background import BackgroundFlusher  # noqa: PLC0415  # see above

        return BackgroundFlusher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
