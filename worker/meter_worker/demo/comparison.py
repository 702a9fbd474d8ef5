"""What was posted against what was received, event by event. Pure."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "LEDGER_PLACES",
    "Comparison",
    "Event",
    "Line",
    "Row",
    "compare",
    "ledger_problems",
    "posted_events",
    "received_event",
]

Line: TypeAlias = "Mapping[str, Any]"  # Any: as JSON has it
"""One event with the argument names of `post_meter_usage`."""

LEDGER_PLACES = ("delivered", "pending", "dead", "removed")
"""Where an accepted event may be: in exactly one of them."""


class Event(NamedTuple):
    """What happened: if any of it changed on the way, the bill could change."""

    key: str | None
    """Of a posted event: None where its poster left it to the outbox to give it one."""
    event_time: int | None
    """Of a posted event: None where it happened when it was posted."""
    tenant_id: str
    device_id: str
    meter_id: str
    units: int | None
    start_time: int | None
    end_time: int | None
    metadata: frozenset[tuple[str, str]]


class Row(NamedTuple):
    """One meter, or all of them."""

    meter_id: str
    posted: int
    received: int
    keys: int
    """Different idempotency keys among the received: what the backend bills."""
    again: int
    missing: int
    units_posted: int
    units_received: int
    """By different keys: what came again is not counted again."""


class Comparison(NamedTuple):
    """The rows by meter id, their sum, and what is wrong: nothing, if all is well."""

    rows: Sequence[Row]
    total: Row
    problems: Sequence[str]


def posted_events(lines: Iterable[Line]) -> list[Event]:
    """Return the events that these lines post; under a key that repeats, the first is the event."""
    events: list[Event] = []
    keys: set[str] = set()
    for line in lines:
        key = line.get("idempotency_key")
        if key is None or key not in keys:
            times = (line.get(name) for name in ("timestamp", "end_time", "start_time"))
            event_time = next((time for time in times if time is not None), None)
            events.append(_event(line, key, event_time))
        if key is not None:
            keys.add(key)
    return events


def received_event(value: Line) -> Event:
    """Return the event that the value of a received record describes."""
    return _event(value, value["idempotency_key"], value["event_time"])


def _event(members: Line, key: str | None, event_time: int | None) -> Event:
    metadata = members.get("metadata") or {}
    return Event(
        key=key,
        event_time=event_time,
        tenant_id=members["tenant_id"],
        device_id=members["device_id"],
        meter_id=members["meter_id"],
        units=members.get("total_usage"),
        start_time=members.get("start_time"),
        end_time=members.get("end_time"),
        # Whatever is not text is sent as the text that JSON has for it.
        metadata=frozenset(
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in metadata.items()
        ),
    )


def compare(posted: Sequence[Event], received: Sequence[Event]) -> Comparison:
    """Compare what was posted with everything that was received, in the order it came."""
    first: dict[str | None, Event] = {}
    for event in received:
        first.setdefault(event.key, event)
    missing, unexpected = _unmatched(posted, first.values())
    columns = [
        _events_by_meter(posted),
        _events_by_meter(received),
        _events_by_meter(first.values()),
        _events_by_meter(missing),
        _units_by_meter(posted),
        _units_by_meter(first.values()),
    ]
    meter_ids = sorted(set().union(*columns))
    rows = [_row(meter_id, *(column[meter_id] for column in columns)) for meter_id in meter_ids]
    total = _row("total", *(sum(column.values()) for column in columns))
    changed = sum(first[event.key] != event for event in received)
    problems = [
        *_counted(len(missing), "posted and never received"),
        *_counted(len(unexpected), "received and never posted like that"),
        *_counted(changed, "not what came before under the same key"),
        *(
            f"{row.meter_id}: {row.units_posted:,} units posted, {row.units_received:,} received"
            for row in rows
            if row.units_posted != row.units_received
        ),
    ]
    return Comparison(rows, total, problems)


def ledger_problems(ledger: Mapping[str, int], *, posted: int) -> list[str]:
    """Return what is wrong with the outbox's own counts, given how many events were posted."""
    accounted_for = sum(ledger[place] for place in LEDGER_PLACES)
    if ledger["accepted"] == accounted_for == posted:
        return []
    accepted = ledger["accepted"]
    return [
        f"{posted:,} events posted, {accepted:,} accepted, {accounted_for:,} of them accounted for"
    ]


def _unmatched(
    posted: Iterable[Event], received: Iterable[Event]
) -> tuple[list[Event], list[Event]]:
    """Return the posted events that were not received, and the received that were not posted."""
    waiting = Counter(posted)
    unexpected: list[Event] = []
    for event in received:
        match = next((one for one in _as_posted(event) if waiting[one]), None)
        if match is None:
            unexpected.append(event)
        else:
            waiting[match] -= 1
    return list(waiting.elements()), unexpected


def _as_posted(event: Event) -> Iterator[Event]:
    """Yield how a received event may have been posted: with or without a key and a time."""
    for key in (event.key, None):
        for event_time in (event.event_time, None):
            yield event._replace(key=key, event_time=event_time)


def _row(
    meter_id: str,
    posted: int,
    received: int,
    keys: int,
    missing: int,
    units_posted: int,
    units_received: int,
) -> Row:
    again = received - keys
    return Row(meter_id, posted, received, keys, again, missing, units_posted, units_received)


def _counted(events: int, what: str) -> list[str]:
    return [f"{events:,} {'event was' if events == 1 else 'events were'} {what}"] if events else []


def _events_by_meter(events: Iterable[Event]) -> Counter[str]:
    return Counter(event.meter_id for event in events)


def _units_by_meter(events: Iterable[Event]) -> Counter[str]:
    units: Counter[str] = Counter()
    for event in events:
        units[event.meter_id] += event.units or 0
    return units
