"""The commands as a page of Markdown: `python -m meter_worker.cli.command_page`."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import click

from meter_worker.cli.application import main

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["page"]

_PAGE = """\
# Commands

Made from the code by `make docs`; do not edit. `meter-lib COMMAND --help` says the same, and
`python -m meter_worker` is another name of `meter-lib`.

{epilog}

An option that names a setting wins over the environment, and that over the file of settings.

{commands}
"""
# What click takes for "leave the line breaks of this paragraph".
_AS_IT_IS = "\b\n"


def page() -> str:
    """Return the page."""
    commands = "\n\n".join(_command(path, command) for path, command in _walk(main, "meter-lib"))
    return _PAGE.format(epilog=_text(main.epilog or ""), commands=commands)


def _walk(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        yield path, command
        if isinstance(command, click.Group):
            yield from _walk(command, path)


def _command(path: str, command: click.Command) -> str:
    parts = [f"## {path}", _text(command.help or "")]
    given = [path, "[OPTIONS]"]
    if isinstance(command, click.Group):
        given = [path, "COMMAND"]
    given += [
        _argument(parameter)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    parts.insert(1, f"    {' '.join(given)}")
    options = [option for option in command.params if isinstance(option, click.Option)]
    if options:
        rows = (f"| {_names(option)} | {_meaning(option)} |" for option in options)
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _text(text: str) -> str:
    """Return a help text as Markdown: paragraphs that flow, but where click is told otherwise."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        "\n".join(f"    {line}" for line in paragraph.removeprefix(_AS_IT_IS).splitlines())
        if paragraph.startswith(_AS_IT_IS)
        else paragraph
        for paragraph in paragraphs
    )


def _argument(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    if argument.nargs != 1 and not name.endswith("..."):
        name += "..."
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _names(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return f"`{names}`"
    if isinstance(option.type, click.Choice):
        value = "\\|".join(map(str, option.type.choices))
    else:
        value = option.metavar or option.type.name.upper().removesuffix(" RANGE")
    return f"`{names} {value}`"


def _meaning(option: click.Option) -> str:
    meaning = (option.help or "").replace("|", "\\|")
    if option.show_default and not option.is_flag and isinstance(option.default, int | float | str):
        meaning += f" [default {option.default}]"
    return meaning + (" Required." if option.required else "")


if __name__ == "__main__":
    sys.stdout.write(page())
