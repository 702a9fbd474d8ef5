"""A link that remembers what it was answered, so that a test can judge it a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meter_worker.http_link import HttpLink

if TYPE_CHECKING:
    from meter_worker.http_link import Reply


class WatchedLink(HttpLink):
    """A link that keeps the last whole answer."""

    reply: Reply | None = None

    def send(self, *args: Any, **kwargs: Any) -> Reply:
        """Send, and keep what came back."""
        self.reply = None
        self.reply = super().send(*args, **kwargs)
        return self.reply
