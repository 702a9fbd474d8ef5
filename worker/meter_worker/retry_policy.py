"""How long to wait before the next attempt: a pure function of the failures so far."""

from __future__ import annotations

from tenacity import RetryCallState, wait_random_exponential

__all__ = ["LONGEST_RETRY_AFTER_SECONDS", "RetryPolicy"]

# A hostile or broken gateway must not silence a device for longer than this.
LONGEST_RETRY_AFTER_SECONDS = 3600.0


class RetryPolicy:
    """Exponential backoff with full jitter.

    The wait is drawn evenly between 0 and `min(longest, base * 2 ** (failures - 1))`:
    the jitter comes after the cap, so that a fleet that has been at the cap for
    hours is still spread over all of it.
    """

    def __init__(self, *, base_seconds: float, max_seconds: float) -> None:
        self._wait = wait_random_exponential(multiplier=base_seconds, max=max_seconds)

    def wait_seconds(self, failures: int, *, retry_after_seconds: float | None = None) -> float:
        """Return the wait after so many failures in a row (1 or more).

        What the backend asks for wins where it is longer, up to an hour.
        """
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # a wait strategy reads the attempt number only
        state.attempt_number = failures
        asked_for = min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        return max(self._wait(state), asked_for)
