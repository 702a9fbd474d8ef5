from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meter_lib.errors import OutboxUnavailable
from meter_worker.backend import (
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Retriable,
    Unavailable,
    Undecided,
)
from tests.fakes import accept, keys
from tests.unit.flusher_bench import DOWN, all_delivered, numbered
from tests.unit.test_flusher_failing_outbox import fail_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.backend import Outcome
    from meter_worker.flusher import Call
    from tests.unit.flusher_bench import Bench


@pytest.fixture
def bench(bench_with: Callable[..., Bench]) -> Bench:
    """One request of two events at a time, of an account that is known."""
    made = bench_with(batch_size=2)
    made.post("known")
    made.flush_all()
    return made


def sent(call: Call) -> list[str]:
    """The keys of the request that a call sends."""
    (request,) = call.make.args  # type: ignore[attr-defined]
    return keys(request)


def test_the_next_request_leaves_before_the_answer_is_written_down(bench: Bench) -> None:
    """Once all of a request has arrived, what is behind it in its stream waits for no disk."""
    bench.post(*numbered("e", 6))
    [first] = bench.flusher.start()
    answer = first.make()
    assert bench.flusher.start() == []
    assert bench.flusher.came(first, answer)
    [second] = bench.flusher.start()
    assert (sent(second), bench.counts["delivered"]) == (["e2", "e3"], 1)
    assert bench.flusher.finish(first, answer) == 2
    assert bench.counts["delivered"] == 3
    assert bench.flusher.start() == []
    bench.flusher.finish(second, second.make())
    bench.flush_all()
    assert bench.counts == all_delivered(7)
    assert bench.backend.stored_keys == ["known", *numbered("e", 6)]


def test_a_crash_before_it_is_written_down_sends_both_again_in_their_order(bench: Bench) -> None:
    """Nobody has seen the first answer then: it goes again as it was, before the second."""
    bench.post(*numbered("e", 5))
    [first] = bench.flusher.start()
    assert bench.flusher.came(first, first.make())
    [second] = bench.flusher.start()
    second.make()
    bench.restarted()
    bench.flush_all()
    assert bench.backend.sent[1:] == [
        *[["e0", "e1"], ["e2", "e3"]],
        *[["e0", "e1"], ["e2", "e3"], ["e4"]],
    ]
    assert bench.backend.requests[1] == bench.backend.requests[3]
    assert bench.counts == all_delivered(6)


@pytest.mark.parametrize(
    "answer",
    [
        Answered((Delivered(), Retriable("busy"))),
        Answered((Delivered(), Undecided())),
        Answered((Delivered(), Delivered()), outage=DOWN),
        Refused("rejected", "no"),
        DOWN,
        Unavailable("late", timed_out=True),
        Interrupted(),
    ],
    ids=str,
)
def test_an_answer_with_a_but_is_written_down_first(bench: Bench, answer: Outcome) -> None:
    """Whatever may hold up those behind it is known before anything else leaves."""
    bench.post(*numbered("e", 4))
    [first] = bench.flusher.start()
    assert not bench.flusher.came(first, answer)
    assert bench.flusher.start() == []
    bench.flusher.finish(first, answer)
    bench.wait()
    bench.flush_all()
    assert bench.counts == all_delivered(5)


def test_what_was_tried_before_is_written_down_first(bench: Bench) -> None:
    """Others of its stream wait behind it in the outbox, and are free once it has left."""
    bench.post(*numbered("e", 3))
    bench.backend.script(Answered((Retriable("busy"), Delivered())))
    bench.flush_all()
    bench.wait()
    [again] = bench.flusher.start()
    assert not bench.flusher.came(again, again.make())


def test_what_came_in_an_outage_is_written_down_first(bench_with: Callable[..., Bench]) -> None:
    """A request that left before a failure shows nothing of the link since."""
    bench = bench_with(batch_size=2, max_in_flight=2)
    bench.post("known")
    bench.flush_all()
    bench.post(*numbered("a", 4), meter_id="a", device_id="d1")
    bench.post(*numbered("b", 4), meter_id="b", device_id="d2")
    [first, second] = bench.flusher.start()
    bench.flusher.finish(first, DOWN)
    assert not bench.flusher.came(second, second.make())


def test_a_kafka_transaction_is_written_down_before_the_next(
    bench_with: Callable[..., Bench],
) -> None:
    """What tells which transactions were stored knows of the last one only."""
    bench = bench_with(batch_size=2, sink="kafka://127.0.0.1:9092/usage-events")
    bench.post(*numbered("e", 4))
    [question] = bench.flusher.start()
    bench.flusher.finish(question, question.make())
    [first] = bench.flusher.start()
    assert not bench.flusher.came(first, first.make())


def test_what_cannot_be_written_down_holds_up_what_would_follow(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request is ahead of a failing disk, and no more."""
    bench.post(*numbered("e", 6))
    [first] = bench.flusher.start()
    answer = first.make()
    assert bench.flusher.came(first, answer)
    [second] = bench.flusher.start()
    fail_once(monkeypatch, bench, "settle")
    with pytest.raises(OutboxUnavailable):
        bench.flusher.finish(first, answer)
    fail_once(monkeypatch, bench, "settle")
    with pytest.raises(OutboxUnavailable):
        bench.flusher.start()
    bench.flusher.finish(second, accept(second.make.args[0]))  # type: ignore[attr-defined]
    bench.flush_all()
    assert bench.counts == all_delivered(7)


def test_a_full_request_in_view_leaves_before_the_outbox_is_read_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes as long as sending does: it is done while that is under way."""
    bench.post(*numbered("e", 20))
    [first] = bench.flusher.start()
    bench.flusher.finish(first, first.make())
    fail_once(monkeypatch, bench, "due")
    [second] = bench.flusher.start()
    assert sent(second) == ["e2", "e3"]
    assert bench.flusher.sees_more
