from __future__ import annotations

import json
import random
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import OutboxUnavailable
from meter_lib.outbox import Account, Link, Selector
from meter_lib.usage import usage_event
from meter_worker.accounts import CustomerAccounts
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Rejected,
    Retriable,
    Unavailable,
    Undecided,
)
from meter_worker.flusher import Flusher
from meter_worker.links import LinkKeeper
from meter_worker.retry_policy import RetryPolicy
from tests.fakes import (
    ManualClock,
    ScriptedAccounts,
    ScriptedBackend,
    accept,
    each,
    keys,
    refuse_where,
    reject_where,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meter_lib.outbox import DeadLetter
    from meter_worker.backend import AccountAnswer, Outcome, Request, Verdict
    from meter_worker.flusher import Pass

MIB = 1024 * 1024
BASE = 10.0
LONGEST = 300.0
DOWN = Unavailable("HTTP 503: down")
LATE = Unavailable("no whole answer within 130 s", timed_out=True)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same waits in every run."""
    state = random.getstate()
    random.seed(7)
    yield
    random.setstate(state)


class Bench:
    """A flusher over a real outbox, with a backend and a clock in hand."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.path = str(path)
        self.outbox = SqliteOutbox(self.path, max_bytes=64 * MIB)
        self.clock = ManualClock()
        self.backend = ScriptedBackend()
        self.accounts = ScriptedAccounts()
        self.limits = {"batch_size": 500, "batch_bytes": 1_000_000, "max_attempts": 10} | limits
        self.flusher = self.restarted()

    def restarted(self) -> Flusher:
        """Another flusher over the same outbox, as after a restart of the worker."""
        policy = RetryPolicy(base_seconds=BASE, max_seconds=LONGEST)

        def link(name: str) -> LinkKeeper:
            return LinkKeeper(self.outbox, name, policy, longest_wait_seconds=LONGEST)

        accounts = CustomerAccounts(
            self.outbox,
            self.accounts,
            link("accounts"),
            policy,
            ttl_seconds=3600,
            clock=self.clock,
        )
        self.flusher = Flusher(
            self.outbox, self.backend, accounts, link("events"), policy, self.clock, **self.limits
        )
        return self.flusher

    def post(self, *posted: str, **arguments: Any) -> None:
        """Record events under these keys, all of one tenant, device and meter."""
        given = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 1} | arguments
        events = [usage_event(**given, idempotency_key=key) for key in posted]
        self.outbox.append(events, now=self.clock.now())

    def flush(self) -> Pass:
        """Make one pass."""
        return self.flusher.flush_once()

    def flush_all(self) -> int:
        """Make passes at this instant until there is nothing more to do; return how many."""
        for passes in range(1, 10_000):
            if not self.flush().progressed:
                return passes
        raise AssertionError("the flusher finds work for ever")

    def wait(self) -> None:
        """Let the longest possible wait pass."""
        self.clock.advance(LONGEST)

    def live(self, seconds: float, *, step: float = 1.0) -> None:
        """Let time pass as the loop does: a look every `step` seconds."""
        ends_at = self.clock.steady() + seconds * 1000
        while self.clock.steady() < ends_at:
            self.flush_all()
            self.clock.advance(step)

    @property
    def counts(self) -> dict[str, int]:
        """How many events there are of each kind."""
        status = self.outbox.status()
        return {
            "pending": status.pending,
            "dead": status.dead,
            "delivered": status.delivered,
            "refused": status.refused,
        }

    @property
    def dead(self) -> list[tuple[str, str]]:
        """Key and reason of each dead letter."""
        return [(letter.idempotency_key, letter.reason) for letter in self.letters]

    @property
    def letters(self) -> list[DeadLetter]:
        """The dead letters."""
        return list(self.outbox.dead_letters(Selector()))

    @property
    def events_link(self) -> Link:
        """How it stands with the backend."""
        return self.outbox.link("events")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench with the usual limits."""
    made = Bench(tmp_path / "outbox.db")
    yield made
    made.outbox.close()


@pytest.fixture
def bench_with(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A maker of benches with other limits."""
    made: list[Bench] = []

    def make(**limits: int) -> Bench:
        made.append(Bench(tmp_path / f"outbox-{len(made)}.db", **limits))
        return made[-1]

    yield make
    for one in made:
        one.outbox.close()


