"""What every outbox promises, whatever stores it: the port, and nothing but the port."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib._sqlite import SqliteOutbox
from meter_lib.errors import KeyConflict
from meter_lib.outbox import (
    Account,
    Burial,
    DeadLetter,
    Deferral,
    DueEvent,
    ImportedLetter,
    Link,
    OutboxStatus,
    Selector,
    Settlement,
    Unanswered,
)
from meter_lib.usage import usage_event

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from meter_lib.outbox import Outbox
    from meter_lib.usage import UsageEvent

NOON = 1_760_000_000_000
SECOND = 1_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR

# How each implementation is opened in a folder of the test's own; twice means the same outbox.
IMPLEMENTATIONS: dict[str, Callable[[Path], Outbox]] = {
    "sqlite": lambda folder: SqliteOutbox(str(folder / "outbox.db"), max_bytes=64 * 2**20),
}


@pytest.fixture(params=["postgres", *sorted(IMPLEMENTATIONS)])
def open_it(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Generator[Callable[[], Outbox], None, None]:
    """Open the one outbox of this test, once more at each call."""
    opened: list[Outbox] = []
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None

    def open_it() -> Outbox:
        if url is None:
            opened.append(IMPLEMENTATIONS[request.param](tmp_path))
        else:
            from meter_lib._postgres import PostgresOutbox  # noqa: PLC0415  # of an extra

            opened.append(PostgresOutbox(url, max_bytes=64 * 2**20))
        return opened[-1]

    yield open_it
    for outbox in opened:
        outbox.close()


@pytest.fixture
def outbox(open_it: Callable[[], Outbox]) -> Outbox:
    """An outbox that nothing was recorded in yet."""
    return open_it()


def use(
    units: int = 1, *, tenant: str = "t", device: str = "d", meter: str = "m", **said: Any
) -> UsageEvent:
    """An event of one stream, with what differs."""
    return usage_event(tenant, device, meter, units, **said)


def record(outbox: Outbox, *events: UsageEvent, now: int = NOON) -> list[DueEvent]:
    """Record the events and return them as they come out."""
    before = {event.seq for event in everything_due(outbox)}
    outbox.append(events, now=now)
    return [event for event in everything_due(outbox) if event.seq not in before]


def everything_due(outbox: Outbox, *, now: int = NOON) -> list[DueEvent]:
    """What is due, without a limit that matters."""
    return outbox.due(now=now, limit=100_000, max_bytes=2**30)


def units_due(outbox: Outbox, *, now: int = NOON) -> list[int | None]:
    """The units of what is due, in its order."""
    return [event.total_usage for event in everything_due(outbox, now=now)]


def deliver(outbox: Outbox, *events: DueEvent, now: int = NOON) -> None:
    """Settle these as delivered."""
    outbox.settle(Settlement(delivered=events), now=now)


CUSTOMER = '"c-1"'


def request(key: str, *events: DueEvent, customer_id: str = CUSTOMER) -> Unanswered:
    """A request that is about to be sent, or was."""
    return Unanswered(key, customer_id, list(events))


def send(outbox: Outbox, *events: DueEvent, now: int = NOON) -> None:
    """Send these in a request, which is accepted."""
    sent = request("of " + " ".join(event.idempotency_key for event in events), *events)
    proves = outbox.begin([sent])
    outbox.settle(Settlement(delivered=events, answered=sent, proves=proves), now=now)


def defer(outbox: Outbox, *events: DueEvent, until: int, counts: bool = False) -> None:
    """Settle these as to be tried again."""
    deferred = [Deferral(event, until, counts) for event in events]
    outbox.settle(Settlement(deferred=deferred), now=NOON)


def bury(outbox: Outbox, *events: DueEvent, reason: str = "rejected", now: int = NOON) -> None:
    """Settle these as dead letters."""
    outbox.settle(
        Settlement(buried=[Burial(event, reason, "it says no") for event in events]), now=now
    )


def refuse_alone(outbox: Outbox, *events: DueEvent) -> None:
    """Settle these as refused alone."""
    outbox.settle(Settlement(refused_alone=events), now=NOON)


def whereabouts(outbox: Outbox) -> dict[str, int]:
    """Where the accepted events are."""
    status = outbox.status()
    return {
        "accepted": status.accepted,
        "pending": status.pending,
        "dead": status.dead,
        "delivered": status.delivered,
        "removed": status.removed,
    }


# -- recording ------------------------------------------------------------------------


def test_each_event_has_its_receipt(outbox: Outbox) -> None:
    """A receipt names the event's key and when it happened, in the order of the events."""
    receipts = outbox.append(
        [
            use(idempotency_key="mine"),
            use(idempotency_key="timed", timestamp=NOON - DAY),
            usage_event("t", "d", "m", start_time=NOON - 2, end_time=NOON - 1, idempotency_key="s"),
        ],
        now=NOON,
    )
    assert receipts == [
        {"status": "queued", "idempotency_key": "mine", "event_time": NOON},
        {"status": "queued", "idempotency_key": "timed", "event_time": NOON - DAY},
        {"status": "queued", "idempotency_key": "s", "event_time": NOON - 1},
    ]


def test_an_event_without_a_key_gets_one_of_its_own(outbox: Outbox) -> None:
    """Keys that the outbox makes are all different, and are what is delivered."""
    receipts = outbox.append([use(), use(), use()], now=NOON)
    keys = [receipt["idempotency_key"] for receipt in receipts]
    assert len(set(keys)) == 3
    assert keys == [event.idempotency_key for event in everything_due(outbox)]


def test_nothing_recorded_is_no_event(outbox: Outbox) -> None:
    """Recording an empty list leaves the outbox empty."""
    assert outbox.append([], now=NOON) == []
    assert whereabouts(outbox)["accepted"] == 0


def test_an_event_comes_out_as_it_went_in(outbox: Outbox) -> None:
    """Whoever delivers has what the caller said, to the last character."""
    said = usage_event(
        "Bäckerei 東京/?#%",
        "d-1",
        "page.processed.basic",
        2**63 - 1,
        timestamp=NOON - DAY,
        metadata={"note": 'quoted "x" \\ \n 𝄞', "b": 1.5},
        idempotency_key="mine",
    )
    outbox.append([said], now=NOON)
    [due] = everything_due(outbox)
    assert due == DueEvent(
        seq=1,
        stream_id=due.stream_id,
        tenant_id="Bäckerei 東京/?#%",
        device_id="d-1",
        meter_id="page.processed.basic",
        idempotency_key="mine",
        event_time=NOON - DAY,
        total_usage=2**63 - 1,
        payload=said.payload,
        attempts=0,
        customer_id=None,
        lone_refusal=None,
        proven=False,
        fresh=True,
        held=False,
    )


def test_a_session_event_has_no_units(outbox: Outbox) -> None:
    """An event that only says when use began or ended is kept without units."""
    outbox.append([usage_event("t", "d", "m", start_time=NOON)], now=NOON + HOUR)
    [due] = everything_due(outbox)
    assert (due.total_usage, due.event_time) == (None, NOON)


def test_a_clock_that_believes_in_1970_is_believed(outbox: Outbox) -> None:
    """An event whose time was left to us is recorded whatever our clock says."""
    assert outbox.append([use(idempotency_key="k")], now=17) == [
        {"status": "queued", "idempotency_key": "k", "event_time": 17}
    ]
    deliver(outbox, *everything_due(outbox), now=18)
    assert whereabouts(outbox)["delivered"] == 1


def test_numbers_have_no_gap(outbox: Outbox, open_it: Callable[[], Outbox]) -> None:
    """`seq` counts accepted events one by one: refusals, duplicates and deliveries leave no gap."""
    outbox.append([use(), use(idempotency_key="k")], now=NOON)
    outbox.append([use(idempotency_key="k")], now=NOON)
    with pytest.raises(KeyConflict):
        outbox.append([use(), use(99, idempotency_key="k")], now=NOON)
    deliver(outbox, *everything_due(outbox))
    outbox.append([use()], now=NOON)
    again = open_it()
    bury(again, *everything_due(again))
    again.purge([3])
    again.append([use(), use()], now=NOON)
    assert [event.seq for event in everything_due(again)] == [4, 5]


