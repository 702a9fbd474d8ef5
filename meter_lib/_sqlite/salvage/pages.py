"""The pages of a damaged SQLite file, read without SQLite: the file, with its log laid over it.

Formats: https://www.sqlite.org/fileformat2.html. Nothing that a file says is believed
before it is checked, and nothing is written.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Protocol

from meter_lib._sqlite.files import file_bytes
from meter_lib._sqlite.salvage.log_frames import LogFrames

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["PageSource", "Pages"]

_MAGIC = b"SQLite format 3\0"
_PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_TREE_PAGE_TYPES = (2, 5, 10, 13)
_PAGES_TO_GUESS_BY = 64


class PageSource(Protocol):
    """Pages by their numbers, from 1 to `count`; of each, `usable` bytes belong to the trees."""

    count: int
    usable: int

    def page(self, number: int) -> bytes | None:
        """Return a page, or None where there is none."""
        ...


class Pages:
    """The newest readable state of each page, numbered from 1. Use it as a context manager."""

    def __init__(self, path: str) -> None:
        # Closing this descriptor ends the locks that SQLite holds on the file in this
        # process. That harms nobody: the lock file is held, and then the file is moved.
        self._file = _open(path)
        self._log = LogFrames(path)
        file_size = file_bytes(path)
        self._size = self._page_size(file_size)
        self._frames = {
            frame.page: frame.offset
            for transaction in self._log.committed(self._size)
            for frame in transaction
        }
        self.count = max(-(-file_size // self._size), max(self._frames, default=0))
        self.bytes = self.count * self._size
        first = self.page(1) or b""
        # Reserved bytes at the end of each page: none in files of ours.
        reserved = first[20] if first[:16] == _MAGIC else 0
        self.usable = self._size - (reserved if reserved <= self._size - 480 else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.close()
        if self._file >= 0:
            os.close(self._file)

    def page(self, number: int) -> bytes | None:
        """Return a page, short ones filled up with zeros, or None where there is none."""
        if not 1 <= number <= self.count:
            return None
        offset = self._frames.get(number)
        if offset is not None:
            return self._log.read(offset, self._size)
        content = self._read((number - 1) * self._size, self._size)
        return content.ljust(self._size, b"\0") if content else None

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file, size, offset) if self._file >= 0 else b""

    def _page_size(self, file_size: int) -> int:
        """Return what header or log say, if there are such pages, else what is likeliest."""
        header = self._read(0, 100)
        (said,) = struct.unpack_from(">H", header.ljust(18, b"\0"), 16)
        sizes = [size for size in (said, self._log.page_size()) if size in _PAGE_SIZES]
        likeness = {size: self._likeness(size, file_size) for size in _PAGE_SIZES}
        likeliest = max(_PAGE_SIZES, key=lambda size: likeness[size])
        return next(
            (size for size in sizes if likeness[size] * 2 >= likeness[likeliest]), likeliest
        )

    def _likeness(self, size: int, file_size: int) -> float:
        """Return which part of the pages, were they of this size, would be of a tree."""
        step = max(1, file_size // size // _PAGES_TO_GUESS_BY)
        offsets = range(size, file_size, size * step)
        found = [self._read(offset, size) for offset in offsets]
        return sum(_is_filled_from_the_end(page) for page in found) / max(1, len(found))


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _is_filled_from_the_end(page: bytes) -> bool:
    """Return whether it is a page of a tree whose cells lie where a page of this size has them."""
    if len(page) < 512 or page[0] not in _TREE_PAGE_TYPES:
        return False
    (cells,) = struct.unpack_from(">H", page, 3)
    begin = 12 if page[0] in (2, 5) else 8
    if not cells or begin + 2 * cells > len(page):
        return False
    offsets = struct.unpack_from(f">{cells}H", page, begin)
    return bool(len(page) // 2 <= max(offsets) < len(page))
