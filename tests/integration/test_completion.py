"""TAB: real shells, with the script that `meter-lib completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meter_lib import METERS
from meter_worker.reasons import REASONS

if TYPE_CHECKING:
    from tests.integration.operating import Operator

BIN = Path(sys.executable).parent

# What a shell does when TAB is pressed, less the keyboard: it hands over the words typed so far,
# the last of them unfinished, and shows what comes back.
PRESS_TAB = {
    "bash": """
        eval "$(meter-lib completion bash)"
        compopt() { echo "<files>"; }
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        _meter_lib_completion meter-lib
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { :; }
        _describe() { for one in "${completions_with_descriptions[@]}"; do
            print -r -- "${${one%%:*}}"; done; }
        compadd() { for one in "${completions[@]}"; do print -r -- "$one"; done; }
        _path_files() { print "<files>"; }
        eval "$(meter-lib completion zsh)"
        words=("$@")
        CURRENT=$#
        _meter_lib_completion
    """,
    "fish": """
        meter-lib completion fish | source
        complete --do-complete "$argv" | string replace --regex '\\t.*' ''
        true
    """,
}


def needs(shell: str) -> object:
    """A parameter that is skipped, saying so, where the shell is not installed."""
    there = shutil.which(shell)
    return pytest.param(
        shell, marks=pytest.mark.skipif(not there, reason=f"{shell} is not installed")
    )


shells = pytest.mark.parametrize("shell", [needs(shell) for shell in PRESS_TAB])


def tab(shell: str, *words: str) -> list[str]:
    """Press TAB after these words, of which the last may be a beginning; return what is offered."""
    command = [shell, "-c", PRESS_TAB[shell], *(["--"] if shell == "fish" else ["shell"])]
    line = ("meter-lib", *words)
    pressed = subprocess.run(
        [*command, " ".join(line)] if shell == "fish" else [*command, *line],
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (pressed.returncode, pressed.stderr) == (0, "")
    return [word for word in pressed.stdout.split("\n") if word]


@shells
def test_commands_and_options_are_completed(shell: str) -> None:
    """Each level offers what it has, hidden nothing."""
    assert tab(shell, "st") == ["status"]
    assert tab(shell, "dead-letters", "re") == ["replay"]
    assert tab(shell, "status", "--wa") == ["--watch"]
    assert {"post", "worker", "completion"} <= set(tab(shell, ""))


@shells
def test_ids_are_completed(shell: str, operator: Operator) -> None:
    """Meters and reasons are those of the catalogues, keys those in the outbox."""
    operator.bury("dead-1", "dead-2", "other")
    operator.post("pending-1")
    assert tab(shell, "post", "--meter", "chat.") == [
        meter.id for meter in METERS if meter.id.startswith("chat.")
    ]
    assert sorted(tab(shell, "dead-letters", "list", "--reason", "")) == sorted(
        one.slug for one in REASONS
    )
    assert tab(shell, "dead-letters", "show", "dead-") == ["dead-1", "dead-2"]
    assert tab(shell, "dead-letters", "replay", "dead-1", "o") == ["other"]
    assert tab(shell, "pending", "show", "p") == ["pending-1"]


@shells
def test_an_outbox_that_is_named_is_looked_into(
    shell: str, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options before the cursor count."""
    operator.bury("dead-1")
    monkeypatch.setenv("METER_OUTBOX", f"{operator.path}.missing")
    assert tab(shell, "dead-letters", "show", "d") == []
    assert tab(shell, "dead-letters", "show", "--outbox", operator.path, "d") == ["dead-1"]


@shells
@pytest.mark.parametrize("variable", ["METER_BATCH_SIZE", "METER_BATCHSIZE"])
def test_what_is_wrong_is_not_told_by_tab(
    shell: str, operator: Operator, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A missing outbox, a bad setting: nothing is offered, nothing printed, nothing made."""
    monkeypatch.setenv(variable, "many")
    assert tab(shell, "dead-letters", "show", "") == []
    assert not os.path.exists(operator.path)


def test_paths_are_completed_by_the_shell() -> None:
    """The shell knows files better than we do."""
    assert tab("bash", "status", "--outbox", "") == ["<files>"]
    assert tab("bash", "worker", "--ca-bundle", "") == ["<files>"]
