from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from meter_worker.backend import Ambiguous, Refused, Retriable
from tests.fakes import accept, each, keys
from tests.unit.flusher_bench import DOWN, LONGEST, all_delivered, named, numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.backend import Outcome, Request
    from tests.unit.flusher_bench import Bench


def test_a_rate_limits_the_events_of_each_second(bench_with: Callable[..., Bench]) -> None:
    """A drain after an outage takes no more of the backend, or of a metered link, than allowed."""
    bench = bench_with(rate=20, batch_size=50)
    bench.post(*numbered("e", 100))
    stored = []
    for _ in range(50):
        bench.flush_all()
        stored.append(len(bench.backend.stored))
        bench.clock.advance(0.1)

    assert stored[0] <= 20
    # In no second (ten looks) more than its share, and the request that it began with.
    assert max(later - earlier for earlier, later in zip(stored, stored[10:], strict=False)) <= 25
    assert bench.counts == all_delivered(100)


def test_a_rate_does_not_make_a_request_of_each_event(bench_with: Callable[..., Bench]) -> None:
    """What may go in a quarter of a second goes together, and is known to go then."""
    bench = bench_with(rate=100, batch_size=50)
    bench.post(*numbered("e", 600))
    for _ in range(2000):
        bench.flush_all()
        if bench.counts == all_delivered(600):
            break
        bench.clock.advance(0.01)

    assert bench.backend.stored_keys == numbered("e", 600)
    assert [len(sent) for sent in bench.backend.sent] == [50, 50] + [25] * 20


def test_a_rate_below_one_event_a_second_still_moves(bench_with: Callable[..., Bench]) -> None:
    """One event goes, then none until it is time for the next."""
    bench = bench_with(rate=0.1)
    bench.post(*numbered("e", 3))
    bench.flush_all()
    due_at = bench.flush().next_at
    assert bench.backend.stored_keys == ["e0"]
    assert due_at == bench.clock.steady() + 10_000

    bench.clock.advance(10)
    bench.flush_all()
    assert bench.backend.stored_keys == ["e0", "e1"]


def test_a_limit_on_bodies_is_learnt_once(bench: Bench) -> None:
    """After a 413 no request is as large again: the backlog does not cost one for each batch."""
    bench.post(*numbered("e", 2000))
    bench.backend.otherwise = lambda r: (
        Refused("too_large", "HTTP 413") if len(r.records) > 100 else accept(r)
    )
    bench.flush_all()

    refused = [sent for sent in bench.backend.sent if len(sent) > 100]
    assert [len(sent) for sent in refused] == [500, 250, 125]
    assert bench.backend.stored_keys == numbered("e", 2000)


def test_an_answer_that_names_no_record_is_told_apart_by_sending_each_alone(bench: Bench) -> None:
    """From then on, too: every larger request would be stored twice."""
    bench.post(*numbered("e", 8))

    def one_entry_a_partition(request: Request) -> Outcome:
        if len(request.records) > 1:
            return Ambiguous("HTTP 200 with 1 entry for several records", lasting=True)
        return accept(request)

    bench.backend.otherwise = one_entry_a_partition
    bench.flush_all()
    bench.post(*numbered("f", 5))
    bench.flush_all()

    assert [len(sent) for sent in bench.backend.sent] == [8] + [1] * 13
    assert bench.backend.stored_keys == [*numbered("e", 8), *numbered("f", 5)]


def test_an_answer_that_names_no_record_for_once_leaves_the_next_requests_as_they_were(
    bench: Bench,
) -> None:
    """Only what it was about is sent one by one."""
    bench.post(*numbered("e", 4))
    bench.backend.script(Ambiguous("HTTP 200 with 3 entries for 4 records, one an error"))
    bench.flush_all()
    bench.post(*numbered("f", 5))
    bench.flush_all()
    assert [len(sent) for sent in bench.backend.sent] == [4, 1, 1, 1, 1, 5]


def test_an_event_that_is_asked_for_again_and_again_travels_alone(bench: Bench) -> None:
    """Three times in company, for a broker fails many at once; then it is its own witness."""
    bench.post("bad")
    for number in range(1, 12):
        bench.post(f"good{number}", meter_id="good")
        bench.backend.otherwise = each_busy
        bench.flush_all()
        bench.wait()
    company = [len(sent) for sent in bench.backend.sent if "bad" in sent]

    assert company[:3] == [2, 2, 2]
    assert company[3:] == [1] * 7
    assert bench.dead == [("bad", "attempts_exhausted")]


def each_busy(request: Request) -> Outcome:
    """As an answer: asks for the bad one again, and stores the others."""
    return each_but(request, "bad")


def each_but(request: Request, key: str) -> Outcome:
    """As an answer: asks for this one again, and stores the others."""
    from meter_worker.backend import Delivered  # noqa: PLC0415

    return each(lambda v: Retriable("busy") if named(key)(v) else Delivered())(request)


def test_a_lone_event_that_is_asked_for_again_for_ever_stays_pending(
    bench_with: Callable[..., Bench],
) -> None:
    """While nothing else is accepted, it may as well be the backend: nothing is given up."""
    bench = bench_with(max_attempts=3)
    bench.post("e")
    bench.backend.otherwise = each(lambda _: Retriable("no leader"))
    bench.live(24 * 3600, step=LONGEST / 2)
    assert bench.counts == {"pending": 1, "dead": 0, "delivered": 0, "refused": 1}

    bench.post("other", meter_id="m2")
    bench.backend.otherwise = lambda request: each_but(request, "e")
    bench.live(2 * LONGEST)
    assert bench.dead == [("e", "attempts_exhausted")]


@pytest.mark.parametrize(("outage", "most"), [(10, 1.0), (3000, 30.0)])
def test_devices_come_back_spread_over_a_part_of_the_outage(
    bench_with: Callable[..., Bench], outage: float, most: float
) -> None:
    """Each device draws its own wait, in proportion to the outage and bounded."""
    waits = []
    for _ in range(20):
        bench = bench_with(backoff_base=1e-3, backoff_max=1e-3, reconnect_spread=30)
        bench.post("e")
        bench.flush_all()
        bench.post("f")
        bench.backend.otherwise = DOWN
        for seconds in (outage, 0.0):
            [call] = bench.flusher.start()
            bench.flusher.finish(call, call.make())
            bench.clock.advance(seconds)
        waits.append((bench.events_link.next_attempt_at or 0) - bench.clock.steady())

    assert 0 <= min(waits) < max(waits) <= most * 1000 + 1
    assert max(waits) - min(waits) > most * 1000 / 2
    assert max(later - earlier for earlier, later in pairwise(sorted(waits))) < most * 1000 / 2


def test_the_spread_of_a_device_does_not_change_with_a_restart(
    bench_with: Callable[..., Bench],
) -> None:
    """A crash loop does not draw until it is first."""
    bench = bench_with(reconnect_spread=30)
    bench.post("e")
    bench.backend.otherwise = DOWN
    bench.flush_all()
    due_at = bench.events_link.next_attempt_at
    for _ in range(5):
        bench.restarted()
        bench.flush_all()
    assert bench.events_link.next_attempt_at == due_at
    assert keys(bench.backend.requests[0]) == ["e"]
    assert len(bench.backend.requests) == 1
