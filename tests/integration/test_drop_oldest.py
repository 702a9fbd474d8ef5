from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import OutboxFull
from meter_lib.outbox import Burial, Settlement, Unanswered
from meter_lib.usage import usage_event
from tests.unit.flusher_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meter_lib.outbox import DueEvent

MIB = 1024 * 1024
NOON = 1_759_791_552_000
LONG = {"x": "x" * 8000}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SqliteOutbox]:
    """An outbox of the smallest size that drops its oldest events when it is full."""
    outbox = SqliteOutbox(str(tmp_path / "outbox.db"), max_bytes=4 * MIB, drops_oldest=True)
    yield outbox
    outbox.close()


def fill(outbox: SqliteOutbox, count: int, *, start: int = 0) -> None:
    """Record large events, numbered by their units."""
    for number in range(start, start + count):
        event = usage_event("t", "d", "m", number, metadata=LONG)
        outbox.append([event], now=NOON)


def due(outbox: SqliteOutbox) -> list[DueEvent]:
    """Everything that waits."""
    return outbox.due(now=NOON, limit=10_000, max_bytes=2**30)


def test_new_events_make_room_at_the_cost_of_the_oldest_which_are_counted(
    small: SqliteOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest are there, without a gap; what went is in the ledger, and is said."""
    with caplog.at_level(logging.ERROR):
        fill(small, 600)
    status = small.status()
    kept = [event.total_usage for event in due(small)]

    assert status.accepted == 600
    assert status.removed > 100
    assert status.accepted == status.pending + status.removed
    assert status.pending > 100
    assert kept == list(range(status.removed, status.removed + len(kept)))
    assert "drop-oldest" in caplog.text
    assert len(caplog.records) <= 3
    assert status.bytes <= 4 * MIB + 256 * 1024


def test_neither_dead_letters_nor_what_may_have_been_sent_is_dropped(small: SqliteOutbox) -> None:
    """Somebody has to look at the former, and of the latter nobody knows whether it arrived."""
    fill(small, 3)
    dead, sent, _ = due(small)
    small.settle(Settlement(buried=[Burial(dead, "rejected", "no")]), now=NOON)
    small.begin([Unanswered("key", '"c"', [sent])])
    fill(small, 600, start=3)

    assert small.status().dead == 1
    [request] = small.unanswered()
    assert [event.seq for event in request.events] == [sent.seq]


def test_without_it_a_full_outbox_refuses(tmp_path: Path) -> None:
    """Nothing is dropped unless the operator has said so."""
    outbox = SqliteOutbox(str(tmp_path / "outbox.db"), max_bytes=4 * MIB)
    with pytest.raises(OutboxFull):
        fill(outbox, 600)
    assert outbox.status().removed == 0
    outbox.close()


def test_what_was_dropped_while_the_flusher_had_it_in_view_is_not_delivered(
    tmp_path: Path,
) -> None:
    """It is in one place only, and counted there: among what was removed."""
    bench = Bench(tmp_path / "outbox.db", batch_size=10, max_bytes=4 * MIB)
    fill(bench.outbox, 40)
    for call in bench.flusher.start():
        bench.flusher.finish(call, call.make())
    [call] = bench.flusher.start()
    poster = SqliteOutbox(bench.path, max_bytes=4 * MIB, drops_oldest=True)
    fill(poster, 600, start=40)
    bench.flusher.finish(call, call.make())
    bench.flush_all()

    status = bench.outbox.status()
    assert status.removed > 20
    assert status.accepted == status.delivered + status.removed + status.pending == 640
    assert (status.pending, len(bench.backend.stored)) == (0, status.delivered)
    poster.close()
    bench.outbox.close()
