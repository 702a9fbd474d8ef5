"""Kills posting processes again and again, and looks each time for what they had been promised."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from meter_worker.torture.examining import Examination, examine
from meter_worker.torture.failure import TortureFailed
from meter_worker.torture.posting import command
from meter_worker.torture.promised import promised_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["KillStorm", "Killed"]

# As many post at a time; one of them is killed while the others go on.
_PROCESSES = 2
# What a victim says at most before it is struck; then a moment passes.
_MOST_LINES = 12
_LONGEST_MOMENT_SECONDS = 0.02
_LOOK_SECONDS = 0.001
_PATIENCE_SECONDS = 60.0


class Killed(NamedTuple):
    """What a storm of kills has shown."""

    kills: int
    acknowledged: int
    examination: Examination


class _Victim:
    def __init__(self, folder: str, outbox: str, number: int, seed: int) -> None:
        self._said, self._log = (os.path.join(folder, f"{number}.{n}") for n in ("said", "log"))
        with open(self._said, "wb") as said, open(self._log, "wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                command("storm", outbox, seed=seed),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
            )

    def wait_for(self, lines: int) -> None:
        """Wait until it has said so much. Raises `TortureFailed` where it ends by itself."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.said().count("\n") < lines:
            if self._process.poll() is not None:
                with open(self._log, encoding="utf-8", errors="replace") as log:
                    raise TortureFailed(f"a posting process ended by itself: {log.read()[-2000:]}")
            if time.monotonic() > deadline:
                raise TortureFailed(f"a posting process said nothing for {_PATIENCE_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def said(self) -> str:
        """What it said, in whole lines."""
        with open(self._said, encoding="ascii") as said:
            text = said.read()
        return text[: text.rfind("\n") + 1]


class KillStorm:
    """Posting processes on one outbox; none of them is left when the block is left."""

    def __init__(self, folder: str, *, seed: int) -> None:
        self._folder = folder
        self._outbox = os.path.join(folder, "killed", "outbox.db")
        self._dice = random.Random(seed)  # noqa: S311  # nothing secret
        self._seed = seed
        self._alive: list[_Victim] = []
        self._dead: list[_Victim] = []

    def strike(self, kills: int, *, struck: Callable[[], object]) -> Killed:
        """Kill so many processes at random moments, then look through what they have left.

        `struck` is called after each. Raises `TortureFailed` where a process ends by itself.
        """
        for _ in range(kills):
            while len(self._alive) < min(_PROCESSES, kills - len(self._dead)):
                self._start()
            victim = self._alive.pop(self._dice.randrange(len(self._alive)))
            self._dead.append(victim)
            victim.wait_for(self._dice.randint(0, _MOST_LINES))
            time.sleep(self._dice.random() * _LONGEST_MOMENT_SECONDS)
            victim.kill()
            struck()
        promised = promised_in(victim.said() for victim in self._dead)
        return Killed(len(self._dead), len(promised.acknowledged), examine(self._outbox, promised))

    def _start(self) -> None:
        number = len(self._alive) + len(self._dead)
        # A seed of its own, as its batches are named by it.
        seed = self._seed * 1_000_000 + number
        self._alive.append(_Victim(self._folder, self._outbox, number, seed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as all_of_them:
            for victim in (*self._alive, *self._dead):
                all_of_them.callback(victim.kill)
