"""All the fakes there are: time, the backend, the accounts API. Outboxes in tests are real ones.

Tests import this as `tests.fakes`; with `--import-mode=importlib` that needs no path and no
package.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from meter_lib.clock import Uptime
from meter_worker.backend import (
    AccountFound,
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Rejected,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meter_worker.backend import AccountAnswer, Outcome, Request, Verdict

NOON = 1_759_791_552_000
"""Where every `ManualClock` starts unless told otherwise: an October day of 2025."""

Value: TypeAlias = "dict[str, Any]"  # the value of a record, as the backend reads it
Answer: TypeAlias = "Outcome | Callable[[Request], Outcome]"


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: int = NOON, *, boot: int = 1) -> None:
        self._now = now
        self._uptime = Uptime(60_000, boot)
        self._offset = now - self._uptime.milliseconds
        self.synchronised: bool | None = None

    def is_synchronised(self) -> bool | None:
        """Return what the test has set."""
        return self.synchronised

    def now(self) -> int:
        """Return the wall time in milliseconds."""
        return self._now

    def steady(self) -> int:
        """Return the steady time in milliseconds."""
        return self._offset + self._uptime.milliseconds

    def uptime(self) -> Uptime:
        """Return how long the machine has been running."""
        return self._uptime

    def follow(self, offset: int) -> None:
        """Let the steady time be the uptime plus so many milliseconds."""
        self._offset = offset

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        milliseconds = round(seconds * 1000)
        self._now += milliseconds
        self._uptime = Uptime(self._uptime.milliseconds + milliseconds, self._uptime.boot)

    def advance_to(self, steady: int) -> None:
        """Let time pass until the steady clock shows this."""
        self.advance((steady - self.steady()) / 1000)

    def reboot(self, *, now: int) -> None:
        """Come up again, with the wall clock at `now` and the uptime at the beginning."""
        boot = (self._uptime.boot or 0) + 1
        self._now = now
        self._uptime = Uptime(5_000, boot)
        self._offset = now - self._uptime.milliseconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as NTP does; the steady one does not care."""
        self._now += round(seconds * 1000)


class ScriptedBackend:
    """Answers requests from a script, then always as `otherwise` says.

    An answer is an outcome, or a function of the request that returns one.
    """

    def __init__(self, *script: Answer, otherwise: Answer | None = None) -> None:
        self.otherwise: Answer = otherwise or accept
        self.requests: list[Request] = []
        self.stored: list[Value] = []
        """The values that were accepted, in the order they came, repeated ones included."""
        self._script = list(script)
        self._interrupted = threading.Event()

    def script(self, *answers: Answer) -> None:
        """Answer the next requests like this."""
        self._script.extend(answers)

    def deliver(self, request: Request) -> Outcome:
        """Answer as the script says."""
        if self._interrupted.is_set():
            return Interrupted()
        self.requests.append(request)
        answer = self._script.pop(0) if self._script else self.otherwise
        outcome = answer(request) if callable(answer) else answer
        if isinstance(outcome, Answered):
            self.stored += [
                value
                for value, verdict in zip(values(request), outcome.verdicts, strict=True)
                if isinstance(verdict, Delivered)
            ]
        return outcome

    def interrupt(self) -> None:
        """Break off what is under way; every further `deliver` is interrupted too."""
        self._interrupted.set()

    def stall(self, request: Request) -> Outcome:
        """As an answer: none, until `interrupt`."""
        del request
        self._interrupted.wait()
        return Interrupted()

    @property
    def sent(self) -> list[list[str]]:
        """The idempotency keys of each request."""
        return [keys(request) for request in self.requests]

    @property
    def stored_keys(self) -> list[str]:
        """The idempotency keys of what was accepted, in the order it came."""
        return [value["idempotency_key"] for value in self.stored]


class ScriptedAccounts:
    """Answers for each tenant as told; those it was not told about have an account."""

    def __init__(self, answers: Mapping[str, AccountAnswer] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[str] = []
        self._interrupted = threading.Event()

    def look_up(self, tenant_id: str) -> AccountAnswer:
        """Answer as told."""
        if self._interrupted.is_set():
            return Interrupted()
        self.asked.append(tenant_id)
        return self.answers.get(tenant_id, AccountFound(json.dumps(f"customer of {tenant_id}")))

    def interrupt(self) -> None:
        """Answer nothing any more."""
        self._interrupted.set()


def values(request: Request) -> list[Value]:
    """Return the values of a request's records."""
    return [json.loads(record)["value"] for record in request.records]


def keys(request: Request) -> list[str]:
    """Return the idempotency keys of a request's records."""
    return [value["idempotency_key"] for value in values(request)]


def accept(request: Request) -> Outcome:
    """As an answer: every record is stored."""
    return Answered(tuple(Delivered() for _ in request.records))


def each(judge: Callable[[Value], Verdict]) -> Callable[[Request], Outcome]:
    """As an answer: to each record what `judge` says of its value, as Karapace does."""

    def answer(request: Request) -> Outcome:
        return Answered(tuple(judge(value) for value in values(request)))

    return answer


def refuse_where(
    bad: Callable[[Value], bool], reason: str = "rejected"
) -> Callable[[Request], Outcome]:
    """As an answer: a request with such a record is refused as a whole, others are accepted."""

    def answer(request: Request) -> Outcome:
        if any(bad(value) for value in values(request)):
            return Refused(reason, "no")
        return accept(request)

    return answer


def reject_where(bad: Callable[[Value], bool]) -> Callable[[Request], Outcome]:
    """As an answer: such records are rejected, those beside them are stored."""
    return each(lambda value: Rejected("rejected", "no") if bad(value) else Delivered())
