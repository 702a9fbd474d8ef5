"""DELIVER: what brings recorded usage to the backend, as a daemon or as a thread."""

from meter_worker.background import BackgroundFlusher

__all__ = ["BackgroundFlusher"]
