"""What a check says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Finding", "Verdict", "worst"]

Verdict = Literal["ok", "warning", "fault"]
_ORDER: tuple[Verdict, ...] = ("fault", "warning", "ok")


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict there is, `ok` where nothing was found."""
    found = {finding.verdict for finding in findings}
    for verdict in _ORDER:
        if verdict in found:
            return verdict
    return "ok"
