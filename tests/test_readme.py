"""The README is true: every example runs, every table is that of the code.

`python tests/test_readme.py` writes the generated sections anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from meter_lib.settings import SETTINGS
from meter_worker.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def settings_table() -> str:
    """Return the settings as a table, from the table that the code reads."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        default = "see below" if setting.field == "outbox" else _shown(setting.default)
        lines.append(f"| `{setting.variable}` | {default} | {setting.meaning} |")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if default is None:
        return "-"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def commands_table() -> str:
    """Return the commands with their one-line helps, from the command line itself."""
    lines = ["| command | does |", "|---|---|"]

    def walk(group: click.Group, prefix: str) -> None:
        for name, command in sorted(group.commands.items()):
            if isinstance(command, click.Group):
                walk(command, f"{prefix}{name} ")
            else:
                lines.append(f"| `{prefix}{name}` | {command.get_short_help_str(200)} |")

    walk(main, "meter-lib ")
    return "\n".join(lines)


GENERATED = {"settings": settings_table, "commands": commands_table}


def with_sections(text: str) -> str:
    """Return the README with its generated sections as the code has them."""
    for name, render in GENERATED.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n\n{render()}\n\n<!-- /{name} -->{after}"
    return text


def test_the_tables_of_the_readme_are_those_of_the_code() -> None:
    """Settings and commands in the README are the ones there are."""
    text = README.read_text(encoding="utf-8")
    assert text == with_sections(text), "stale: run python tests/test_readme.py"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"))


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment with an outbox in the folder and no backend to reach."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("METER_")}
    nowhere = "http://127.0.0.1:1"
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
        "METER_OUTBOX": str(folder / "outbox.db"),
        "METER_STREAM_URL": nowhere,
        "METER_ACCOUNTS_URL": nowhere,
    }


@pytest.mark.parametrize("block", _blocks("python"))
def test_each_python_example_runs(block: str, tmp_path: Path) -> None:
    """What the README shows of the API works as it stands."""
    ran = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # A flusher may come to say that nobody listens where these examples would deliver to.
    said = [line for line in ran.stderr.splitlines() if "no delivery for" not in line]
    assert (ran.returncode, said) == (0, [])


@pytest.mark.parametrize("block", _blocks("console"))
def test_each_console_example_runs(block: str, tmp_path: Path) -> None:
    """What the README shows of the command line works as it stands."""
    script = "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))
    ran = subprocess.run(
        ["/bin/bash", "-em", "-c", script],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_promise_names_a_test_that_is_there() -> None:
    """Whoever doubts a promise finds its proof."""
    named = re.findall(r"`(tests/promises/\S+\.py)`", README.read_text(encoding="utf-8"))
    there = [f"tests/promises/{path.name}" for path in (ROOT / "tests/promises").glob("test_p*.py")]
    assert sorted(set(named)) == sorted(there)


if __name__ == "__main__":
    README.write_text(with_sections(README.read_text(encoding="utf-8")), encoding="utf-8")
