"""What an answer makes of the events it is about: a pure function, and the proof it asks for.

An event is refused for good only if the backend refused it alone, accepted something
that was sent after that, and refused it alone again. Where it asks for another attempt
instead, METER_MAX_ATTEMPTS such verdicts are needed as well, the last two of them alone;
then it is proof enough that others were accepted in the answer to one of the attempts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meter_lib.outbox import Burial, Deferral
from meter_worker.backend import Delivered, Rejected, Retriable, Undecided
from meter_worker.exhaustive import assert_never

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meter_lib.outbox import DueEvent
    from meter_worker.backend import Answered

__all__ = ["Charged", "Sorted", "alone_from", "charge", "refused_alone", "sort_verdicts"]

# So many attempts may be made in company: a broker in trouble fails many records at once.
_ATTEMPTS_IN_COMPANY = 3
_LONE_VERDICTS = 2


class Sorted(NamedTuple):
    """Events by what the backend said of them, the words of errors beside them."""

    delivered: Sequence[DueEvent]
    retriable: Sequence[tuple[DueEvent, str]]
    rejected: Sequence[tuple[DueEvent, Rejected]]
    undecided: Sequence[DueEvent]


class Charged(NamedTuple):
    """Events that the backend asked for again, by what becomes of them."""

    deferred: Sequence[Deferral]
    buried: Sequence[Burial]
    exhausted: Sequence[tuple[DueEvent, str]]
    """They have had all their attempts, but nothing shows that it is not the backend: they
    count as refused."""


def sort_verdicts(events: Sequence[DueEvent], answer: Answered) -> Sorted:
    """Return the events by their verdicts, one for each, in order."""
    delivered: list[DueEvent] = []
    retriable: list[tuple[DueEvent, str]] = []
    rejected: list[tuple[DueEvent, Rejected]] = []
    undecided: list[DueEvent] = []
    for event, verdict in zip(events, answer.verdicts, strict=True):
        match verdict:
            case Delivered():
                delivered.append(event)
            case Retriable() if answer.outage is not None:
                # The answer says that it is not the event's fault.
                undecided.append(event)
            case Retriable(detail):
                retriable.append((event, detail))
            case Rejected():
                rejected.append((event, verdict))
            case Undecided():
                undecided.append(event)
            case _:
                assert_never(verdict)
    return Sorted(delivered, retriable, rejected, undecided)


def alone_from(max_attempts: int) -> int:
    """Return how many verdicts in company an event may have had before it must travel alone."""
    return min(_ATTEMPTS_IN_COMPANY, max(1, max_attempts - _LONE_VERDICTS))


def charge(
    retriable: Sequence[tuple[DueEvent, str]],
    *,
    alone: bool,
    beside_others: bool,
    max_attempts: int,
    until: Callable[[int], int],
) -> Charged:
    """Return what becomes of events that the backend asks for again.

    Each is tried again at the instant `until(attempts)`, or is given up, or counts as
    refused. `alone` says that it had the request to itself, `beside_others` that others
    were accepted in the same answer.
    """
    enough = max(max_attempts, alone_from(max_attempts) + _LONE_VERDICTS)
    deferred: list[Deferral] = []
    buried: list[Burial] = []
    exhausted: list[tuple[DueEvent, str]] = []
    for event, detail in retriable:
        attempts = event.attempts + 1
        if attempts < enough or not alone:
            deferred.append(
                Deferral(
                    event, until(attempts), counts=True, alone=alone, beside_others=beside_others
                )
            )
        elif event.proven:
            buried.append(Burial(event, "attempts_exhausted", detail))
        else:
            exhausted.append((event, detail))
    return Charged(deferred, buried, exhausted)


def refused_alone(event: DueEvent, reason: str, detail: str) -> Burial | None:
    """Return its burial where that proves it, or None where it is the first such refusal."""
    if event.proven and (event.lone_refusal or 0) > 0:
        # Alone twice, of which its attempts count none.
        return Burial(event, reason, detail, answers=_LONE_VERDICTS)
    return None