def test_what_is_recorded_is_there_for_the_next_process(
    outbox: Outbox, open_it: Callable[[], Outbox]
) -> None:
    """Whoever opens the outbox later, or beside, finds what was recorded."""
    recorded = record(outbox, use(1), use(2))
    assert everything_due(open_it()) == recorded
    outbox.close()
    assert everything_due(open_it()) == recorded


# -- keys of the caller's own ---------------------------------------------------------


def _leave_pending(outbox: Outbox) -> None:
    pass


def _deliver_all(outbox: Outbox) -> None:
    deliver(outbox, *everything_due(outbox))


def _bury_all(outbox: Outbox) -> None:
    bury(outbox, *everything_due(outbox))


FATES = pytest.mark.parametrize("fate", [_leave_pending, _deliver_all, _bury_all])


@FATES
def test_the_same_event_again_is_a_duplicate(
    outbox: Outbox, open_it: Callable[[], Outbox], fate: Callable[[Outbox], None]
) -> None:
    """A known key with the same content adds nothing, whatever became of the first event."""
    said = use(5, idempotency_key="k", metadata={"a": "1", "b": "2"})
    outbox.append([said], now=NOON)
    fate(outbox)
    before = whereabouts(outbox)
    same = use(5, idempotency_key="k", metadata={"b": "2", "a": "1"})
    assert open_it().append([same], now=NOON + HOUR) == [
        {"status": "duplicate", "idempotency_key": "k", "event_time": NOON}
    ]
    assert whereabouts(outbox) == before


@FATES
@pytest.mark.parametrize(
    "other",
    [
        use(6, idempotency_key="k"),
        use(5, idempotency_key="k", tenant="other"),
        use(5, idempotency_key="k", device="other"),
        use(5, idempotency_key="k", meter="other"),
        use(5, idempotency_key="k", metadata={"a": "1"}),
        use(5, idempotency_key="k", start_time=NOON),
    ],
    ids=["units", "tenant", "device", "meter", "metadata", "time"],
)
def test_a_known_key_with_other_content_is_a_conflict(
    outbox: Outbox, fate: Callable[[Outbox], None], other: UsageEvent
) -> None:
    """A known key never stands for two contents, whatever became of the first event."""
    outbox.append([use(5, idempotency_key="k")], now=NOON)
    fate(outbox)
    before = whereabouts(outbox)
    with pytest.raises(KeyConflict, match="'k'"):
        outbox.append([other], now=NOON)
    assert whereabouts(outbox) == before


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (None, None, "duplicate"),
        (NOON, None, "duplicate"),
        (None, NOON, "duplicate"),
        (NOON, NOON, "duplicate"),
        (NOON, NOON + 1, "conflict"),
    ],
)
def test_a_time_that_was_left_to_us_is_no_content(
    outbox: Outbox, first: int | None, second: int | None, status: str
) -> None:
    """Only two explicit times that differ make two contents; the first event's time stands."""
    outbox.append([use(idempotency_key="k", timestamp=first)], now=NOON)
    again = use(idempotency_key="k", timestamp=second)
    if status == "conflict":
        with pytest.raises(KeyConflict):
            outbox.append([again], now=NOON + HOUR)
    else:
        assert outbox.append([again], now=NOON + HOUR) == [
            {"status": "duplicate", "idempotency_key": "k", "event_time": NOON}
        ]


def test_a_key_may_come_twice_in_one_commit(outbox: Outbox) -> None:
    """Within one list, too, the second event of a key is a duplicate."""
    receipts = outbox.append([use(idempotency_key="k"), use(idempotency_key="k")], now=NOON)
    assert [receipt["status"] for receipt in receipts] == ["queued", "duplicate"]
    assert whereabouts(outbox)["accepted"] == 1


def test_a_conflict_undoes_the_whole_list(outbox: Outbox) -> None:
    """All or none: one conflict, named by its index, keeps the events around it out too."""
    outbox.append([use(1, idempotency_key="k")], now=NOON)
    with pytest.raises(KeyConflict) as conflict:
        outbox.append(
            [use(2), use(3, tenant="new", idempotency_key="new"), use(4, idempotency_key="k")],
            now=NOON,
        )
    assert conflict.value.index == 2
    assert units_due(outbox) == [1]
    receipts = outbox.append([use(5, tenant="new", idempotency_key="new")], now=NOON)
    assert receipts[0]["status"] == "queued"
    assert units_due(outbox) == [1, 5]


# -- what is due ----------------------------------------------------------------------


def test_events_are_due_oldest_first(outbox: Outbox) -> None:
    """Events are due in the order they were recorded, until `limit`."""
    record(outbox, *[use(units, device=f"d{units % 2}") for units in range(6)])
    assert units_due(outbox) == [0, 1, 2, 3, 4, 5]
    assert [event.total_usage for event in outbox.due(now=NOON, limit=4, max_bytes=2**20)] == [
        0,
        1,
        2,
        3,
    ]


def test_what_is_due_fits_the_bytes_asked_for(outbox: Outbox) -> None:
    """Payloads stay within `max_bytes`, counted in bytes; only the first may be larger than it."""
    sizes = [
        len(event.payload.encode())
        for event in record(outbox, *[use(metadata={"x": "é" * 100})] * 3)
    ]

    def due_within(max_bytes: int) -> int:
        return len(outbox.due(now=NOON, limit=10, max_bytes=max_bytes))

    assert [
        due_within(1),
        due_within(sizes[0]),
        due_within(sum(sizes[:2]) - 1),
        due_within(sum(sizes[:2])),
        due_within(sum(sizes)),
    ] == [1, 1, 1, 2, 3]


def test_events_that_wait_count_as_bytes_too(outbox: Outbox) -> None:
    """The bytes asked for hold for both kinds together: those set aside and those untouched."""
    first, second = record(outbox, use(1, device="a"), use(2, device="b"))
    defer(outbox, first, until=NOON)
    size = len(first.payload.encode())
    assert [event.seq for event in outbox.due(now=NOON, limit=9, max_bytes=size)] == [first.seq]
    assert [event.seq for event in outbox.due(now=NOON, limit=9, max_bytes=2 * size)] == [
        first.seq,
        second.seq,
    ]


def test_looking_changes_nothing(outbox: Outbox) -> None:
    """Whatever is due stays due until it is settled."""
    record(outbox, use(1), use(2))
    assert everything_due(outbox) == everything_due(outbox)


def test_fresh_events_are_read_on_from_a_seq(outbox: Outbox) -> None:
    """`after` passes over fresh events up to that one, and over none that was set aside."""
    events = record(outbox, *[use(units, device=f"d{units}") for units in range(5)])
    defer(outbox, events[0], until=NOON)

    def units_after(seq: int) -> list[int | None]:
        found = outbox.due(now=NOON, limit=9, max_bytes=2**20, after=seq)
        return [event.total_usage for event in found]

    assert units_after(0) == [0, 1, 2, 3, 4]
    assert units_after(events[2].seq) == [0, 3, 4]
    assert units_after(events[4].seq) == [0]
    # A place that the reading has left behind already.
    deliver(outbox, *events[1:3])
    assert units_after(events[1].seq) == [0, 3, 4]


def test_the_limit_is_spent_on_what_was_asked_for(outbox: Outbox) -> None:
    """Events passed over, for their stream or their place, take no room from others."""
    events = record(outbox, *[use(units, device=f"d{units}") for units in range(6)])
    defer(outbox, *events[:3], until=NOON)
    found = outbox.due(
        now=NOON,
        limit=2,
        max_bytes=sum(len(event.payload.encode()) for event in events[:2]),
        after=events[4].seq,
        beside=[events[0].stream_id, events[1].stream_id],
    )
    assert [event.seq for event in found] == [events[2].seq, events[5].seq]


def test_streams_in_other_hands_are_passed_over(outbox: Outbox) -> None:
    """`beside` leaves out what was set aside of those streams; fresh events come all the same."""
    a, b, fresh = record(outbox, use(1, device="a"), use(2, device="b"), use(3, device="a"))
    defer(outbox, a, b, until=NOON)

    def beside(*streams: int) -> list[tuple[int | None, bool]]:
        found = outbox.due(now=NOON, limit=9, max_bytes=2**20, beside=streams)
        return [(event.total_usage, event.held) for event in found]

    assert beside() == [(1, False), (2, False), (3, True)]
    assert beside(fresh.stream_id) == [(2, False), (3, True)]
    assert beside(a.stream_id, b.stream_id, 99) == [(3, True)]
    # Those whose wait was set by a clock that was wrong are left out too.
    defer(outbox, a, until=NOON + 2 * HOUR)
    assert beside(a.stream_id) == [(2, False), (3, True)]


