"""Changes to many dead letters: asked about first, exported first, made in small commits."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from meter_lib import MeterError
from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_worker.cli.dead_letter_view import shown_letter
from meter_worker.cli.export_files import new_file, new_file_beside, write_lines
from meter_worker.cli.output import counted, progress_bar
from meter_worker.importing import interrupts_deferred

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Generator, Iterator, Sequence

    from meter_lib import Settings
    from meter_worker.cli.canary import Canary
    from meter_worker.cli.selection import Selection

__all__ = ["Change", "ask"]

# One commit: it takes milliseconds, and whoever records waits no longer than that.
_EVENTS_A_COMMIT = 500
# With a rate, so many commits a second, or one an event where that is less often.
_COMMITS_A_SECOND = 10
_NO_CANARY = "no worker is running, so no canary can go first: all become pending and wait for one"


def ask(question: str, *, yes: bool, needs_answer: bool) -> bool:
    """Return True where the operator agreed, by --yes or on a terminal.

    On a terminal, no is said and ends with 1. Where nobody can be asked, `needs_answer` makes
    that a `click.UsageError`.
    """
    if yes:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        if needs_answer:
            raise click.UsageError("--yes is needed where nobody can be asked")
        return True
    if not click.confirm(question, err=True):
        click.echo("nothing was changed", err=True)
        raise click.exceptions.Exit(1)
    return True


class Change:
    """Changes the dead letters of an outbox, by their seq."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def replay(self, selection: Selection, *, rate: float | None, canary: Canary | None) -> int:
        """Make them due again, at most `rate` a second; return how many there still were.

        With a canary, it goes first where there are others and a worker delivers; those stay dead
        letters unless it is delivered in time: that is said, and ends with 1.
        """
        size = _EVENTS_A_COMMIT
        if rate is not None:
            size = max(1, min(size, int(rate / _COMMITS_A_SECOND)))
        seconds = size / rate if rate is not None else 0.0
        clock = SystemClock()
        with contextlib.closing(open_outbox(self._settings)) as outbox:
            commits = _Commits(
                lambda chunk: outbox.replay(chunk, now=clock.now()),
                size=size,
                seconds_between=seconds,
                done="replayed",
            )
            with commits.told_where_it_ends():
                seqs = selection.seqs
                if canary is not None and len(seqs) > 1:
                    if outbox.holder() is None:
                        click.echo(_NO_CANARY, err=True)
                    else:
                        commits.run(seqs[:1])
                        seqs = seqs[1:]
                        if not canary.is_delivered(outbox):
                            click.echo(
                                f"{counted(commits.changed, 'dead letter')} replayed,"
                                f" {len(seqs):,} not"
                            )
                            raise click.exceptions.Exit(1)
                commits.run(seqs)
        return commits.changed

    def purge(self, selection: Selection, *, export: str | None, exports: bool) -> int:
        """Remove them for good; return how many there still were.

        With `exports` they are in a file first: `export`, or a new one beside the outbox.
        What is not in that file is not removed.
        """
        seqs = selection.seqs
        if exports and len(selection):
            seqs = self._export(selection, export)
        with contextlib.closing(open_outbox(self._settings)) as outbox:
            commits = _Commits(outbox.purge, size=_EVENTS_A_COMMIT, done="purged")
            with commits.told_where_it_ends():
                commits.run(seqs)
            return commits.changed

    def _export(self, selection: Selection, path: str | None) -> array[int]:
        """Write them to a new file that is on the disk on return; return those in it."""
        written = selection.seqs[:0]

        def lines() -> Iterator[dict[str, Any]]:  # Any: what JSON can carry
            for letter in selection.letters():
                yield shown_letter(letter)
                written.append(letter.seq)

        if path is None:
            path, file = new_file_beside(self._settings.outbox, "purged")
        else:
            file = new_file(path, param_hint="'--export'")
        write_lines(path, file, lines())
        click.echo(f"{counted(len(written), 'dead letter')} written to {path}", err=True)
        return written


class _Commits:
    """Makes a change to many, in small commits, and counts them also where it is interrupted."""

    def __init__(
        self,
        change: Callable[[Sequence[int]], int],
        *,
        size: int,
        done: str,
        seconds_between: float = 0.0,
    ) -> None:
        self._change = change
        self._size = size
        self._done = done
        self._seconds_between = seconds_between
        self.changed = 0

    def run(self, seqs: array[int]) -> None:
        """Change these."""
        due_at = time.monotonic()
        with progress_bar(len(seqs), self._done) as progress:
            for start in range(0, len(seqs), self._size):
                time.sleep(max(0.0, due_at - time.monotonic()))
                chunk = seqs[start : start + self._size]
                # An interrupt between commit and count would make the count a lie.
                with interrupts_deferred():
                    self.changed += self._change(chunk)
                due_at += self._seconds_between
                progress.update(len(chunk))

    @contextlib.contextmanager
    def told_where_it_ends(self) -> Generator[None]:
        """Say how many were changed where an error or Ctrl-C ends the block."""
        try:
            yield
        except (MeterError, KeyboardInterrupt):
            changed = counted(self.changed, "dead letter")
            click.echo(f"{changed} {self._done} until then", err=True)
            raise
