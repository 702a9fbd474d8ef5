"""What an outbox remembers of those that its events go to."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Account", "Link"]


class Link(NamedTuple):
    """How it stands with one thing that is reached over the network."""

    name: str
    failures: int = 0
    """Failed attempts in a row; 0 means up."""
    down_since: int | None = None
    next_attempt_at: int | None = None
    last_success_at: int | None = None
    last_error: str | None = None
    last_error_at: int | None = None


class Account(NamedTuple):
    """What the accounts API last answered for a tenant."""

    customer_id: str | None
    """JSON text of the id, or None where it answered that there is no such account."""
    answered_at: int
    misses: int
    """Answers in a row that there is no such account."""
    ask_again_at: int | None = None
    """When an unknown account may be asked for again."""