def test_any_number_of_streams_can_be_in_other_hands(outbox: Outbox) -> None:
    """`beside` takes more streams than a statement takes parameters on old devices: 999."""
    events = record(outbox, *[use(units, device=f"d{units}") for units in range(1_500)])
    defer(outbox, *events, until=NOON)
    streams = [event.stream_id for event in events]
    found = outbox.due(now=NOON, limit=9, max_bytes=2**20, beside=streams[:-1])
    assert [event.seq for event in found] == [events[-1].seq]


def test_whether_an_event_is_fresh_is_known(outbox: Outbox) -> None:
    """An event is fresh until it is set aside, whatever for; replay does not make it so again."""
    a, b, c, d, e = record(outbox, *[use(units, device=f"d{units}") for units in range(5)])
    assert all(event.fresh for event in (a, b, c, d, e))
    outbox.queue([a])
    defer(outbox, b, until=NOON)
    bury(outbox, c)
    outbox.replay([c.seq], now=NOON)
    outbox.settle(Settlement(refused=[d]), now=NOON)
    found = everything_due(outbox) + outbox.suspects(limit=9, proven_only=False)
    assert {event.seq: event.fresh for event in found} == {
        a.seq: False,
        b.seq: False,
        c.seq: False,
        d.seq: False,
        e.seq: True,
    }


def test_accepted_events_are_counted_whatever_became_of_them(outbox: Outbox) -> None:
    """`accepted` is the seq of the latest event, and the count of all there ever were."""
    counts = [outbox.accepted()]
    events = record(outbox, *[use(units) for units in range(4)])
    counts.append(outbox.accepted())
    deliver(outbox, events[3])
    bury(outbox, events[2])
    outbox.purge([events[2].seq])
    outbox.settle(Settlement(refused=[events[1]]), now=NOON)
    counts.append(outbox.accepted())
    deliver(outbox, *events[:2])
    counts.append(outbox.accepted())
    outbox.append([use()], now=NOON)
    counts.append(outbox.accepted())
    assert counts == [0, 4, 4, 4, 5]
    assert outbox.status().accepted == 5


def test_an_empty_outbox_has_nothing_to_do(outbox: Outbox) -> None:
    """Before the first event nothing is due, held, suspected, under way or dead."""
    assert (
        everything_due(outbox),
        outbox.suspects(limit=9, proven_only=False),
        outbox.next_due_at(),
        outbox.unanswered(),
        outbox.accepted(),
        list(outbox.dead_letters(Selector())),
    ) == ([], [], None, [], 0, [])


# -- delivered ------------------------------------------------------------------------


def test_what_is_delivered_is_gone_and_counted(outbox: Outbox) -> None:
    """A delivered event is never due again; others stay."""
    first, second, third = record(outbox, use(1), use(2), use(3))
    deliver(outbox, first, third)
    assert everything_due(outbox) == [second]
    assert whereabouts(outbox) == {
        "accepted": 3,
        "pending": 1,
        "dead": 0,
        "delivered": 2,
        "removed": 0,
    }


def test_settling_twice_counts_once(outbox: Outbox) -> None:
    """An acknowledgement that comes twice is one delivery."""
    events = record(outbox, use(), use())
    deliver(outbox, *events)
    deliver(outbox, *events)
    assert whereabouts(outbox)["delivered"] == 2


@pytest.mark.parametrize("which", ["gone", "dead", "another"])
def test_of_many_in_a_row_only_those_that_wait_here_are_counted(outbox: Outbox, which: str) -> None:
    """One may have gone meanwhile, or be another event under the same number."""
    events = record(outbox, use(1), use(2), use(4), use(8))
    named = list(events)
    if which == "gone":
        deliver(outbox, events[1])
    elif which == "dead":
        bury(outbox, events[1])
    else:
        named[1] = events[1]._replace(idempotency_key="of-another-file")
    before = whereabouts(outbox)
    deliver(outbox, *named)
    after = whereabouts(outbox)
    assert (after["delivered"], after["dead"]) == (before["delivered"] + 3, before["dead"])
    assert everything_due(outbox) == ([events[1]] if which == "another" else [])
    with outbox.audit(progress=lambda *_: None) as audit:
        assert (audit.problems, audit.delivered.units) == ([], 15 if which == "gone" else 13)


def test_an_empty_settlement_changes_nothing(outbox: Outbox) -> None:
    """Where nothing was decided, nothing is written."""
    recorded = record(outbox, use())
    before = outbox.status()
    outbox.settle(Settlement(), now=NOON)
    assert (everything_due(outbox), outbox.status()) == (recorded, before)


# -- deferred: a stream waits ---------------------------------------------------------


def test_a_deferred_event_waits_for_its_instant(outbox: Outbox) -> None:
    """It is due again from that instant on, and not before."""
    [event] = record(outbox, use())
    defer(outbox, event, until=NOON + 5)
    assert (
        everything_due(outbox, now=NOON + 4),
        everything_due(outbox, now=NOON + 5),
        outbox.next_due_at(),
    ) == ([], [event._replace(fresh=False)], NOON + 5)


def test_only_a_verdict_on_the_event_counts_against_it(outbox: Outbox) -> None:
    """`attempts` counts the backend's verdicts on this event, never an outage."""
    [event] = record(outbox, use())
    for counted in (True, False, True, False):
        defer(outbox, event, until=NOON, counts=counted)
    [event] = everything_due(outbox)
    assert event.attempts == 2


def test_a_wait_holds_its_stream_and_no_other(outbox: Outbox) -> None:
    """Later events of the stream come flagged, to be queued; other streams go on."""
    first, _, _ = record(outbox, use(1, device="a"), use(2, device="a"), use(3, device="b"))
    defer(outbox, first, until=NOON + 5)
    assert [(event.total_usage, event.held) for event in everything_due(outbox)] == [
        (2, True),
        (3, False),
    ]


def test_a_stream_is_tenant_device_and_meter(outbox: Outbox) -> None:
    """A wait of one meter does not hold the others of the same device, nor other tenants."""
    first, *_ = record(
        outbox, use(1), use(2, tenant="other"), use(3, device="other"), use(4, meter="other")
    )
    defer(outbox, first, until=NOON + 5)
    assert [(event.total_usage, event.held) for event in everything_due(outbox)] == [
        (2, False),
        (3, False),
        (4, False),
    ]


def test_queued_events_keep_their_place_in_the_stream(outbox: Outbox) -> None:
    """After the wait a stream is due in the order in which it was recorded."""
    first, *_ = record(outbox, *[use(units) for units in range(1, 5)])
    defer(outbox, first, until=NOON + 5)
    outbox.queue([event for event in everything_due(outbox) if event.held])
    assert everything_due(outbox) == []
    assert units_due(outbox, now=NOON + 5) == [1, 2, 3, 4]
    record(outbox, use(5))
    outbox.queue([event for event in everything_due(outbox) if event.held])
    assert units_due(outbox, now=NOON + 5) == [1, 2, 3, 4, 5]


def test_queueing_behind_nobody_means_due_at_once(outbox: Outbox) -> None:
    """Should the stream have come free meanwhile, what was queued is due without a wait."""
    events = record(outbox, use(1), use(2))
    outbox.queue(events)
    assert units_due(outbox) == [1, 2]


def test_events_can_be_queued_until_an_instant(outbox: Outbox) -> None:
    """`until` holds the stream as a deferral does: what is behind comes flagged."""
    first, _, _ = record(outbox, use(1), use(2), use(3, device="b"))
    outbox.queue([first], until=NOON + 5)
    assert [(event.total_usage, event.held) for event in everything_due(outbox)] == [
        (2, True),
        (3, False),
    ]
    outbox.queue([event for event in everything_due(outbox) if event.held])
    assert (outbox.next_due_at(), units_due(outbox, now=NOON + 4)) == (NOON + 5, [3])
    assert units_due(outbox, now=NOON + 5) == [1, 2, 3]


