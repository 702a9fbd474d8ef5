"""`meter-lib completion`: what makes a shell complete our commands, options and ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", metavar="|".join(_SHELLS), type=click.Choice(_SHELLS))
def completion(*, shell: str) -> None:
    """Print a script that completes commands and ids with TAB.

    \b
    bash  meter-lib completion bash > ~/.local/share/bash-completion/completions/meter-lib
    zsh   meter-lib completion zsh > "${fpath[1]}/_meter-lib"
    fish  meter-lib completion fish > ~/.config/fish/completions/meter-lib.fish

    Or for one session of bash or zsh: eval "$(meter-lib completion bash)".
    """  # noqa: D301  # the \b is click's, for text that is not to be wrapped
    program = click.get_current_context().find_root()
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"this version of click knows no completion for {shell}")
    name = program.info_name or ""
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    click.echo(made(program.command, {}, name, variable).source())
