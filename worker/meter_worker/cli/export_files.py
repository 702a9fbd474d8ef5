"""New files of JSON lines: private, on the disk before anybody relies on them, never half."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from meter_lib.setting_values import is_server_url
from meter_worker.cli.output import counted_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["export", "new_file", "new_file_beside", "write_lines"]

_STDOUT = "-"
_LABEL = "exporting"


def export(path: str, rows: Iterable[Any]) -> int:  # Any: what JSON can carry
    """Write the rows to a new file, or to stdout where the path is `-`; return how many.

    On return the file is on the disk. Raises `click.BadParameter` where the path is taken or
    cannot be made.
    """
    if path != _STDOUT:
        return write_lines(path, new_file(path, param_hint="'FILE'"), rows)
    if not sys.stdout.isatty():
        rows = counted_rows(rows, _LABEL)
    written = 0
    for written, row in enumerate(rows, start=1):  # noqa: B007  # its last value is the result
        click.echo(json.dumps(row))
    return written


def new_file(path: str, *, param_hint: str) -> int:
    """Return the descriptor of a new, private file; what is there already is left alone."""
    try:
        return _create(path)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint=param_hint) from error


def new_file_beside(outbox: str, what: str) -> tuple[str, int]:
    """Return path and descriptor of a new, private file beside an outbox, named by the time.

    Beside a server, that is where we are.
    """
    now = dt.datetime.now(dt.timezone.utc)
    place = "meter-lib" if is_server_url(outbox) else outbox
    stem = f"{place}.{what}-{now:%Y%m%dT%H%M%SZ}"
    for number in count(1):
        path = f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl"
        with contextlib.suppress(FileExistsError):
            return path, _create(path)
    raise AssertionError  # counting has no end


def write_lines(path: str, descriptor: int, rows: Iterable[Any]) -> int:  # Any: as above
    """Write JSON lines to a new file, which is on the disk on return, or gone on an error."""
    written = 0
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            for row in counted_rows(rows, _LABEL):
                file.write(json.dumps(row) + "\n")
                written += 1
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path)
    except BaseException:
        os.unlink(path)
        raise
    return written


def _create(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _sync_folder(path: str) -> None:
    """Put the name of a new file on the disk: without it, its content is lost on power loss."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