def numbered(name: str, count: int, start: int = 0) -> list[str]:
    """Make keys name0, name1, ..."""
    return [f"{name}{number}" for number in range(start, start + count)]


def named(*names: str) -> Callable[[dict[str, Any]], bool]:
    """Match values whose key is one of these."""
    return lambda value: value["idempotency_key"] in names


def called(prefix: str) -> Callable[[dict[str, Any]], bool]:
    """Match values whose key begins like this."""
    return lambda value: value["idempotency_key"].startswith(prefix)


def of_tenant(tenant: str) -> Callable[[dict[str, Any]], bool]:
    """Match values of this tenant."""
    return lambda value: value["tenant_id"] == tenant


def all_delivered(count: int) -> dict[str, int]:
    """The counts of an outbox that has delivered all it had."""
    return {"pending": 0, "dead": 0, "delivered": count, "refused": 0}


# Deliveries


def test_what_is_pending_is_delivered_and_counted_record_by_record(bench: Bench) -> None:
    """One pass sends what is there and counts each event that the backend says is stored."""
    bench.post("a", "b", "c")
    done = bench.flush()

    assert (done.delivered, done.progressed) == (3, True)
    assert bench.backend.sent == [["a", "b", "c"]]
    assert bench.counts == all_delivered(3)
    assert bench.flush() == (0, False, None)


def test_a_request_is_of_one_tenant_and_device(bench: Bench) -> None:
    """Events of several tenants and devices travel in requests of their own, each in order."""
    for number in range(3):
        for tenant, device in (("t1", "d1"), ("t2", "d1"), ("t1", "d2")):
            for meter in ("m1", "m2"):
                key = f"{tenant}{device}{meter}-{number}"
                bench.post(key, tenant_id=tenant, device_id=device, meter_id=meter)
    bench.flush()

    assert [(r.tenant_id, r.device_id, len(r.records)) for r in bench.backend.requests] == [
        ("t1", "d1", 6),
        ("t1", "d2", 6),
        ("t2", "d1", 6),
    ]
    assert bench.backend.sent[1] == [
        f"t1d2{meter}-{number}" for number in range(3) for meter in ("m1", "m2")
    ]


def test_a_request_is_bounded_by_count(bench_with: Callable[..., Bench]) -> None:
    """No request holds more records than the batch size, and none is lost at the seams."""
    bench = bench_with(batch_size=4)
    bench.post(*numbered("e", 10))
    bench.flush_all()

    assert [len(batch) for batch in bench.backend.sent] == [4, 4, 2]
    assert bench.backend.stored_keys == numbered("e", 10)


def test_a_request_is_bounded_by_bytes_unless_one_event_alone_is_larger(
    bench_with: Callable[..., Bench],
) -> None:
    """A body stays within the limit in UTF-8; an event that is larger by itself goes alone."""
    bench = bench_with(batch_bytes=2_000)
    bench.post("small-1", "small-2")
    bench.post("large", metadata={"x": "ä" * 3000})
    bench.post("small-3", metadata={"x": "ä" * 400})
    bench.post("small-4", metadata={"x": "ä" * 400})
    bench.post("small-5")
    bench.flush_all()
    sizes = [len(f'{{"records":[{",".join(r.records)}]}}'.encode()) for r in bench.backend.requests]

    assert bench.backend.sent == [
        ["small-1", "small-2"],
        ["large"],
        ["small-3"],
        ["small-4", "small-5"],
    ]
    assert [size <= 2_000 for size in sizes] == [True, False, True, True]


def test_a_pass_looks_at_a_bounded_part_of_the_backlog(bench_with: Callable[..., Bench]) -> None:
    """However much is pending, a pass holds a few requests' worth of it, and says there is more."""
    bench = bench_with(batch_size=5)
    bench.post(*numbered("e", 100))
    done = bench.flush()

    assert (done.delivered, done.progressed) == (20, True)


