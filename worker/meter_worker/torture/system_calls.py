"""Reads what strace wrote: system calls in the order in which they ended.

The recording is made with `-f -y -xx`: a process id before each line, the path behind each
descriptor, and every text in hexadecimal, so that no text can be taken for syntax.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Call", "Descriptor", "descriptor_in", "texts_in"]

_LINE = re.compile(r"(?P<process>\d+) +(?P<rest>.*)", re.ASCII)
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)", re.ASCII)
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<arguments>.*)", re.ASCII)
_ENDED = re.compile(r"(?P<arguments>.*)\) += (?P<result>-?\d+|\?)(?P<of>.*)", re.ASCII)
_UNFINISHED = " <unfinished ...>"
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?', re.ASCII)
_DESCRIPTOR = re.compile(r"(-?\w+)(?:<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?)?", re.ASCII)


class Call(NamedTuple):
    """One system call that succeeded."""

    name: str
    arguments: str
    result: int
    result_of: str
    """What strace says beside the result: for a new descriptor, its path."""
    began: int
    ended: int
    """Lines of the recording. What one call did was there for all that began after its end."""


class Descriptor(NamedTuple):
    """A descriptor as strace shows it."""

    number: int
    """Below zero for the current folder."""
    path: str
    deleted: bool


def calls_in(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the calls that succeeded, in the order in which they ended."""
    begun: dict[str, tuple[int, str, str]] = {}
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        process, rest = match["process"], match["rest"]
        resumed = _RESUMED.match(rest)
        if resumed is not None:
            if process not in begun:
                continue
            began, name, arguments = begun.pop(process)
            arguments += resumed["arguments"]
        else:
            match = _BEGUN.match(rest)
            if match is None:
                continue  # a signal, or the end of a process
            began, name, arguments = number, match["name"], match["arguments"]
            if arguments.endswith(_UNFINISHED):
                begun[process] = began, name, arguments.removesuffix(_UNFINISHED)
                continue
        ended = _ENDED.match(arguments)
        # A call that a signal cut off is made again, and shown again.
        if ended is not None and ended["result"].isdigit():
            yield Call(name, ended["arguments"], int(ended["result"]), ended["of"], began, number)


def texts_in(arguments: str) -> list[bytes]:
    """Return the texts among the arguments. Raises ValueError for one that was cut short."""
    texts: list[bytes] = []
    for match in _TEXT.finditer(arguments):
        if match[2]:
            raise ValueError("a text of the recording was cut short: raise strace's -s")
        texts.append(_bytes(match[1]))
    return texts


def descriptor_in(argument: str) -> Descriptor:
    """Return the descriptor that an argument, or what stands beside a result, begins with."""
    match = _DESCRIPTOR.match(argument.strip())
    if match is None:
        raise ValueError(f"no descriptor: {argument[:80]}")
    path = _bytes(match[2] or "").decode(errors="surrogateescape")
    number = int(match[1]) if match[1].isdigit() else -1
    return Descriptor(number, path, bool(match[3]))


def _bytes(shown: str) -> bytes:
    return bytes.fromhex(shown.replace("\\x", ""))
