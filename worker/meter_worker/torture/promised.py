"""What a posting program had said before it was crashed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Promised", "promised_in"]


class Promised(NamedTuple):
    """What must be there, and what may be gone."""

    acknowledged: frozenset[str]
    """Keys of events with a receipt."""
    leaving: frozenset[str]
    """Keys of events that were about to be settled as delivered, or purged."""


def promised_in(said: Iterable[str]) -> Promised:
    """Return what these texts say, whole lines each."""
    words: dict[str, set[str]] = {"ack": set(), "leaving": set()}
    for text in said:
        for line in text.splitlines():
            verb, *keys = line.split()
            words[verb].update(keys)
    return Promised(frozenset(words["ack"]), frozenset(words["leaving"]))
