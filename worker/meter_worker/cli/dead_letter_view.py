"""Dead letters as they are shown, listed and exported."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from meter_worker.cli.output import (
    ROWS_SHOWN,
    counted,
    print_fields,
    print_table,
    shown_instant,
)
from meter_worker.reasons import hint_for

if TYPE_CHECKING:
    from meter_lib.letters import DeadLetter, PendingEvent
    from meter_worker.cli.selection import Selection

__all__ = ["print_event", "print_letter", "print_letters", "shown_event", "shown_letter"]

_INSTANTS = {"start_time", "end_time", "event_time", "dead_at", "next_attempt_at"}


def shown_letter(letter: DeadLetter) -> dict[str, Any]:  # Any: what JSON can carry
    """Return all there is to know; instants are milliseconds since 1970."""
    return {
        **shown_event(letter),
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "dead_at": letter.dead_at,
    }


def shown_event(event: DeadLetter | PendingEvent) -> dict[str, Any]:  # Any: as above
    """Return what the event says, and to whom it was sent."""
    said = json.loads(event.payload)
    return {
        "idempotency_key": event.idempotency_key,
        "tenant_id": event.tenant_id,
        "device_id": event.device_id,
        "meter_id": event.meter_id,
        "total_usage": said.get("total_usage"),
        "start_time": said.get("start_time"),
        "end_time": said.get("end_time"),
        "event_time": event.event_time,
        "metadata": said.get("metadata", {}),
        "seq": event.seq,
        "customer_id": None if event.customer_id is None else json.loads(event.customer_id),
    }


def print_letter(letter: DeadLetter) -> None:
    """Print one, a field a line, and what can be done about it."""
    print_event(shown_letter(letter), ("what to do", hint_for(letter.reason)))


def print_event(shown: dict[str, Any], explained: tuple[str, str]) -> None:  # Any: as above
    """Print an event, a field a line."""
    fields = {name: value for name, value in shown.items() if value is not None}
    for instant in fields.keys() & _INSTANTS:
        fields[instant] = shown_instant(fields[instant])
    metadata = fields.pop("metadata")
    print_fields(
        [
            *fields.items(),
            *((f"metadata {name}", value) for name, value in metadata.items()),
            explained,
        ]
    )


def print_letters(selection: Selection) -> None:
    """Print a table of the first ones, and how many more there are."""
    if not len(selection):
        click.echo("no dead letters")
        return
    rows = [
        (
            letter.idempotency_key,
            letter.tenant_id,
            letter.device_id,
            letter.meter_id,
            shown_instant(letter.event_time),
            letter.reason,
            letter.replays,
            letter.detail if len(letter.detail) <= 60 else letter.detail[:57] + "...",
        )
        for letter in islice(selection.letters(), ROWS_SHOWN)
    ]
    print_table(
        ["KEY", "TENANT", "DEVICE", "METER", "EVENT TIME", "REASON", "REPLAYS", "DETAIL"], rows
    )
    if len(selection) > ROWS_SHOWN:
        more = counted(len(selection) - ROWS_SHOWN, "more dead letter")
        click.echo(f"and {more}: --json lists all")
