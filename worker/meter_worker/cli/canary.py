"""One event goes first; what becomes of it decides whether the others follow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from meter_lib.letters import Selector
from meter_worker.logs import escaped

if TYPE_CHECKING:
    from meter_lib.letters import DeadLetter
    from meter_lib.outbox import Operations

__all__ = ["Canary"]

_SECONDS_BETWEEN_LOOKS = 0.05


class Canary:
    """A dead letter that is replayed before the others; its fate is waited for, not for ever."""

    def __init__(self, letter: DeadLetter, timeout_seconds: float) -> None:
        self._letter = letter
        self._timeout_seconds = timeout_seconds

    @property
    def seq(self) -> int:
        """Return its number."""
        return self._letter.seq

    def is_delivered(self, outbox: Operations) -> bool:
        """Return True once it is delivered, or False where the others had better wait: say why."""
        key = escaped(self._letter.idempotency_key)
        click.echo(f"waiting for the canary {key}", err=True)
        deadline = time.monotonic() + self._timeout_seconds
        while (
            state := outbox.state_of(self._letter.seq, self._letter.idempotency_key)
        ) is not None:
            if state == "dead":
                click.echo(
                    f"the canary {key} is a dead letter again: {self._why(outbox)}", err=True
                )
                return False
            if state == "refused":
                click.echo(
                    f"the backend refused the canary {key} again; it stays pending until it is"
                    " known whether for good",
                    err=True,
                )
                return False
            if time.monotonic() >= deadline:
                click.echo(
                    f"the canary {key} is not delivered within {self._timeout_seconds:g} s; it"
                    f" stays pending ({state}): see meter-lib status, then replay the others",
                    err=True,
                )
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        click.echo(f"the canary {key} is delivered", err=True)
        return True

    def _why(self, outbox: Operations) -> str:
        selector = Selector(keys=(self._letter.idempotency_key,))
        return next(
            (escaped(f"{one.reason}: {one.detail}") for one in outbox.dead_letters(selector)), ""
        )