def test_the_value_keeps_when_it_happened_and_its_place_in_the_outbox(bench: Bench) -> None:
    """Delivered a week late, an event says its own time, key, outbox and number."""
    bench.post("first")
    bench.post("second", timestamp=1_700_000_000_123, metadata={"n": 1})
    happened = bench.clock.now()
    bench.clock.advance(7 * 86_400)
    bench.flush()

    common = {
        "customer_id": "customer of t",
        "outbox_id": bench.outbox.outbox_id,
        "meter_id": "m",
        "tenant_id": "t",
        "device_id": "d",
        "total_usage": 1,
    }
    assert bench.backend.stored == [
        common | {"idempotency_key": "first", "event_time": happened, "seq": 1, "metadata": {}},
        common
        | {
            "idempotency_key": "second",
            "event_time": 1_700_000_000_123,
            "seq": 2,
            "metadata": {"n": "1"},
        },
    ]


# Partial failures


def test_a_partial_failure_sends_only_the_failed_record_again(bench: Bench) -> None:
    """The records beside it are delivered once; only what failed is sent again."""
    bench.post("a", meter_id="m1")
    bench.post("b", meter_id="m2")
    bench.post("c", meter_id="m3")
    bench.backend.script(
        each(lambda value: Retriable("busy") if value["idempotency_key"] == "b" else Delivered())
    )
    bench.flush()
    bench.wait()
    bench.flush_all()

    assert bench.backend.sent == [["a", "b", "c"], ["b"]]
    assert bench.counts == all_delivered(3)


def test_a_retriable_verdict_holds_its_own_stream_only(bench: Bench) -> None:
    """Events behind it in its stream queue up in order; the streams beside it go on."""
    busy = each(lambda value: Retriable("busy") if value["meter_id"] == "slow" else Delivered())
    bench.post("s1", meter_id="slow")
    bench.post("f1", meter_id="fast")
    bench.backend.script(busy)
    bench.flush_all()
    bench.post("s2", meter_id="slow")
    bench.post("f2", meter_id="fast")
    bench.flush_all()

    assert bench.backend.sent == [["s1", "f1"], ["f2"]]

    bench.wait()
    bench.post("s3", meter_id="slow")
    bench.flush_all()

    assert bench.backend.stored_keys == ["f1", "f2", "s1", "s2", "s3"]


def test_a_stream_that_must_wait_is_not_overtaken_by_itself_in_the_same_pass(
    bench_with: Callable[..., Bench],
) -> None:
    """What is in the next requests of the same pass waits as well."""
    bench = bench_with(batch_size=2)
    bench.post(*numbered("e", 8))
    bench.backend.script(each(lambda _: Retriable("busy")))
    bench.flush_all()

    assert bench.backend.sent == [["e0", "e1"]]

    bench.wait()
    bench.flush_all()

    assert bench.backend.stored_keys == numbered("e", 8)


def test_retriable_verdicts_wait_longer_each_time(bench: Bench) -> None:
    """An event is not asked about again before its own backoff is over."""
    bench.post("e")
    bench.backend.otherwise = each(lambda _: Retriable("busy"))
    bench.flush_all()
    due_at = bench.flush().next_at

    assert due_at is not None
    assert bench.clock.now() < due_at <= bench.clock.now() + 1000 * BASE

    bench.clock.advance_to(due_at - 1)
    bench.flush_all()
    assert len(bench.backend.requests) == 1

    bench.clock.advance(0.001)
    bench.flush_all()
    assert len(bench.backend.requests) == 2


def test_an_event_is_given_up_after_as_many_retriable_verdicts_as_allowed(
    bench_with: Callable[..., Bench],
) -> None:
    """The last verdict makes it a dead letter with the backend's words; its stream goes on."""
    bench = bench_with(max_attempts=3)
    bench.post("bad", "next")
    bench.backend.otherwise = each(
        lambda v: Retriable("busy") if v["idempotency_key"] == "bad" else Delivered()
    )
    for _ in range(5):
        bench.flush_all()
        bench.wait()

    assert [sent.count("bad") for sent in bench.backend.sent] == [1, 1, 1]
    [letter] = bench.letters
    assert (letter.idempotency_key, letter.reason, letter.detail) == (
        "bad",
        "attempts_exhausted",
        "busy",
    )
    assert bench.counts == {"pending": 0, "dead": 1, "delivered": 1, "refused": 0}


# Outages


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
    assert bench.flush_all() == 1
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
    assert sizes[:4] == [16, 8, 4, 2]
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
    assert sizes[:9] == [16, 1, 1, 4, 5, 6, 7, 8, 9]
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

    assert [len(batch) for batch in bench.backend.sent] == [16, 1, 16, 16, 7]


