"""What a replay would do, and what it would risk: gathered before anything is changed."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from meter_worker.cli.output import counted
from meter_worker.logs import escaped
from meter_worker.reasons import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib.letters import DeadLetter

__all__ = ["ReplayPlan"]


class ReplayPlan:
    """Looks at each dead letter that is to be replayed.

    `window_seconds` is how long the backend knows a key (None: nobody has said), `now` is in
    milliseconds.
    """

    def __init__(self, window_seconds: float | None, now: int) -> None:
        self._window_seconds = window_seconds
        self._now = now
        self._reasons: Counter[str] = Counter()
        self._risky: Counter[str] = Counter()
        self.first: DeadLetter | None = None
        """The oldest."""

    def look(self, letter: DeadLetter) -> None:
        """Take note of one more."""
        self.first = self.first or letter
        self._reasons[letter.reason] += 1
        self._risky[letter.reason] += self._may_be_billed_twice(letter)

    def print(self) -> None:
        """Print how many there are of each reason, and the risk."""
        for line in self._lines():
            click.echo(line)

    def print_to_terminal(self) -> None:
        """Print the same for whoever is asked, if somebody is."""
        if sys.stderr.isatty():
            for line in self._lines():
                click.echo(line, err=True)

    def refuse_risk(self) -> None:
        """Raise `click.UsageError` where something might be billed twice."""
        if self._risky.total():
            raise click.UsageError(
                f"{self._risk()} Ask the backend which it has, select others (--reason), or give"
                " --accept-duplicate-risk."
            )

    def _lines(self) -> Iterator[str]:
        for reason, number in self._reasons.most_common():
            yield f"  {number:,} {escaped(reason)}"
        if self._risky.total():
            yield self._risk()

    def _risk(self) -> str:
        reasons = ", ".join(escaped(reason) for reason, number in self._risky.items() if number)
        return (
            f"{counted(self._risky.total(), 'dead letter')} ({reasons}) may be stored by the"
            " backend, which was not seen to refuse for good; METER_DEDUPE_WINDOW"
            f" ({self._window_seconds:g} s) has passed since, so replaying may bill twice."
        )

    def _may_be_billed_twice(self, letter: DeadLetter) -> bool:
        if self._window_seconds is None:
            return False
        if reason_of(letter.reason).is_refusal and not letter.unanswered:
            return False
        # No attempt came later than its end. A clock that was set back says nothing.
        age_seconds = (self._now - letter.dead_at) / 1000
        return not 0 <= age_seconds < self._window_seconds
