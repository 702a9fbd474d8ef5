"""`meter-lib config`: what is set, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from meter_lib.settings import SETTINGS
from meter_worker.cli.options import (
    delivery_options,
    json_option,
    outbox_options,
    settings_from,
)
from meter_worker.cli.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib.settings import Settings

_ORIGINS = {"argument": "option"}
_MASK = "***"


@click.command("config")
@json_option
@outbox_options
@delivery_options
def show_config(*, as_json: bool, config: str | None, **options: str | None) -> None:
    """Show each setting, its value, and where that comes from.

    From an option, else the environment, else the settings file, else it is the default. Takes the
    options of the worker, and shows what they would change. Secrets are masked, and the files that
    hold them are not read: see meter-lib doctor. A METER_ name that is no setting is warned about.
    """
    rows = list(_rows(settings_from(config, delivers=False, **options)))
    if as_json:
        print_json([row._asdict() for row in rows])
    else:
        print_table(
            ["SETTING", "VALUE", "FROM"],
            [[row.name, _shown(row.value), row.file or row.origin] for row in rows],
        )


class _Row(NamedTuple):
    name: str
    value: Any  # what JSON can carry
    origin: str
    """`option`, `environment`, `file` or `default`."""
    file: str | None
    """Which file, where the value is from one."""


def _rows(settings: Settings) -> Iterator[_Row]:
    for setting in SETTINGS:
        value: object = getattr(settings, setting.field)
        origin = settings.origins[setting.field]
        # A secret may be in a file of its own, which the setting beside it names.
        secret_file = getattr(settings, f"{setting.field}_file", None) if setting.secret else None
        if secret_file is not None:
            value, origin = _MASK, secret_file
        elif value is not None and not isinstance(value, bool | int | float):
            value = settings.shown(setting.field)
        if origin in {"default", "environment", "argument"}:
            yield _Row(setting.variable, value, _ORIGINS.get(origin, origin), None)
        else:
            yield _Row(setting.variable, value, "file", origin)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)
