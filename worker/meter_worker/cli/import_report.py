"""Runs the import of a file and says how it goes."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from meter_lib import OutboxUnavailable
from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_worker.cli.output import counted, progress_bar
from meter_worker.importing import LineImport
from meter_worker.logs import escaped
from meter_worker.terminal import can_draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_lib import Settings
    from meter_lib.clock import Clock
    from meter_lib.outbox import Outbox
    from meter_worker.importing import BadLine, FileImport

__all__ = ["run_import"]

_CLEAR_LINE = "\r\x1b[2K"  # of the progress bar


def run_import(
    settings: Settings,
    file: IO[bytes],
    *,
    as_json: bool,
    kind: Callable[[Outbox, Clock], FileImport[Any]] = LineImport,
    words: tuple[str, str] = ("event", "duplicate"),
) -> bool:
    """Record what a file holds, by `kind`, and return whether every line of it is recorded.

    `words` name what is new and what is known already.
    """
    report = _JsonReport() if as_json else _Report(*words)
    with contextlib.closing(open_outbox(settings)) as outbox:
        lines = kind(outbox, SystemClock())
        stopped_by: BaseException | None = None
        try:
            with progress_bar(_length(file), "recording") as progress:
                for step in lines.run(file):
                    for bad_line in step.bad_lines:
                        _say_bad(bad_line)
                        report.bad_line(bad_line)
                    progress.update(step.bytes_read)
        except (OutboxUnavailable, OSError, KeyboardInterrupt) as error:
            stopped_by = error
    if stopped_by is not None:
        click.echo(
            f"stopped at line {lines.next_line}: nothing is recorded of it and of what follows",
            err=True,
        )
    report.end(lines, stopped=stopped_by is not None)
    if stopped_by is not None:
        raise stopped_by
    return lines.bad == 0


def _say_bad(bad_line: BadLine) -> None:
    clear = _CLEAR_LINE if can_draw(sys.stderr) else ""
    text = f"{clear}line {bad_line.number}: {escaped(bad_line.why)}"
    click.echo(text, err=True, color=True)  # or NO_COLOR would take away that beginning


class _Report:
    """The outcome in words."""

    def __init__(self, new: str, known: str) -> None:
        self._new = new
        self._known = known

    def bad_line(self, bad_line: BadLine) -> None:
        """Take note of a line that was left out."""

    def end(self, lines: FileImport[Any], *, stopped: bool) -> None:
        """Say what became of all lines."""
        del stopped
        click.echo(
            f"{counted(lines.recorded, self._new)} recorded,"
            f" {counted(lines.duplicates, self._known)}, {counted(lines.bad, 'bad line')}"
        )


class _JsonReport:
    """The outcome as one JSON object, written as it comes about: bad lines may be many."""

    def __init__(self) -> None:
        click.echo('{"bad_lines": [', nl=False)
        self._before = "\n"

    def bad_line(self, bad_line: BadLine) -> None:
        """Write a line that was left out."""
        members = {"line": bad_line.number, "why": bad_line.why}
        click.echo(f"{self._before}{json.dumps(members)}", nl=False)
        self._before = ",\n"

    def end(self, lines: FileImport[Any], *, stopped: bool) -> None:
        """Write what became of all lines."""
        members = {
            "recorded": lines.recorded,
            "duplicates": lines.duplicates,
            "bad": lines.bad,
            "stopped_at_line": lines.next_line if stopped else None,
        }
        click.echo(f"], {json.dumps(members)[1:]}")


def _length(file: IO[bytes]) -> int | None:
    """The bytes of a file, None where its end cannot be seen."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
