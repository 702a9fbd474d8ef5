"""Groups of commands, and how a command line ends, whatever happens."""

from __future__ import annotations

import contextlib
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from meter_lib import InvalidSetting, MeterError
from meter_worker.logs import escaped, log_briefly
from meter_worker.terminal import wants_colours

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CommandGroup", "Program"]

_NAME = "meter-lib"
_MOST_CHARACTERS = 1000


class CommandGroup(click.Group):
    """Lists its commands in the order in which they were added, and shows its help without one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of use, not of the alphabet."""
        del ctx
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments; without any, say what there is and end with 2."""
        # Versions of click end this with different codes.
        if not args and not ctx.resilient_parsing:  # which is how a shell asks what there is
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


class Program(CommandGroup):
    """The whole command line: ends with an exit code and a sentence, never with a traceback."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run a command line, that of this process if none is given, and exit with its code.

        What else click would take (another name, another mode) has no effect.
        """
        _print_whatever_comes()
        log_briefly()
        code = self._run(args)
        _let_go_of_stdout()
        sys.exit(code)

    def _run(self, arguments: Sequence[str] | None) -> int:
        try:
            # Commands return nothing: what comes is None, or the code that one has exited with.
            code = super().main(
                arguments,
                prog_name=_NAME,
                standalone_mode=False,
                # None: where there is a terminal.
                color=None if wants_colours() else False,
            )
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else _NAME
            message = error.format_message()
            if len(message) > _MOST_CHARACTERS:  # click repeats an argument, however long
                message = f"{message[:_MOST_CHARACTERS]}..."
            return _failed(f"{path}: {message} (see {path} --help)", 2)
        except click.ClickException as error:
            return _failed(f"{_NAME}: {error.format_message()}", error.exit_code)
        except click.Abort:
            return _failed(f"{_NAME}: interrupted; what was done before is done", 1)
        except MeterError as error:
            return _failed(f"{_NAME}: {error}", 2 if isinstance(error, InvalidSetting) else 1)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            return _failed(f"{_NAME}: {error.strerror or error}{where}", 1)
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            return _failed(
                f"{_NAME}: a fault in {_NAME} itself: {type(error).__name__}: {error}"
                " (python -X dev -m meter_worker shows where)",
                1,
            )
        return code or 0


def _print_whatever_comes() -> None:
    """Let neither a stream that was closed before we began nor a foreign character stop us."""
    # Streams of their own, so that no file of ours gets the number that others print to.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _failed(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr is gone: nobody is left to be told
        click.echo(escaped(message), err=True)
    return code


def _let_go_of_stdout() -> None:
    """Spare the interpreter an attempt at its end to write what cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
