"""The events of the torture: each carries what it takes to see that it is whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

    from meter_lib.outbox import DueEvent

__all__ = ["MAX_BYTES", "batch", "event", "is_whole", "stream_is_batch"]

MAX_BYTES = 4 * 1024 * 1024
"""Limit of a tortured outbox: a small one, so that its log is emptied often."""

_METER = "page.processed.basic"
_BATCH = "batch of "
# Up to a few pages: large enough to be split, small enough to come often.
_LONGEST_PAD = 6000


def event(number: int, dice: random.Random, *, device_id: str = "lone") -> dict[str, Any]:
    """Return the arguments of a post; Any: as `post_many` takes them."""
    return {
        "tenant_id": f"tenant {number % 3}",
        "device_id": device_id,
        "meter_id": _METER,
        "total_usage": number,
        "metadata": {"pad": _pad(number, dice.randrange(_LONGEST_PAD))},
    }


def batch(number: int, size: int, dice: random.Random, *, name: str) -> list[dict[str, Any]]:
    """Return events to be posted together; their device tells how many they are."""
    device_id = f"{_BATCH}{size}: {name}.{number}"
    return [event(n, dice, device_id=device_id) for n in range(size)]


def stream_is_batch(device_id: str) -> int | None:
    """Return how many events were posted together for this device, or None."""
    if not device_id.startswith(_BATCH):
        return None
    return int(device_id.removeprefix(_BATCH).partition(":")[0])


def is_whole(due: DueEvent) -> bool:
    """Return whether an event is as it was posted."""
    try:
        payload = json.loads(due.payload)
        pad = payload["metadata"]["pad"]
        return bool(
            payload["total_usage"] == due.total_usage
            and payload["device_id"] == due.device_id
            and pad == _pad(due.total_usage or 0, len(pad))
        )
    except (ValueError, LookupError, TypeError):
        return False


def _pad(number: int, length: int) -> str:
    return (f"{number};" * (length // 2 + 1))[:length]
