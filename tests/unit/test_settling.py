from __future__ import annotations

from typing import Any

import pytest

from meter_lib.outbox import Burial, Deferral, DueEvent
from meter_worker.settling import alone_from, charge


def asked_for(attempts: int, *, proven: bool = True) -> DueEvent:
    """An event that was asked for again so many times."""
    given: dict[str, Any] = dict.fromkeys(DueEvent._fields)
    return DueEvent(**given | {"attempts": attempts, "lone_refusal": 0, "proven": proven})


def charged(event: DueEvent, *, alone: bool) -> Any:
    """What becomes of it where ten attempts are allowed."""
    return charge(
        [(event, "busy")], alone=alone, beside_others=not alone, max_attempts=10, until=lambda n: n
    )


def test_the_last_attempt_counts_alone_only() -> None:
    """In company it may be the others' fault, however often it was asked for."""
    event = asked_for(9)
    assert charged(event, alone=True) == ([], [Burial(event, "attempts_exhausted", "busy")], [])
    [deferral], buried, exhausted = charged(event, alone=False)
    assert (deferral, buried, exhausted) == (
        Deferral(event, 10, counts=True, alone=False, beside_others=True),
        [],
        [],
    )


def test_without_a_proof_it_counts_as_refused() -> None:
    """Nothing else was accepted: it may be the backend."""
    event = asked_for(9, proven=False)
    assert charged(event, alone=True) == ([], [], [(event, "busy")])


@pytest.mark.parametrize(("allowed", "alone"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (10, 3)])
def test_the_last_two_of_the_attempts_allowed_are_made_alone(allowed: int, alone: int) -> None:
    """So that there are two lone verdicts by the time there are enough."""
    assert alone_from(allowed) == alone