def test_an_interrupted_pass_changes_nothing(bench: Bench) -> None:
    """Where we broke it off ourselves, nothing is counted, paused or given up."""
    bench.post("a", "b")
    bench.backend.script(Interrupted())
    done = bench.flush()

    assert (done.delivered, done.progressed) == (0, False)
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


# Refusals


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
        attempts=0,
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
    assert bench.backend.sent[2:] == [["g3"], ["bad"]]
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
    assert bench.dead == [("bad0", "rejected"), ("bad1", "rejected")]


def test_a_held_stream_goes_on_as_soon_as_the_doubts_are_over(bench: Bench) -> None:
    """It was held for want of a success; once there is one elsewhere, it waits no longer."""
    bench.post(*numbered("bad", 4), "last", meter_id="unknown")
    bench.backend.otherwise = refuse_where(called("bad"))
    bench.flush_all()
    assert bench.backend.sent[-2:] == [["bad0"], ["bad1"]]

    bench.post("g0")
    bench.flush_all()
    assert bench.dead == [("bad0", "rejected"), ("bad1", "rejected")]
    assert bench.backend.sent[-5:] == [["g0"], ["bad2"], ["bad3"], ["bad0"], ["bad1"]]

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
    assert len(bench.backend.requests) == 1 + 60 + 1 + 60


# Customer accounts


def test_the_customer_is_asked_once_and_kept_for_its_time(bench: Bench) -> None:
    """The answer is kept in the outbox, over restarts, until its time to live is over."""
    bench.post("a")
    bench.flush_all()
    bench.restarted()
    bench.clock.advance(3600)
    bench.post("b")
    bench.flush_all()
    assert bench.accounts.asked == ["t"]

    bench.clock.advance(0.001)
    bench.accounts.answers["t"] = AccountFound('"another"')
    bench.post("c")
    bench.flush_all()
    assert bench.accounts.asked == ["t", "t"]
    assert [value["customer_id"] for value in bench.backend.stored] == [
        "customer of t",
        "customer of t",
        "another",
    ]


def test_an_answer_from_the_future_is_asked_for_again(bench: Bench) -> None:
    """A clock that was set back does not make an old answer last for years."""
    bench.post("a")
    bench.flush_all()
    bench.clock.advance(-86_400)
    bench.restarted()
    bench.post("b")
    bench.flush_all()

    assert bench.accounts.asked == ["t", "t"]


def test_an_unknown_tenant_waits_and_holds_up_no_other(bench: Bench) -> None:
    """Only its own events wait, in order, until the account is there."""
    bench.accounts.answers["new"] = AccountUnknown("HTTP 404: no account")
    bench.post("n1", tenant_id="new")
    bench.post("t1")
    bench.flush_all()
    bench.post("n2", tenant_id="new", meter_id="other")
    bench.post("t2")
    bench.flush_all()
    assert bench.backend.stored_keys == ["t1", "t2"]
    # However many streams it has: once for each wait.
    assert bench.accounts.asked == ["new", "t"]

    del bench.accounts.answers["new"]
    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys == ["t1", "t2", "n1", "n2"]
    assert bench.outbox.account("new") == Account('"customer of new"', bench.clock.now(), 0)


def test_an_unknown_tenants_events_are_given_up_after_as_many_answers_as_allowed(
    bench_with: Callable[..., Bench],
) -> None:
    """The accounts API has to say so again and again, at the pace of the backoff."""
    bench = bench_with(max_attempts=4)
    bench.accounts.answers["new"] = AccountUnknown("HTTP 404: no account")
    for number in range(6):
        bench.post(f"n{number}", tenant_id="new", meter_id=f"m{number}")
    for asked in range(1, 4):
        bench.flush_all()
        assert (len(bench.accounts.asked), bench.dead) == (asked, [])
        bench.post(f"late{asked}", tenant_id="new", meter_id=f"late{asked}")
        bench.flush_all()
        assert len(bench.accounts.asked) == asked
        bench.wait()
    bench.flush_all()

    assert len(bench.accounts.asked) == 4
    assert sorted(bench.dead) == sorted(
        (key, "customer_not_found") for key in [*numbered("n", 6), "late1", "late2", "late3"]
    )
    assert {letter.detail for letter in bench.letters} == {"HTTP 404: no account"}
    assert bench.backend.requests == []


def test_a_tenant_given_up_begins_with_a_clean_slate(bench_with: Callable[..., Bench]) -> None:
    """Events posted later are not given up at once for what was answered before."""
    bench = bench_with(max_attempts=2)
    bench.accounts.answers["new"] = AccountUnknown("no")
    bench.post("n1", tenant_id="new")
    bench.flush_all()
    bench.wait()
    bench.flush_all()
    assert bench.dead == [("n1", "customer_not_found")]

    bench.post("n2", tenant_id="new")
    bench.flush_all()
    assert bench.dead == [("n1", "customer_not_found")]

    del bench.accounts.answers["new"]
    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys == ["n2"]


def test_an_outage_of_the_accounts_api_holds_only_who_must_be_asked_about(bench: Bench) -> None:
    """Tenants with a fresh answer are delivered; the others wait, and nobody is given up."""
    bench.post("known1")
    bench.flush_all()
    bench.accounts.answers |= {"t": DOWN, "x": DOWN, "y": DOWN}
    bench.post("x1", tenant_id="x")
    bench.post("y1", tenant_id="y")
    bench.post("known2")
    bench.flush_all()
    assert bench.backend.stored_keys == ["known1", "known2"]
    # One failure is enough to know: the next tenant is not asked about.
    assert bench.accounts.asked == ["t", "x"]

    for _ in range(30):
        bench.wait()
        bench.flush_all()
    assert bench.outbox.link("accounts").failures == 31
    assert bench.counts == {"pending": 2, "dead": 0, "delivered": 2, "refused": 0}
    assert bench.events_link.failures == 0

    bench.accounts.answers.clear()
    bench.wait()
    bench.flush_all()
    assert bench.backend.stored_keys == ["known1", "known2", "x1", "y1"]
    assert bench.outbox.link("accounts").failures == 0


@pytest.mark.parametrize("backlog", [3, 3000])
def test_a_tenant_that_cannot_be_asked_about_does_not_keep_others_from_being_asked(
    bench: Bench, backlog: int
) -> None:
    """Where the accounts API fails for one tenant only, it is asked about the others first."""
    bench.accounts.answers["bad"] = DOWN
    bench.post(*numbered("x", backlog), tenant_id="bad")
    bench.post("a", tenant_id="a")
    bench.post("b", tenant_id="b")
    bench.live(3 * BASE)
    assert bench.backend.stored_keys == ["a", "b"]

    bench.live(2 * LONGEST)
    bench.post("c", tenant_id="c")
    bench.live(LONGEST)
    assert bench.backend.stored_keys == ["a", "b", "c"]


def test_retry_after_of_the_accounts_api_is_honoured(bench: Bench) -> None:
    """It is not asked again before it wants to be, not even by a new process."""
    bench.accounts.answers["t"] = Unavailable("HTTP 429", retry_after_seconds=1800)
    bench.post("a")
    bench.flush_all()
    bench.clock.advance(1799)
    bench.restarted()
    bench.post("b", tenant_id="t2")
    bench.flush_all()
    assert bench.accounts.asked == ["t"]

    bench.accounts.answers.clear()
    bench.clock.advance(1.001)
    bench.flush_all()
    assert sorted(bench.backend.stored_keys) == ["a", "b"]


def test_refused_events_keep_their_place_while_the_accounts_api_is_away(bench: Bench) -> None:
    """What the backend refused is not put before its stream for want of a customer."""
    bench.post("bad")
    bench.backend.otherwise = refuse_where(named("bad"))
    bench.flush_all()
    bench.clock.advance(3601)
    bench.accounts.answers["t"] = DOWN
    bench.flush_all()
    assert bench.counts == {"pending": 1, "dead": 0, "delivered": 0, "refused": 1}

    bench.accounts.answers.clear()
    bench.post("good")
    bench.wait()
    bench.flush_all()
    assert bench.dead == [("bad", "rejected")]


def test_an_interrupted_question_changes_nothing(bench: Bench) -> None:
    """Where we broke off the look-up ourselves, nobody waits for it and nothing is written."""
    bench.accounts.interrupt()
    bench.post("a")
    bench.flush()

    assert bench.backend.requests == []
    assert bench.outbox.link("accounts") == Link("accounts")
    assert bench.outbox.account("t") is None
    assert bench.outbox.next_due_at() is None


