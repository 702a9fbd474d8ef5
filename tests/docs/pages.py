"""The pages of docs/ as programs: what stands behind a `$` is run, what it prints is compared.

A page may have remarks that readers do not see, `<!-- run:` and lines of bash up to `-->`: what
goes on beside the commands that are shown, such as a backend that goes down. They are run in
their place; what they print is thrown away.

Paths and addresses of the run are shown as those of a device; keys, times, sizes and process ids
differ from run to run and are compared by their form only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from meter_worker.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^(?:```console\n(?P<shown>.*?)^```$|<!-- run:\n(?P<hidden>.*?)^-->$)",
    re.MULTILINE | re.DOTALL,
)
_MARK = "\x01"
_SECONDS = 300
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")

# What a script may use that readers do not see.
_PRELUDE = f"""
trap 'kill $(jobs -p) 2>/dev/null' EXIT
wait_until() {{  # wait_until WORDS COMMAND...: until it prints the words, at most two minutes
  local words=$1 deadline=$((SECONDS + 120))
  shift
  while [ $SECONDS -lt $deadline ]; do
    if "$@" 2>&1 | grep -qE -- "$words"; then return; fi
    sleep 0.1
  done
  echo "it did not come about: $words" >&2
  exit 99
}}
fault() {{ curl -sf -X PUT -d "$1" "$METER_STREAM_URL/sandbox/faults" > /dev/null || exit 98; }}
heal() {{ curl -sf -X DELETE "$METER_STREAM_URL/sandbox/faults" > /dev/null || exit 98; }}
exec 2>&1
PATH={Path(sys.executable).parent}:$PATH
"""

# What is compared by its form only. The order counts.
_FORMS = (
    (r"\b[0-9a-f]{32}\b", "KEY"),
    (r"\b\d{4}-\d\d-\d\d[T ]?\d{2}:?\d\d:?\d\d(?:\.\d+)?Z?", "TIME"),
    (r"\b\d{8}T\d{6}Z", "TIME"),
    (r"\b1[78]\d{11}\b", "MILLISECONDS"),
    (r"\b\d+(?:\.\d+)? (?:d|h|min|s)\b(?: \d+ (?:h|min|s)\b)?", "DURATION"),
    (r"\b[\d,]+(?:\.\d+)? (?:B|KiB|MiB|GiB)\b", "SIZE"),
    (r"\b(process|worker|pid) \d+\b", r"\1 PID"),
    (r"^clock +(?:ok|warning) .*$", "clock VERDICT"),
    (r"\bschema \d+\b", "schema NUMBER"),
    (r"\bolder than \d+\b|\bnewer than \d+\b", "than NUMBER"),
    (r"\bSQLite \d+\.\d+\.\d+\b", "SQLite VERSION"),
    (r"-{2,}", "--"),
    (r"[ \t]+", " "),
)


class Command(NamedTuple):
    """A command of a page, and what stands below it."""

    line: str
    output: str


class Ran(NamedTuple):
    """What became of a page."""

    exit_code: int
    outputs: list[str]
    """Of each command that is shown, in their order."""
    rest: str
    """What the last piece printed, to look at where it failed."""


def pages() -> list[Path]:
    """Return the pages that have something to run."""
    return sorted(path for path in DOCS.rglob("*.md") if _BLOCK.search(path.read_text("utf-8")))


def commands_of(block: str) -> list[Command]:
    """Return the commands of a block that is shown."""
    commands: list[Command] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append(Command(line[2:].rstrip("\n"), ""))
        else:
            assert commands, f"output before the first command: {line}"
            commands[-1] = commands[-1]._replace(output=commands[-1].output + line)
    return commands


def needs_mount(text: str) -> bool:
    """Return whether a page mounts something: it is run where nobody else sees that."""
    return "<!-- needs: mount -->" in text


def what_is_missing(text: str) -> str:
    """Return what this machine has not that a page needs, or nothing."""
    if not sys.platform.startswith("linux"):
        return "the pages are of Linux"
    missing = [name for name in ("curl", "dd", "find", "grep", "sed") if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]} here"
    if needs_mount(text):
        probe = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        with contextlib.suppress(OSError):
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return ""
        return "a small file system can only be mounted by root"
    return ""


def shortened(text: str) -> str:
    """Return a page with a tenth of the events that are in it, where there are very many."""
    numbers = {
        "50,000": "5,000",
        "50000": "5000",
        "49,988": "4,988",
        "49,900": "4,900",
        "49900": "4900",
    }
    for many, fewer in numbers.items():
        text = re.sub(rf"\b{many}\b", fewer, text)
    return text


def form(text: str) -> str:
    """Return a text with all that differs from run to run replaced by what it is."""
    for pattern, kind in _FORMS:
        text = re.sub(pattern, kind, text, flags=re.MULTILINE)
    return "\n".join(line.strip() for line in text.strip().splitlines())


def shown_commands(text: str) -> list[Command]:
    """Return the commands that a page shows."""
    return [
        command
        for match in _BLOCK.finditer(text)
        if match["shown"] is not None
        for command in commands_of(match["shown"])
    ]


def run(text: str, folder: Path) -> Ran:
    """Run a page in a folder of its own, with a backend of its own."""
    lib, etc = folder / "lib", folder / "etc"
    lib.mkdir()
    lib.chmod(0o700)
    etc.mkdir()
    (etc / "meter-lib.env").touch()
    with Sandbox() as sandbox:
        places = {
            "/var/lib/meter-lib": str(lib),
            "/etc/meter-lib": str(etc),
            "~": str(folder.resolve()),
            "https://stream.example.com": sandbox.url,
        }
        script = _PRELUDE + _script(text, places)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("METER_")} | {
            "HOME": str(folder),
            "COLUMNS": "100",
            "METER_CONFIG": str(etc / "meter-lib.env"),
            "METER_OUTBOX": str(lib / "outbox.db"),
            "METER_STREAM_URL": sandbox.url,
            "METER_ACCOUNTS_URL": sandbox.url,
            "ROOT": str(ROOT),
        }
        printed = folder / "printed"
        with printed.open("wb") as stdout:
            process = subprocess.Popen(
                [*(OWN_MOUNTS if needs_mount(text) else ()), "/bin/bash", "-c", script],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stdout,
                start_new_session=True,
            )
            try:
                exit_code = process.wait(timeout=_SECONDS)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    _, *pieces = printed.read_text("utf-8").split(_MARK)
    for shown, real in places.items():
        pieces = [piece.replace(real, shown) for piece in pieces]
    outputs = [piece[1:] for piece in pieces if piece[0] == "$"]
    return Ran(exit_code, outputs, pieces[-1][1:] if pieces else printed.read_text("utf-8"))


def _script(text: str, places: dict[str, str]) -> str:
    lines: list[str] = []
    for match in _BLOCK.finditer(text):
        if match["hidden"] is not None:
            lines += [f"printf '{_MARK}#'", "set -e", match["hidden"], "set +e"]
            continue
        for command in commands_of(match["shown"]):
            lines += [f"printf '{_MARK}$'", command.line]
    script = "\n".join(lines)
    for shown, real in places.items():
        script = script.replace(shown, real)
    return script + "\n"


def written_anew(text: str, outputs: list[str], *, everything: bool) -> str:
    """Return the page with the outputs of a run: everything, or where their form has changed."""
    left = iter(outputs)

    def block(match: re.Match[str]) -> str:
        if match["shown"] is None:
            return match[0]
        lines = "".join(
            f"$ {command.line}\n{kept(command.output, next(left))}"
            for command in commands_of(match["shown"])
        )
        return f"```console\n{lines}```"

    def kept(before: str, now: str) -> str:
        if form(before) == form(now) and not everything:
            return before
        stripped = "\n".join(line.rstrip() for line in now.strip("\n").splitlines())
        return f"{stripped}\n" if stripped else ""

    return _BLOCK.sub(block, text)
