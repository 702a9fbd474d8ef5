from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meter_lib.outbox import Burial
from meter_worker import answers, arrivals, rest_backend
from meter_worker.arrivals import Arrivals
from meter_worker.backend import Answered, Delivered
from meter_worker.departures import Departures, UnderWay
from meter_worker.flusher import Flusher
from meter_worker.links import LinkKeeper
from meter_worker.pace import Pace
from meter_worker.settling import sort_verdicts
from meter_worker.verdicts import judge_delivery
from tests.simulation.oracle import Broken
from tests.simulation.world import run

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 400
SEEDS = range(50)
# Each found a bug once.
REGRESSIONS = (0, 25, 44, 49, 50, 59, 61, 75, 82, 86, 120, 128, 178, 206)
# Every bug made on purpose is found within so many worlds.
_ENOUGH = range(120)


@pytest.mark.parametrize("seed", sorted({*SEEDS, *REGRESSIONS}))
def test_in_the_worst_network_all_promises_hold(seed: int) -> None:
    """Whatever the peers, the clock and the process do, in whatever order, nothing is broken."""
    try:
        run(seed, STEPS)
    except Broken as broken:
        pytest.fail(f"{broken}\n    python -m tests.simulation --seed {seed} --steps {STEPS}")


def test_a_world_is_the_same_each_time() -> None:
    """A seed tells the whole story: run again, it goes the same way."""
    told: list[list[int]] = []
    for _ in range(2):
        story: list[str] = []
        run(3, STEPS, story=story)
        told.append([len(line.split("'")) for line in story])
    assert told[0] == told[1]


def believe_every_200(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each 200 for success."""

    def judge(status: int, *arguments: object, sent: int, **others: object) -> object:
        if status == 200:
            return Answered([Delivered()] * sent)
        return judge_delivery(status, *arguments, sent=sent, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(rest_backend, "judge_delivery", judge)


def bury_at_a_422(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a 422 for the end of all its records: they are as good as proven."""
    monkeypatch.setattr(arrivals, "refused_alone", Burial)


def forget_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let several requests of one stream be under way at once."""
    under_way = property(lambda _: UnderWay(set(), set()))
    monkeypatch.setattr(Flusher, "_under_way", under_way)


def forget_the_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know nothing after a restart of what was sent and not answered."""
    monkeypatch.setattr(Flusher, "_restore", lambda self: setattr(self, "_restored", True))


def prove_by_stale_acceptances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever is accepted prove all refusals so far, whenever it was sent."""
    flight = Arrivals.flight

    def stale(self: Arrivals, parcel: object, *, proves: int) -> object:
        return flight(self, parcel, proves=proves + 5)  # type: ignore[arg-type]

    monkeypatch.setattr(Arrivals, "flight", stale)


def retry_all_of_a_partial_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send stored records again because others of their request failed."""

    def sort(events: object, answer: Answered) -> object:
        by_verdict = sort_verdicts(events, answer)  # type: ignore[arg-type]
        if by_verdict.retriable:
            more = [(event, "again") for event in by_verdict.delivered]
            return by_verdict._replace(delivered=[], retriable=[*by_verdict.retriable, *more])
        return by_verdict

    monkeypatch.setattr(arrivals, "sort_verdicts", sort)


def ignore_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send on while the link is down."""
    standing = LinkKeeper.standing
    monkeypatch.setattr(
        LinkKeeper, "standing", lambda keeper, now: (standing(keeper, now)[0], None)
    )


def overtake_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what is behind a deferred event where it is."""
    monkeypatch.setattr(Departures, "set_aside", lambda *_: None)


def ignore_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send as much as there is, whatever METER_RATE says."""
    monkeypatch.setattr(Pace, "allowed", lambda *_: 10_000)


def ignore_dates_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read seconds from Retry-After, and no dates."""
    monkeypatch.setattr(answers, "_seconds_of", lambda _: None)


BUGS = [
    believe_every_200,
    bury_at_a_422,
    forget_what_is_under_way,
    forget_the_unanswered,
    prove_by_stale_acceptances,
    retry_all_of_a_partial_failure,
    ignore_the_pause,
    overtake_in_the_stream,
    ignore_the_rate,
    ignore_dates_to_come_again,
]


@pytest.mark.parametrize("bug", BUGS)
def test_the_oracle_has_teeth(
    monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """A bug made on purpose is found within a few worlds."""
    bug(monkeypatch)
    for seed in _ENOUGH:
        try:
            run(seed, STEPS)
        except Broken:
            return
    pytest.fail(f"{bug.__name__} was not noticed")
