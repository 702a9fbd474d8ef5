"""A small picture of what waits, by when it was recorded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meter_lib.upkeep import Upkeep

__all__ = ["backlog_bar"]

_HOUR = 3_600_000
_MOST_COLUMNS = 24
# For nothing, and for one to eight eighths of the tallest column.
_BLOCKS = "\u00b7\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_PLAIN = "_.:-=+*#@"


def backlog_bar(outbox: Upkeep, oldest_recorded_at: int | None, now: int) -> str | None:
    """Return a bar from the oldest pending event (left) to now, in columns of whole hours.

    None where nothing has been pending for an hour: there is nothing to see yet.
    """
    age = now - (now if oldest_recorded_at is None else oldest_recorded_at)
    if age < _HOUR:
        return None
    hours = -(-age // (_HOUR * _MOST_COLUMNS))
    columns = -(-age // (_HOUR * hours))
    begins = [now - (columns - column) * hours * _HOUR for column in range(columns)]
    since = [*outbox.pending_since(begins), 0]
    counts = [max(0, since[column] - since[column + 1]) for column in range(columns)]
    highest = max(counts)
    if not highest:
        return None
    levels = _BLOCKS if _can_print(_BLOCKS) else _PLAIN
    bar = "".join(levels[-(-8 * count // highest)] for count in counts)
    return f"{bar}  recorded in the last {columns * hours} h, {hours} h a column"


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True
