"""The only place that waits: for answers, for the next instant, until told to stop."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from meter_lib.errors import OutboxMoved, OutboxUnavailable, SchemaTooNew
from meter_worker.couriers import Couriers
from meter_worker.idling import Idling
from meter_worker.log_events import is_news

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meter_lib.clock import Clock
    from meter_lib.outbox import Outbox
    from meter_worker.couriers import Made
    from meter_worker.flusher import Flusher

__all__ = ["FlushLoop"]

_logger = logging.getLogger("meter_worker")

# How soon a flusher that waits for another one's death takes over.
_TAKEOVER_POLL_SECONDS = 0.2
# After the outbox itself failed (disk full, file locked), before it is tried again.
_OUTBOX_RETRY_SECONDS = 1.0
# For requests under way when the hold is to be taken anew; what comes later is sent again.
_REGROUP_SECONDS = 10.0
# At a stop, for requests that are being broken off to come back.
_LAST_ANSWERS_SECONDS = 0.5
# A device that posts all day would fill its log with what goes well.
_SECONDS_BETWEEN_DELIVERED = 60.0


class FlushLoop:
    """Holds an outbox and delivers from it, in whatever thread calls `run`."""

    def __init__(
        self,
        outbox: Outbox,
        new_flusher: Callable[[], Flusher],
        clock: Clock,
        *,
        interrupt: Sequence[Callable[[], None]],
        poll_seconds: float,
    ) -> None:
        self.outbox = outbox
        self._new_flusher = new_flusher
        self._flusher = new_flusher()
        self._clock = clock
        self._interrupt = interrupt
        self._couriers = Couriers()
        self._idling = Idling(outbox.location, poll_seconds, self._look_again)
        self._stopping = threading.Event()
        self._stop_by = -math.inf
        self._try_now = threading.Event()
        self._turned: Callable[[], None] = _nothing
        self._turn_seconds = math.inf
        # In a row, and not yet said.
        self._unavailable = 0
        self._delivered = 0
        self._say_delivered_at = -math.inf

    def run(
        self, turned: Callable[[], None] | None = None, *, turn_seconds: float = math.inf
    ) -> None:
        """Wait for the outbox, then deliver from it until `stop`; let go of it at the end.

        An outage, of the network or of the outbox, ends nothing: it is waited out. `turned` is
        called in this thread at each turn, the first time once the outbox is held or waited for;
        no turn waits longer than `turn_seconds`, whatever is under way.
        """
        self._turned = turned or _nothing
        self._turn_seconds = turn_seconds
        try:
            if not self._wait_for_hold():
                return
            _logger.info(
                "delivering from %s",
                self.outbox.location,
                extra={"event": "delivering", "outbox": self.outbox.location},
            )
            self._idling.begin()
            self.outbox.call_when_posted(self._look_again)
            while not self._stopping.is_set():
                self._turned()
                made = self._wait_for(min(self._send_out(), self._turn_seconds))
                if self._others_may_go(made):
                    self._send_out()
                self._write_down(made)
                if not self.outbox.keeps_hold() and not self._regroup():
                    return
            self._take_back_the_last()
        finally:
            self._idling.end()
            self._couriers.dismiss()
            self._say_delivered(at_once=True)
            self.outbox.close()

    def run_to_its_end(
        self, turned: Callable[[], None] | None = None, *, turn_seconds: float = math.inf
    ) -> bool:
        """Do as `run` does, for a thread: a fault that ends it is logged, and False returned."""
        try:
            self.run(turned, turn_seconds=turn_seconds)
        except Exception as error:
            # Not to be waited out: what is known about it is logged, and a supervisor starts anew.
            detail = f"{type(error).__name__}: {error}"
            fault = {"event": "delivery_fault", "detail": detail}
            _logger.critical("delivery ended by a fault: %s", detail, extra=fault)
            _logger.debug("this is where it happened", exc_info=True, extra=fault)
            return False
        return True

    def stop(self, *, within_seconds: float = 0.0) -> None:
        """Make `run` return soon, from any thread; begin nothing new.

        Requests under way have so long to be answered; then they are broken off. What those
        carried stays in the outbox and is sent again, under the same keys.
        """
        self._stop_by = time.monotonic() + within_seconds
        self._stopping.set()
        if within_seconds <= 0:
            self._break_off()
        self._couriers.wake()

    def try_now(self) -> None:
        """Try again at once, from any thread, what waits for its time and not for the peer's."""
        self._try_now.set()
        self._couriers.wake()

    def _look_again(self) -> None:
        self._couriers.wake()

    def _break_off(self) -> None:
        for interrupt in self._interrupt:
            interrupt()

    def _wait_for_hold(self) -> bool:
        waiting_for = None
        while not self._stopping.is_set():
            try:
                if self.outbox.try_hold():
                    return True
                holder = self.outbox.holder()
                if holder is not None and holder != waiting_for:
                    waiting_for = holder
                    _logger.warning(
                        "%s is held by %s, which delivers; waiting for its end",
                        self.outbox.location,
                        f"process {holder}" if holder else "another process",
                        extra={
                            "event": "outbox_held",
                            "holder": holder,
                            "outbox": self.outbox.location,
                        },
                    )
            except (SchemaTooNew, OutboxMoved):
                # No waiting makes this program newer, or brings the outbox back.
                raise
            except OutboxUnavailable as error:
                self._say_unavailable("waiting for the outbox: %s", error)
                self._stopping.wait(_OUTBOX_RETRY_SECONDS)
            self._turned()
            self._stopping.wait(_TAKEOVER_POLL_SECONDS)
        return False

    def _regroup(self) -> bool:
        """Hold anew what is now to be held, and know nothing of before; False at a stop.

        As after a crash: what was sent and not answered by then is found in the outbox, by
        whoever holds it, and sent again as it was.
        """
        deadline = time.monotonic() + _REGROUP_SECONDS
        while self._couriers.under_way and (left := deadline - time.monotonic()) > 0:
            self._turned()
            self._take_back(min(left, self._turn_seconds))
            if self._stopping.is_set():
                break
        self._couriers.dismiss()
        self._couriers = Couriers()
        self._flusher = self._new_flusher()
        return self._wait_for_hold()

    def _send_out(self) -> float:
        """Send out what is to be asked now; return for how many seconds to wait for answers."""
        try:
            if self._try_now.is_set():
                self._flusher.try_now()
                self._try_now.clear()
            calls = self._flusher.start()
        except OutboxUnavailable as error:
            self._say_unavailable("delivery waits for the outbox: %s", error)
            return _OUTBOX_RETRY_SECONDS
        self._unavailable = 0
        for call in calls:
            self._couriers.send_out(call)
        is_busy = self._flusher.sees_more or self._couriers.under_way > 0
        until_next = self._idling.seconds(is_busy=is_busy)
        if self._flusher.sees_more:
            return 0.0
        if self._flusher.next_at is not None:
            left = (self._flusher.next_at - self._clock.steady()) / 1000
            until_next = min(until_next, max(0.0, left))
        return until_next

    def _wait_for(self, seconds: float) -> list[Made]:
        """Wait for an answer so long, and return all that have come in."""
        came: list[Made] = []
        made = self._couriers.back(seconds)
        while made is not None:
            came.append(made)
            made = self._couriers.back(0.0)
        return came

    def _others_may_go(self, came: Sequence[Made]) -> bool:
        """Return whether, for what has come in, more can be sent before it is written down."""
        frees = [self._flusher.came(one.call, one.answer) for one in came if one.answer is not None]
        return (
            bool(frees) and all(frees) and not self._stopping.is_set() and self.outbox.keeps_hold()
        )

    def _write_down(self, came: Sequence[Made]) -> None:
        """Write what became of all that have come in."""
        for made in came:
            self._delivered += self._finish(made)
        self._say_delivered()

    def _take_back(self, seconds: float) -> None:
        """Wait for an answer so long, and write what became of all that have come in."""
        self._write_down(self._wait_for(seconds))

    def _take_back_the_last(self) -> None:
        while self._couriers.under_way and (left := self._stop_by - time.monotonic()) > 0:
            self._turned()
            self._take_back(min(left, self._turn_seconds))
        self._break_off()
        # Those that were answered just before the stop need not be sent again. Whatever cannot
        # be broken off, such as connecting, is left behind.
        deadline = time.monotonic() + _LAST_ANSWERS_SECONDS
        while self._couriers.under_way and (left := deadline - time.monotonic()) > 0:
            self._take_back(left)

    def _finish(self, made: Made) -> int:
        if made.answer is None:
            raise made.fault or AssertionError("a call came back empty-handed")
        try:
            return self._flusher.finish(made.call, made.answer)
        except OutboxUnavailable as error:
            self._say_unavailable("delivery waits for the outbox: %s", error)
            return 0

    def _say_unavailable(self, words: str, error: OutboxUnavailable) -> None:
        self._unavailable += 1
        _logger.log(
            logging.ERROR if is_news(self._unavailable) else logging.DEBUG,
            words,
            error,
            extra={
                "event": "outbox_unavailable",
                "failures": self._unavailable,
                "detail": str(error),
            },
        )

    def _say_delivered(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._delivered and (at_once or now >= self._say_delivered_at):
            _logger.info(
                "delivered %d events",
                self._delivered,
                extra={"event": "delivered", "events": self._delivered},
            )
            self._delivered = 0
            self._say_delivered_at = now + _SECONDS_BETWEEN_DELIVERED


def _nothing() -> None:
    """Nobody asked to be told."""
