"""`meter-lib dead-letters`: looks into what the backend refused for good, and decides on it."""

from __future__ import annotations

import contextlib
from typing import IO, TYPE_CHECKING, Any

import click

from meter_lib.clock import SystemClock
from meter_lib.letters import Selector
from meter_lib.opening import open_outbox
from meter_worker.cli.canary import Canary
from meter_worker.cli.changes import Change, ask
from meter_worker.cli.completing import complete_letter
from meter_worker.cli.dead_letter_view import print_letter, print_letters, shown_letter
from meter_worker.cli.export_files import export
from meter_worker.cli.groups import CommandGroup
from meter_worker.cli.import_report import run_import
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import counted, print_json, print_json_list
from meter_worker.cli.replay_plan import ReplayPlan
from meter_worker.cli.selection import (
    Search,
    Selection,
    say_unknown,
    selector_from,
    selector_options,
)
from meter_worker.cli.values import PositiveNumber
from meter_worker.letter_lines import LetterImport

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from meter_lib import Settings
    from meter_lib.letters import DeadLetter

_HIGHEST_RATE = 1_000_000
_LONGEST_TIMEOUT_SECONDS = 1_000_000

_dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only say how many it would be; change nothing."
)
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group("dead-letters", cls=CommandGroup)
def dead_letters() -> None:
    """Look into what the backend refused for good.

    A dead letter is an event that is no longer tried, with the reason. It stays in the outbox
    until it is sent again (replay) or removed (purge). KEY is its idempotency key.
    """


@dead_letters.command("list")
@selector_options("dead letters", reason=True)
@json_option
@outbox_options
def list_letters(*, as_json: bool, outbox: str | None, config: str | None, **given: Any) -> None:
    """List dead letters, the oldest first: all, or those selected."""
    selector = selector_from(needed=False, **given)
    with _selected(settings_from(config, outbox=outbox), selector) as selection:
        if as_json:
            print_json_list(shown_letter(letter) for letter in selection.letters())
        else:
            print_letters(selection)


@dead_letters.command()
@click.argument("key", shell_complete=complete_letter)
@json_option
@outbox_options
def show(*, key: str, as_json: bool, outbox: str | None, config: str | None) -> None:
    """Show all there is to know about one dead letter."""
    with _selected(settings_from(config, outbox=outbox), Selector(keys=(key,))) as selection:
        for letter in selection.letters():
            if as_json:
                print_json(shown_letter(letter))
            else:
                print_letter(letter)


@dead_letters.command()
@selector_options("dead letters", reason=True)
@click.option(
    "--rate",
    type=PositiveNumber(_HIGHEST_RATE),
    metavar="N",
    help="At most so many events a second. Default: as fast as it goes.",
)
@click.option(
    "--canary-timeout",
    type=PositiveNumber(_LONGEST_TIMEOUT_SECONDS),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for what becomes of the first one.",
)
@click.option("--no-canary", is_flag=True, help="Do not try one first: replay all at once.")
@click.option(
    "--accept-duplicate-risk",
    is_flag=True,
    help="Replay also what the backend may have stored and no longer knows the key of.",
)
@_dry_run_option
@_yes_option
@outbox_options
def replay(
    *,
    rate: float | None,
    canary_timeout: float,
    no_canary: bool,
    accept_duplicate_risk: bool,
    dry_run: bool,
    yes: bool,
    outbox: str | None,
    config: str | None,
    **given: Any,
) -> None:
    """Make dead letters due again, under the idempotency keys they have.

    Do so once the cause is gone. What the backend has already, it knows by the key and does not
    bill twice, within its METER_DEDUPE_WINDOW. On a terminal you are asked first.

    Where a worker is running, the oldest goes first, as a canary; the others follow once it is
    delivered. If it is refused again, or nothing is known of it in time, they stay dead letters and
    this ends with 1. Ctrl-C stops at any point: what is replayed by then stays replayed, the same
    command does the rest.
    """
    selector = selector_from(needed=True, **given)
    settings = settings_from(config, outbox=outbox)
    plan = ReplayPlan(settings.dedupe_window, SystemClock().now())
    with _selected(settings, selector, plan.look) as selection:
        letters = counted(len(selection), "dead letter")
        if dry_run:
            click.echo(f"{letters} would be replayed")
            plan.print()
            return
        if not accept_duplicate_risk:
            plan.refuse_risk()
        if len(selection) and not yes:
            plan.print_to_terminal()
        if not len(selection) or ask(f"Replay {letters}?", yes=yes, needs_answer=False):
            canary = None if no_canary or plan.first is None else Canary(plan.first, canary_timeout)
            replayed = Change(settings).replay(selection, rate=rate, canary=canary)
            click.echo(f"{counted(replayed, 'dead letter')} replayed")


