"""What calls of librdkafka have in common: a deadline, an interruption, errors that come aside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from confluent_kafka import KafkaException

from meter_worker.kafka_link.codes import ALL_BROKERS_DOWN, HOPELESS, PASSING
from meter_worker.kafka_link.reports import Report, words_for

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from confluent_kafka import KafkaError

__all__ = ["Attempt", "Complaints", "KafkaFailed", "KafkaInterrupted"]

T = TypeVar("T")

# How soon an interruption is seen by a call that can be taken up again, and by one that cannot.
_SLICE_SECONDS = 0.1
_LONG_SLICE_SECONDS = 5.0
_PAUSE_SECONDS = 0.02


class KafkaInterrupted(Exception):
    """We broke it off ourselves; whether the transaction is committed is unknown."""


class KafkaFailed(Exception):
    """The brokers are out of reach or of order; whether the transaction is committed is unknown."""

    def __init__(
        self, detail: str, *, timed_out: bool = False, wants_an_operator: bool = False
    ) -> None:
        super().__init__(detail)
        self.timed_out = timed_out
        self.wants_an_operator = wants_an_operator

    @classmethod
    def of(cls, error: KafkaError) -> KafkaFailed:
        """Return what an error of librdkafka means that will not pass."""
        report = Report(error.code(), error.str())
        words = words_for(report)
        return cls(words or report.text, wants_an_operator=words is not None)


class Complaints:
    """What librdkafka says of its connections, of its own accord."""

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._all_down = False

    def __call__(self, error: KafkaError) -> None:
        """Take down an error; called by librdkafka while it is polled."""
        if error.code() == ALL_BROKERS_DOWN:
            self._all_down = True
        elif not self._are_lasting:
            # What follows from a certificate or a password that is refused says less.
            self._last = error

    def forget(self) -> None:
        """Begin anew: what was said between two deliveries may have passed."""
        self._last = None
        self._all_down = False

    @property
    def are_hopeless(self) -> bool:
        """Whether waiting on would be in vain."""
        return self._all_down or self._are_lasting

    def raise_if_hopeless(self) -> None:
        """Raise `KafkaFailed` if waiting on would be in vain, and it has been said why."""
        # That all are down may be told before what is wrong with the last of them.
        if self.are_hopeless and self.words:
            raise KafkaFailed(self.words, wants_an_operator=self._are_lasting)

    @property
    def _are_lasting(self) -> bool:
        # A handshake that failed is now and then told as a lost connection first.
        return self._last is not None and (
            self._last.code() in HOPELESS or "SSL_HANDSHAKE" in self._last.str()
        )

    @property
    def words(self) -> str:
        """The last error, or nothing."""
        return "" if self._last is None else self._last.str()


class Attempt:
    """The patience of one delivery."""

    def __init__(
        self, seconds: float, interrupted: threading.Event, complaints: Complaints
    ) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._interrupted = interrupted
        self._complaints = complaints
        self.sends = False
        """Whether records are under way: then a smaller request may well be in time."""

    def look(self, most: float = _SLICE_SECONDS) -> float:
        """Return for how many seconds the next call may wait, at most `most`.

        Raises `KafkaInterrupted` or `KafkaFailed` where nothing is to be waited for any more.
        """
        if self._interrupted.is_set():
            raise KafkaInterrupted
        self._complaints.raise_if_hopeless()
        left = self._until - time.monotonic()
        if left <= 0:
            words = f": {self._complaints.words}" if self._complaints.words else ""
            raise KafkaFailed(f"no answer within {self._seconds:g} s{words}", timed_out=self.sends)
        return min(left, most)

    def make(
        self, call: Callable[[float], T], serve: Callable[[], object], *, resumable: bool = True
    ) -> T:
        """Make a call that takes a time-out, over and over until it succeeds; return its result.

        Between times, `serve` lets librdkafka say its errors. Where the call is `resumable`, it
        goes on where it was; others have longer each time.
        """
        most = _SLICE_SECONDS if resumable else _LONG_SLICE_SECONDS
        while True:
            seconds = self.look(most)
            try:
                return call(seconds)
            except KafkaException as error:
                problem: KafkaError = error.args[0]
            if not (problem.retriable() or problem.code() in PASSING):
                raise KafkaFailed.of(problem)
            serve()
            self._interrupted.wait(_PAUSE_SECONDS)
