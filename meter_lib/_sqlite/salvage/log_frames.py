"""The frames of a write-ahead log, damaged ones among them.

A frame is believed if its checksum continues from what the frame before it says of
itself. So a frame that is damaged costs itself and the next one, where SQLite drops all that
follow (https://www.sqlite.org/fileformat2.html#the_write_ahead_log).
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from meter_lib._sqlite.files import file_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Frame", "LogFrames"]

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682


class Frame(NamedTuple):
    """A page as some transaction left it."""

    page: int
    offset: int
    """Where in the log the page itself begins."""


class LogFrames:
    """The log beside a database, as a file."""

    def __init__(self, path: str) -> None:
        self._file = _open(f"{path}-wal")
        self._size = file_bytes(f"{path}-wal")
        self._header = self.read(0, _HEADER_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the log, fewer where it ends."""
        return os.pread(self._file, size, offset) if self._file >= 0 else b""

    def page_size(self) -> int:
        """Return the size of a page as the log has it, 0 where it says nothing."""
        return int(struct.unpack_from(">I", self._header.ljust(12, b"\0"), 8)[0])

    def committed(self, page_size: int, *, latest: int | None = None) -> Iterator[list[Frame]]:
        """Yield the frames of each transaction that was committed, less the damaged ones.

        With `latest`, only those among so many frames at the end.
        """
        if len(self._header) < _HEADER_BYTES:
            return
        magic, *_, sum_1, sum_2 = struct.unpack(">8I", self._header)
        order = {0: "<", 1: ">"}.get(magic ^ _MAGIC, "<" if sys.byteorder == "little" else ">")
        before = (sum_1, sum_2)
        step = _FRAME_HEADER_BYTES + page_size
        salts = self._header[16:24]
        if magic & ~1 != _MAGIC or _checksum(self._header[:24], (0, 0), order) != before:
            salts = self._salts_of_frames(step)
        count = self._count(salts, step)
        first = 0 if latest is None else max(0, count - latest)
        if first:
            before = struct.unpack(">2I", self.read(_HEADER_BYTES + (first - 1) * step + 16, 8))
        frames: list[Frame] = []
        is_superseded = False
        for offset in range(_HEADER_BYTES + first * step, _HEADER_BYTES + count * step, step):
            frame = self.read(offset, step)
            number, size_at_commit, *_, said_1, said_2 = struct.unpack_from(">6I", frame)
            sums = _checksum(frame[:8] + frame[_FRAME_HEADER_BYTES:], before, order)
            if frame[8:16] == salts and sums == (said_1, said_2):
                frames.append(Frame(number, offset + _FRAME_HEADER_BYTES))
                if size_at_commit:
                    yield frames
                    is_superseded = [one.page for one in frames] == [1]
                    frames = []
            elif is_superseded:
                # A lone first page goes in the place of a commit that failed (see Database):
                # what follows it was refused, and must not come back.
                return
            before = (said_1, said_2)

    @classmethod
    def erase_what_is_cut_off(cls, path: str, page_size: int) -> None:
        """Put zeros in the place of all frames behind the first one that does not continue."""
        log = cls(path)
        try:
            end = log._end_of_chain(page_size)
        finally:
            log.close()
        file = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(file, bytes(max(0, log._size - end)), end)
            os.fsync(file)
        finally:
            os.close(file)

    def _end_of_chain(self, page_size: int) -> int:
        """Return where the last transaction ends that SQLite could see."""
        magic, *_, sum_1, sum_2 = struct.unpack(">8I", self._header)
        order = "<" if magic == _MAGIC else ">"
        before, end = (sum_1, sum_2), _HEADER_BYTES
        step = _FRAME_HEADER_BYTES + page_size
        for offset in range(_HEADER_BYTES, self._size - step + 1, step):
            frame = self.read(offset, step)
            _, size_at_commit, *_, said_1, said_2 = struct.unpack_from(">6I", frame)
            sums = _checksum(frame[:8] + frame[_FRAME_HEADER_BYTES:], before, order)
            if frame[8:16] != self._header[16:24] or sums != (said_1, said_2):
                break
            before = sums
            if size_at_commit:
                end = offset + step
        return end

    def _salts_of_frames(self, step: int) -> bytes:
        """Return what marks this generation of frames where the header does not say it."""
        before = b""
        for offset in range(_HEADER_BYTES + 8, self._size, step):
            salts = self.read(offset, 8)
            if salts == before and salts.strip(b"\0"):
                break
            before = salts
        return before

    def _count(self, salts: bytes, step: int) -> int:
        """Return how many frames there are up to the last of this generation."""
        for count in range(max(0, self._size - _HEADER_BYTES) // step, 0, -1):
            if self.read(_HEADER_BYTES + (count - 1) * step + 8, 8) == salts:
                return count
        return 0


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _checksum(data: bytes, before: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = before
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word in words:
        one = (one + word + two) & 0xFFFFFFFF
        two = (two + next(words) + one) & 0xFFFFFFFF
    return one, two
