"""The two kinds of rows that the verdict tables consist of, and what a row can mean."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from meter_worker.answers import Answer, Dialect, Entry, Shape
    from meter_worker.sayings import Saying

__all__ = ["Action", "AnswerRow", "RecordAction", "RecordRow"]


class Action(Enum):
    """What a whole answer means for the records and for the link."""

    READ = "each record by its own entry"
    READ_RIGHTS = "outage, wants an operator; entries without an error are delivered first"
    DELIVERED = "all delivered"
    SINGLES = "ambiguous: each record is sent alone"
    ALWAYS_SINGLES = "ambiguous: each record is sent alone, those of later requests too"
    SPLIT = "refused: halved until the bad record stands alone, then proven"
    TOO_LARGE = "refused as too large: halved, smaller from now on"
    KEY_CONFLICT = "refused as a key conflict"
    RETRY = "outage"
    PAUSE = "outage, wants an operator"
    FOUND = "the account"
    UNKNOWN = "no such account"


class RecordAction(Enum):
    """What an entry means for its record."""

    DELIVERED = "delivered"
    RETRY = "retriable"
    REJECTED = "rejected"
    TOO_LARGE = "rejected as too large"
    UNDECIDED = "undecided; outage, wants an operator"


class AnswerRow(NamedTuple):
    """An answer that has all of this, and what it means. None stands for any."""

    name: str
    statuses: Collection[int] | None
    shapes: Collection[Shape] | None
    action: Action
    words: str
    """What an operator reads before the answer itself; may be empty."""
    why: str
    says: Saying | None = None
    """What one of its words has to say."""
    alone: bool | None = None
    """Whether one record was sent, or more."""
    pinned: Dialect | None = None
    """The dialect that METER_DIALECT has to name."""

    def matches(self, answer: Answer, pinned: Dialect | None) -> bool:
        """Return whether this row speaks of such an answer."""
        return (
            (self.statuses is None or answer.status in self.statuses)
            and (self.shapes is None or answer.shape in self.shapes)
            and (self.alone is None or self.alone == (answer.sent == 1))
            and self.pinned in (None, pinned)
            and (self.says is None or any(map(self.says.is_in, answer.words)))
        )


class RecordRow(NamedTuple):
    """An entry with an error that has all of this, and what it means. None stands for any."""

    name: str
    dialects: Collection[Dialect] | None
    codes: Collection[int] | None
    action: RecordAction
    why: str
    says: Saying | None = None
    all_pause: bool = False
    """True where it is an outage if it, or another such row, matches all records."""

    def matches(self, entry: Entry) -> bool:
        """Return whether this row speaks of such an entry."""
        return (
            (self.dialects is None or entry.dialect in self.dialects)
            and (self.codes is None or entry.code in self.codes)
            and (self.says is None or self.says.is_in(_as_words(entry)))
        )


def _as_words(entry: Entry) -> str:
    return f"error: {entry.text}".replace("_", " ").replace("-", " ").lower()