def test_queueing_never_shortens_a_wait(outbox: Outbox) -> None:
    """Behind those that wait means after their instant; a later one counts for the stream."""
    first, second, third = record(outbox, use(1), use(2), use(3))
    defer(outbox, first, until=NOON + 5)
    outbox.queue([second])
    outbox.queue([third], until=NOON + 3)
    assert outbox.next_due_at() == NOON + 5
    outbox.queue([third], until=NOON + 9)
    assert (outbox.next_due_at(), everything_due(outbox, now=NOON + 8)) == (NOON + 9, [])
    assert units_due(outbox, now=NOON + 9) == [1, 2, 3]


def test_queueing_is_no_verdict(outbox: Outbox) -> None:
    """It costs no attempt, refuses nothing and leaves an event that was refused as it is."""
    first, second = record(outbox, use(1), use(2, device="b"))
    refuse_alone(outbox, second)
    outbox.queue([first, second], until=NOON)
    [due] = everything_due(outbox)
    [suspect] = outbox.suspects(limit=9, proven_only=False)
    assert due == first._replace(fresh=False)
    assert suspect == second._replace(fresh=False, lone_refusal=1)


def test_queueing_what_is_gone_holds_nobody(outbox: Outbox) -> None:
    """Events that were settled meanwhile leave no hold behind."""
    events = record(outbox, use(1), use(2))
    deliver(outbox, *events)
    outbox.queue(events)
    assert (outbox.next_due_at(), outbox.status().held_streams) == (None, 0)


def test_deferring_what_is_gone_holds_nobody(outbox: Outbox) -> None:
    """A verdict on an event that was settled meanwhile is no reason to wait."""
    [event] = record(outbox, use())
    deliver(outbox, event)
    defer(outbox, event, until=NOON + 5)
    assert (outbox.next_due_at(), outbox.status().held_streams) == (None, 0)


@pytest.mark.parametrize("fate", ["delivered", "refused", "refused_alone", "buried"])
def test_the_last_one_to_leave_frees_the_stream(outbox: Outbox, fate: str) -> None:
    """A stream is held for as long as one of its events waits, and no longer."""
    first, second = record(outbox, use(1), use(2))
    defer(outbox, first, second, until=NOON)
    for event, held in ((first, 1), (second, 0)):
        gone: Sequence[Any] = [Burial(event, "r", "d")] if fate == "buried" else [event]
        outbox.settle(Settlement(**{fate: gone}), now=NOON)
        assert outbox.status().held_streams == held
    outbox.append([use(3)], now=NOON)
    assert [(event.total_usage, event.held) for event in everything_due(outbox)] == [(3, False)]


def test_the_next_stream_that_is_due_is_known(outbox: Outbox) -> None:
    """`next_due_at` is the earliest instant among the held streams."""
    first, second = record(outbox, use(device="a"), use(device="b"))
    defer(outbox, first, until=NOON + 9)
    defer(outbox, second, until=NOON + 5)
    assert outbox.next_due_at() == NOON + 5
    deliver(outbox, second)
    assert outbox.next_due_at() == NOON + 9


def test_a_wait_set_by_a_clock_that_was_wrong_is_not_served(outbox: Outbox) -> None:
    """No wait is longer than an hour: one that seems so was set by a clock that jumped since."""
    [event] = record(outbox, use())
    defer(outbox, event, until=NOON + HOUR)
    assert everything_due(outbox, now=NOON) == []
    assert everything_due(outbox, now=NOON - 1) == [event._replace(fresh=False)]


def test_one_tenants_heap_does_not_crowd_out_another(outbox: Outbox) -> None:
    """However many events of one tenant wait, those of another are within the next few."""
    heap = record(outbox, *[use(tenant="stuck") for _ in range(50)])
    defer(outbox, *heap, until=NOON + 5)
    record(outbox, use(7, tenant="fine"))
    assert [event.total_usage for event in outbox.due(now=NOON, limit=1, max_bytes=1)] == [7]


# -- refused: not yet known whether for good ------------------------------------------


def test_a_refused_event_waits_to_be_asked_about_alone(outbox: Outbox) -> None:
    """It is pending, a suspect and not due, and does not hold its stream."""
    first, second = record(outbox, use(1), use(2))
    outbox.settle(Settlement(refused=[first]), now=NOON)
    assert (
        everything_due(outbox),
        outbox.suspects(limit=9, proven_only=True),
        outbox.status().refused,
        outbox.status().in_doubt,
        outbox.status().pending,
    ) == ([second], [first._replace(fresh=False)], 1, 0, 2)


def test_a_lone_refusal_condemns_only_after_a_delivery(outbox: Outbox) -> None:
    """Refused alone, another sent and accepted after that: then the next refusal is the last."""
    first, second = record(outbox, use(1), use(2))
    refuse_alone(outbox, first)
    suspect = first._replace(lone_refusal=1, proven=False, fresh=False)
    assert (
        outbox.suspects(limit=9, proven_only=True),
        outbox.suspects(limit=9, proven_only=False),
        outbox.status().in_doubt,
    ) == ([], [suspect], 1)
    send(outbox, second)
    assert (
        outbox.suspects(limit=9, proven_only=True),
        outbox.suspects(limit=9, proven_only=False),
        outbox.status().in_doubt,
    ) == ([suspect._replace(proven=True)], [suspect._replace(proven=True)], 0)


def test_what_was_sent_before_a_refusal_proves_nothing(outbox: Outbox) -> None:
    """Accepted after it but sent before it, an event does not show what the backend does now."""
    first, second, third = record(outbox, use(1), use(2, device="b"), use(3, device="c"))
    before = outbox.begin([request("r2", second)])
    refuse_alone(outbox, first)
    after = outbox.begin([request("r3", third)])
    assert (before, after) == (0, 1)
    outbox.settle(Settlement(delivered=[second], proves=before), now=NOON)
    assert outbox.suspects(limit=9, proven_only=True) == []
    outbox.settle(Settlement(delivered=[third], proves=after), now=NOON)
    [suspect] = outbox.suspects(limit=9, proven_only=True)
    assert (suspect.seq, suspect.proven) == (first.seq, True)


def test_an_answer_that_is_late_takes_no_proof_back(outbox: Outbox) -> None:
    """What is proven stays so when an answer to an earlier request comes in after it."""
    first, second, third = record(outbox, use(1), use(2, device="b"), use(3, device="c"))
    before = outbox.begin([request("r2", second)])
    refuse_alone(outbox, first)
    send(outbox, third)
    outbox.settle(Settlement(delivered=[second], proves=before), now=NOON)
    assert [suspect.proven for suspect in outbox.suspects(limit=9, proven_only=True)] == [True]


def test_only_a_delivery_proves_a_refusal(outbox: Outbox) -> None:
    """Verdicts that accept nothing prove nothing, whenever their request was sent."""
    suspect, second, third, fourth = record(outbox, *[use(n, device=f"d{n}") for n in range(4)])
    refuse_alone(outbox, suspect)
    proves = outbox.begin([request("r", second, third, fourth)])
    outbox.settle(
        Settlement(
            deferred=[Deferral(second, NOON, counts=True)],
            refused=[third],
            buried=[Burial(fourth, "rejected", "no")],
            proves=proves,
        ),
        now=NOON,
    )
    assert outbox.status().in_doubt == 1
    [found] = [e for e in outbox.suspects(limit=9, proven_only=False) if e.seq == suspect.seq]
    assert not found.proven


def test_each_proof_reaches_as_far_as_its_request_was_sent(outbox: Outbox) -> None:
    """Lone refusals are counted over all events; a delivery proves those before its request."""
    a, b, c, other = record(outbox, *[use(n, device=f"d{n}") for n in range(4)])
    refuse_alone(outbox, a)
    refuse_alone(outbox, b)
    proves = outbox.begin([request("r", other)])
    refuse_alone(outbox, c)
    outbox.settle(Settlement(delivered=[other], proves=proves), now=NOON)
    assert proves == 2
    assert [
        (suspect.seq, suspect.lone_refusal, suspect.proven)
        for suspect in outbox.suspects(limit=9, proven_only=False)
    ] == [(a.seq, 1, True), (b.seq, 2, True), (c.seq, 3, False)]
    assert outbox.begin([]) == 3


