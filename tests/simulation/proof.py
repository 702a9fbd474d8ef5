"""The proof that a dead letter needs, looked for in what the client was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.dialects import REJECTED, RETRIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence


class Verdict(NamedTuple):
    """What the client was told of an event; instants are ticks of the oracle."""

    fate: str
    is_alone: bool
    is_beside: bool
    """Others were stored, in the same answer."""
    is_whole: bool
    """The request was refused, not the record."""
    issued: int
    handled: int
    finished: int


def lacks_proof(
    key: str,
    reason: str,
    verdicts: Sequence[Verdict],
    accepted: Sequence[tuple[str, Verdict]],
    *,
    max_attempts: int,
) -> str:
    """Return what is missing in the proof that this event is refused for good, or nothing."""
    if reason == "attempts_exhausted":
        counted = [verdict for verdict in verdicts if verdict.fate == RETRIABLE]
        if len(counted) < max_attempts:
            return f"asked for again {len(counted)} times only, of {max_attempts}"
        lone = [verdict for verdict in verdicts if verdict.is_alone]
        if len(lone) < 2:
            return "not asked about alone twice"
        if any(verdict.is_beside for verdict in verdicts):
            return ""
        return _lacks_acceptance(key, lone, accepted)
    lone = [verdict for verdict in verdicts if verdict.is_alone and verdict.fate == REJECTED]
    if len([verdict for verdict in verdicts if verdict.fate == RETRIABLE]) >= max_attempts:
        # It has had all its attempts: the last of them counts as a refusal.
        lone = [verdict for verdict in verdicts if verdict.is_alone]
    if len(lone) < 2:
        return "not refused alone twice"
    return _lacks_acceptance(key, lone, accepted)


def _lacks_acceptance(
    key: str, lone: Sequence[Verdict], accepted: Sequence[tuple[str, Verdict]]
) -> str:
    first, last = lone[0], lone[-1]
    for other, verdict in accepted:
        if other != key and first.finished < verdict.issued and verdict.handled < last.handled:
            return ""
    return "nothing was sent and accepted between the first and the last lone refusal"
