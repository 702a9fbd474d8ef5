from __future__ import annotations

import json
from typing import Any

import pytest

from meter_lib.outbox import DueEvent
from meter_lib.usage import usage_event
from meter_worker.backend import Request
from meter_worker.wire import header_text, record_texts, request_body, request_for

NOON = 1_759_791_552_000


def due(key: str = "key-1", seq: int = 7, **arguments: Any) -> DueEvent:
    """Make a due event, its payload frozen as the recorder freezes it."""
    given = {"tenant_id": "t", "device_id": "d", "meter_id": "m", "total_usage": 24} | arguments
    event = usage_event(**given)
    return DueEvent(
        seq=seq,
        stream_id=1,
        tenant_id=event.tenant_id,
        device_id=event.device_id,
        meter_id=event.meter_id,
        idempotency_key=key,
        event_time=event.event_time(NOON),
        total_usage=event.total_usage,
        payload=event.payload,
        attempts=0,
        customer_id=None,
        lone_refusal=None,
        proven=False,
        fresh=True,
        held=False,
    )


def record(event: DueEvent, customer_id: str = '"cust-1"') -> str:
    """Write the record of an event."""
    (text,) = record_texts([event], outbox_id="box-1", customer_id=customer_id)
    return text


def test_a_volume_event_goes_out_as_this_text() -> None:
    """The record of a volume event, byte for byte: the key of its stream, and the value."""
    assert record(due()) == (
        '{"key":"t/d/m","value":{"customer_id":"cust-1","idempotency_key":"key-1",'
        '"event_time":1759791552000,"outbox_id":"box-1","seq":7,'
        '"meter_id":"m","tenant_id":"t","device_id":"d","total_usage":24,"metadata":{}}}'
    )


def test_a_session_boundary_goes_out_as_this_text() -> None:
    """An event without a volume is an `ai_event` with its times, and happened at its end."""
    boundary = due(
        total_usage=None, start_time=NOON - 5000, end_time=NOON - 1000, metadata={"model": "x"}
    )

    assert record(boundary) == (
        '{"key":"t/d/m","value":{"customer_id":"cust-1","idempotency_key":"key-1",'
        '"event_time":1759791551000,"outbox_id":"box-1","seq":7,'
        '"meter_id":"m","tenant_id":"t","device_id":"d","ai_event":true,'
        '"start_time":1759791547000,"end_time":1759791551000,"metadata":{"model":"x"}}}'
    )


@pytest.mark.parametrize(
    ("usage", "members"),
    [
        ({"total_usage": 0}, {"total_usage": 0}),
        ({"total_usage": 2**63 - 1}, {"total_usage": 2**63 - 1}),
        (
            {"total_usage": 3, "start_time": NOON, "end_time": NOON + 1},
            {"total_usage": 3, "start_time": NOON, "end_time": NOON + 1},
        ),
        ({"total_usage": None, "start_time": NOON}, {"ai_event": True, "start_time": NOON}),
        ({"total_usage": None, "end_time": NOON}, {"ai_event": True, "end_time": NOON}),
    ],
)
def test_the_value_holds_what_the_contract_names_and_nothing_else(
    usage: dict[str, Any], members: dict[str, Any]
) -> None:
    """Read back, the value has these members, exact numbers included."""
    event = due(**usage, metadata={"page": 1, "colour": True})

    assert json.loads(record(event)) == {
        "key": "t/d/m",
        "value": {
            "meter_id": "m",
            "customer_id": "cust-1",
            "tenant_id": "t",
            "device_id": "d",
            "event_time": event.event_time,
            "idempotency_key": "key-1",
            "outbox_id": "box-1",
            "seq": 7,
            "metadata": {"page": "1", "colour": "true"},
            **members,
        },
    }


def test_text_beyond_ascii_and_quotes_arrive_as_they_were_recorded() -> None:
    """Ids and metadata with quotes, backslashes and any script are the same on the other side."""
    event = due(
        key='"quoted\\key"',
        tenant_id='käufer "a"\\b',
        device_id="設備/1",
        meter_id="m\u2028😀",
        metadata={"ключ": 'line\nbreak "x" \\ 😀'},
    )
    read = json.loads(request_body([record(event)]))

    assert read["records"] == [
        {
            "key": 'käufer "a"\\b/設備/1/m\u2028😀',
            "value": {
                "customer_id": "cust-1",
                "idempotency_key": '"quoted\\key"',
                "event_time": NOON,
                "outbox_id": "box-1",
                "seq": 7,
                "meter_id": "m\u2028😀",
                "tenant_id": 'käufer "a"\\b',
                "device_id": "設備/1",
                "total_usage": 24,
                "metadata": {"ключ": 'line\nbreak "x" \\ 😀'},
            },
        }
    ]


@pytest.mark.parametrize("customer_id", ['"cust \\"1\\""', "42", '"kündin"'])
def test_the_customer_id_goes_out_as_the_accounts_api_wrote_it(customer_id: str) -> None:
    """A number stays a number, text stays text."""
    read = json.loads(record(due(), customer_id=customer_id))

    assert read["value"]["customer_id"] == json.loads(customer_id)


def test_a_body_holds_its_records_in_their_order_as_utf_8() -> None:
    """The body is the records and nothing else around them."""
    assert request_body(['{"value":"ä"}', '{"value":2}']) == (
        b'{"records":[{"value":"\xc3\xa4"},{"value":2}]}'
    )


def test_a_request_names_its_tenant_and_device_and_carries_the_records() -> None:
    """The request is of the tenant and device of its events."""
    request = request_for([due("a"), due("b")], ["r1", "r2"])

    assert request == Request("t", "d", request.idempotency_key, ["r1", "r2"])
    assert len(request.idempotency_key) == 32
    assert set(request.idempotency_key) <= set("0123456789abcdef")


def test_the_same_events_have_the_same_request_key_in_every_process() -> None:
    """A resent request is known again: its key depends on the events only, not on attempts."""
    events = [due("a", seq=1), due("b", seq=2)]
    again = [event._replace(attempts=3, held=True) for event in events]

    assert request_for(events, ["r1", "r2"]).idempotency_key == "1d9766e2e81a8340e41d21b1fcd2b48b"
    assert request_for(again, ["r1", "r2"]).idempotency_key == "1d9766e2e81a8340e41d21b1fcd2b48b"


def test_other_events_have_another_request_key() -> None:
    """Fewer, more or others, also with equal keys chosen on another device: another request."""
    several = [
        [due("a"), due("b")],
        [due("a")],
        [due("b")],
        [due("b"), due("a")],
        [due("a"), due("b"), due("c")],
        [due("a", device_id="d2"), due("b", device_id="d2")],
        [due("a", tenant_id="t2"), due("b", tenant_id="t2")],
        [due("ab")],
    ]

    assert len({request_for(events, []).idempotency_key for events in several}) == len(several)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("device-1", "device-1"),
        ("a/b?c#d%e@f+g h", "a/b?c#d%e@f+g h"),
        ('say "hi" \\', 'say "hi" \\'),
        ("Prüfstelle 3/Süd", "Pr%C3%BCfstelle 3/S%C3%BCd"),
        ("設備", "%E8%A8%AD%E5%82%99"),
        ("😀", "%F0%9F%98%80"),
        ("\u00a0", "%C2%A0"),
    ],
)
def test_headers_carry_plain_ascii_and_encode_the_rest(text: str, header: str) -> None:
    """What is plain ASCII stays, all else is percent-encoded UTF-8: no header ever breaks."""
    assert header_text(text) == header
