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

if TYPE_CHECKING:
    from meter_lib.outbox import DeadLetter
    from meter_worker.cli.selection import Selection

__all__ = ["print_letter", "print_letters", "shown_letter"]


def shown_letter(letter: DeadLetter) -> dict[str, Any]:  # Any: what JSON can carry
    """Return all there is to know; instants are milliseconds since 1970."""
    said = json.loads(letter.payload)
    return {
        "idempotency_key": letter.idempotency_key,
        "tenant_id": letter.tenant_id,
        "device_id": letter.device_id,
        "meter_id": letter.meter_id,
        "total_usage": said.get("total_usage"),
        "start_time": said.get("start_time"),
        "end_time": said.get("end_time"),
        "event_time": letter.event_time,
        "metadata": said.get("metadata", {}),
        "seq": letter.seq,
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "dead_at": letter.dead_at,
    }


def print_letter(letter: DeadLetter) -> None:
    """Print one, a field a line."""
    fields = {name: value for name, value in shown_letter(letter).items() if value is not None}
    for instant in fields.keys() & {"start_time", "end_time", "event_time", "dead_at"}:
        fields[instant] = shown_instant(fields[instant])
    metadata = fields.pop("metadata")
    print_fields(
        [*fields.items(), *((f"metadata {name}", value) for name, value in metadata.items())]
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
            letter.detail if len(letter.detail) <= 60 else letter.detail[:57] + "...",
        )
        for letter in islice(selection.letters(), ROWS_SHOWN)
    ]
    print_table(["KEY", "TENANT", "DEVICE", "METER", "EVENT TIME", "REASON", "DETAIL"], rows)
    if len(selection) > ROWS_SHOWN:
        more = counted(len(selection) - ROWS_SHOWN, "more dead letter")
        click.echo(f"and {more}: --json lists all")
