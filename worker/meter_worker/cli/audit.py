"""`meter-lib audit`: what became of every event, added up and compared."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from typing import IO, TYPE_CHECKING, Any

import click

from meter_lib.opening import open_outbox
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import ROWS_SHOWN, print_table, progress_bar
from meter_worker.logs import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meter_lib.upkeep import Audit, AuditRow
    from meter_worker.cli.output import Progress

_NAMES = ("day", "tenant_id", "device_id", "meter_id")
_KINDS = ("accepted", "pending", "dead", "delivered", "removed")
_COLUMNS = tuple(f"{kind}_{what}" for kind in _KINDS for what in ("events", "units"))


@click.command()
@click.option(
    "--csv",
    "csv_path",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write all rows to a CSV file as well; one that is there is replaced.",
)
@json_option
@outbox_options
def audit(*, csv_path: str | None, as_json: bool, outbox: str | None, config: str | None) -> None:
    """Prove that each accepted event is in exactly one place.

    Adds up what was accepted, and what became of it, for each day (UTC, of the usage), tenant,
    device and meter: from the events and the ledger, compared with the counters. Ends with 1 where
    something does not add up, and says what. Only reads; others may go on meanwhile.
    """
    settings = settings_from(config, outbox=outbox)
    with contextlib.closing(open_outbox(settings, read_only=True)) as opened:
        bar = _Bar()
        with contextlib.ExitStack() as stack:
            with bar:
                found = stack.enter_context(opened.audit(progress=bar.advance))
            rows = found.rows
            if csv_path is not None:
                rows = _copied(rows, stack.enter_context(_new_file(csv_path)))
            (_print_json if as_json else _print)(found, rows)
    if found.problems:
        raise click.exceptions.Exit(1)


class _Bar(contextlib.ExitStack):
    """Shows how far the audit is, once it is known how far it goes."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None

    def advance(self, done: int, of: int) -> None:
        """Show that so many more events are done, of so many in all."""
        if self._bar is None:
            self._bar = self.enter_context(progress_bar(of, "auditing"))
        self._bar.update(done)


def _new_file(path: str) -> IO[str]:
    try:
        return open(path, "w", encoding="utf-8", newline="")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def _copied(rows: Iterable[AuditRow], file: IO[str]) -> Iterator[AuditRow]:
    """Yield the rows, each written to the CSV file before."""
    writer = csv.writer(file)
    writer.writerow((*_NAMES, *_COLUMNS))
    for row in rows:
        numbers = [number for kind in _KINDS for number in getattr(row, kind)]
        writer.writerow((*(_harmless(getattr(row, name)) for name in _NAMES), *numbers))
        yield row


def _harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _print_json(found: Audit, rows: Iterable[AuditRow]) -> None:
    """Print the books as one JSON object, in memory that does not grow with its rows."""
    head = {"balanced": not found.problems, "problems": found.problems, "totals": _tallies(found)}
    click.echo(json.dumps(head)[:-1] + ', "rows": [', nl=False)
    before = ""
    for row in rows:
        names = {name: getattr(row, name) for name in _NAMES}
        click.echo(f"{before}\n{json.dumps(names | _tallies(row))}", nl=False)
        before = ","
    click.echo("]}")


def _tallies(of: Audit | AuditRow) -> dict[str, Any]:  # Any: what JSON can carry
    return {kind: getattr(of, kind)._asdict() for kind in _KINDS}


def _print(found: Audit, rows: Iterator[AuditRow]) -> None:
    shown = [
        (*(getattr(row, name) for name in _NAMES), *_cells(row))
        for row in itertools.islice(rows, ROWS_SHOWN)
    ]
    left = sum(1 for _ in rows)
    table = [*shown, ("total", "", "", "", *_cells(found))]
    print_table(("day", "tenant", "device", "meter", *_KINDS), table)
    click.echo("\nIn each column: events / units.")
    if left:
        click.echo(f"{left:,} more rows: --json and --csv have them all.")
    for problem in found.problems:
        click.echo(escaped(f"Problem: {problem}."))
    if not found.problems:
        click.echo("Balanced: accepted = pending + dead + delivered + removed.")


def _cells(of: Audit | AuditRow) -> list[str]:
    tallies = [getattr(of, kind) for kind in _KINDS]
    return [f"{tally.events:,} / {tally.units:,}" for tally in tallies]
