"""The options that several commands share, and the settings that come of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from meter_lib.errors import InvalidSetting
from meter_lib.settings import SETTINGS, Setting, Settings
from meter_worker.cli.values import SettingText

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["delivery_options", "json_option", "outbox_options", "settings_from"]

_Command = TypeVar("_Command", bound="Callable[..., Any]")  # Any: each takes its own options

# Not options of a delivery: what has its own option, and what only recording asks.
# Secrets are none either: the arguments of a process are public.
_NO_DELIVERY_OPTIONS = frozenset({"outbox", "when_full", "durability"})


def outbox_options(command: _Command) -> _Command:
    """Add --outbox and --config."""
    command = click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        help="File of settings, lines NAME=value. [METER_CONFIG]",
    )(command)
    return click.option(
        "--outbox",
        metavar="PATH",
        type=SettingText(Settings.outbox),
        help="File of the outbox, or URL of a PostgreSQL database. [METER_OUTBOX]",
    )(command)


def delivery_options(command: _Command) -> _Command:
    """Add an option for each setting that steers a delivery."""
    for setting in reversed(SETTINGS):
        if not setting.secret and setting.field not in _NO_DELIVERY_OPTIONS:
            command = click.option(
                _option_name(setting.field),
                metavar="PATH" if setting.is_file else "VALUE",
                type=SettingText(setting),
                help=_help(setting),
            )(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def settings_from(config: str | None, *, delivers: bool = False, **options: str | None) -> Settings:
    """Return the settings; `options` are values of options, None where one was not given."""
    try:
        # As keywords of their own, or the type checkers take them for the environment.
        given: dict[str, Any] = dict(options)
        return Settings.load(config=config, delivers=delivers, **given)
    except InvalidSetting as error:
        for field, value in options.items():
            # The message begins with the one that is wrong, and may name others.
            if value is not None and str(error).startswith(f"METER_{field.upper()} "):
                raise click.BadParameter(
                    str(error), param_hint=f"'{_option_name(field)}'"
                ) from error
        raise


def _option_name(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _help(setting: Setting[Any]) -> str:  # Any: each has its own type
    meaning = setting.meaning[0].upper() + setting.meaning[1:]
    default = setting.default
    if default is None:
        return f"{meaning}. [{setting.variable}]"
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    if isinstance(default, bool):
        shown = shown.lower()
    return f"{meaning}. [{setting.variable}; default {shown}]"