def test_the_first_lone_refusal_is_the_one_that_counts(outbox: Outbox) -> None:
    """Asked about again and refused again, an event keeps what was proven before."""
    first, second = record(outbox, use(1), use(2))
    refuse_alone(outbox, first)
    send(outbox, second)
    refuse_alone(outbox, first)
    [suspect] = outbox.suspects(limit=9, proven_only=True)
    assert (suspect.lone_refusal, suspect.proven) == (1, True)
    # It was a refusal all the same.
    assert outbox.begin([]) == 2


def test_a_lone_wish_for_another_attempt_is_numbered_like_a_refusal(outbox: Outbox) -> None:
    """Asked for again alone, an event waits to be proven like one refused alone; in company, not.

    Its number is negative: should it be refused alone after that, this is the first time.

    What is asked for again beside others that are accepted is proven by those.
    """
    alone, company, beside, other = record(outbox, *[use(n, device=f"d{n}") for n in range(4)])
    outbox.settle(
        Settlement(
            deferred=[
                Deferral(alone, NOON, counts=True, alone=True),
                Deferral(company, NOON, counts=True),
            ]
        ),
        now=NOON,
    )
    outbox.settle(
        Settlement(
            delivered=[other], deferred=[Deferral(beside, NOON, counts=True, beside_others=True)]
        ),
        now=NOON,
    )
    assert [
        (event.seq, event.attempts, event.lone_refusal, event.proven)
        for event in everything_due(outbox)
    ] == [
        (alone.seq, 1, -1, False),
        (company.seq, 1, None, False),
        (beside.seq, 1, 0, True),
    ]


@pytest.mark.parametrize("how", ["asked for again", "refused"])
def test_a_refusal_beside_others_needs_a_lone_one_too(outbox: Outbox, how: str) -> None:
    """Refused beside others that were accepted it has number 0; refused alone, one of its own."""
    event, other, later = record(outbox, use(1), use(2, device="b"), use(3, device="c"))
    if how == "refused":
        verdict = Settlement(delivered=[other], refused=[event])
    else:
        deferral = Deferral(event, NOON, counts=True, beside_others=True)
        verdict = Settlement(delivered=[other], deferred=[deferral])
    outbox.settle(verdict, now=NOON)
    found = everything_due(outbox) + outbox.suspects(limit=9, proven_only=True)
    [beside] = [one for one in found if one.seq == event.seq]
    assert (beside.lone_refusal, beside.proven) == (0, True)
    refuse_alone(outbox, beside)
    [suspect] = outbox.suspects(limit=9, proven_only=False)
    assert (suspect.lone_refusal, suspect.proven) == (1, False)
    send(outbox, later)
    [suspect] = outbox.suspects(limit=9, proven_only=True)
    assert (suspect.lone_refusal, suspect.proven) == (1, True)


def test_what_is_proven_is_known_to_the_next_process(
    outbox: Outbox, open_it: Callable[[], Outbox]
) -> None:
    """A restart neither forgets a lone refusal nor takes it for proven."""
    first, second = record(outbox, use(1), use(2))
    refuse_alone(outbox, first)
    outbox.close()
    again = open_it()
    assert (again.begin([]), again.suspects(limit=9, proven_only=True)) == (1, [])
    send(again, second)
    again.close()
    assert [event.proven for event in open_it().suspects(limit=9, proven_only=True)] == [True]


def test_suspects_come_oldest_first(outbox: Outbox) -> None:
    """Suspects come in the order they were recorded, until `limit`."""
    events = record(outbox, use(1), use(2), use(3))
    outbox.settle(Settlement(refused=events[::-1]), now=NOON)
    assert [event.seq for event in outbox.suspects(limit=2, proven_only=True)] == [
        event.seq for event in events[:2]
    ]


@pytest.mark.parametrize("fate", [deliver, bury])
def test_a_suspect_can_go_either_way(outbox: Outbox, fate: Callable[..., None]) -> None:
    """A refused event is delivered or becomes a dead letter like any other."""
    [event] = record(outbox, use())
    refuse_alone(outbox, event)
    fate(outbox, event)
    status = outbox.status()
    assert (
        outbox.suspects(limit=9, proven_only=False),
        status.refused,
        status.delivered + status.dead,
    ) == ([], 0, 1)


# -- requests whose outcome is not known ----------------------------------------------


def test_what_was_sent_is_known_until_it_is_answered(
    outbox: Outbox, open_it: Callable[[], Outbox]
) -> None:
    """A request is found as it was made up, by this process and the next, until it is settled."""
    events = record(outbox, *[use(units, device=f"d{units}") for units in range(4)])
    late, early = request("late", *events[2:]), request("early", *events[:2], customer_id="7")
    outbox.begin([late, early])
    expected = [Unanswered("early", "7", events[:2]), Unanswered("late", CUSTOMER, events[2:])]
    assert outbox.unanswered() == expected
    assert open_it().unanswered() == expected
    outbox.close()
    again = open_it()
    assert again.unanswered() == expected
    again.settle(Settlement(delivered=events[:2], answered=early), now=NOON)
    assert again.unanswered() == expected[1:]
    again.settle(Settlement(delivered=events[2:], answered=late), now=NOON)
    assert again.unanswered() == []


def test_sending_changes_nothing_of_the_events(outbox: Outbox) -> None:
    """Before the answer an event is what it was: due, uncharged, fresh, of no customer yet."""
    events = record(outbox, use(1), use(2))
    before = outbox.status()
    outbox.begin([request("r", *events)])
    assert (everything_due(outbox), outbox.status()._replace(bytes=0)) == (
        events,
        before._replace(bytes=0),
    )


def test_what_was_sent_is_found_in_any_state(outbox: Outbox) -> None:
    """Set aside or refused meanwhile, an event is still in its request, and shown as it is now."""
    fresh, queued, deferred, refused, alone = record(
        outbox, *[use(units, device=f"d{units}") for units in range(5)]
    )
    outbox.begin([request("r", fresh, queued, deferred, refused, alone)])
    outbox.queue([queued])
    defer(outbox, deferred, until=NOON + 5, counts=True)
    outbox.settle(Settlement(refused=[refused], refused_alone=[alone]), now=NOON)
    [found] = outbox.unanswered()
    assert found.events == [
        fresh,
        queued._replace(fresh=False),
        deferred._replace(fresh=False, attempts=1),
        refused._replace(fresh=False),
        alone._replace(fresh=False, lone_refusal=1),
    ]


def test_what_is_gone_or_dead_is_in_no_request(outbox: Outbox) -> None:
    """Delivered, buried and removed events are left out; a request may be left without any."""
    delivered, dead, removed, pending = record(
        outbox, *[use(units, device=f"d{units}") for units in range(4)]
    )
    outbox.begin([request("some", delivered, dead, removed, pending), request("none", delivered)])
    deliver(outbox, delivered)
    bury(outbox, dead, removed)
    outbox.purge([removed.seq])
    assert outbox.unanswered() == [Unanswered("none", CUSTOMER, []), request("some", pending)]
    # Brought back, it is in it again: it may have been stored.
    outbox.replay([dead.seq], now=NOON)
    [_, some] = outbox.unanswered()
    assert [event.seq for event in some.events] == [dead.seq, pending.seq]


def test_a_request_in_parts_takes_the_place_of_the_whole(outbox: Outbox) -> None:
    """`forget` forgets requests in the instant in which those that carry their events begin."""
    first, second, third = record(outbox, use(1), use(2), use(3, device="b"))
    outbox.begin([request("whole", first, second), request("other", third)])
    outbox.begin([request("a", first), request("b", second)], forget=["whole", "nobody's"])
    assert outbox.unanswered() == [
        request("a", first),
        request("b", second),
        request("other", third),
    ]
    outbox.begin([], forget=["a", "other"])
    assert [sent.idempotency_key for sent in outbox.unanswered()] == ["b"]


def test_the_same_request_again_is_one(outbox: Outbox) -> None:
    """Sent once more under its key, a request is remembered once."""
    [event] = record(outbox, use())
    outbox.begin([request("r", event)])
    outbox.begin([request("r", event)])
    assert outbox.unanswered() == [request("r", event)]


