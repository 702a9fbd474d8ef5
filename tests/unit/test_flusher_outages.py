from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from meter_lib.errors import OutboxUnavailable
from meter_lib.outbox import Link
from meter_worker.backend import (
    Answered,
    Delivered,
    Interrupted,
    Retriable,
    Unavailable,
    Undecided,
)
from tests.fakes import accept, each
from tests.unit.flusher_bench import (
    BASE,
    DOWN,
    LATE,
    LONGEST,
    all_delivered,
    numbered,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.backend import Outcome, Request
    from tests.unit.flusher_bench import Bench


@pytest.mark.parametrize("outage", [DOWN, LATE])
def test_an_outage_pauses_everything_and_is_charged_to_no_event(
    bench: Bench, outage: Unavailable
) -> None:
    """However long it lasts, no event loses an attempt, and none is set aside."""
    bench.post("a", "b")
    bench.post("other", tenant_id="t2")
    bench.backend.otherwise = outage
    for _ in range(50):
        bench.flush_all()
        bench.wait()
    assert len(bench.backend.requests) == 50
    assert bench.counts == {"pending": 3, "dead": 0, "delivered": 0, "refused": 0}

    bench.backend.otherwise = accept
    bench.flush_all()
    assert sorted(bench.backend.stored_keys) == ["a", "b", "other"]
    assert bench.counts == all_delivered(3)


def test_nothing_is_sent_before_the_pause_is_over(bench: Bench) -> None:
    """The next attempt comes when it was announced to come, whatever is posted meanwhile."""
    bench.post("a")
    bench.backend.script(DOWN)
    bench.flush_all()
    due_at = bench.flush().next_at
    assert due_at == bench.events_link.next_attempt_at
    assert due_at is not None

    bench.post("b", tenant_id="t2")
    bench.clock.advance_to(due_at - 1)
    bench.flush_all()
    assert len(bench.backend.requests) == 1

    bench.clock.advance(0.001)
    bench.flush_all()
    assert sorted(bench.backend.stored_keys) == ["a", "b"]


def test_a_pause_survives_a_restart(bench: Bench) -> None:
    """A new process waits as long as the old one would have, and backs off from there."""
    bench.post("a")
    bench.backend.otherwise = DOWN
    for _ in range(5):
        bench.flush_all()
        bench.wait()
    bench.flush_all()
    before = bench.events_link
    bench.restarted()
    bench.flush_all()

    assert bench.events_link == before
    assert before.failures == 6
    assert len(bench.backend.requests) == 6

    assert before.next_attempt_at is not None
    bench.clock.advance_to(before.next_attempt_at)
    bench.flush_all()
    assert bench.events_link.failures == 7


def test_the_link_says_since_when_it_is_down_and_why(bench: Bench) -> None:
    """What operators look at is written with each failure and ends with the next success."""
    bench.post("a")
    went_down = bench.clock.now()
    bench.backend.script(DOWN, Unavailable("connection refused"))
    bench.flush_all()
    bench.wait()
    bench.flush_all()

    link = bench.events_link
    assert link == Link(
        name="events",
        failures=2,
        down_since=went_down,
        next_attempt_at=link.next_attempt_at,
        last_success_at=None,
        last_error="connection refused",
        last_error_at=bench.clock.now(),
    )

    failed = bench.clock.now()
    bench.wait()
    bench.flush_all()
    assert bench.events_link == Link(
        "events", 0, None, None, bench.clock.now(), "connection refused", failed
    )


@pytest.mark.parametrize(("asked", "waited"), [(1800, 1800), (86_400, 3600)])
def test_retry_after_is_honoured_up_to_an_hour_across_restarts(
    bench: Bench, asked: float, waited: float
) -> None:
    """The backend's own wait wins over our shorter one, in this process and in the next."""
    bench.post("a")
    bench.backend.script(Unavailable("HTTP 429: slow down", retry_after_seconds=asked))
    bench.flush_all()
    bench.clock.advance(waited - 1)
    bench.restarted()
    bench.flush_all()
    assert len(bench.backend.requests) == 1

    bench.clock.advance(1)
    bench.flush_all()
    assert bench.backend.stored_keys == ["a"]


def test_a_clock_set_back_between_two_processes_does_not_stop_delivery(bench: Bench) -> None:
    """A pause that ends later than any pause can was set by a clock that was wrong."""
    bench.post("a")
    bench.backend.script(DOWN)
    bench.flush_all()
    bench.clock.advance(-30 * 86_400)
    bench.restarted()
    bench.flush_all()

    assert bench.backend.stored_keys == ["a"]


def test_the_wall_clock_may_jump_while_the_worker_runs(bench: Bench) -> None:
    """Waits are measured on a clock that nobody sets."""
    bench.post("a")
    bench.backend.script(Unavailable("HTTP 503: down", retry_after_seconds=600))
    bench.flush_all()
    bench.clock.jump(5 * 365 * 86_400)
    bench.flush_all()
    assert len(bench.backend.requests) == 1

    bench.clock.jump(-10 * 365 * 86_400)
    bench.clock.advance(600)
    bench.flush_all()
    assert bench.backend.stored_keys == ["a"]


@pytest.mark.parametrize("days", [-3650, 3650])
def test_a_pause_that_begins_after_the_wall_clock_was_set_is_as_long_as_any(
    bench: Bench, days: float
) -> None:
    """Whichever way it was set, the next attempt comes when it was announced to come."""
    bench.flush_all()
    bench.post("a")
    bench.clock.jump(days * 86_400)
    bench.backend.script(Unavailable("HTTP 503: down", retry_after_seconds=600))
    bench.flush_all()
    assert bench.flush().next_at == bench.clock.steady() + 600_000
    bench.clock.advance(599)
    bench.flush_all()
    assert len(bench.backend.requests) == 1

    bench.clock.advance(1)
    bench.flush_all()
    assert bench.backend.stored_keys == ["a"]


def test_after_an_outage_one_event_is_sent_before_the_others(bench: Bench) -> None:
    """A backend that has just come up is not met by everything at once."""
    bench.post(*numbered("e", 20))
    bench.backend.script(DOWN)
    bench.flush_all()
    bench.wait()
    bench.flush_all()

    assert [len(batch) for batch in bench.backend.sent] == [20, 1, 19]
    assert bench.backend.stored_keys == numbered("e", 20)


def test_a_probe_that_fails_keeps_the_others_back(bench: Bench) -> None:
    """While the outage lasts, each attempt is one event and no more."""
    bench.post(*numbered("e", 20))
    bench.backend.script(DOWN, DOWN, DOWN)
    for _ in range(3):
        bench.flush_all()
        bench.wait()

    assert [len(batch) for batch in bench.backend.sent] == [20, 1, 1]


def test_an_outage_of_one_tenants_requests_does_not_stop_the_others(bench: Bench) -> None:
    """Where a gateway fails for one tenant only, the others are sent first from then on."""
    bench.post(*numbered("a", 3), tenant_id="a")
    bench.post(*numbered("b", 3), tenant_id="b")
    bench.backend.otherwise = lambda r: DOWN if r.tenant_id == "a" else accept(r)
    bench.live(2 * BASE)
    assert bench.backend.stored_keys == numbered("b", 3)

    bench.post("b3", tenant_id="b")
    bench.live(LONGEST)
    assert bench.backend.stored_keys == numbered("b", 4)
    assert bench.dead == []


def test_missing_rights_at_the_broker_pause_without_undoing_what_was_stored(bench: Bench) -> None:
    """Stored records of such an answer are delivered, undecided ones are tried after the pause."""
    bench.post("a", "b", "c")
    denied = Unavailable("the proxy may not write to its broker")
    bench.backend.script(Answered((Delivered(), Undecided(), Undecided()), denied))
    bench.flush_all()
    assert bench.counts == {"pending": 2, "dead": 0, "delivered": 1, "refused": 0}
    assert bench.events_link.last_error == "the proxy may not write to its broker"

    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys == ["a", "b", "c"]


def test_a_timeout_halves_the_requests_that_follow(bench_with: Callable[..., Bench]) -> None:
    """A slow link still moves: after each time-out the next batch is half as large."""
    bench = bench_with(batch_size=16)
    bench.post(*numbered("e", 40))
    bench.backend.otherwise = lambda r: LATE if len(r.records) > 3 else accept(r)
    bench.live(3600)

    sizes = [len(batch) for batch in bench.backend.sent if len(batch) > 1]
    # Of the first half, one event went ahead as a probe; then of the half of what was left.
    assert sizes[:3] == [16, 7, 2]
    assert bench.counts == all_delivered(40)
    assert len(bench.backend.requests) < 60


def test_requests_grow_again_once_the_link_is_fast(bench_with: Callable[..., Bench]) -> None:
    """The full size comes back step by step, each proven by a request of the size before."""
    bench = bench_with(batch_size=16)
    bench.post(*numbered("e", 200))
    bench.backend.script(LATE, LATE)
    bench.flush_all()
    bench.wait()
    bench.flush_all()
    bench.wait()
    bench.flush_all()

    sizes = [len(batch) for batch in bench.backend.sent]
    # What was sent before is only cut, never joined with others: the two halves of 16.
    assert sizes[:9] == [16, 1, 1, 4, 3, 5, 3, 6, 7]
    assert max(sizes[3:]) == 16
    assert bench.counts == all_delivered(200)


def test_a_refused_connection_does_not_shrink_the_requests(
    bench_with: Callable[..., Bench],
) -> None:
    """Only a time-out says that a request may have been too large for the link."""
    bench = bench_with(batch_size=16)
    bench.post(*numbered("e", 40))
    bench.backend.script(DOWN)
    bench.flush_all()
    bench.wait()
    bench.flush_all()

    # What was sent before is only cut, never joined with others.
    assert [len(batch) for batch in bench.backend.sent] == [16, 1, 15, 16, 8]


def test_an_interrupted_pass_changes_nothing(bench: Bench) -> None:
    """Where we broke it off ourselves, nothing is counted, paused or given up."""
    bench.post("a", "b")
    bench.backend.script(Interrupted())
    done = bench.flush()

    assert done.delivered == 0
    assert bench.events_link == Link("events")
    assert bench.counts == {"pending": 2, "dead": 0, "delivered": 0, "refused": 0}

    bench.flush_all()
    assert bench.backend.stored_keys == ["a", "b"]


def test_what_the_outbox_could_not_take_down_is_written_before_more_is_sent(
    bench: Bench,
) -> None:
    """A full disk does not make the worker send the same events over and over."""
    bench.post("a", "b")
    with sqlite3.connect(bench.path) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    connection.close()
    for _ in range(5):
        with pytest.raises(OutboxUnavailable):
            bench.flush()
    with sqlite3.connect(bench.path) as connection:
        connection.execute("DROP TRIGGER full")
    connection.close()
    bench.post("c")
    bench.flush_all()

    assert bench.backend.sent == [["a", "b"], ["c"]]
    assert bench.counts == all_delivered(3)


def test_a_backend_that_stores_nothing_is_an_outage(bench: Bench) -> None:
    """A proxy that has lost its broker says "try again" of every record: nobody pays for that."""
    bench.post(*numbered("e", 5))
    bench.backend.otherwise = each(lambda _: Retriable("50003: no leader"))
    for _ in range(100):
        bench.flush_all()
        bench.wait()
    assert bench.counts == {"pending": 5, "dead": 0, "delivered": 0, "refused": 0}

    bench.backend.otherwise = accept
    bench.flush_all()
    assert bench.backend.stored_keys == numbered("e", 5)
    assert bench.counts == all_delivered(5)


@pytest.mark.parametrize("backlog", [10, 600, 3000])
def test_a_stream_of_which_nothing_is_stored_does_not_stop_the_others(
    bench: Bench, backlog: int
) -> None:
    """A partition without a leader fails its own streams only, however much of them is in front."""
    bench.post(*numbered("s", backlog), meter_id="slow")
    bench.post("f0", meter_id="fast")
    bench.backend.otherwise = each(
        lambda value: Retriable("no leader") if value["meter_id"] == "slow" else Delivered()
    )
    bench.flush_all()
    assert bench.backend.stored_keys == ["f0"]

    for number in range(1, 5):
        bench.restarted()
        bench.wait()
        bench.post(f"f{number}", meter_id="fast")
        bench.flush_all()
        assert bench.backend.stored_keys == numbered("f", number + 1)
    assert bench.dead == []

    bench.backend.otherwise = accept
    bench.live(2 * LONGEST)
    assert bench.backend.stored_keys == [*numbered("f", 5), *numbered("s", backlog)]


def test_a_tenant_in_trouble_does_not_fill_the_view(bench_with: Callable[..., Bench]) -> None:
    """Whoever stands behind more of its events than one pass looks at is delivered all the same."""
    bench = bench_with(batch_size=1)
    bench.post(*numbered("e", 30), tenant_id="bad")
    bench.post("good", tenant_id="good")

    def fail_the_bad(request: Request) -> Outcome:
        return DOWN if request.tenant_id == "bad" else accept(request)

    bench.backend.otherwise = fail_the_bad
    for _ in range(5):
        bench.flush_all()
        bench.wait()
    assert bench.backend.stored_keys == ["good"]
    assert bench.counts == {"pending": 30, "dead": 0, "delivered": 1, "refused": 0}


def test_told_to_it_tries_again_before_the_pause_is_over(bench: Bench) -> None:
    """An operator who knows better ends a pause that is our own."""
    bench.post("a")
    bench.backend.script(DOWN)
    bench.flush_all()
    bench.flusher.try_now()
    assert bench.flush().delivered == 1


def test_told_to_it_waits_as_long_as_the_backend_asked_and_no_longer(bench: Bench) -> None:
    """Of a pause, what we have added to the Retry-After is left out."""
    bench.post("a")
    bench.backend.script(DOWN, DOWN, DOWN, DOWN, DOWN, Unavailable("HTTP 429", 5.0))
    for _ in range(5):
        bench.flush_all()
        bench.wait()
    bench.flush_all()
    asked_until = bench.clock.steady() + 5000
    bench.flusher.try_now()
    assert bench.flush().next_at == asked_until
    bench.clock.advance_to(asked_until)
    assert bench.flush().delivered == 1


def test_told_to_it_keeps_a_pause_that_an_earlier_process_has_set(bench: Bench) -> None:
    """Nobody knows any more whether the backend asked for it."""
    bench.post("a")
    bench.backend.script(Unavailable("HTTP 429", 50.0))
    bench.flush_all()
    bench.restarted().try_now()
    assert bench.flush().delivered == 0
    bench.wait()
    assert bench.flush().delivered == 1
