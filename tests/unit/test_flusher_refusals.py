from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meter_worker.backend import (
    Refused,
    Rejected,
)
from tests.fakes import accept, each, refuse_where, reject_where
from tests.unit.flusher_bench import (
    BASE,
    LONGEST,
    all_delivered,
    called,
    named,
    numbered,
    of_tenant,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.flusher_bench import Bench


def poisoned(bench: Bench, good: int, bad: int) -> None:
    """Record good events with one bad event among them."""
    bench.post(*numbered("g", bad), "bad", *numbered("g", good - bad, start=bad))


@pytest.mark.parametrize("place", [0, 1, 250, 498, 499])
def test_a_bad_event_is_found_alone_and_its_neighbours_are_delivered_in_order(
    bench: Bench, place: int
) -> None:
    """A refused batch is halved until the bad event stands alone, in a few requests."""
    poisoned(bench, 499, place)
    bench.backend.otherwise = refuse_where(named("bad"))
    bench.flush_all()
    bench.post("later")
    bench.wait()
    bench.flush_all()

    assert bench.backend.stored_keys == [*numbered("g", 499), "later"]
    assert bench.dead == [("bad", "rejected")]
    assert bench.counts == {"pending": 0, "dead": 1, "delivered": 500, "refused": 0}
    # Twice log2(500) to find it, once more to prove it, and the event that came later.
    assert len(bench.backend.requests) <= 22


def test_a_dead_letter_needs_two_lone_refusals_and_a_delivery_between(bench: Bench) -> None:
    """Refused alone, another one accepted, refused alone again: no sooner, and with its words."""
    bench.post("bad")
    bench.backend.otherwise = refuse_where(named("bad"))
    for _ in range(20):
        bench.flush_all()
        bench.wait()
    assert bench.counts == {"pending": 1, "dead": 0, "delivered": 0, "refused": 1}

    bench.post("good")
    bench.flush_all()
    assert bench.backend.sent[-2:] == [["good"], ["bad"]]
    [letter] = bench.letters
    assert letter == letter._replace(
        seq=1,
        idempotency_key="bad",
        reason="rejected",
        detail="no",
        attempts=2,
        dead_at=bench.clock.now(),
    )
    assert bench.counts == {"pending": 0, "dead": 1, "delivered": 1, "refused": 0}


def test_an_event_accepted_before_the_refusal_proves_nothing(bench: Bench) -> None:
    """Only what is accepted after the lone refusal shows that it is not the backend."""
    bench.post("good", "bad")
    bench.backend.otherwise = refuse_where(named("bad"))
    for _ in range(5):
        bench.flush_all()
        bench.wait()

    assert bench.counts == {"pending": 1, "dead": 0, "delivered": 1, "refused": 1}


def test_the_event_that_proves_it_may_be_the_one_behind_it(bench: Bench) -> None:
    """The next event of the same stream is accepted, and the first one asked about again."""
    bench.post("bad", "behind")
    bench.backend.otherwise = refuse_where(named("bad"))
    bench.flush_all()

    assert bench.backend.sent == [["bad", "behind"], ["bad"], ["behind"], ["bad"]]
    assert bench.dead == [("bad", "rejected")]


def test_an_event_that_is_accepted_when_asked_about_again_is_delivered(bench: Bench) -> None:
    """A refusal that was not for good leaves no trace."""
    bench.post("odd", "behind")
    bench.backend.script(Refused("rejected", "no"), Refused("rejected", "no"))
    bench.flush_all()

    assert bench.backend.sent == [["odd", "behind"], ["odd"], ["behind"], ["odd"]]
    assert bench.backend.stored_keys == ["behind", "odd"]
    assert bench.counts == all_delivered(2)


def test_the_proof_survives_a_restart(bench: Bench) -> None:
    """What was refused alone before the restart is known after it."""
    bench.post("bad")
    bench.backend.otherwise = refuse_where(named("bad"))
    bench.flush_all()
    bench.restarted()
    bench.post("good")
    bench.wait()
    bench.flush()
    bench.restarted()
    bench.flush_all()

    assert bench.dead == [("bad", "rejected")]
    assert bench.backend.stored_keys == ["good"]


def test_a_single_event_that_is_too_large_is_proven_likewise(bench: Bench) -> None:
    """A 413 halves the batch, and makes a dead letter only of an event alone, after proof."""
    poisoned(bench, 20, 10)
    bench.backend.otherwise = refuse_where(named("bad"), "too_large")
    bench.flush_all()

    assert bench.dead == [("bad", "too_large")]
    assert bench.backend.stored_keys == numbered("g", 20)


def test_a_body_limit_below_the_batch_size_blames_nobody(bench: Bench) -> None:
    """Where only large bodies are refused, everything arrives in smaller ones, in order."""
    bench.post(*numbered("e", 100))
    bench.backend.otherwise = lambda r: (
        Refused("too_large", "HTTP 413") if len(r.records) > 30 else accept(r)
    )
    bench.flush_all()

    assert bench.backend.stored_keys == numbered("e", 100)
    assert bench.counts == all_delivered(100)


def test_a_record_rejected_beside_stored_ones_is_asked_about_alone(bench: Bench) -> None:
    """Rejected in company is not proof enough: it takes two lone refusals as well."""
    bench.post("g1", "bad", "g2")
    bench.backend.otherwise = reject_where(named("bad"))
    bench.flush_all()
    assert bench.backend.sent == [["g1", "bad", "g2"], ["bad"]]
    assert bench.counts == {"pending": 1, "dead": 0, "delivered": 2, "refused": 1}

    bench.post("g3")
    bench.wait()
    bench.flush_all()
    # The oldest in doubt is asked about first, so that it keeps its place should it be accepted.
    assert bench.backend.sent[2:] == [["bad"], ["g3"], ["bad"]]
    assert bench.dead == [("bad", "rejected")]
    assert bench.backend.stored_keys == ["g1", "g2", "g3"]


refuses_all: list[Any] = [
    pytest.param(Refused("rejected", "HTTP 422: bad deploy"), id="request by request"),
    pytest.param(each(lambda _: Rejected("rejected", "bad deploy")), id="record by record"),
    pytest.param(Refused("too_large", "HTTP 413: limit 0"), id="as too large"),
]


@pytest.mark.parametrize("answer", refuses_all)
def test_a_backend_that_refuses_everything_makes_no_dead_letter(bench: Bench, answer: Any) -> None:
    """It is an outage too: waited out with backoff, then everything is delivered."""
    bench.post(*numbered("e", 500))
    bench.post(*numbered("f", 500), meter_id="m2")
    bench.backend.otherwise = answer
    bench.flush_all()
    assert len(bench.backend.requests) < 30

    bench.live(12 * 3600, step=LONGEST / 2)
    assert bench.dead == []
    assert bench.counts["delivered"] == 0
    # At most a few for each longest wait.
    assert len(bench.backend.requests) < 30 + 20 * 12 * 12
    assert bench.events_link.failures > 50
    assert "deploy" in str(bench.events_link.last_error) or "413" in str(
        bench.events_link.last_error
    )

    bench.backend.otherwise = accept
    bench.live(2 * LONGEST)
    assert bench.counts == all_delivered(1000)


def test_a_backend_that_refuses_everything_is_asked_about_a_few_events_for_each_wait(
    bench: Bench,
) -> None:
    """Once it is taken for the backend, each wait costs a few requests of one event."""
    for meter in numbered("m", 10):
        bench.post(*numbered(f"{meter}-", 20), meter_id=meter)
    bench.backend.otherwise = Refused("rejected", "bad deploy")
    bench.flush_all()
    assert (len(bench.backend.requests) <= 30, bench.counts["refused"] <= 20) == (True, True)
    for most in (2, 4, 8, 16, 16):
        before = len(bench.backend.requests)
        bench.wait()
        bench.flush_all()
        # A refused event is asked about once more, then others, each alone.
        assert [len(sent) for sent in bench.backend.sent[before:]] == [1] * (1 + most)


@pytest.mark.parametrize("answer", refuses_all)
def test_restarts_do_not_condemn_what_a_backend_that_refuses_everything_refused(
    bench: Bench, answer: Any
) -> None:
    """However often the worker starts anew meanwhile."""
    bench.post(*numbered("e", 100))
    bench.backend.otherwise = answer
    for _ in range(30):
        bench.restarted()
        bench.flush_all()
        bench.clock.advance(LONGEST / 3)
    assert bench.dead == []

    bench.backend.otherwise = accept
    bench.live(2 * LONGEST)
    assert bench.counts == all_delivered(100)


def test_after_a_backend_that_refused_everything_the_really_bad_one_is_found(
    bench: Bench,
) -> None:
    """Each refused event is asked about in its turn, so that a bad one hides none of the others."""
    bench.post("bad", "good")
    bench.backend.otherwise = Refused("rejected", "bad deploy")
    bench.live(2 * LONGEST)
    assert bench.counts == {"pending": 2, "dead": 0, "delivered": 0, "refused": 2}

    bench.backend.otherwise = refuse_where(named("bad"))
    bench.live(4 * LONGEST)
    assert bench.backend.stored_keys == ["good"]
    assert bench.dead == [("bad", "rejected")]


@pytest.mark.parametrize("backlog", [30, 3000])
def test_refusals_of_one_tenant_do_not_hold_up_another(bench: Bench, backlog: int) -> None:
    """A tenant of whom everything is refused stands in nobody's way, however much it has posted."""
    bench.post(*numbered("a", backlog), tenant_id="a")
    bench.post("b0", tenant_id="b")
    bench.backend.otherwise = refuse_where(of_tenant("a"))
    bench.flush_all()
    assert bench.backend.stored_keys == ["b0"]

    for number in range(1, 10):
        bench.live(60)
        bench.post(f"b{number}", tenant_id="b")
        bench.flush_all()
        assert bench.backend.stored_keys == numbered("b", number + 1)


def test_refusals_of_one_meter_do_not_hold_up_the_others_of_its_device(bench: Bench) -> None:
    """Of a device, too, only the stream of the refused events waits."""
    for number in range(40):
        bench.post(f"bad{number}", meter_id="unknown")
    for number in range(40):
        bench.post(f"g{number}", meter_id="known")
    bench.backend.otherwise = refuse_where(called("bad"))
    bench.flush_all()

    assert bench.backend.stored_keys == numbered("g", 40)
    # Each of those that were accepted meanwhile is the proof of two that were not.
    assert bench.dead == [(key, "rejected") for key in numbered("bad", 40)]


def test_a_held_stream_goes_on_as_soon_as_the_doubts_are_over(bench: Bench) -> None:
    """It was held for want of a success; once there is one elsewhere, it waits no longer."""
    bench.post(*numbered("bad", 4), "last", meter_id="unknown")
    bench.backend.otherwise = refuse_where(called("bad"))
    bench.flush_all()
    assert bench.backend.sent[-2:] == [["bad0"], ["bad1"]]

    bench.post("g0")
    bench.flush_all()
    assert bench.dead == [("bad0", "rejected"), ("bad1", "rejected")]
    [g0] = [place for place, sent in enumerate(bench.backend.sent) if sent == ["g0"]]
    assert bench.backend.sent[g0 : g0 + 3] == [["g0"], ["bad0"], ["bad1"]]
    assert bench.backend.sent[-2:] == [["bad2"], ["bad3"]]

    bench.post("g1")
    bench.flush_all()
    assert bench.dead == [(key, "rejected") for key in numbered("bad", 4)]
    assert bench.backend.stored_keys == ["g0", "g1", "last"]


def test_a_run_of_bad_events_is_soon_passed(bench: Bench) -> None:
    """Good events behind many bad ones of their own stream wait for minutes, not for hours."""
    bench.post(*numbered("bad", 50), *numbered("g", 50))
    bench.backend.otherwise = refuse_where(called("bad"))
    bench.live(32 * BASE)

    assert bench.backend.stored_keys == numbered("g", 50)
    assert bench.dead == [(key, "rejected") for key in numbered("bad", 50)]
    assert bench.counts == {"pending": 0, "dead": 50, "delivered": 50, "refused": 0}


def test_while_in_doubt_the_events_of_a_stream_stay_in_order(
    bench_with: Callable[..., Bench],
) -> None:
    """Events passed over are not overtaken by later ones of their stream, not even in a pass."""
    bench = bench_with(batch_size=8)
    for number in range(16):
        bench.post(f"m{number}", meter_id="m")
        if number in (5, 11):
            bench.post(f"g{number}", meter_id="g")
    bench.backend.otherwise = refuse_where(named("m0", "m1"))
    bench.live(LONGEST)

    stored = bench.backend.stored_keys
    assert [key for key in stored if key.startswith("m")] == numbered("m", 14, start=2)
    assert sorted(bench.dead) == [("m0", "rejected"), ("m1", "rejected")]


def test_many_events_refused_in_company_are_all_judged(bench: Bench) -> None:
    """Rejected beside stored ones, each is asked about alone, a bounded number in each pass."""
    bench.post(*[key for n in range(60) for key in (f"bad{n}", f"g{n}")])
    bench.backend.otherwise = reject_where(called("bad"))
    bench.flush_all()
    bench.post("after")
    bench.wait()
    bench.flush_all()

    assert bench.backend.stored_keys == [*numbered("g", 60), "after"]
    assert bench.dead == [(key, "rejected") for key in numbered("bad", 60)]
    # One of them once more after the wait, before the event that came later.
    assert len(bench.backend.requests) == 1 + 60 + (1 + 1) + 60


def test_a_refused_event_is_asked_about_again_by_a_process_that_knows_of_no_doubts(
    bench: Bench,
) -> None:
    """One that died before it could note them leaves nobody waiting for ever."""
    bench.post("odd")
    bench.backend.script(Refused("rejected", "no"))
    for call in bench.flusher.start() + bench.flusher.start():
        bench.flusher.finish(call, call.make())
    for call in bench.flusher.start():
        bench.flusher.finish(call, call.make())
    assert bench.counts["refused"] == 1
    assert bench.events_link.failures == 0

    bench.restarted()
    bench.live(2 * LONGEST)
    assert bench.backend.stored_keys == ["odd"]


def test_a_refused_batch_holds_up_no_good_stream_in_it(bench: Bench) -> None:
    """Halving tells the streams apart first: those that are accepted are the proof at once."""
    bench.post(*numbered("bad", 30), meter_id="bad")
    bench.post(*numbered("good", 2), meter_id="good")
    bench.backend.otherwise = refuse_where(called("bad"))
    bench.flush_all()
    assert bench.backend.stored_keys == numbered("good", 2)
    bench.post("later", meter_id="good")
    bench.flush_all()
    assert bench.backend.stored_keys == [*numbered("good", 2), "later"]


def test_a_bad_event_among_many_streams_is_found_in_a_few_requests(bench: Bench) -> None:
    """However they are mixed, each stream arrives in its order."""
    for number in range(20):
        for meter in range(10):
            bench.post(
                "bad" if (number, meter) == (7, 3) else f"{meter}-{number}", meter_id=f"m{meter}"
            )
    bench.backend.otherwise = refuse_where(named("bad"))
    bench.flush_all()
    assert bench.dead == [("bad", "rejected")]
    assert len(bench.backend.requests) <= 20
    for meter in range(10):
        stored = [key for key in bench.backend.stored_keys if key.startswith(f"{meter}-")]
        assert stored == [f"{meter}-{n}" for n in range(20) if (n, meter) != (7, 3)]
