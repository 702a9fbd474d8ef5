"""`meter-lib service`: the worker as a service of systemd."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meter_lib import MeterError
from meter_worker.cli.groups import CommandGroup
from meter_worker.service import Unit, check, steps

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., Any]")  # Any: each takes its own options


def _unit_options(command: _Command) -> _Command:
    secret = click.Path(dir_okay=False, resolve_path=True)
    command = click.option(
        "--stream-token-file",
        type=secret,
        help="File that holds the stream token; root alone need be able to read it.",
    )(command)
    return click.option(
        "--api-key-file",
        type=secret,
        help="File that holds the API key; root alone need be able to read it.",
    )(command)


@click.group(cls=CommandGroup)
def service() -> None:
    """Run the worker as a service of systemd.

    It has a user and a group of its own, meter-lib. Applications of that group record in the
    outbox that the service delivers from, /var/lib/meter-lib/outbox.db.
    """


@service.command("print")
@_unit_options
def print_unit(*, api_key_file: str | None, stream_token_file: str | None) -> None:
    """Print the unit, and change nothing."""
    click.echo(Unit(api_key_file, stream_token_file).text(), nl=False)


@service.command()
@_unit_options
@click.option("--dry-run", is_flag=True, help="Change nothing; print what would be done.")
def install(*, api_key_file: str | None, stream_token_file: str | None, dry_run: bool) -> None:
    """Install the unit, with the user, the group and the folder that it needs.

    For root. What is there already is left as it is, so that it may be run again at any time, after
    an upgrade for example. Nothing is started: it says how to.
    """
    if not sys.platform.startswith("linux"):
        raise click.ClickException("there is no systemd on this system; run meter-lib worker")
    unit = Unit(api_key_file, stream_token_file)
    if not dry_run and os.geteuid() != 0:
        raise click.ClickException(
            "only root can install a service: use sudo, or see what it would do with --dry-run"
        )
    try:
        check(unit)
    except MeterError as error:
        if not dry_run:
            raise
        click.echo(f"# it would be refused: {error}", err=True)
    to_do = steps(unit)
    for step in to_do:
        click.echo(step.words)
        if not dry_run:
            step.do()
    if not to_do:
        click.echo("# all is in place")
    click.echo("# to start it, now and with the machine: systemctl enable --now meter-lib")
