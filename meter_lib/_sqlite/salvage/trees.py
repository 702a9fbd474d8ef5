"""B-trees of a damaged file: what hangs together, what has come loose, and the records in them."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib._sqlite.salvage.pages import PageSource

__all__ = ["Record", "Trees", "Value"]

_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_INTERIOR = (_INDEX_INTERIOR, _TABLE_INTERIOR)
_TABLE = (_TABLE_INTERIOR, _TABLE_LEAF)
_ALL_TYPES = (_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF)
# An event is at most 64 KiB of JSON; no row of ours is larger than this.
_LARGEST_RECORD_BYTES = 256 * 1024
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
# The size of a record's header, and a null: the place of the column that is the row's number.
_BEGINS_A_ROW = re.compile(rb"[\x03-\x40]\x00")

Value = int | float | str | bytes | None


class Record(NamedTuple):
    """One row as it is stored: `row_id` is None in an index or a table WITHOUT ROWID."""

    row_id: int | None
    values: list[Value]


class _NotACell(Exception):
    """These bytes are no whole cell."""


class Trees:
    """Finds the records of a file's pages, however its trees are torn."""

    def __init__(self, pages: PageSource) -> None:
        self._pages = pages
        self._seen = bytearray(pages.count + 1)
        self.highest_row = 0
        """The highest row number that a page above others names: such a row there was."""

    # -- trees --------------------------------------------------------------------------

    def follow(self, root: int) -> list[int]:
        """Return the pages with records that hang on this root, in their order.

        Each page counts once in the whole file.
        """
        found: list[int] = []
        todo = [(root, 0)]
        is_table: bool | None = None
        while todo:
            number, depth = todo.pop()
            page = self._pages.page(number)
            kind = _kind(page, number) if page else 0
            if is_table is None and kind:
                is_table = kind in _TABLE
            if (
                page is None
                or not kind
                or (kind in _TABLE) != is_table
                or self._seen[number]
                or depth > 20
            ):
                continue
            self._seen[number] = 1
            if kind != _TABLE_INTERIOR:
                found.append(number)
            if kind == _TABLE_INTERIOR:
                self._note_highest_row(page, number)
            if kind in _INTERIOR:
                todo.extend((child, depth + 1) for child in reversed(self._children(page, number)))
        return found

    def _note_highest_row(self, page: bytes, number: int) -> None:
        for offset in _cell_offsets(page, number):
            try:
                self.highest_row = max(self.highest_row, _varint(page, offset + 4)[0])
            except _NotACell:
                continue

    def skip_free_pages(self) -> None:
        """Count those on the list of free pages as seen: what they hold was deleted."""
        first = self._pages.page(1)
        (trunk,) = struct.unpack_from(">I", first, 32) if first else (0,)
        while trunk:
            page = self._pages.page(trunk)
            if page is None or self._seen[trunk]:
                return
            self._seen[trunk] = 1
            trunk, count = struct.unpack_from(">2I", page)
            if count > self._pages.usable // 4 - 2:
                return
            for leaf in struct.unpack_from(f">{count}I", page, 8):
                if leaf <= self._pages.count:
                    self._seen[leaf] = 1

    def loose_pages(self) -> Iterator[int]:
        """Yield the pages that hang on nothing and are not known to be free."""
        for number in range(1, self._pages.count + 1):
            if not self._seen[number]:
                yield number

    # -- records ------------------------------------------------------------------------

    def records(self, number: int) -> Iterator[Record]:
        """Yield each record of a page; where its cells are damaged, whatever looks like one."""
        page = self._pages.page(number)
        if page is None or not page.strip(b"\0"):
            return
        kind = _kind(page, number)
        if kind == _TABLE_INTERIOR:
            return
        is_whole = bool(kind)
        if kind:
            for offset in _cell_offsets(page, number):
                start = offset + 4 if kind == _INDEX_INTERIOR else offset
                try:
                    yield self._record(page, start, is_table=kind in _TABLE)
                except _NotACell:
                    is_whole = False
        if not is_whole:
            yield from self._carved(page)

    def _carved(self, page: bytes) -> Iterator[Record]:
        """Yield what can be read as a row of a table, wherever in the page it begins."""
        for match in _BEGINS_A_ROW.finditer(page):
            for offset in range(max(0, match.start() - 12), match.start() - 1):
                try:
                    if _after_varints(page, offset) == match.start():
                        yield self._record(page, offset, is_table=True)
                except _NotACell:
                    continue

    def _children(self, page: bytes, number: int) -> list[int]:
        children = [
            struct.unpack_from(">I", page, offset)[0]
            for offset in _cell_offsets(page, number)
            if offset + 4 <= len(page)
        ]
        (last,) = struct.unpack_from(">I", page, _start(number) + 8)
        return [*children, last]

    def _record(self, page: bytes, offset: int, *, is_table: bool) -> Record:
        size, offset = _varint(page, offset)
        row_id = None
        if is_table:
            row_id, offset = _varint(page, offset)
        if not 2 <= size <= _LARGEST_RECORD_BYTES:
            raise _NotACell
        return Record(row_id, _values(self._payload(page, offset, size, is_table=is_table)))

    def _payload(self, page: bytes, offset: int, size: int, *, is_table: bool) -> bytes:
        usable = self._pages.usable
        most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
        if size <= most:
            here = size
        else:
            least = (usable - 12) * 32 // 255 - 23
            here = least + (size - least) % (usable - 4)
            here = here if here <= most else least
        if offset + here + (4 if here < size else 0) > usable:
            raise _NotACell
        payload = bytearray(page[offset : offset + here])
        (more,) = struct.unpack_from(">I", page, offset + here) if here < size else (0,)
        while len(payload) < size:
            overflow = self._pages.page(more)
            if overflow is None:
                raise _NotACell
            (more,) = struct.unpack_from(">I", overflow)
            payload += overflow[4 : min(usable, 4 + size - len(payload))]
        return bytes(payload)


