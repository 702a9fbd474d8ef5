"""What it is called when the torture itself cannot be carried out."""

from __future__ import annotations

__all__ = ["TortureFailed"]


class TortureFailed(Exception):
    """The torture could not be carried out; nothing is known about the outbox."""
