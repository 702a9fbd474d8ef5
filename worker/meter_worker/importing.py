"""Takes in what a file holds, one JSON object a line, in memory that does not grow with it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from abc import ABC, abstractmethod
from typing import IO, TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from meter_lib.errors import (
    InvalidUsage,
    InvalidUsageType,
    KeyConflict,
    OutboxFull,
    OutboxUnavailable,
)
from meter_lib.meters import warn_once_if_unknown
from meter_lib.usage import shown, usage_event_from

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Recorder
    from meter_lib.usage import UsageEvent

__all__ = ["BadLine", "FileImport", "LineImport", "Step", "interrupts_deferred", "json_of_line"]

_T = TypeVar("_T")

# No event is larger than 64 KiB; escapes and blanks may make a line some times as long.
_LONGEST_LINE_BYTES = 1024 * 1024
_CHUNK_BYTES = 64 * 1024
# What is recorded in one commit. The smallest outbox takes 512 KiB in one, overheads included.
_LINES_A_COMMIT = 500
_BYTES_A_COMMIT = 128 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLine(NamedTuple):
    """A line that was left out."""

    number: int
    why: str


class Step(NamedTuple):
    """What one commit settled."""

    bytes_read: int
    bad_lines: Sequence[BadLine]


class _Window(Generic[_T]):
    """Lines that are settled together."""

    def __init__(self, parse: Callable[[bytes], _T]) -> None:
        self._parse = parse
        self.lines: list[tuple[int, _T]] = []
        """Their numbers, and what they say."""
        self.bad_lines: list[BadLine] = []
        self.bytes_read = 0
        self.last_number = 0

    def add(self, number: int, content: bytes, bytes_read: int) -> None:
        self.bytes_read += bytes_read
        self.last_number = number
        if not content.strip() and len(content) <= _LONGEST_LINE_BYTES:
            return
        try:
            self.lines.append((number, self._parse(content)))
        except (InvalidUsage, InvalidUsageType) as error:
            self.bad_lines.append(BadLine(number, str(error)))

    def is_full(self) -> bool:
        settled = len(self.lines) + len(self.bad_lines)
        return settled >= _LINES_A_COMMIT or self.bytes_read >= _BYTES_A_COMMIT


class FileImport(ABC, Generic[_T]):
    """Takes the lines of a file in; counts what became of them, also where it is interrupted."""

    def __init__(self) -> None:
        self.recorded = 0
        self.duplicates = 0
        self.bad = 0
        self.next_line = 1
        """The first line that is not settled yet: all before it are recorded, known or bad."""

    @abstractmethod
    def parse(self, content: bytes) -> _T:
        """Return what a line says; raises `InvalidUsage` or `InvalidUsageType`."""

    @abstractmethod
    def take(self, entries: list[_T]) -> list[bool]:
        """Record all or none in one commit, and return which of them were new.

        Raises `KeyConflict` with the index of one that is to be left out.
        """

    def run(self, source: IO[bytes]) -> Iterator[Step]:
        """Record line by line, in order, and yield what each commit settled.

        Raises `OutboxUnavailable` where the outbox takes no more, and OSError where the
        source cannot be read; then and on KeyboardInterrupt, `next_line` says how far
        it came.
        """
        for window in _windows(source, self.parse):
            yield from self._settle(window)

    def _settle(self, window: _Window[_T]) -> Iterator[Step]:
        parts = [window.lines]
        while parts:
            part = parts.pop()
            if not part:
                continue
            try:
                self._record(part)
            except KeyConflict as conflict:
                # Nothing of this part was recorded. What stands before the bad line goes first.
                index = conflict.index
                window.bad_lines.append(BadLine(part[index][0], str(conflict)))
                parts += [part[index + 1 :], part[:index]]
            except OutboxUnavailable as error:
                half = len(part) // 2
                if half and isinstance(error, OutboxFull):
                    parts += [part[half:], part[:half]]  # fewer may still find room
                    continue
                yield self._settled(window, until=part[0][0])
                raise
        yield self._settled(window, until=window.last_number + 1)

    def _settled(self, window: _Window[_T], *, until: int) -> Step:
        """Count the bad lines before a number: what is behind it is for another import."""
        bad_lines = sorted(line for line in window.bad_lines if line.number < until)
        self.bad += len(bad_lines)
        self.next_line = until
        return Step(window.bytes_read, bad_lines)

    def _record(self, part: list[tuple[int, _T]]) -> None:
        # An interrupt between commit and count would make the count a lie.
        with interrupts_deferred():
            are_new = self.take([entry for _, entry in part])
            self.recorded += sum(are_new)
            self.duplicates += len(are_new) - sum(are_new)
            self.next_line = part[-1][0] + 1


class LineImport(FileImport["UsageEvent"]):
    """Records lines that are events, with the argument names of a post."""

    def __init__(self, outbox: Recorder, clock: Clock) -> None:
        super().__init__()
        self._outbox = outbox
        self._clock = clock

    def parse(self, content: bytes) -> UsageEvent:
        """Return the event of a line."""
        return usage_event_from(json_of_line(content))

    def take(self, entries: list[UsageEvent]) -> list[bool]:
        """Record events; those whose key is known are not new."""
        receipts = self._outbox.append(entries, now=self._clock.now(), uptime=self._clock.uptime())
        for event in entries:
            warn_once_if_unknown(event.meter_id)
        return [receipt["status"] != "duplicate" for receipt in receipts]


def _windows(source: IO[bytes], parse: Callable[[bytes], _T]) -> Iterator[_Window[_T]]:
    window = _Window(parse)
    for number, (content, bytes_read) in enumerate(_lines(source), start=1):
        window.add(
            number,
            content.removeprefix(_BYTE_ORDER_MARK) if number == 1 else content,
            bytes_read,
        )
        if window.is_full():
            yield window
            window = _Window(parse)
    if window.last_number:
        yield window


def _lines(source: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its length; of a line that is too long, just enough to see that."""
    while content := source.readline(_LONGEST_LINE_BYTES + 2):
        bytes_read = len(content)
        end = content
        while end and not end.endswith(b"\n"):
            end = source.readline(_CHUNK_BYTES)
            bytes_read += len(end)
        yield content.removesuffix(b"\n").removesuffix(b"\r"), bytes_read


def json_of_line(content: bytes) -> Any:  # Any: what JSON can carry; whoever takes it looks at it
    """Return what a line holds; raises `InvalidUsage` where it is no JSON in UTF-8."""
    if len(content) > _LONGEST_LINE_BYTES:
        raise InvalidUsage(f"the line is longer than {_LONGEST_LINE_BYTES} bytes")
    try:
        return json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidUsage(f"the line is not UTF-8: byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise InvalidUsage(f"the line is not JSON: {error.msg}: column {error.colno}") from error
    except RecursionError as error:
        raise InvalidUsage("the line is not an event: its JSON is nested too deeply") from error
    except InvalidUsage:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidUsage("the line holds a number that is too long") from error


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: usage_event looks at each
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidUsage(f"{shown(twice)} is there twice: which one counts?")
    return found


def _no_constant(name: str) -> object:
    raise InvalidUsage(f"the line is not JSON: it has no {name}")


@contextlib.contextmanager
def interrupts_deferred() -> Generator[None]:
    """Let Ctrl-C wait for the end of the block."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if not in_main_thread or handler is not signal.default_int_handler:
        yield  # nothing to defer: no KeyboardInterrupt comes here
        return
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt
