from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Answered,
    Delivered,
    Refused,
    Retriable,
    Unavailable,
)
from tests.fakes import accept, keys
from tests.unit.flusher_bench import DOWN, LATE, LONGEST, all_delivered, numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.backend import Request
    from meter_worker.flusher import Answer, Call
    from tests.unit.flusher_bench import Bench


class Network:
    """Calls that were started and are answered when a test says so, in any order."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.under_way: dict[str, Call] = {}
        self.start()

    def start(self) -> None:
        """Let the flusher start what it can; look-ups of accounts are answered at once."""
        while calls := self.bench.flusher.start():
            for call in calls:
                target: Any = call.make
                (asked,) = target.args
                if isinstance(asked, str):
                    self.bench.flusher.finish(call, self.bench.accounts.look_up(asked))
                else:
                    self.under_way[",".join(keys(asked))] = call

    def request(self, sent: str) -> Request:
        """The request with these keys."""
        target: Any = self.under_way[sent].make
        return target.args[0]  # type: ignore[no-any-return]

    def answer(self, sent: str, answer: Answer | None = None) -> None:
        """Answer the request with these keys, as accepted unless told otherwise, and go on."""
        request = self.request(sent)
        call = self.under_way.pop(sent)
        self.bench.flusher.finish(call, answer or accept(request))
        self.start()

    @property
    def sent(self) -> list[str]:
        """The keys of each request under way."""
        return list(self.under_way)


@pytest.fixture
def wide(bench_with: Callable[..., Bench]) -> Bench:
    """A bench with four requests at once, of two events each."""
    return bench_with(max_in_flight=4, batch_size=2)


def test_requests_of_several_streams_are_under_way_at_once(wide: Bench) -> None:
    """A device with several meters does not wait for one answer after the other."""
    for number in range(4):
        for meter in ("a", "b", "c"):
            wide.post(f"{meter}{number}", meter_id=meter)
    network = Network(wide)

    assert network.sent == ["a0,a1", "b0,b1", "c0,c1"]
    network.answer("b0,b1")
    assert network.sent == ["a0,a1", "c0,c1", "b2,b3"]
    for sent in ("c0,c1", "b2,b3", "a0,a1", "c2,c3", "a2,a3"):
        network.answer(sent)
    assert wide.counts == all_delivered(12)


def test_of_one_stream_only_one_request_is_under_way(wide: Bench) -> None:
    """Whatever overtakes what on the network, a stream arrives in its order."""
    wide.post(*numbered("e", 6))
    network = Network(wide)
    for sent in ("e0,e1", "e2,e3", "e4,e5"):
        assert network.sent == [sent]
        network.answer(sent)
    assert wide.counts == all_delivered(6)


def test_no_more_requests_are_under_way_than_allowed(bench_with: Callable[..., Bench]) -> None:
    """However many devices have something to deliver."""
    bench = bench_with(max_in_flight=3)
    for number in range(10):
        bench.post(f"e{number}", device_id=f"d{number}")
    network = Network(bench)
    assert network.sent == ["e0", "e1", "e2"]
    network.answer("e1")
    assert network.sent == ["e0", "e2", "e3"]


def test_a_device_with_little_to_send_sends_it_in_one_request(
    bench_with: Callable[..., Bench],
) -> None:
    """Its streams are shared out among requests only where one cannot hold them."""
    bench = bench_with(max_in_flight=4, batch_size=50)
    for meter in "abcde":
        bench.post(*numbered(meter, 3), meter_id=meter)
    assert [len(sent.split(",")) for sent in Network(bench).sent] == [15]


def test_what_was_sent_before_an_outage_does_not_end_it(wide: Bench) -> None:
    """Nor is its own failure another one; but what it delivers counts."""
    for meter in "abc":
        wide.post(*numbered(meter, 4), meter_id=meter)
    network = Network(wide)
    network.answer("a0,a1", Unavailable("HTTP 429", retry_after_seconds=600))
    paused_until = wide.events_link.next_attempt_at
    network.answer("b0,b1")
    network.answer("c0,c1", DOWN)

    link = wide.events_link
    assert (link.failures, link.next_attempt_at) == (1, paused_until)
    assert (wide.counts["delivered"], network.sent) == (2, [])


def test_a_longer_wait_that_is_asked_for_meanwhile_is_kept(wide: Bench) -> None:
    """The pause lasts as long as the last of those under way was told to wait."""
    for meter in "ab":
        wide.post(*numbered(meter, 4), meter_id=meter)
    network = Network(wide)
    network.answer("a0,a1", DOWN)
    network.answer("b0,b1", Unavailable("HTTP 503", retry_after_seconds=1800))
    assert wide.events_link.next_attempt_at == wide.clock.steady() + 1_800_000
    assert wide.events_link.failures == 1


def test_an_outage_is_probed_beside_requests_that_hang(wide: Bench) -> None:
    """A request without an answer holds its own streams only, not the end of the outage."""
    for meter in "abc":
        wide.post(*numbered(meter, 4), meter_id=meter)
    network = Network(wide)
    network.answer("a0,a1", DOWN)
    wide.wait()
    network.start()
    assert network.sent == ["b0,b1", "c0,c1", "a0"]
    network.answer("a0")
    assert network.sent == ["b0,b1", "c0,c1", "a1"]
    assert wide.events_link.failures == 0


def test_a_late_refusal_sends_no_second_probe_after_an_outage(wide: Bench) -> None:
    """Until the one is answered nobody else is risked, whatever is said of older requests."""
    for meter in "abc":
        wide.post(*numbered(meter, 4 - 3 * (meter == "b")), meter_id=meter)
    network = Network(wide)
    network.answer("a0,a1", DOWN)
    wide.wait()
    network.start()
    assert network.sent == ["b0", "c0,c1", "a0"]
    network.answer("b0", Refused("rejected", "no"))
    assert network.sent == ["c0,c1", "a0"]
    network.answer("c0,c1")
    assert network.sent == ["a0"]
    network.answer("a0")
    assert wide.events_link.failures == 0
    while network.sent:
        network.answer(network.sent[0])
    assert wide.counts == all_delivered(9)


def test_a_tenant_whose_requests_hang_leaves_room_for_the_others(wide: Bench) -> None:
    """After it has failed, one of its requests is under way at a time, whatever it has to send."""
    wide.post("good", tenant_id="good")
    wide.flush_all()
    for meter in "abcd":
        wide.post(*numbered(meter, 9), meter_id=meter, tenant_id="slow")
    network = Network(wide)
    for sent in list(network.sent):
        network.answer(sent, LATE)
    wide.post("good0", tenant_id="good")
    wide.wait()
    network.start()
    assert network.sent == ["good0"]
    network.answer("good0")
    assert len(network.sent) == 1
    wide.post("good1", tenant_id="good")
    network.start()
    assert network.sent[1:] == ["good1"]


def test_what_was_accepted_before_a_refusal_is_no_proof_though_it_is_answered_later(
    wide: Bench,
) -> None:
    """Only what was sent after the refusal shows that the backend still accepts anything."""
    wide.post("bad", meter_id="a")
    wide.post("b0", meter_id="b", device_id="d2")
    network = Network(wide)
    assert network.sent == ["bad", "b0"]
    network.answer("bad", Refused("rejected", "no"))
    network.answer("b0")
    assert (wide.counts, network.sent) == (
        {"pending": 1, "dead": 0, "delivered": 1, "refused": 1},
        [],
    )

    wide.post("b1", meter_id="b", device_id="d2")
    network.start()
    network.answer("b1")
    assert network.sent == ["bad"]
    network.answer("bad", Refused("rejected", "no"))
    assert wide.dead == [("bad", "rejected")]


def test_what_was_sent_and_not_answered_goes_again_as_it_was(wide: Bench) -> None:
    """After a crash, too: the same records in the same request, before anything new, whoever
    pays by now.
    """
    wide.post("e0", "e1")
    network = Network(wide)
    before = network.request("e0,e1")
    wide.accounts.answers["t"] = AccountFound('"another"')
    wide.clock.advance(7200)
    wide.post("e2")
    wide.post("f0", meter_id="f")
    wide.restarted()
    network = Network(wide)

    assert network.sent == ["e0,e1", "f0"]
    assert network.request("e0,e1") == before
    assert '"customer_id":"another"' in network.request("f0").records[0]
    network.answer("e0,e1")
    assert network.sent == ["f0", "e2"]


def test_an_event_keeps_the_customer_of_its_first_attempt(bench: Bench) -> None:
    """Whatever becomes of it: tried again, refused, a dead letter that is replayed."""
    bench.post("e0", "e1")
    bench.backend.script(Answered((Delivered(), Retriable("busy"))))
    bench.flush_all()
    bench.accounts.answers["t"] = AccountFound('"another"')
    bench.clock.advance(7200)
    bench.post("e2", meter_id="m2")
    bench.flush_all()

    assert {value["idempotency_key"]: value["customer_id"] for value in bench.backend.stored} == {
        "e0": "customer of t",
        "e1": "customer of t",
        "e2": "another",
    }


def test_a_slow_look_up_of_an_account_holds_up_its_tenant_only(wide: Bench) -> None:
    """The others are delivered while it is asked about."""
    wide.post("b0", tenant_id="b")
    wide.flush_all()
    wide.post("a0", tenant_id="a")
    wide.post("b1", tenant_id="b")
    question, delivery = wide.flusher.start()
    wide.flusher.finish(delivery, delivery.make())
    assert wide.flusher.start() == []
    assert wide.backend.stored_keys == ["b0", "b1"]

    wide.flusher.finish(question, question.make())
    wide.flush_all()
    assert wide.backend.stored_keys == ["b0", "b1", "a0"]


def test_how_often_an_account_was_missed_is_counted_at_the_pace_of_its_waits_over_restarts(
    bench_with: Callable[..., Bench],
) -> None:
    """A crash loop asks no more often than one process, and gives nobody up before the time."""
    bench = bench_with(max_attempts=3)
    bench.accounts.answers["new"] = AccountUnknown("no")
    bench.post("n", tenant_id="new")
    for _ in range(10):
        bench.flush_all()
        bench.restarted()
    assert (bench.accounts.asked, bench.dead) == (["new"], [])

    for _ in range(3):
        bench.clock.advance(LONGEST)
        bench.restarted()
        bench.flush_all()
    assert bench.dead == [("n", "customer_not_found")]
