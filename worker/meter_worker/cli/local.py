"""`meter-lib sandbox` and `meter-lib demo`: what runs on this machine alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from meter_lib import Settings
from meter_worker.cli.values import Host, JsonObject, SettingText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_worker.sandbox import Sandbox


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8082,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--host",
    type=Host(),
    default="127.0.0.1",
    show_default=True,
    help="Address of this machine to listen on.",
)
@click.option(
    "--topic",
    type=SettingText(Settings.topic),
    default=Settings.topic.default,
    show_default=True,
    help="The topic that exists.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    type=JsonObject(),
    metavar="JSON",
    help="""What goes wrong from the start, such as '{"fault": "slow", "seconds": 2}'.""",
)
def sandbox(*, port: int, host: str, topic: str, faults: Sequence[dict[str, Any]]) -> None:
    """Run a local backend to develop against.

    It runs until SIGTERM or SIGINT, has the events API and the accounts API, and keeps in memory
    what it is sent; none of it is billed. GET /sandbox/records shows what it got, PUT
    /sandbox/faults says what is to go wrong.
    """
    # Imported here: whoever only records need not wait for what a backend takes.
    from meter_worker.daemon import StopSignals  # noqa: PLC0415  # see above
    from meter_worker.sandbox import Sandbox  # noqa: PLC0415  # see above

    backend = Sandbox(port, host, topic)
    for fault in faults:
        _let_stand(backend, fault)
    with StopSignals() as signals, backend:
        click.echo(f"# sandbox at {backend.url}; Ctrl-C ends it. To deliver to it:")
        click.echo(f"export METER_STREAM_URL={backend.url}")
        click.echo(f"export METER_ACCOUNTS_URL={backend.url}")
        signals.wait()


def _let_stand(backend: Sandbox, fault: dict[str, Any]) -> None:  # Any: JSON, as given
    try:
        backend.fault(**{"fault": "", **fault})
    except (TypeError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="'--fault'") from error


@click.command()
@click.option(
    "--from-file",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    metavar="FILE",
    help="Usage to record, one JSON object a line as for post. Default: some of its own.",
)
def demo(*, from_file: str | None) -> None:
    """Show on this machine that nothing is lost.

    Records while a backend is down, delivers when it is up, kills the worker, delivers the rest.
    Ends with 0 only if each event arrived and would be billed once.
    """
    from meter_worker.demo import run_demo  # noqa: PLC0415  # imports what only it needs

    if not run_demo(from_file):
        raise click.exceptions.Exit(1)
