"""How results are printed: tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from meter_worker.logs import escaped
from meter_worker.terminal import can_draw
from meter_worker.words import counted, shown_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "ROWS_SHOWN",
    "Progress",
    "counted",
    "counted_rows",
    "field_lines",
    "print_fields",
    "print_json",
    "print_json_list",
    "print_table",
    "progress_bar",
    "shown_bytes",
    "shown_instant",
    "shown_seconds",
]

ROWS_SHOWN = 50
_ROWS_A_STEP = 100  # drawing takes longer than a row

_Row = TypeVar("_Row")


class Progress(Protocol):
    """What shows how far something is."""

    def update(self, n_steps: int) -> object:
        """Show that so much more is done."""
        ...


class _NoProgress:
    def update(self, n_steps: int) -> None:
        """Show nothing."""


def progress_bar(length: int | None, label: str) -> AbstractContextManager[Progress]:
    """Return a bar on stderr, or none where that is no terminal or the length is not known."""
    if length is None or not can_draw(sys.stderr):
        return contextlib.nullcontext(_NoProgress())
    return click.progressbar(length=length, label=label, file=sys.stderr)


def counted_rows(rows: Iterable[_Row], label: str) -> Iterator[_Row]:
    """Yield the rows; on a terminal, stderr shows how many there were so far."""
    if not can_draw(sys.stderr):
        yield from rows
        return
    with click.progressbar(
        rows, label=label, show_pos=True, update_min_steps=_ROWS_A_STEP, file=sys.stderr
    ) as bar:
        yield from bar


def print_json(value: Any) -> None:  # Any: whatever JSON can carry
    """Print one JSON value, on one line. It is ASCII: nothing in it can steer a terminal."""
    click.echo(json.dumps(value))


def print_json_list(values: Iterable[Any]) -> None:  # Any: as above
    """Print a JSON list, one value a line, in memory that does not grow with it."""
    before = "["
    for value in values:
        click.echo(f"{before}\n{json.dumps(value)}", nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns under their heads."""
    table = [list(heads), *([escaped(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one a line."""
    for line in field_lines(fields):
        click.echo(line)


def field_lines(fields: Sequence[tuple[str, object]]) -> list[str]:
    """Return names and values, one a line, fit for a terminal."""
    shown = [(escaped(name), escaped(str(value))) for name, value in fields]
    width = max(_width(name) for name, _ in shown)
    return [f"{name}{' ' * (width - _width(name))}  {value}".rstrip() for name, value in shown]


def shown_instant(milliseconds: int | None) -> str:
    """Return an instant for people, in UTC."""
    if milliseconds is None:
        return "-"
    try:
        time = dt.datetime.fromtimestamp(milliseconds / 1000, dt.timezone.utc)
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)
    return time.strftime("%Y-%m-%d %H:%M:%SZ")


def shown_bytes(number: int) -> str:
    """Return a size for people."""
    size = float(number)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _width(text: str) -> int:
    """Return how many columns a terminal takes for it."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF")
        for one in text
    )
