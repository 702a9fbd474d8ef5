"""How the demo speaks: numbered steps, a progress bar on a terminal, the table, the verdict."""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import TYPE_CHECKING

import click

from meter_worker.demo.comparison import LEDGER_PLACES
from meter_worker.logs import escaped
from meter_worker.terminal import can_draw

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from meter_worker.demo.comparison import Comparison, Row

__all__ = ["comparison", "failed", "ledger", "progress", "say", "step", "table", "title", "verdict"]

_INDENT = "   "
_BAR_WIDTH = 40
_MOST_ROWS = 50
_HEADS = (
    ("", "events", "", "", "", "", "units", ""),
    ("meter", "posted", "arrived", "keys", "again", "missing", "posted", "arrived"),
)
_EVENTS, _UNITS = slice(1, 6), slice(6, 8)


def title(*lines: str) -> None:
    """Say what is to come."""
    for line in lines:
        click.echo(line)


def step(number: int, text: str) -> None:
    """Begin a step."""
    click.echo()
    click.secho(f"{number}. {text}", bold=True)


def say(text: str) -> None:
    """Say what was seen in a step."""
    click.echo(_INDENT + escaped(text))


@contextlib.contextmanager
def progress(whole: int) -> Generator[Callable[[int], None]]:
    """Give a function that draws how much is done, on a terminal only; it is gone in the end."""
    on_terminal = can_draw(sys.stdout)

    def draw(done: int) -> None:
        if on_terminal:
            filled = _BAR_WIDTH * done // whole
            bar = "#" * filled + "." * (_BAR_WIDTH - filled)
            text = f"\r{_INDENT}[{bar}] {done:,} of {whole:,}\033[K"
            click.echo(text, nl=False, color=True)  # or NO_COLOR would take away that end

    try:
        yield draw
    finally:
        if on_terminal:
            click.echo("\r\033[K", nl=False, color=True)


def comparison(result: Comparison) -> None:
    """Show the comparison, and say why what came again does no harm."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for text in table(result, columns):
        click.echo(f"\n{text}")
    click.echo()
    if result.total.again:
        say(f"{result.total.again:,} events came again: billed once, because the key is the same.")


def table(result: Comparison, columns: int | None = None) -> list[str]:
    """Return the comparison as a table, or as two where one is wider than so many columns."""
    rows = [
        *_HEADS,
        *(_cells(row, zero="-") for row in result.rows[:_MOST_ROWS]),
        _cells(result.total, zero="0"),
    ]
    left_out = len(result.rows) - _MOST_ROWS
    whole = _aligned(rows, left_out)
    if columns is None or max(map(len, whole.splitlines())) <= columns:
        return [whole]
    return [
        _aligned([(row[0], *row[part]) for row in rows], left_out) for part in (_EVENTS, _UNITS)
    ]


def _cells(row: Row, *, zero: str) -> tuple[str, ...]:
    return (escaped(row.meter_id), *(f"{number:,}" if number else zero for number in row[1:]))


def _aligned(rows: Sequence[Sequence[str]], left_out: int) -> str:
    """Return the rows as text, ruled off below the heads and above the total."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    heads, body, total = rows[: len(_HEADS)], rows[len(_HEADS) : -1], rows[-1]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for name, *cells in (*heads, rule, *body, rule, total)
    ]
    if left_out > 0:
        lines.insert(-2, f"and {left_out:,} meters more")
    return "\n".join(lines)


def ledger(counts: Mapping[str, int]) -> None:
    """Say what the outbox's own books have."""
    places = " + ".join(f"{counts[place]:,} {place}" for place in LEDGER_PLACES)
    say(f"The outbox's own books: {counts['accepted']:,} accepted = {places}.")


def verdict(posted: int, problems: Sequence[str], seconds: float) -> None:
    """Say how it ended."""
    click.echo()
    if problems:
        click.secho(f"This must not happen ({seconds:.1f} s):", fg="red", bold=True)
        for problem in problems:
            say(problem)
    else:
        click.secho(
            f"All {posted:,} events arrived, and each is billed once. ({seconds:.1f} s)",
            fg="green",
            bold=True,
        )


def failed(why: str, log_ends: Mapping[str, str] | None = None) -> None:
    """Say, on stderr, that the demo could not be played to its end."""
    click.echo(f"\nmeter-lib demo: {why}", err=True)
    for name, end in (log_ends or {}).items():
        click.echo(f"The log of the {name} ends with:\n{end or '(nothing)'}", err=True)
