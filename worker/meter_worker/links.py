"""How it stands with a peer, kept in the outbox: a restart does not forget that it is down."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from meter_worker.log_events import is_news
from meter_worker.retry_policy import LONGEST_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from meter_lib.outbox import Delivery, Link
    from meter_worker.backend import Unavailable
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["LinkKeeper"]

_logger = logging.getLogger("meter_worker")

# The spread is at most this part of the outage: nobody waits long after a short one.
_SPREAD_OF_OUTAGE = 10
# A link that fails in two ways by turns is no news each time.
_MILLISECONDS_BETWEEN_CHANGES = 600_000


class LinkKeeper:
    """Decides when a peer may be tried again. Instants are milliseconds of steady time.

    Several requests may be under way when a peer goes down. What happens to those that
    were sent before the last failure belongs to the same outage: it neither counts as
    another failure nor shows that the peer is back.
    """

    def __init__(
        self,
        outbox: Delivery,
        name: str,
        policy: RetryPolicy,
        *,
        longest_wait_seconds: float,
        spread_seconds: float = 0.0,
    ) -> None:
        self._outbox = outbox
        self._name = name
        self._policy = policy
        self._spread_seconds = spread_seconds
        longest = max(longest_wait_seconds, LONGEST_RETRY_AFTER_SECONDS) + spread_seconds
        self._longest_wait = 1000 * longest
        # Until when the peer itself asked to be left alone, and which pause that is known of.
        self._asked_until = 0
        self._pause_set_here: int | None = None
        # Of the outage that the log knows of, if it does.
        self._failures_told = 0
        self._said_at = 0
        self.outage = 0
        """Which outage it is, in this process: note it with each request that is sent."""

    def standing(self, now: int) -> tuple[bool, int | None]:
        """Return whether the last attempt failed, and when the peer may be tried again.

        None means at once.
        """
        link = self._outbox.link(self._name)
        until = link.next_attempt_at
        # Longer than any wait we set: the clock was set back between two processes.
        if until is not None and not now < until <= now + self._longest_wait:
            until = None
        return link.failures > 0, until

    def paused_until(self, now: int) -> int | None:
        """Return when the peer may be tried again, or None for at once."""
        return self.standing(now)[1]

    def try_now(self, now: int) -> int | None:
        """End the pause, if it is our own; return until when it stays, or None for not at all.

        What the peer asked for stays. So does the pause that an earlier process has set: who
        wanted it is known to that process alone.
        """
        paused_until = self.paused_until(now)
        if paused_until is None:
            return None
        stays = paused_until
        if paused_until == self._pause_set_here:
            stays = min(self._asked_until, paused_until)
        if stays != paused_until:
            link = self._outbox.link(self._name)
            self._pause_set_here = stays if stays > now else None
            self._outbox.set_link(link._replace(next_attempt_at=self._pause_set_here))
        return stays if stays > now else None

    def succeeded(self, now: int) -> None:
        """Write that the peer answered, if it was down."""
        link = self._outbox.link(self._name)
        self.answers_again()
        if link.failures or link.last_success_at is None:
            self._outbox.set_link(
                link._replace(
                    failures=0, down_since=None, next_attempt_at=None, last_success_at=now
                )
            )

    def answers_again(self) -> None:
        """Say so in the log, if its failures were told there."""
        if self._failures_told:
            _logger.info(
                "%s: answers again, after %d failures in a row",
                self._name,
                self._failures_told,
                extra={
                    "event": "link_up",
                    "link": self._name,
                    "failures": self._failures_told,
                },
            )
            self._failures_told = 0

    def failed(self, outage: Unavailable, now: int, *, sent_in: int | None = None) -> int:
        """Write that the peer failed once more and return when it may be tried again.

        `sent_in` is the `outage` noted when the request was sent, if there was one.
        """
        link = self._outbox.link(self._name)
        is_same = sent_in is not None and sent_in != self.outage and link.failures > 0
        failures = link.failures + (not is_same)
        down_since = now if link.down_since is None else link.down_since
        wait = self._policy.wait_seconds(failures, retry_after_seconds=outage.retry_after_seconds)
        wait += self._spread(down_since, lasted=(now - down_since) / 1000 + wait)
        next_attempt_at = now + round(wait * 1000)
        asked_seconds = min(outage.retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        self._asked_until = max(self._asked_until, now + round(asked_seconds * 1000))
        if is_same:
            # It only lengthens the pause, where it was told to.
            asked_for = outage.retry_after_seconds is not None
            paused_until = link.next_attempt_at or next_attempt_at
            next_attempt_at = max(paused_until, next_attempt_at) if asked_for else paused_until
        self.outage += not is_same
        self._pause_set_here = next_attempt_at
        self._outbox.set_link(
            link._replace(
                failures=failures,
                down_since=down_since,
                next_attempt_at=next_attempt_at,
                last_error=outage.detail,
                last_error_at=now,
            )
        )
        if not is_same:
            self._say_down(link, outage, wait, failures, now)
        return next_attempt_at

    def _spread(self, down_since: int, *, lasted: float) -> float:
        """Return this device's own share of the time over which a fleet comes back, in seconds.

        Drawn from the outbox's name and the outage, so that a restart does not change it
        and the same device is not always the last.
        """
        longest = min(self._spread_seconds, lasted / _SPREAD_OF_OUTAGE)
        if longest <= 0:
            return 0.0
        seed = f"{self._outbox.outbox_id} {down_since}".encode()
        return longest * int.from_bytes(hashlib.sha256(seed).digest()[:4], "big") / 2**32

    def _say_down(
        self, before: Link, outage: Unavailable, wait: float, failures: int, now: int
    ) -> None:
        changed = failures == 1 or outage.detail != before.last_error
        is_due = now - self._said_at >= _MILLISECONDS_BETWEEN_CHANGES
        level = logging.DEBUG
        # A restart during an outage is told of it anew.
        is_first = self._failures_told == 0
        if is_first or is_news(failures) or (changed and is_due):
            needs_help = outage.wants_an_operator and (changed or is_first)
            level = logging.ERROR if needs_help else logging.WARNING
            self._said_at = now
        self._failures_told = failures
        _logger.log(
            level,
            "%s: no delivery for %.1f s, failure %d in a row: %s",
            self._name,
            wait,
            failures,
            outage.detail,
            extra={
                "event": "link_down",
                "link": self._name,
                "wait_seconds": round(wait, 3),
                "failures": failures,
                "detail": outage.detail,
            },
        )
