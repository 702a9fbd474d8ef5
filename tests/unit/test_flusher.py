from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

from meter_worker.backend import (
    Delivered,
    Retriable,
    Unavailable,
)
from tests.fakes import each
from tests.unit.flusher_bench import (
    BASE,
    all_delivered,
    numbered,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.flusher_bench import Bench


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
        ("t2", "d1", 6),
        ("t1", "d2", 6),
    ]
    assert bench.backend.sent[2] == [
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


def test_the_view_is_bounded_whatever_the_backlog(bench_with: Callable[..., Bench]) -> None:
    """However much is pending, a few requests' worth of it is held in memory."""
    bench = bench_with(batch_size=5)
    bench.post(*numbered("e", 100))
    calls = bench.flusher.start()
    for call in calls:
        bench.flusher.finish(call, call.make())
    calls = bench.flusher.start()

    assert len(bench.flusher._departures.window) + len(bench.backend.requests) * 5 <= 10
    for call in calls:
        bench.flusher.finish(call, call.make())
    bench.flush_all()
    assert bench.counts == all_delivered(100)


def test_streams_without_room_in_view_take_no_memory_for_their_events(
    bench_with: Callable[..., Bench],
) -> None:
    """Of a tenant that cannot be sent for, what does not fit into the view is not kept."""
    bench = bench_with(batch_size=5, batch_bytes=100_000)
    bench.post("known", tenant_id="u")
    bench.flush_all()
    bench.accounts.answers["t"] = Unavailable("down")
    large = {f"f{number}": "x" * 8000 for number in range(7)}
    for number in range(100):
        bench.post(f"e{number}", meter_id=f"m{number}", metadata=large)
    bench.post("behind", tenant_id="u")
    tracemalloc.start()
    try:
        bench.flush_all()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bench.backend.stored_keys == ["known", "behind"]
    assert held < 1_000_000


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


def test_what_is_behind_an_event_that_waits_is_not_sent_before_it(
    bench_with: Callable[..., Bench],
) -> None:
    """Neither from what is in view already, nor in the request in which it is tried again."""
    bench = bench_with(batch_size=2)
    bench.post(*numbered("e", 8))
    bench.backend.script(
        each(lambda value: Retriable("busy") if value["idempotency_key"] == "e1" else Delivered())
    )
    bench.flush_all()
    assert bench.backend.sent == [["e0", "e1"]]

    bench.wait()
    bench.flush_all()
    assert bench.backend.sent[1:3] == [["e1"], ["e2", "e3"]]
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