# All of it together


class Weather:
    """A backend and an accounts API in all their moods, drawn from a seed."""

    def __init__(self, seed: int, bad: set[str]) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - no secret
        self.bad = bad
        self.refused_alone: dict[str, list[int]] = defaultdict(list)
        self.touched: set[str] = set()
        """Those that the backend itself has not accepted at some time, alone or in company."""
        self.accepted: list[str] = []
        self.clear = False

    def deliver(self, request: Request) -> Outcome:
        """Answer in the mood of the moment."""
        mood = (
            "karapace"
            if self.clear
            else self.draw.choice(
                ["good", "good", "good", "karapace", "strict", "down", "late", "busy", "denied"]
            )
        )
        sent = keys(request)
        if mood in ("down", "late"):
            return LATE if mood == "late" else DOWN
        if mood == "strict" and any(key in self.bad for key in sent):
            self.touched.update(sent)
            if len(sent) == 1:
                self.refused_alone[sent[0]].append(len(self.accepted))
            return Refused("rejected", "no")
        verdicts: list[Verdict] = []
        for value in values(request):
            key = value["idempotency_key"]
            if key in self.bad:
                verdicts.append(Rejected("rejected", "no"))
                if len(sent) == 1:
                    self.refused_alone[key].append(len(self.accepted))
            elif mood == "busy" and self.draw.random() < 0.2:
                verdicts.append(Retriable("busy"))
            elif mood == "denied" and self.draw.random() < 0.2:
                verdicts.append(Undecided())
            else:
                verdicts.append(Delivered())
                self.accepted.append(key)
                continue
            self.touched.add(key)
        return Answered(
            tuple(verdicts), DOWN if any(isinstance(v, Undecided) for v in verdicts) else None
        )

    def look_up(self, tenant_id: str) -> AccountAnswer:
        """Answer in the mood of the moment."""
        mood = "good" if self.clear else self.draw.choice(["good", "good", "down", "unknown"])
        if mood == "unknown":
            return AccountUnknown("no")
        return DOWN if mood == "down" else AccountFound(json.dumps(tenant_id))


@pytest.mark.parametrize("seed", range(12))
def test_in_any_weather_nothing_is_lost_reordered_or_wrongly_given_up(
    bench_with: Callable[..., Bench], seed: int
) -> None:
    """Whatever happens in whatever order, with restarts between, the promises hold."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    bench = bench_with(batch_size=draw.choice([3, 10, 50]), max_attempts=10_000)
    bad = {f"e{number}" for number in range(300) if draw.random() < draw.choice([0.0, 0.02, 0.3])}
    weather = Weather(seed, bad)
    bench.backend.otherwise = weather.deliver
    bench.accounts.look_up = weather.look_up  # type: ignore[method-assign]
    streams: dict[str, str] = {}
    for number in range(300):
        key, tenant, meter = f"e{number}", draw.choice("abc"), draw.choice("mn")
        streams[key] = tenant + meter
        bench.post(key, tenant_id=tenant, meter_id=meter)
        if draw.random() < 0.3:
            bench.flush()
            bench.clock.advance(draw.choice([0, 1, 30]))
            status = bench.outbox.status()
            assert status.accepted == status.pending + status.dead + status.delivered == number + 1
        if draw.random() < 0.05:
            bench.restarted()
    weather.clear = True
    bench.live(3600, step=20)
    bench.post("last", tenant_id="a", meter_id="m")
    bench.live(3600, step=20)

    assert bench.counts == {
        "pending": 0,
        "dead": len(bad),
        "delivered": 301 - len(bad),
        "refused": 0,
    }
    assert {key for key, _ in bench.dead} == bad
    for key in bad:
        first, *_, last = weather.refused_alone[key]
        assert first < last, "an event was accepted between two lone refusals"
    stored = bench.backend.stored_keys
    assert len(stored) == len(set(stored))
    first_arrivals = dict.fromkeys(key for batch in bench.backend.sent for key in batch)
    unblamed = [key for key in stored if key not in weather.touched]
    for stream in set(streams.values()):
        for arrived in (first_arrivals, unblamed):
            numbers = [int(key[1:]) for key in arrived if streams.get(key) == stream]
            assert numbers == sorted(numbers)
