from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from meter_lib import METERS
from meter_lib.usage import usage_event_from

DATA = Path(__file__).parent.parent / "data"
WEEK_BEGINS_AT = 1_792_972_800_000  # 2026-10-26T00:00:00Z
MONTH_ENDS_AT = 1_793_491_200_000  # 2026-11-01T00:00:00Z
WEEK_ENDS_AT = 1_793_577_600_000  # 2026-11-02T00:00:00Z
HOUR = 3_600_000

Event = dict[str, Any]


@pytest.fixture(scope="module")
def recorded() -> bytes:
    """The committed file as it is."""
    return (DATA / "week.jsonl").read_bytes()


@pytest.fixture(scope="module")
def events(recorded: bytes) -> list[Event]:
    """What its lines say, in their order."""
    return [json.loads(line) for line in recorded.splitlines()]


def happened_at(event: Event) -> int:
    """The event time that the contract derives from the arguments."""
    name = next(name for name in ("timestamp", "end_time", "start_time") if name in event)
    return int(event[name])


def sessions(events: list[Event], boundary: str) -> dict[str, int]:
    """When each chat session began (`start_time`) or ended (`end_time`)."""
    return {
        event["metadata"]["session_id"]: event[boundary]
        for event in events
        if event["meter_id"] == "chat.on.time_hours" and boundary in event
    }


def test_generating_it_again_gives_the_committed_file(recorded: bytes) -> None:
    """The file is what its generator prints, to the byte, on every supported Python."""
    command = [sys.executable, str(DATA / "generate.py")]
    assert subprocess.run(command, check=True, capture_output=True).stdout == recorded


def test_every_line_is_a_valid_event(events: list[Event]) -> None:
    """Each line is accepted as it stands and means the moment that it names."""
    accepted = [usage_event_from(event).event_time(now=0) for event in events]
    assert accepted == [happened_at(event) for event in events]


def test_every_meter_of_the_catalogue_occurs_and_no_other(events: list[Event]) -> None:
    """Whoever replays the week has used each known meter."""
    assert {event["meter_id"] for event in events} == {meter.id for meter in METERS}


def test_events_are_in_the_order_of_their_times_and_within_the_week(events: list[Event]) -> None:
    """The order of the lines is the order in which things happened."""
    times = [happened_at(event) for event in events]
    assert times == sorted(times)
    assert times[0] >= WEEK_BEGINS_AT
    assert times[-1] < WEEK_ENDS_AT


def test_the_type_of_the_meter_decides_which_times_an_event_has(events: list[Event]) -> None:
    """Volume events say how much and when; performance events are either a beginning or an end."""
    type_of = {meter.id: meter.type for meter in METERS}
    fields = {"total_usage", "start_time", "end_time", "timestamp"}
    shapes = {(type_of[event["meter_id"]], *sorted(fields & event.keys())) for event in events}
    assert shapes == {
        ("volume", "timestamp", "total_usage"),
        ("performance", "start_time"),
        ("performance", "end_time"),
    }


def test_no_session_ends_before_it_began_and_some_are_still_open(events: list[Event]) -> None:
    """Sessions overlap, each end has its beginning, and the week ends in the midst of some."""
    began, ended = sessions(events, "start_time"), sessions(events, "end_time")
    assert [name for name in ended if ended[name] <= began[name]] == []
    assert max(began[name] for name in began.keys() - ended) > WEEK_ENDS_AT - HOUR
    assert any(began[a] < began[b] < ended[a] for a in ended for b in ended)


def test_keys_chosen_by_the_caller_are_used_once(events: list[Event]) -> None:
    """Every line is an event of its own, so the count of lines is the count of events billed."""
    keys = [event["idempotency_key"] for event in events if "idempotency_key" in event]
    assert "invoice-2026-10-0001" in keys
    assert len(keys) == len(set(keys))


def test_the_end_of_the_month_brings_thousands_within_an_hour(events: list[Event]) -> None:
    """Rules, reports and templates each have an hour with more than a thousand events."""
    hours = Counter((e["meter_id"].partition(".")[0], happened_at(e) // HOUR) for e in events)
    bursts = [family for (family, _), count in hours.items() if count > 1000]
    assert sorted(bursts) == ["report", "rule", "template"]


def test_the_edge_of_the_month_is_met_to_the_millisecond(events: list[Event]) -> None:
    """One event is of the last millisecond of October, others of the first one of November."""
    times = {happened_at(event) for event in events}
    assert {MONTH_ENDS_AT - 1, MONTH_ENDS_AT} <= times


def test_amounts_and_texts_reach_the_unusual(events: list[Event]) -> None:
    """There is nothing used, more than 32 bits of it, and text that a careless reader breaks."""
    amounts = {event["total_usage"] for event in events if "total_usage" in event}
    assert min(amounts) == 0
    assert max(amounts) > 2**32
    values = [value for event in events for value in event.get("metadata", {}).values()]
    assert {type(value) for value in values} == {str, int, float, bool}
    text = "".join(value for value in values if isinstance(value, str))
    assert set('"\\\n\r\t\u2028\u0301\u200dßü請ب📄') <= set(text)
    assert "" in values


def test_the_readme_counts_what_is_in_the_file(events: list[Event]) -> None:
    """The table beside the file agrees with the file."""
    counted = Counter(f"`{event['tenant_id']}`, `{event['device_id']}`" for event in events)
    counted += Counter(f"`{event['meter_id'].partition('.')[0]}.*`" for event in events)
    counted["with the caller's own key"] = sum("idempotency_key" in event for event in events)
    counted["all"] = len(events)
    readme = (DATA / "README.md").read_text("utf-8")
    written = re.findall(r"\| ([^|\n]+) \| ([\d,]+)(?= \|)", readme)
    assert {name: int(count.replace(",", "")) for name, count in written} == counted
