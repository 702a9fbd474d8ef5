"""Shows something anew every second: over the last one on a terminal, below it in a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import click

from meter_worker.terminal import can_draw, wants_colours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Line", "print_lines", "watched"]

_SECONDS_BETWEEN_LOOKS = 1.0
_CLEAR = "\x1b[2J"
_HOME = "\x1b[H"
_CLEAR_REST_OF_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"


class Line(NamedTuple):
    """A line to be shown, fit for a terminal."""

    text: str
    is_warning: bool = False
    """Shown in a colour, where there are any."""

    def styled(self) -> str:
        """Return it with its colour, which is left out again where no terminal shows it."""
        return click.style(self.text, fg="yellow") if self.is_warning else self.text


def print_lines(lines: Sequence[Line]) -> None:
    """Print lines once."""
    for line in lines:
        click.echo(line.styled())


def watched(look: Callable[[], Sequence[Line] | None]) -> None:
    """Show what `look` returns every second until Ctrl-C; None: it has shown it itself."""
    draws = can_draw(sys.stdout)
    try:
        for number in count():
            lines = look()
            if lines is not None and draws:
                start = _HOME if number else _CLEAR + _HOME
                # Not without its sequences: those that are no colours are still needed.
                click.echo(start + _frame(lines), nl=False, color=True)
            elif lines is not None:
                if number:
                    click.echo()
                print_lines(lines)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        if draws:
            click.echo()


def _frame(lines: Sequence[Line]) -> str:
    """Return what fits the terminal: what is beyond it would make it scroll, and not be undone."""
    width, height = shutil.get_terminal_size()
    fitting = [*_wrapped(lines, width)][: height - 1]
    return "".join(f"{row}{_CLEAR_REST_OF_LINE}\n" for row in fitting) + _CLEAR_BELOW


def _wrapped(lines: Sequence[Line], width: int) -> Iterator[str]:
    for line in lines:
        for row in textwrap.wrap(line.text, width, replace_whitespace=False) or [""]:
            yield line._replace(text=row).styled() if wants_colours() else row
