"""`meter-lib post`: records one event, or those of a file."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import click

from meter_lib import InvalidUsage, InvalidUsageType, MeterClient
from meter_worker.cli.completing import complete_meter
from meter_worker.cli.import_report import run_import
from meter_worker.cli.options import json_option, outbox_options, settings_from
from meter_worker.cli.output import print_json
from meter_worker.cli.values import Entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_lib import Receipt, Settings

# By the names that the library has for them.
_OPTIONS = {
    "tenant_id": "--tenant",
    "device_id": "--device",
    "meter_id": "--meter",
    "total_usage": "--usage",
    "start_time": "--start-time",
    "end_time": "--end-time",
    "timestamp": "--timestamp",
    "metadata": "--metadata",
    "idempotency_key": "--idempotency-key",
}


@click.command()
@click.option("--tenant", "tenant_id", metavar="ID", help="Who pays. Required.")
@click.option("--device", "device_id", metavar="ID", help="Where it was used. Required.")
@click.option(
    "--meter",
    "meter_id",
    metavar="ID",
    shell_complete=complete_meter,
    help="What was used. Required.",
)
@click.option("--usage", "total_usage", type=int, metavar="N", help="How many units were used.")
@click.option("--start-time", type=int, metavar="MS", help="When use began.")
@click.option("--end-time", type=int, metavar="MS", help="When use ended.")
@click.option(
    "--timestamp",
    type=int,
    metavar="MS",
    help="When it happened. Default: the end, else the start, else now.",
)
@click.option(
    "--metadata", multiple=True, type=Entry(), metavar="K=V", help="What else is to be known."
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A name of your own for the event: posted again, it is not recorded again.",
)
@click.option(
    "--from-file",
    type=click.File("rb"),
    metavar="FILE",
    help="Record the events of a file, or of stdin (-).",
)
@json_option
@outbox_options
def post(
    *,
    from_file: IO[bytes] | None,
    as_json: bool,
    outbox: str | None,
    config: str | None,
    metadata: Sequence[tuple[str, str]],
    **arguments: Any,  # Any: texts and numbers, which the library looks at
) -> None:
    """Record usage; no network is needed.

    When the idempotency key of an event is printed, the event is on the disk and will be
    delivered. One of --usage, --start-time and --end-time is required; times are milliseconds
    since 1970.

    A file has one JSON object a line, with the members tenant_id, device_id, meter_id, total_usage,
    start_time, end_time, timestamp, metadata and idempotency_key. Lines that are no event are
    named and left out. Where lines have an idempotency_key, a file can be posted again after any
    interruption: what is recorded already is not recorded twice.
    """
    settings = settings_from(config, outbox=outbox)
    if from_file is None:
        receipt = _record(settings, {**arguments, "metadata": _entries(metadata)})
        print_json(receipt) if as_json else click.echo(receipt["idempotency_key"])
        return
    _refuse_beside_a_file({**arguments, "metadata": metadata or None})
    if not run_import(settings, from_file, as_json=as_json):
        raise click.exceptions.Exit(1)


def _record(settings: Settings, arguments: dict[str, Any]) -> Receipt:  # Any: as above
    """Record one event; what is wrong with it is wrong with an option."""
    for name in ("tenant_id", "device_id", "meter_id"):
        if arguments[name] is None:
            raise click.UsageError(f"{_OPTIONS[name]} is required")
    if all(arguments[name] is None for name in ("total_usage", "start_time", "end_time")):
        raise click.UsageError("nothing was used: give --usage, --start-time or --end-time")
    try:
        with MeterClient(settings=settings) as client:
            return client.post(**arguments)
    except (InvalidUsage, InvalidUsageType) as error:
        # The message begins with the name; only metadata can make an event too large.
        named = (option for name, option in _OPTIONS.items() if str(error).startswith(name))
        raise click.BadParameter(str(error), param_hint=f"'{next(named, '--metadata')}'") from error


def _entries(metadata: Sequence[tuple[str, str]]) -> dict[str, str] | None:
    entries = dict(metadata)
    if len(entries) < len(metadata):
        raise click.BadParameter("a name is given twice", param_hint="'--metadata'")
    return entries or None


def _refuse_beside_a_file(arguments: dict[str, Any]) -> None:  # Any: as above
    given = [_OPTIONS[name] for name, value in arguments.items() if value is not None]
    if given:
        raise click.UsageError(
            f"--from-file cannot be combined with {', '.join(given)}: its lines say that"
        )
