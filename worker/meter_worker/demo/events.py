"""The usage that the demo posts: read from a file, or made here. Knows no outbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meter_lib import METERS, MeterError
from meter_lib.usage import usage_event_from
from meter_worker.demo.failure import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_worker.demo.comparison import Line

__all__ = ["built_in_lines", "read_lines"]

_SENDERS = (
    ("acme-insurance", "gateway-1"),
    ("acme-insurance", "gateway-2"),
    ("Müller & Söhne", "Prüfstelle 3/Süd"),
    ("東京支社", "scanner-1"),
)
_BEGIN = 1_792_972_800_000  # 2026-10-26T00:00:00Z
_STEP = 48_000  # milliseconds: 1,800 of them are a day
# Of the 18 meters, 2 take two events, a beginning and an end: 1,600 + 2 * 200 are 2,000.
_USES = 1_800


def built_in_lines() -> Iterator[Line]:
    """Yield 2,000 events of one day, the same each time."""
    for number in range(_USES):
        tenant_id, device_id = _SENDERS[number // 3 % 7 % 4]
        meter = METERS[number * 7 % len(METERS)]
        used = {"tenant_id": tenant_id, "device_id": device_id, "meter_id": meter.id}
        at = _BEGIN + number * _STEP
        if meter.type == "performance":
            session = {**used, "metadata": {"session": f"s-{number}"}}
            yield {**session, "start_time": at}
            yield {**session, "end_time": at + 1_000 * (1 + number % 40)}
        else:
            file = {"file": f"Prüfbericht „{number}“ 報告.pdf", "urgent": number % 2 == 0}
            units = 1 + number * 37 % 50
            yield {**used, "total_usage": units, "timestamp": at, "metadata": file}


def read_lines(path: str) -> list[Line]:
    """Return the events of a file of JSON lines. Raises `DemoFailed` where one of them is none."""
    lines: list[Line] = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    lines.append(_line(text, f"line {number} of {path}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DemoFailed(f"{path} cannot be read: {error}") from error
    if not lines:
        raise DemoFailed(f"{path} holds no usage events")
    return lines


def _line(text: str, place: str) -> Line:
    try:
        line: Line = json.loads(text)
        usage_event_from(line)
    except (ValueError, MeterError, RecursionError) as error:
        raise DemoFailed(f"{place} is not a usage event: {error}") from error
    return line
