"""What refusals leave in doubt until the backend accepts something: whose fault is it?

Bookkeeping of one process, of what it may try next. What has to outlive it is in the
outbox: which events were refused alone, what was accepted after that, and when the
backend may be tried again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meter_lib.outbox import DueEvent

__all__ = ["Doubts"]

# The event after a refused one shows which of both it is; after two, other streams are tried.
_FIRST_REFUSALS_A_STREAM = 2
# Refusals in a row after which it is taken for the backend, whichever streams they met.
_FIRST_REFUSALS = 20
# How many more are risked after a pause: twice as many each time, so that a run of bad
# events is soon passed, and a backend that refuses everything is not sent much.
_SECOND_REFUSALS = 2
_MOST_REFUSALS = 16


class Doubts:
    """What was refused alone, or stored nothing, since anything was accepted."""

    def __init__(self) -> None:
        self.words: str | None = None
        """What was wrong with the last answer, or None where nothing is in doubt."""
        self._refusals: Counter[int] = Counter()
        """Of each stream, since anything was accepted."""
        self._in_round: Counter[int] = Counter()
        self._waiting: set[int] = set()
        """Streams of which nothing was stored: to ask again at once would be in vain."""
        self._of_stream = _FIRST_REFUSALS_A_STREAM
        self._of_all = _FIRST_REFUSALS
        # Events (and their streams) that asked for another attempt since anything was accepted;
        # and streams that did so while others were accepted: it is not the backend.
        self._failing: dict[int, int] = {}
        self._failing_streams: set[int] = set()

    def accepted(self, events: Iterable[DueEvent]) -> None:
        """The backend accepts: nobody has to wait, and these are above suspicion."""
        streams = {event.stream_id for event in events}
        self._failing_streams.update(self._failing.values())
        self._failing_streams -= streams
        self._failing.clear()
        self.words = None
        self._refusals.clear()
        self._in_round.clear()
        self._waiting.clear()
        self._of_stream = _FIRST_REFUSALS_A_STREAM
        self._of_all = _FIRST_REFUSALS

    def refused(self, stream_id: int | None, words: str) -> None:
        """The backend refused a lone event, which was a new one of this stream if it is given."""
        self.words = words
        if stream_id is not None:
            self._refusals[stream_id] += 1
            self._in_round[stream_id] += 1

    def stored_nothing(self, streams: Iterable[int], words: str) -> None:
        """The backend stored nothing of these streams, by its own fault."""
        for stream_id in streams:
            self.refused(stream_id, words)
            self._waiting.add(stream_id)

    def stores_nothing(self, events: Sequence[DueEvent]) -> bool:
        """The backend stored none, and wants these again: return whether that is its own fault.

        So it is where more than one event was told so since anything was accepted, as when
        the proxy has lost its broker, unless others of the same streams' kind were accepted.
        """
        failing = {e.seq: e.stream_id for e in events if e.stream_id not in self._failing_streams}
        self._failing |= failing
        return bool(failing) and len(self._failing) > 1

    def begin_round(self) -> None:
        """A pause is over: a few more may be risked."""
        if self.words is None:
            return
        self._of_all = (
            _SECOND_REFUSALS
            if self._of_all == _FIRST_REFUSALS
            else min(2 * self._of_all, _MOST_REFUSALS)
        )
        self._of_stream = self._of_all
        self._in_round.clear()
        self._waiting.clear()

    def round_is_over(self) -> bool:
        """Return whether so many were refused that nobody else need be tried for now."""
        return self._in_round.total() >= self._of_all

    def waits(self, stream_id: int) -> bool:
        """Return whether this stream has shown enough of its events for now."""
        return stream_id in self._waiting or self._in_round[stream_id] >= self._of_stream

    def refusals_of(self, stream_id: int) -> int:
        """Return how much of the stream was refused since anything was accepted."""
        return self._refusals[stream_id]
