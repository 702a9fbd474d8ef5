"""What a damaged outbox still says: rows that hang on its trees, and rows that came loose.

Pages that hang on a tree hold what was there. A page that hangs on nothing may be a part of
a torn tree, or have been free for long and show events that were delivered since. So pages on
the list of free pages are left out, as far as that can be read; and of loose events those
that a flusher had passed by (`frontier`) and that show no sign of it: they were delivered. What
is taken twice all the same goes out under the key that it had, and a backend that drops
repeated keys bills it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite.salvage.rows import RECOGNISED, current_layouts, salvaged_event
from meter_lib._sqlite.salvage.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib._sqlite.salvage.pages import Pages
    from meter_lib._sqlite.salvage.rows import Row, SalvagedEvent

__all__ = ["Findings"]


class Findings:
    """The rows of a damaged file, by their table."""

    def __init__(self, pages: Pages) -> None:
        self._trees = Trees(pages)
        self._layouts = current_layouts()
        self._pages_of: dict[str, list[int]] = {}
        self.highest_seq = 0
        """The highest number that was given to an event, as far as their tree tells."""
        for name, root in list(self._roots()):
            # A name that is none of ours may be a damaged one: its tree counts as loose.
            if name in self._layouts and name not in self._pages_of:
                self._trees.highest_row = 0
                self._pages_of[name] = self._trees.follow(root)
                if name == "events":
                    self.highest_seq = self._trees.highest_row
        self._trees.skip_free_pages()

    def events(self) -> Iterator[tuple[SalvagedEvent, bool]]:
        """Yield each event, and whether it has come loose; those that have come last."""
        for _, row, is_loose in self._rows("events"):
            event = salvaged_event(row)
            if event is not None:
                yield event, is_loose

    def rows(self, *tables: str) -> Iterator[tuple[str, Row]]:
        """Yield each row of these tables but `events`, with its table; loose ones come last."""
        for table, row, _ in self._rows(*tables):
            if RECOGNISED[table](row):
                yield table, row

    def _rows(self, *tables: str) -> Iterator[tuple[str, Row, bool]]:
        for table in tables:
            for number in self._pages_of.get(table, ()):
                for record in self._trees.records(number):
                    row = self._layouts[table].row(record)
                    if row is not None:
                        yield table, row, False
        for number in self._trees.loose_pages():
            for record in self._trees.records(number):
                for table in tables:
                    row = self._layouts[table].row(record)
                    if row is not None:
                        yield table, row, True

    def _roots(self) -> Iterator[tuple[str, int]]:
        for number in self._trees.follow(1):
            for record in self._trees.records(number):
                # type, name, tbl_name, rootpage, sql
                if len(record.values) == 5 and record.values[0] == "table":
                    _, name, _, root, _ = record.values
                    if isinstance(name, str) and isinstance(root, int) and root > 1:
                        yield name, root
