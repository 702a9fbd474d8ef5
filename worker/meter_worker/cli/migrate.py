"""`meter-lib migrate`: the schema of the outbox."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from meter_lib import OutboxMissing, OutboxUnavailable, SchemaTooNew
from meter_lib.opening import open_outbox
from meter_worker.cli.options import outbox_options, settings_from

if TYPE_CHECKING:
    from meter_lib import Settings


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; end with 1 where there is work to do.")
@outbox_options
def migrate(*, check: bool, outbox: str | None, config: str | None) -> None:
    """Bring the outbox to the schema of this version.

    Not needed in normal life: whatever records or delivers does the same on its first use of an
    older outbox. Safe while others use it, and all or nothing.
    """
    settings = settings_from(config, outbox=outbox)
    if check or _is_current(settings):
        version = _schema_version(settings, read_only=True)
        click.echo(f"{settings.shown('outbox')} has schema {version}, which is current")
    else:
        version = _schema_version(settings, read_only=False)
        click.echo(f"{settings.shown('outbox')} was brought to schema {version}")


def _is_current(settings: Settings) -> bool:
    try:
        _schema_version(settings, read_only=True)
    except (OutboxMissing, SchemaTooNew):
        raise
    except OutboxUnavailable:
        return False
    return True


def _schema_version(settings: Settings, *, read_only: bool) -> int:
    with contextlib.closing(open_outbox(settings, read_only=read_only)) as outbox:
        return outbox.status().schema_version