@dead_letters.command()
@selector_options("dead letters", reason=True)
@click.option(
    "--export",
    type=click.Path(),
    metavar="FILE",
    help="New file to write them to first. Default: one beside the outbox.",
)
@click.option("--no-export", is_flag=True, help="Write no file: they are gone then.")
@_dry_run_option
@_yes_option
@outbox_options
def purge(
    *,
    export: str | None,
    no_export: bool,
    dry_run: bool,
    yes: bool,
    outbox: str | None,
    config: str | None,
    **given: Any,
) -> None:
    """Remove dead letters for good: their usage is never billed.

    They are written to a file first, one JSON object a line with the fields of list --json, and
    counted as removed. On a terminal you are asked first; anywhere else --yes is needed.
    """
    selector = selector_from(needed=True, **given)
    if export is not None and no_export:
        raise click.UsageError("--export cannot be combined with --no-export")
    settings = settings_from(config, outbox=outbox)
    with _selected(settings, selector) as selection:
        letters = counted(len(selection), "dead letter")
        if dry_run:
            click.echo(f"{letters} would be purged")
        elif not len(selection) or ask(f"Purge {letters} for good?", yes=yes, needs_answer=True):
            purged = Change(settings).purge(selection, export=export, exports=not no_export)
            click.echo(f"{counted(purged, 'dead letter')} purged")


@dead_letters.command("export")
@click.argument("file", type=click.Path(allow_dash=True))
@selector_options("dead letters", reason=True)
@json_option
@outbox_options
def export_letters(
    *, file: str, as_json: bool, outbox: str | None, config: str | None, **given: Any
) -> None:
    """Write dead letters to a new file: all, or those selected.

    With - for FILE, to stdout. One JSON object a line, with the fields of list --json, as import
    takes them. They stay in the outbox.
    """
    selector = selector_from(needed=False, **given)
    settings = settings_from(config, outbox=outbox)
    with contextlib.closing(open_outbox(settings, read_only=True)) as opened:
        search = Search(opened.dead_letters, selector)
        exported = export(file, map(shown_letter, search.events()))
    if as_json and file != "-":
        print_json({"exported": exported})
    else:
        click.echo(f"{counted(exported, 'dead letter')} written to {file}", err=True)
    search.end("dead letter")


@dead_letters.command("import")
@click.argument("file", type=click.File("rb"))
@json_option
@outbox_options
def import_letters(
    *, file: IO[bytes], as_json: bool, outbox: str | None, config: str | None
) -> None:
    """Take in dead letters that export or purge wrote.

    FILE is what they wrote, - is stdin. They come in as dead letters, under the keys they have, and
    are counted as accepted; replay makes them due. One that is here already, or was delivered after
    an earlier import, is skipped, so a file can be imported again after any interruption; one that
    was purged here is accepted again. Lines that are no dead letter, or whose key is known with
    other content, are named and left out.
    """
    settings = settings_from(config, outbox=outbox)
    words = ("dead letter", "known one")
    if not run_import(settings, file, as_json=as_json, kind=LetterImport, words=words):
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _selected(
    settings: Settings, selector: Selector, look: Callable[[DeadLetter], object] | None = None
) -> Generator[Selection]:
    """What the selector means in the outbox, which is only read; keys that it lacks are an error.

    They are said at once, and end the command with 1 when the others are dealt with.
    """
    with contextlib.closing(open_outbox(settings, read_only=True)) as outbox:
        selection = Selection(outbox, selector, look)
        say_unknown(selection.unknown_keys, "dead letter")
        yield selection
    if selection.unknown_keys:
        raise click.exceptions.Exit(1)
