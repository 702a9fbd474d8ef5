"""An outbox whose disk fails now and then, before anything was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meter_lib.errors import OutboxUnavailable

if TYPE_CHECKING:
    import random

_MAY_FAIL = frozenset(
    {
        "accepted",
        "account",
        "begin",
        "due",
        "link",
        "next_due_at",
        "queue",
        "set_account",
        "set_link",
        "settle",
        "suspects",
        "unanswered",
    }
)


class FlakyOutbox:
    """Hands everything on to the real outbox, save when the disk fails."""

    def __init__(self, draw: random.Random) -> None:
        self.outbox: Any = None
        self.fails = 0.0
        """How often, between 0 and 1."""
        self._draw = draw

    def __getattr__(self, name: str) -> Any:
        if name in _MAY_FAIL and self.fails and self._draw.random() < self.fails:
            raise OutboxUnavailable("the disk fails")
        return getattr(self.outbox, name)
