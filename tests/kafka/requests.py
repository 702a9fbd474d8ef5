"""Requests as the worker makes them, of events that have a key and nothing else to tell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meter_worker.backend import Answered, Delivered, Request

if TYPE_CHECKING:
    from meter_worker.backend import Outcome


def request_of(*names: str, meter_id: str = "m") -> Request:
    """Make a request of events with these keys."""
    return Request("t", "d", "request", [record(name, meter_id) for name in names])


def record(name: str, meter_id: str = "m") -> str:
    """Write a record as the worker does."""
    value = {
        "idempotency_key": name,
        "outbox_id": "box",
        "tenant_id": "t",
        "device_id": "d",
        "meter_id": meter_id,
    }
    return json.dumps({"key": f"t/d/{meter_id}", "value": value})


def all_delivered(outcome: Outcome, count: int) -> bool:
    """Return whether each of so many records is said to be stored."""
    return repr(outcome) == repr(Answered(tuple(Delivered() for _ in range(count))))