def _start(number: int) -> int:
    """Return where a page's own header begins: on the first page, behind the file's."""
    return 100 if number == 1 else 0


def _kind(page: bytes, number: int) -> int:
    """Return the type of a page of a tree, 0 for what is none."""
    start = _start(number)
    kind = page[start]
    if kind not in _ALL_TYPES:
        return 0
    (cells,) = struct.unpack_from(">H", page, start + 3)
    begin = start + (12 if kind in _INTERIOR else 8)
    return kind if begin + 2 * cells <= len(page) else 0


def _cell_offsets(page: bytes, number: int) -> tuple[int, ...]:
    start = _start(number)
    (cells,) = struct.unpack_from(">H", page, start + 3)
    begin = start + (12 if page[start] in _INTERIOR else 8)
    return struct.unpack_from(f">{cells}H", page, begin)


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return the number of variable length at `offset`, and where it ends."""
    value = 0
    for end in range(offset, min(offset + 8, len(data))):
        value = value << 7 | data[end] & 0x7F
        if data[end] < 0x80:
            return value, end + 1
    if offset + 8 >= len(data):
        raise _NotACell
    value = value << 8 | data[offset + 8]
    return value - (1 << 64) if value >= 1 << 63 else value, offset + 9


def _after_varints(data: bytes, offset: int) -> int:
    """Return where a record would begin, were this the begin of the cell of a table."""
    _, offset = _varint(data, offset)
    return _varint(data, offset)[1]


def _values(payload: bytes) -> list[Value]:
    end, offset = _varint(payload, 0)
    body = end
    values: list[Value] = []
    while offset < end <= len(payload):
        kind = payload[offset]
        if kind < 0x80:  # nearly always
            offset += 1
        else:
            kind, offset = _varint(payload, offset)
        value, size = _value(payload, body, kind)
        values.append(value)
        body += size
    # A record fills its place exactly: what is shorter or longer has been damaged.
    if offset != end or body != len(payload):
        raise _NotACell
    return values


def _value(payload: bytes, start: int, kind: int) -> tuple[Value, int]:
    if kind in (0, 8, 9):
        return (None if kind == 0 else kind - 8), 0
    if kind >= 12:
        size = (kind - 12) // 2
    else:
        size = 8 if kind == 7 else _INTEGER_BYTES.get(kind, len(payload) + 1)
    raw = payload[start : start + size]
    if len(raw) < size:
        raise _NotACell
    if kind >= 12 and kind % 2:
        try:
            return raw.decode(), size
        except UnicodeDecodeError:
            raise _NotACell from None
    if kind >= 12:
        return raw, size
    if kind == 7:
        return float(struct.unpack(">d", raw)[0]), size
    return int.from_bytes(raw, "big", signed=True), size
