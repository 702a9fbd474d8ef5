"""How it stands with a peer, kept in the outbox: a restart does not forget that it is down."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meter_worker.retry_policy import LONGEST_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from meter_lib.outbox import Delivery
    from meter_worker.backend import Unavailable
    from meter_worker.retry_policy import RetryPolicy

__all__ = ["LinkKeeper"]

_logger = logging.getLogger("meter_worker")


class LinkKeeper:
    """Decides when a peer may be tried again. Instants are milliseconds of steady time."""

    def __init__(
        self, outbox: Delivery, name: str, policy: RetryPolicy, *, longest_wait_seconds: float
    ) -> None:
        self._outbox = outbox
        self._name = name
        self._policy = policy
        self._longest_wait = 1000 * max(longest_wait_seconds, LONGEST_RETRY_AFTER_SECONDS)

    def is_down(self) -> bool:
        """Return whether the last attempt failed."""
        return self._outbox.link(self._name).failures > 0

    def paused_until(self, now: int) -> int | None:
        """Return when the peer may be tried again, or None for at once."""
        next_attempt_at = self._outbox.link(self._name).next_attempt_at
        # Longer than any wait we set: the clock was set back between two processes.
        if next_attempt_at is None or not now < next_attempt_at <= now + self._longest_wait:
            return None
        return next_attempt_at

    def succeeded(self, now: int) -> None:
        """Write that the peer answered, if it was down."""
        link = self._outbox.link(self._name)
        if link.failures or link.last_success_at is None:
            self._outbox.set_link(
                link._replace(
                    failures=0, down_since=None, next_attempt_at=None, last_success_at=now
                )
            )

    def failed(self, outage: Unavailable, now: int) -> int:
        """Write that the peer failed once more and return when it may be tried again."""
        link = self._outbox.link(self._name)
        failures = link.failures + 1
        wait = self._policy.wait_seconds(failures, retry_after_seconds=outage.retry_after_seconds)
        next_attempt_at = now + round(wait * 1000)
        self._outbox.set_link(
            link._replace(
                failures=failures,
                down_since=now if link.down_since is None else link.down_since,
                next_attempt_at=next_attempt_at,
                last_error=outage.detail,
                last_error_at=now,
            )
        )
        _logger.warning(
            "%s: no delivery for %.1f s, failure %d in a row: %s",
            self._name,
            wait,
            failures,
            outage.detail,
        )
        return next_attempt_at