def test_an_answer_ends_its_own_request_only(outbox: Outbox) -> None:
    """A settlement forgets the request that was answered; without one it forgets none."""
    first, second = record(outbox, use(1, device="a"), use(2, device="b"))
    one, two = request("one", first), request("two", second)
    outbox.begin([one, two])
    outbox.settle(Settlement(deferred=[Deferral(first, NOON, counts=False)]), now=NOON)
    assert [sent.idempotency_key for sent in outbox.unanswered()] == ["one", "two"]
    outbox.settle(Settlement(answered=two), now=NOON)
    assert [sent.idempotency_key for sent in outbox.unanswered()] == ["one"]


def test_what_an_answer_leaves_open_is_still_unanswered(
    outbox: Outbox, open_it: Callable[[], Outbox]
) -> None:
    """The part of which the answer said nothing is remembered as a request of its own."""
    first, second, third = events = record(outbox, use(1), use(2), use(3))
    whole, rest = request("whole", *events), request("rest", second, third)
    outbox.begin([whole])
    outbox.settle(Settlement(delivered=[first], answered=whole, left_open=rest), now=NOON)
    outbox.close()
    assert open_it().unanswered() == [Unanswered("rest", CUSTOMER, [second, third])]


def test_who_pays_for_what_was_sent_never_changes(
    outbox: Outbox, open_it: Callable[[], Outbox]
) -> None:
    """What stays of a request that was answered keeps its customer, in whatever state it stays."""
    queued, deferred, refused, alone, buried, named, untouched = events = record(
        outbox, *[use(units, device=f"d{units}") for units in range(7)]
    )
    sent = request("r", *events[:6])
    outbox.begin([sent])
    outbox.queue([queued], customer_id=CUSTOMER)
    outbox.settle(
        Settlement(
            deferred=[Deferral(deferred, NOON, counts=True)],
            refused=[refused],
            refused_alone=[alone],
            buried=[Burial(buried, "rejected", "no")],
            answered=sent,
            left_open=request("rest", named),
        ),
        now=NOON,
    )
    outbox.replay([buried.seq], now=NOON)
    # Once it is known it stays, whoever is said to pay later.
    other = request("other", *events[:5], customer_id='"another"')
    outbox.queue([untouched])
    outbox.settle(
        Settlement(
            deferred=[Deferral(event, NOON, counts=False) for event in (queued, deferred, buried)],
            refused=[refused],
            refused_alone=[alone],
            answered=other,
        ),
        now=NOON,
    )
    outbox.close()
    again = open_it()
    found = everything_due(again) + again.suspects(limit=9, proven_only=False)
    assert {event.seq: event.customer_id for event in found} == {
        queued.seq: CUSTOMER,
        deferred.seq: CUSTOMER,
        refused.seq: CUSTOMER,
        alone.seq: CUSTOMER,
        buried.seq: CUSTOMER,
        # Its request is remembered, and with it its customer.
        named.seq: None,
        untouched.seq: None,
    }
    assert again.unanswered() == [Unanswered("rest", CUSTOMER, [named])]


def test_who_pays_is_not_told_by_what_was_not_answered(outbox: Outbox) -> None:
    """Where a settlement names no request, as for a tenant without an account, nobody pays yet."""
    first, second, third = record(outbox, *[use(units, device=f"d{units}") for units in range(3)])
    defer(outbox, first, until=NOON)
    outbox.queue([second], until=NOON)
    bury(outbox, third, reason="customer_not_found")
    outbox.replay([third.seq], now=NOON)
    assert [event.customer_id for event in everything_due(outbox)] == [None, None, None]


def test_a_dead_letter_stays_as_it_was_sent(outbox: Outbox) -> None:
    """A late verdict gives a dead letter no other customer."""
    [event] = record(outbox, use())
    sent = request("r", event)
    outbox.settle(Settlement(buried=[Burial(event, "rejected", "no")], answered=sent), now=NOON)
    other = request("other", event, customer_id="8")
    outbox.settle(Settlement(refused=[event], answered=other), now=NOON)
    outbox.queue([event], customer_id="8")
    outbox.replay([event.seq], now=NOON)
    assert [event.customer_id for event in everything_due(outbox)] == [CUSTOMER]


# -- dead letters ---------------------------------------------------------------------


def test_a_dead_letter_tells_everything(outbox: Outbox) -> None:
    """What was said, under which key, why it is dead and since when: nothing is lost."""
    said = use(7, tenant="Ä", timestamp=NOON - DAY, idempotency_key="k")
    [event] = record(outbox, said)
    defer(outbox, event, until=NOON, counts=True)
    outbox.settle(
        Settlement(buried=[Burial(event, "rejected", "42201: no", answers=2)]), now=NOON + 1
    )
    assert list(outbox.dead_letters(Selector())) == [
        DeadLetter(
            seq=event.seq,
            tenant_id="Ä",
            device_id="d",
            meter_id="m",
            idempotency_key="k",
            event_time=NOON - DAY,
            payload=said.payload,
            attempts=1 + 2,
            reason="rejected",
            detail="42201: no",
            dead_at=NOON + 1,
        )
    ]
    assert everything_due(outbox) == []
    assert whereabouts(outbox) == {
        "accepted": 1,
        "pending": 0,
        "dead": 1,
        "delivered": 0,
        "removed": 0,
    }


def test_the_dead_stay_dead(outbox: Outbox) -> None:
    """A late verdict on a dead letter changes nothing: only an operator brings it back."""
    [event] = record(outbox, use())
    bury(outbox, event)
    before = list(outbox.dead_letters(Selector()))
    deliver(outbox, event)
    defer(outbox, event, until=NOON)
    refuse_alone(outbox, event)
    outbox.settle(Settlement(refused=[event]), now=NOON)
    bury(outbox, event, reason="other")
    outbox.queue([event])
    assert list(outbox.dead_letters(Selector())) == before
    assert everything_due(outbox) == []
    assert whereabouts(outbox) == {
        "accepted": 1,
        "pending": 0,
        "dead": 1,
        "delivered": 0,
        "removed": 0,
    }


@pytest.fixture
def graveyard(outbox: Outbox) -> Outbox:
    """Five dead letters with the keys k1 to k5, and one event that is pending."""
    events = record(
        outbox,
        use(1, tenant="a", idempotency_key="k1", timestamp=NOON),
        use(2, tenant="a", device="x", idempotency_key="k2", timestamp=NOON + 1),
        use(3, tenant="b", meter="y", idempotency_key="k3", timestamp=NOON + 2),
        use(4, tenant="b", idempotency_key="k4", timestamp=NOON + 3),
        use(5, tenant="b", idempotency_key="k5", timestamp=NOON - 1),
        use(6, tenant="a", idempotency_key="k6", timestamp=NOON),
    )
    bury(outbox, *events[:3])
    bury(outbox, *events[3:5], reason="too_large")
    return outbox


@pytest.mark.parametrize(
    ("selector", "keys"),
    [
        (Selector(), ["k1", "k2", "k3", "k4", "k5"]),
        (Selector(keys=["k4", "k2", "nobody's"]), ["k2", "k4"]),
        (Selector(keys=["k6"]), []),
        (Selector(tenant_id="a"), ["k1", "k2"]),
        (Selector(device_id="x"), ["k2"]),
        (Selector(meter_id="y"), ["k3"]),
        (Selector(reason="too_large"), ["k4", "k5"]),
        (Selector(since=NOON + 1), ["k2", "k3", "k4"]),
        (Selector(until=NOON + 1), ["k1", "k5"]),
        (Selector(since=NOON, until=NOON + 2), ["k1", "k2"]),
        (Selector(limit=2), ["k1", "k2"]),
        (Selector(limit=0), []),
        (Selector(tenant_id="b", reason="rejected", limit=9), ["k3"]),
        (Selector(tenant_id="nobody"), []),
    ],
)
def test_dead_letters_are_selected_by_everything_that_is_given(
    graveyard: Outbox, selector: Selector, keys: list[str]
) -> None:
    """A selector means the dead letters that fit all of it, oldest first."""
    assert [dead.idempotency_key for dead in graveyard.dead_letters(selector)] == keys


