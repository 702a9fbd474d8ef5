"""`meter-lib pending`: looks into what waits for its delivery, and changes nothing."""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from meter_lib.letters import PendingEvent, Selector
from meter_lib.opening import open_outbox
from meter_worker.cli.completing import complete_pending
from meter_worker.cli.dead_letter_view import print_event, shown_event
from meter_worker.cli.export_files import export
from meter_worker.cli.groups import CommandGroup
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import (
    ROWS_SHOWN,
    counted,
    print_json,
    print_json_list,
    print_table,
    shown_instant,
)
from meter_worker.cli.selection import Search, selector_from, selector_options

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from meter_lib import Settings

_MEANINGS = {
    "pending": "Its turn has not come yet.",
    "sent": "It was sent, and no answer is known: it goes again as it was, under the same key.",
    "deferred": "It was set aside for another attempt; those of its stream wait behind it.",
    "suspected": "The backend refused it together with others: it is asked about alone next.",
    "refused": "The backend refused this one; that counts once it has accepted another event and"
    " then refuses this one again.",
}


@click.group(cls=CommandGroup)
def pending() -> None:
    """Look into what waits for its delivery.

    Nothing is changed, and nobody has to wait. KEY is the idempotency key of an event. Its state is
    pending (its turn has not come yet), sent (no answer is known, it goes again as it was),
    deferred (set aside for another attempt), suspected (refused together with others) or refused
    (alone, and not yet known whether for good).
    """


@pending.command("list")
@selector_options("pending events")
@json_option
@outbox_options
def list_pending(*, as_json: bool, outbox: str | None, config: str | None, **given: Any) -> None:
    """List pending events, the oldest first: all, or those selected."""
    selector = selector_from(needed=False, **given)
    with _found(settings_from(config, outbox=outbox), selector) as events:
        print_json_list(map(_shown, events)) if as_json else _print(events)


@pending.command()
@click.argument("key", shell_complete=complete_pending)
@json_option
@outbox_options
def show(*, key: str, as_json: bool, outbox: str | None, config: str | None) -> None:
    """Show all there is to know about one pending event."""
    with _found(settings_from(config, outbox=outbox), Selector(keys=(key,))) as events:
        for event in events:
            if as_json:
                print_json(_shown(event))
            else:
                print_event(_shown(event), ("which means", _MEANINGS[event.state]))


@pending.command("export")
@click.argument("file", type=click.Path(allow_dash=True))
@selector_options("pending events")
@json_option
@outbox_options
def export_pending(
    *, file: str, as_json: bool, outbox: str | None, config: str | None, **given: Any
) -> None:
    """Write pending events to a new file: all, or those selected.

    With - for FILE, to stdout. One JSON object a line, with the fields of list --json. They stay
    pending.
    """
    selector = selector_from(needed=False, **given)
    with _found(settings_from(config, outbox=outbox), selector) as events:
        exported = export(file, map(_shown, events))
        if as_json and file != "-":
            print_json({"exported": exported})
        else:
            click.echo(f"{counted(exported, 'pending event')} written to {file}", err=True)


@contextlib.contextmanager
def _found(settings: Settings, selector: Selector) -> Generator[Iterator[PendingEvent]]:
    """Yield what the selector means; keys that nobody has end the command with 1 afterwards."""
    with contextlib.closing(open_outbox(settings, read_only=True)) as outbox:
        search = Search(outbox.pending_events, selector)
        yield search.events()
    search.end("pending event")


def _shown(event: PendingEvent) -> dict[str, Any]:  # Any: what JSON can carry
    return {
        **shown_event(event),
        "attempts": event.attempts,
        "replays": event.replays,
        "state": event.state,
        "next_attempt_at": event.next_attempt_at,
    }


def _print(events: Iterator[PendingEvent]) -> None:
    """Print a table of the first ones, and how many more there are."""
    rows = [
        (
            event.idempotency_key,
            event.tenant_id,
            event.device_id,
            event.meter_id,
            shown_instant(event.event_time),
            event.attempts,
            event.state,
            shown_instant(event.next_attempt_at),
        )
        for event in islice(events, ROWS_SHOWN)
    ]
    if not rows:
        click.echo("nothing is pending")
        return
    heads = ["KEY", "TENANT", "DEVICE", "METER", "EVENT TIME", "ATTEMPTS", "STATE", "NOT BEFORE"]
    print_table(heads, rows)
    more = sum(1 for _ in events)
    if more:
        click.echo(f"and {counted(more, 'more pending event')}: --json lists all")
