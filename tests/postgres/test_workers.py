"""Many workers on one outbox: each has a share of the streams, and whoever dies leaves his."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from typing import TYPE_CHECKING

import pytest

from meter_lib import MeterClient, OutboxUnavailable
from meter_lib._postgres import PostgresOutbox
from meter_lib.outbox import Settlement, Unanswered
from meter_lib.usage import usage_event
from tests.promises.delivering import eventually, first_arrivals, killed, numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from tests.postgres.server import PostgresServer
    from tests.promises.delivering import Device

NOON = 1_760_000_000_000


def arrived_in_order(fleet: Device) -> bool:
    """Whether each stream arrived in the order it was posted in."""
    return all(seqs == sorted(seqs) for seqs in first_arrivals(fleet.sandbox.records).values())


def keys_of(fleet: Device) -> set[str]:
    """The idempotency keys that arrived."""
    return {record.value["idempotency_key"] for record in fleet.sandbox.records}


def test_workers_share_the_streams_and_nothing_goes_twice(fleet: Device) -> None:
    """Three workers deliver side by side, each event once, each stream in its order."""
    workers = [fleet.start_worker(batch_size=20) for _ in range(3)]
    eventually(lambda: fleet.status.workers == 3)
    fleet.sandbox.fault("slow", seconds=0.02)
    for part in range(3):
        for device in range(20):
            fleet.post(*numbered(f"{part}-{device}-", 20), device_id=f"d{device}")
    fleet.drained()
    for worker in workers:
        worker.terminate()
        assert worker.wait(10) == 0

    assert (fleet.sandbox.count, fleet.sandbox.distinct) == (1200, 1200)
    assert arrived_in_order(fleet)
    assert (fleet.status.delivered, fleet.status.accepted) == (1200, 1200)


def test_workers_killed_under_load_lose_and_swap_nothing(fleet: Device) -> None:
    """After kill -9 of whichever worker, others take up its streams where it left them."""
    draw = random.Random(7)  # noqa: S311  # no secret
    fleet.sandbox.fault("slow", seconds=0.01)

    def record(tenant: str) -> None:
        with MeterClient(settings=fleet.settings()) as client:
            for number in range(200):
                client.post(
                    tenant, f"d{number % 3}", "m", number, idempotency_key=f"{tenant}{number}"
                )

    recording = [threading.Thread(target=record, args=(tenant,)) for tenant in "abcd"]
    workers = [fleet.start_worker(batch_size=10) for _ in range(2)]
    for thread in recording:
        thread.start()
    for life in range(1, 5):
        eventually(lambda life=life: fleet.sandbox.count >= 100 * life)
        killed(workers.pop(draw.randrange(2)))
        workers.append(fleet.start_worker(batch_size=10))
    for thread in recording:
        thread.join()
    fleet.drained()

    assert keys_of(fleet) == {f"{tenant}{number}" for tenant in "abcd" for number in range(200)}
    assert arrived_in_order(fleet)
    assert fleet.status.delivered == 800


def test_a_dead_servers_outbox_is_taken_up_when_it_is_back(
    fleet: Device, postgres_server: PostgresServer
) -> None:
    """After kill -9 of the server under load all that has a receipt arrives.

    Of the rest only that of which the error says that it may have been recorded.
    """
    receipts: list[str] = []
    in_doubt: list[str] = []
    refused: list[str] = []
    stopping = threading.Event()

    def record(tenant: str) -> None:
        with MeterClient(settings=fleet.settings()) as client:
            for number in range(10_000):
                key = f"{tenant}{number}"
                try:
                    client.post(tenant, "d", "m", number, idempotency_key=key)
                except OutboxUnavailable as error:
                    refused.append(key)
                    if "may have been recorded" in str(error):
                        in_doubt.append(key)
                    stopping.wait(0.02)
                else:
                    receipts.append(key)
                if stopping.is_set():
                    return

    recording = [threading.Thread(target=record, args=(tenant,)) for tenant in "abc"]
    fleet.start_worker(batch_size=20)
    fleet.start_worker(batch_size=20)
    for thread in recording:
        thread.start()
    for life in range(1, 3):
        eventually(lambda life=life: fleet.sandbox.count >= 150 * life, seconds=30)
        postgres_server.kill()
        before = len(refused)
        eventually(lambda before=before: len(refused) > before)
        postgres_server.start()
    eventually(lambda: fleet.sandbox.count >= 450, seconds=30)
    stopping.set()
    for thread in recording:
        thread.join()
    fleet.drained()

    assert set(receipts) <= keys_of(fleet) <= {*receipts, *in_doubt}
    assert refused
    assert len(in_doubt) <= 2 * 3
    assert arrived_in_order(fleet)
    assert fleet.status.delivered == len(keys_of(fleet))


def test_shares_follow_those_who_come_and_go(open_it: Callable[[], PostgresOutbox]) -> None:
    """A second worker is given half of the streams, and the first has all again when it is gone."""
    first, second = open_it(), open_it()
    assert (first.try_hold(), second.try_hold()) == (True, False)
    eventually(lambda: not first.keeps_hold())
    assert (first.try_hold(), second.try_hold()) == (True, True)
    assert (first.status().workers, len(first._holding.shards)) == (2, 16)
    assert set(first._holding.shards).isdisjoint(second._holding.shards)
    second.close()
    eventually(lambda: not first.keeps_hold())
    assert first.try_hold()
    assert len(first._holding.shards) == 32


def test_who_has_lost_the_hold_can_begin_nothing_more(
    open_it: Callable[[], PostgresOutbox], connection: psycopg.Connection[tuple[int, ...]]
) -> None:
    """A worker that the server has given up writes nothing, whatever it still believes."""
    cut_off, other = open_it(), open_it()
    cut_off.append([usage_event("t", "d", "m", 1)], now=NOON)
    assert cut_off.try_hold()
    [event] = cut_off.due(now=NOON, limit=9, max_bytes=2**20)
    sent = Unanswered("r", '"c"', [event])
    cut_off.begin([sent])
    connection.execute(
        """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name LIKE 'meter-lib worker %'
        """
    )
    eventually(other.try_hold)
    assert other.unanswered() == [sent]
    for begin_more in (
        lambda: cut_off.begin([sent]),
        lambda: cut_off.queue([event]),
        lambda: cut_off.settle(Settlement(delivered=[event]), now=NOON),
        lambda: cut_off.due(now=NOON, limit=9, max_bytes=2**20),
    ):
        with pytest.raises(OutboxUnavailable):
            begin_more()
    assert (cut_off.keeps_hold(), cut_off.try_hold(), other.keeps_hold()) == (False, False, True)
    other.settle(Settlement(delivered=[event], answered=sent), now=NOON)
    assert other.status().delivered == 1


def test_workers_that_refuse_at_once_number_their_refusals_apart(
    open_it: Callable[[], PostgresOutbox],
) -> None:
    """What one worker had accepted later proves what another was refused before, and no more."""
    one, two = open_it(), open_it()
    one.append([usage_event("t", f"d{number}", "m", number) for number in range(3)], now=NOON)
    first, second, third = one.due(now=NOON, limit=9, max_bytes=2**20)
    sent = Unanswered("r", '"c"', [third])
    one.settle(Settlement(refused_alone=[first]), now=NOON)
    proves = two.begin([sent])
    one.settle(Settlement(refused_alone=[second]), now=NOON)
    two.settle(Settlement(delivered=[third], answered=sent, proves=proves), now=NOON)
    found = one.suspects(limit=9, proven_only=False)
    assert [(event.seq, event.lone_refusal, event.proven) for event in found] == [
        (first.seq, 1, True),
        (second.seq, 2, False),
    ]


def test_where_one_is_to_deliver_the_others_wait_for_its_end(postgres_url: str) -> None:
    """For a sink that takes one producer, a worker holds all streams, or none."""
    first, second = (PostgresOutbox(postgres_url, max_bytes=2**22, shared=False) for _ in range(2))
    with contextlib.closing(first), contextlib.closing(second):
        assert (first.try_hold(), second.try_hold(), first.try_hold()) == (True, False, True)
        first._holding._look_again_at = 0.0
        assert (first.keeps_hold(), len(first._holding.shards)) == (True, 32)
        first.release()
        assert (second.try_hold(), first.try_hold()) == (True, False)


def test_of_two_that_begin_at_once_one_delivers(postgres_url: str) -> None:
    """Where a worker holds all or nothing, none is left with a part for good."""
    both = [PostgresOutbox(postgres_url, max_bytes=2**22, shared=False) for _ in range(2)]
    together = threading.Barrier(2)

    def take(outbox: PostgresOutbox) -> None:
        outbox.link("events")
        together.wait()
        outbox.try_hold()

    for _ in range(20):
        taking = [threading.Thread(target=take, args=(outbox,)) for outbox in both]
        for thread in taking:
            thread.start()
        for thread in taking:
            thread.join()
        assert sorted(outbox._holding._held is not None for outbox in both) == [False, True]
        assert {len(outbox._holding.shards) for outbox in both} == {32}
        for outbox in both:
            outbox.release()
    for outbox in both:
        outbox.close()


def test_both_ends_give_up_a_line_on_which_nothing_is_acknowledged(
    open_it: Callable[[], PostgresOutbox],
) -> None:
    """Keep-alive tells only of an idle line: what was sent on a dead one is given up as soon."""
    outbox = open_it()
    assert outbox.try_hold()
    with outbox._work.statements() as cursor:
        ours = cursor.connection.info.get_parameters()["tcp_user_timeout"]
        cursor.execute("SHOW tcp_user_timeout")
        assert (ours, cursor.fetchall()) == ("25000", [("25000",)])


def test_a_worker_of_another_host_is_told_apart(
    open_it: Callable[[], PostgresOutbox],
) -> None:
    """A process id says nothing elsewhere: there, it is only known that somebody delivers."""
    outbox = open_it()
    assert (outbox.try_hold(), outbox.holder()) == (True, os.getpid())
    with outbox._work.statements() as cursor:
        cursor.execute("SET application_name = 'meter-lib worker 17@elsewhere'")
    assert (outbox.holder(), outbox.status().workers) == (0, 1)