def test_any_number_of_dead_letters_can_be_read(outbox: Outbox) -> None:
    """However many there are, each is yielded once and in order; so, too, up to a limit."""
    events = record(outbox, *[use(units) for units in range(1_300)])
    bury(outbox, *events)
    seqs = [event.seq for event in events]
    assert [dead.seq for dead in outbox.dead_letters(Selector())] == seqs
    assert [dead.seq for dead in outbox.dead_letters(Selector(limit=1_001))] == seqs[:1_001]


def test_dead_letters_can_be_settled_while_they_are_read(outbox: Outbox) -> None:
    """Whoever goes through the dead letters may replay or remove them one by one."""
    events = record(outbox, *[use(units) for units in range(1_001)])
    bury(outbox, *events)
    removed = [outbox.purge([dead.seq]) for dead in outbox.dead_letters(Selector())]
    status = outbox.status()
    assert (sum(removed), status.removed, status.dead) == (1_001, 1_001, 0)


def test_a_replayed_event_is_due_again_under_its_key(outbox: Outbox) -> None:
    """Replay starts over: same key, same content, no attempts, no refusals held against it."""
    [event] = record(outbox, use(idempotency_key="k"))
    defer(outbox, event, until=NOON, counts=True)
    refuse_alone(outbox, event)
    send(outbox, *record(outbox, use(device="other")))
    bury(outbox, event)
    assert outbox.replay([event.seq], now=NOON + 1) == 1
    assert everything_due(outbox, now=NOON + 1) == [event._replace(fresh=False)]
    assert list(outbox.dead_letters(Selector())) == []
    assert whereabouts(outbox) == {
        "accepted": 2,
        "pending": 1,
        "dead": 0,
        "delivered": 1,
        "removed": 0,
    }


def test_a_replayed_event_goes_before_those_behind_it(outbox: Outbox) -> None:
    """Within its stream, a replayed event is delivered where it belongs: before later ones."""
    first, _ = record(outbox, use(1), use(2))
    bury(outbox, first)
    outbox.replay([first.seq], now=NOON)
    due = everything_due(outbox)
    assert [(event.total_usage, event.held) for event in due] == [(1, False), (2, True)]
    outbox.queue(due[1:])
    assert units_due(outbox) == [1, 2]


def test_a_removed_event_is_gone_and_counted(outbox: Outbox) -> None:
    """Purge removes for good, and says so in the counts."""
    first, second = record(outbox, use(1), use(2))
    bury(outbox, first, second)
    assert outbox.purge([first.seq]) == 1
    assert [dead.seq for dead in outbox.dead_letters(Selector())] == [second.seq]
    assert whereabouts(outbox) == {
        "accepted": 2,
        "pending": 0,
        "dead": 1,
        "delivered": 0,
        "removed": 1,
    }


def test_operators_steer_dead_letters_only(graveyard: Outbox) -> None:
    """Replay and purge leave alone what is not dead, unknown, or named twice."""
    pending = 6
    assert graveyard.replay([1, 1, pending, 99], now=NOON) == 1
    assert graveyard.purge([2, 2, 1, pending, 99]) == 1
    assert whereabouts(graveyard) == {
        "accepted": 6,
        "pending": 2,
        "dead": 3,
        "delivered": 0,
        "removed": 1,
    }


def letter(key: str, units: int = 1, **said: Any) -> ImportedLetter:
    """A dead letter from elsewhere."""
    event = use(units, idempotency_key=key, **said)
    return ImportedLetter(event, NOON - DAY, 3, "too_large", "413", NOON - SECOND, 2, CUSTOMER)


def test_an_imported_letter_is_accepted_as_it_was(outbox: Outbox) -> None:
    """It is a dead letter with all that is known of it, under a number of this outbox."""
    record(outbox, use(5))
    assert outbox.import_letters([letter("k", tenant="new")], now=NOON) == [True]
    assert list(outbox.dead_letters(Selector())) == [
        DeadLetter(
            seq=2,
            tenant_id="new",
            device_id="d",
            meter_id="m",
            idempotency_key="k",
            event_time=NOON - DAY,
            payload=letter("k", tenant="new").event.payload,
            attempts=3,
            reason="too_large",
            detail="413",
            dead_at=NOON - SECOND,
            replays=2,
            customer_id=CUSTOMER,
        )
    ]
    assert whereabouts(outbox) == {
        "accepted": 2,
        "pending": 1,
        "dead": 1,
        "delivered": 0,
        "removed": 0,
    }
    assert outbox.replay([2], now=NOON) == 1
    assert [event.customer_id for event in everything_due(outbox)] == [CUSTOMER, None]


@pytest.mark.parametrize("is_purged", [False, True])
def test_a_letter_is_imported_once_unless_it_was_purged(outbox: Outbox, *, is_purged: bool) -> None:
    """Known is what is here in any state and what was delivered; a purge makes it new again."""
    first = [letter("dead"), letter("pending"), letter("delivered")]
    assert outbox.import_letters([*first, letter("dead")], now=NOON) == [True, True, True, False]
    outbox.replay([2, 3], now=NOON)
    deliver(outbox, *[e for e in everything_due(outbox) if e.idempotency_key == "delivered"])
    if is_purged:
        outbox.purge([1])
    assert outbox.import_letters(first, now=NOON) == [is_purged, False, False]
    assert outbox.import_letters(first, now=NOON) == [False, False, False]
    assert outbox.status().accepted == 3 + is_purged


def test_an_import_with_a_conflict_takes_nothing(outbox: Outbox) -> None:
    """All or none: the conflict names its place, and nothing has changed."""
    outbox.append([use(idempotency_key="k", timestamp=NOON - DAY)], now=NOON)
    same = letter("k", timestamp=NOON - DAY)
    assert outbox.import_letters([same], now=NOON) == [False]
    with pytest.raises(KeyConflict) as conflict:
        outbox.import_letters([letter("new"), same, letter("k", 2)], now=NOON)
    assert (conflict.value.index, outbox.status().accepted) == (2, 1)


def test_pending_events_are_selected_like_dead_letters(graveyard: Outbox) -> None:
    """What waits is told with its state; the dead are not among it."""
    record(graveyard, *[use(units, tenant="many") for units in range(1_001)])
    assert [event.seq for event in graveyard.pending_events(Selector())] == list(range(6, 1_008))
    (one,) = graveyard.pending_events(Selector(keys=["k6", "k1"]))
    assert (one.idempotency_key, one.state, one.next_attempt_at) == ("k6", "pending", None)
    assert [event.seq for event in graveyard.pending_events(Selector(tenant_id="a"))] == [6]
    assert len(list(graveyard.pending_events(Selector(limit=501)))) == 501


def test_many_are_replayed_and_removed_at_once(outbox: Outbox) -> None:
    """Replay and purge take any number, and return how many there were."""
    events = record(outbox, *[use(units) for units in range(2_000)])
    bury(outbox, *events)
    seqs = [event.seq for event in events]
    assert outbox.replay(seqs[:1_500], now=NOON) == 1_500
    assert outbox.purge(seqs) == 500
    assert units_due(outbox) == list(range(1_500))


# -- links and accounts ---------------------------------------------------------------


def test_a_link_is_up_until_somebody_says_otherwise(outbox: Outbox) -> None:
    """Of a link that was never used nothing is known, and nothing is wrong."""
    assert outbox.link("events") == Link("events")


def test_a_link_is_remembered(outbox: Outbox, open_it: Callable[[], Outbox]) -> None:
    """How it stands with a link survives the process."""
    down = Link("events", 3, NOON, NOON + 5, NOON - 9, "connection refused", NOON + 1)
    outbox.set_link(down)
    outbox.set_link(Link("accounts", last_success_at=NOON))
    assert open_it().link("events") == down
    assert open_it().status().links == [Link("accounts", last_success_at=NOON), down]


def test_a_delivery_marks_the_link_as_up(outbox: Outbox) -> None:
    """A success ends the outage; what the last error was stays known."""
    outbox.set_link(Link("events", 3, NOON, NOON + 5, None, "refused", NOON + 1))
    deliver(outbox, *record(outbox, use()), now=NOON + 7)
    assert outbox.link("events") == Link("events", 0, None, None, NOON + 7, "refused", NOON + 1)


