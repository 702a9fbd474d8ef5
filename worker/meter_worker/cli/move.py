"""`meter-lib move`: an outbox goes to another place, with all that is in it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from meter_lib import OutboxHeld, OutboxMoved, Settings
from meter_lib.moving import move as move_all
from meter_lib.opening import open_arriving, open_leaving
from meter_worker.cli.changes import ask
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import counted, print_fields, print_json, progress_bar
from meter_worker.cli.values import SettingText

if TYPE_CHECKING:
    from meter_lib.moving import Arriving, Contents, Departure, Leaving
    from meter_worker.cli.output import Progress


@click.command()
@click.option(
    "--to",
    required=True,
    metavar="PLACE",
    type=SettingText(Settings.outbox),
    help="Where to: a file, or the URL of a PostgreSQL server, without an outbox in use.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@outbox_options
def move(
    *, to: str, dry_run: bool, yes: bool, as_json: bool, outbox: str | None, config: str | None
) -> None:
    """Move the outbox to another place, with all that is in it.

    Pending events under their keys and numbers, what was sent without an answer, dead letters, the
    ledger and the keys that are remembered: the outbox is the same afterwards, and goes on where it
    was. Stop the worker first. Posts wait meanwhile, ten seconds at most; afterwards they are
    refused at the old place, and the error names the new one: set METER_OUTBOX to it.

    However it is ended, no event is lost, and none is delivered from both places; the same command
    does the rest. The old file, or the old tables, are kept under another name, which nothing uses.
    """
    settings = settings_from(config, outbox=outbox)
    with (
        contextlib.closing(open_leaving(settings)) as source,
        contextlib.closing(open_arriving(settings.with_outbox(to))) as destination,
    ):
        if source.location == destination.location:
            raise click.BadParameter("that is where the outbox is", param_hint="'--to'")
        departure = source.departure()
        if dry_run:
            _plan(source, destination, departure, as_json=as_json)
            return
        question = f"Move the outbox from {source.location} to {destination.location}?"
        if departure is None:
            ask(question, yes=yes, needs_answer=False)
        with contextlib.ExitStack() as stack:
            bars: list[Progress] = []

            def progress(rows: int, of: int) -> None:
                if not bars:
                    bars.append(stack.enter_context(progress_bar(of, "Moving")))
                bars[0].update(rows)

            moved = move_all(source, destination, progress=progress)
        _print(source, moved.departure, moved.contents, as_json=as_json)
        if moved.was_finished:
            click.echo("an earlier run had moved it; nothing was left to copy", err=True)


def _plan(
    source: Leaving, destination: Arriving, departure: Departure | None, *, as_json: bool
) -> None:
    if departure is not None:
        raise OutboxMoved(f"{source.location} has moved to {departure.to}; name that place")
    holder = source.holder()
    if holder is not None:
        raise OutboxHeld(f"process {holder} delivers from {source.location}; stop it first")
    contents = source.contents()
    destination.require_free(contents.outbox_id)
    _print(source, None, contents, as_json=as_json, to=destination.location)


def _print(
    source: Leaving,
    departure: Departure | None,
    contents: Contents,
    *,
    as_json: bool,
    to: str = "",
) -> None:
    to = departure.to if departure else to
    kept = departure.kept if departure else None
    if as_json:
        print_json(
            {"moved": bool(departure), "from": source.location, "to": to, "kept": kept}
            | contents._asdict()
        )
        return
    fields: list[tuple[str, object]] = [
        ("from", source.location),
        ("to", to),
        ("outbox", contents.outbox_id),
        ("accepted", counted(contents.accepted, "event")),
        ("pending", _events(contents.pending, contents.pending_units)),
        ("dead letters", _events(contents.dead, contents.dead_units)),
        ("delivered", counted(contents.delivered, "event")),
        ("removed", counted(contents.removed, "event")),
        ("sent, no answer", counted(contents.unanswered, "request")),
    ]
    print_fields([*fields, ("kept as", kept)] if kept else fields)
    if departure is None:
        click.echo("nothing was moved: it is a dry run", err=True)


def _events(events: int, units: int) -> str:
    return f"{counted(events, 'event')}, {counted(units, 'unit')}"
