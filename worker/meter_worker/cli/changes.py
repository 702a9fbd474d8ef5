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

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator, Sequence

    from meter_lib import Settings
    from meter_worker.cli.selection import Selection

__all__ = ["Change", "ask"]

# One commit: it takes milliseconds, and whoever records waits no longer than that.
_EVENTS_A_COMMIT = 500
# With a rate, so many commits a second, or one an event where that is less often.
_COMMITS_A_SECOND = 10


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

    def replay(self, seqs: array[int], *, rate: float | None) -> int:
        """Make them due again, at most `rate` a second; return how many there still were."""
        size = _EVENTS_A_COMMIT
        if rate is not None:
            size = max(1, min(size, int(rate / _COMMITS_A_SECOND)))
        seconds = size / rate if rate is not None else 0.0
        clock = SystemClock()
        with contextlib.closing(open_outbox(self._settings)) as outbox:
            return _in_commits(
                seqs,
                lambda chunk: outbox.replay(chunk, now=clock.now()),
                size=size,
                seconds_between=seconds,
                done="replayed",
            )

    def purge(self, selection: Selection, *, export: str | None, exports: bool) -> int:
        """Remove them for good; return how many there still were.

        With `exports` they are in a file first: `export`, or a new one beside the outbox.
        What is not in that file is not removed.
        """
        seqs = selection.seqs
        if exports and len(selection):
            seqs = self._export(selection, export)
        with contextlib.closing(open_outbox(self._settings)) as outbox:
            return _in_commits(seqs, outbox.purge, size=_EVENTS_A_COMMIT, done="purged")

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


def _in_commits(
    seqs: array[int],
    change: Callable[[Sequence[int]], int],
    *,
    size: int,
    done: str,
    seconds_between: float = 0.0,
) -> int:
    changed = 0
    due_at = time.monotonic()
    try:
        with progress_bar(len(seqs), done) as progress:
            for start in range(0, len(seqs), size):
                time.sleep(max(0.0, due_at - time.monotonic()))
                chunk = seqs[start : start + size]
                changed += change(chunk)
                due_at += seconds_between
                progress.update(len(chunk))
    except (MeterError, KeyboardInterrupt):
        click.echo(f"{counted(changed, 'dead letter')} {done} until then", err=True)
        raise
    return changed