def test_a_late_success_leaves_the_pause_alone(outbox: Outbox) -> None:
    """Accepted, but sent before the outage: the event is delivered, and the link is still down."""
    down = Link("events", 3, NOON, NOON + 5, NOON - 9, "refused", NOON + 1)
    outbox.set_link(down)
    events = record(outbox, use())
    outbox.settle(Settlement(delivered=events, recovers=False), now=NOON + 3)
    assert outbox.link("events") == down._replace(last_success_at=NOON + 3)
    assert whereabouts(outbox)["delivered"] == 1


def test_the_first_success_is_noted_even_if_it_recovers_nothing(outbox: Outbox) -> None:
    """Of a link that nothing is known of, a success that recovers nothing is known from then on."""
    outbox.settle(Settlement(delivered=record(outbox, use()), recovers=False), now=NOON + 3)
    assert outbox.link("events") == Link("events", last_success_at=NOON + 3)


def test_settling_without_a_delivery_says_nothing_of_the_link(outbox: Outbox) -> None:
    """Only an accepted event proves that the link is up."""
    down = Link("events", 3, NOON, NOON + 5, None, "refused", NOON + 1)
    outbox.set_link(down)
    [event] = record(outbox, use())
    defer(outbox, event, until=NOON)
    bury(outbox, event)
    assert outbox.link("events") == down


@pytest.mark.parametrize(
    "account",
    [
        Account('"c-1"', NOON, 0),
        Account(None, NOON, 2),
        Account(None, NOON, 3, NOON + 5),
        Account(None, NOON, 0, NOON + 5),
    ],
)
def test_an_account_is_remembered(
    outbox: Outbox, open_it: Callable[[], Outbox], account: Account
) -> None:
    """The accounts API's last answer for a tenant survives the process; the newest counts."""
    assert outbox.account("t") is None
    outbox.set_account("t", Account("7", NOON - 1, 0))
    outbox.set_account("t", Account(None, NOON - 1, 1, NOON))
    outbox.set_account("t", account)
    outbox.set_account("u", Account("8", NOON, 0))
    assert open_it().account("t") == account


# -- the flusher's hold ---------------------------------------------------------------


def test_one_flusher_at_a_time(outbox: Outbox, open_it: Callable[[], Outbox]) -> None:
    """Whoever holds the outbox keeps others out until it lets go; `holder` says who it is."""
    other = open_it()
    assert outbox.holder() is None
    assert (outbox.try_hold(), outbox.try_hold(), other.try_hold()) == (True, True, False)
    assert (outbox.holder(), other.holder()) == (os.getpid(), os.getpid())
    outbox.release()
    assert (other.holder(), other.try_hold(), outbox.try_hold()) == (None, True, False)


def test_closing_lets_go(outbox: Outbox, open_it: Callable[[], Outbox]) -> None:
    """A closed outbox holds nobody up, and may be closed again."""
    other = open_it()
    assert outbox.try_hold()
    outbox.close()
    outbox.close()
    assert (other.holder(), other.try_hold()) == (None, True)


def test_letting_go_of_nothing_is_no_error(outbox: Outbox) -> None:
    """`release` without a hold changes nothing."""
    outbox.release()
    assert outbox.holder() is None


def test_posts_need_no_hold(outbox: Outbox, open_it: Callable[[], Outbox]) -> None:
    """While one process delivers, any other records."""
    assert outbox.try_hold()
    open_it().append([use()], now=NOON)
    assert len(everything_due(outbox)) == 1


# -- status ---------------------------------------------------------------------------


def test_the_status_of_an_empty_outbox(outbox: Outbox) -> None:
    """Everything is known of an outbox from its first moment on."""
    status = outbox.status()
    assert status == OutboxStatus(
        location=outbox.location,
        outbox_id=outbox.outbox_id,
        schema_version=status.schema_version,
        accepted=0,
        pending=0,
        dead=0,
        delivered=0,
        removed=0,
        refused=0,
        held_streams=0,
        oldest_recorded_at=None,
        bytes=status.bytes,
        next_attempt_at=None,
        links=[],
        workers=status.workers,
    )
    assert status.schema_version >= 1
    assert status.bytes > 0


def test_the_status_counts_each_event_once(outbox: Outbox) -> None:
    """Whatever state it is in, an event is pending, dead, delivered or removed."""
    events = record(outbox, *[use(units, device=f"d{units}") for units in range(7)])
    deliver(outbox, events[0], now=NOON + 9)
    defer(outbox, events[1], until=NOON + 5)
    outbox.settle(Settlement(refused=[events[2]]), now=NOON)
    bury(outbox, events[3], events[4])
    outbox.purge([events[4].seq])
    status = outbox.status()
    assert status == OutboxStatus(
        location=outbox.location,
        outbox_id=outbox.outbox_id,
        schema_version=status.schema_version,
        accepted=7,
        pending=4,
        dead=1,
        delivered=1,
        removed=1,
        refused=1,
        held_streams=1,
        oldest_recorded_at=NOON,
        bytes=status.bytes,
        next_attempt_at=NOON + 5,
        links=[Link("events", last_success_at=NOON + 9)],
        dead_lettered=2,
        workers=status.workers,
    )


def test_pending_events_are_counted_by_when_they_were_recorded(outbox: Outbox) -> None:
    """Fresh ones and those set aside; what has left, or is a dead letter, is not among them."""
    assert outbox.pending_since([0, NOON]) == [0, 0]
    first, second, third, fourth = (
        record(outbox, use(number, meter=f"m{number}"), now=NOON + number * HOUR)[0]
        for number in range(4)
    )
    record(outbox, use(), use(), use(), now=NOON + 9 * HOUR)
    bounds = [0, NOON, NOON + 1, NOON + HOUR, NOON + 3 * HOUR, NOON + 9 * HOUR, NOON + 10 * HOUR]
    assert outbox.pending_since(bounds) == [7, 7, 6, 6, 4, 3, 0]
    later = NOON + DAY
    outbox.settle(
        Settlement(
            delivered=[first],
            deferred=[Deferral(second, later, counts=True)],
            refused=[third],
            buried=[Burial(fourth, "rejected", "no")],
        ),
        now=NOON,
    )
    assert outbox.pending_since(bounds) == [5, 5, 5, 5, 3, 3, 0]


def test_a_replay_does_not_unmake_what_was_a_dead_letter(outbox: Outbox) -> None:
    """How many events were given up is a total: a second death counts, and no replay undoes it."""
    [event] = record(outbox, use(1))
    told: list[tuple[int, int]] = []
    for _ in range(2):
        bury(outbox, event)
        outbox.replay([event.seq], now=NOON)
        status = outbox.status()
        told.append((status.dead, status.dead_lettered))
    assert told == [(0, 1), (0, 2)]


def test_the_oldest_pending_event_is_known_whatever_its_state(outbox: Outbox) -> None:
    """The age of the backlog is that of its oldest event: set aside, refused or untouched."""
    for hour in range(4):
        outbox.append([use(hour, device=f"d{hour}")], now=NOON + hour * HOUR)
    deferred, refused, dead, _ = everything_due(outbox)
    defer(outbox, deferred, until=NOON)
    outbox.settle(Settlement(refused=[refused]), now=NOON)
    ages = [outbox.status().oldest_recorded_at]
    for event in (deferred, refused):
        deliver(outbox, event)
        ages.append(outbox.status().oldest_recorded_at)
    bury(outbox, dead)
    ages.append(outbox.status().oldest_recorded_at)
    deliver(outbox, *everything_due(outbox))
    ages.append(outbox.status().oldest_recorded_at)
    assert ages == [NOON, NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR, None]


def test_the_next_attempt_waits_for_the_link_first(outbox: Outbox) -> None:
    """While the link is paused no stream is attempted, whenever it would be due."""
    [event] = record(outbox, use())
    defer(outbox, event, until=NOON + 5)
    outbox.set_link(Link("events", 1, NOON, NOON + 60, None, "refused", NOON))
    assert outbox.status().next_attempt_at == NOON + 60


def test_an_outbox_keeps_its_name(outbox: Outbox, open_it: Callable[[], Outbox]) -> None:
    """`outbox_id` is made with the outbox and never changes."""
    name = outbox.outbox_id
    outbox.append([use()], now=NOON)
    assert name
    assert (open_it().outbox_id, open_it().status().outbox_id) == (name, name)
