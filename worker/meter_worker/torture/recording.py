"""Runs a program under strace and keeps what it did to the files of a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from meter_worker.torture.failure import TortureFailed
from meter_worker.torture.operations import CALLS, operations_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter_worker.torture.operations import Operation

__all__ = ["Recording", "record", "recorded", "why_no_recording"]

# Longer than any one write of ours: the largest event is 64 KiB, a page of a log 1 KiB.
_LONGEST_TEXT_BYTES = 4 * 1024 * 1024
_LONGEST_RUN_SECONDS = 120
_HEAD = "# the files of "


class Recording(NamedTuple):
    """What a program did."""

    trace: str
    """The file that it was read from, and can be read from again."""
    operations: list[Operation]


def why_no_recording() -> str | None:
    """Return why nothing can be recorded here, or None where it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    trial = subprocess.run(  # noqa: S603  # a program of the system, asked for by name
        [strace, *_options(os.devnull), "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if trial.returncode == 0:
        return None
    reason = (trial.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return f"strace cannot look at processes here: {reason}"


def record(command: Sequence[str], *, root: str, trace: str) -> Recording:
    """Run a command to its end and return what it did to the files in `root`, an empty folder.

    `trace` is the file to keep it in. Raises `TortureFailed` where the command fails.
    """
    with open(f"{trace}.stderr", "w+b") as stderr:
        ran = subprocess.run(  # noqa: S603  # our own command
            [shutil.which("strace") or "strace", *_options(trace), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            timeout=_LONGEST_RUN_SECONDS,
            check=False,
        )
        stderr.seek(0)
        said = stderr.read().decode(errors="replace").strip()
    os.unlink(f"{trace}.stderr")
    if ran.returncode != 0:
        raise TortureFailed(f"{' '.join(command)} ended with {ran.returncode}: {said[-2000:]}")
    with open(trace, "a", encoding="ascii", errors="surrogateescape") as file:
        file.write(f"{_HEAD}{os.path.realpath(root)}\n")
    return recorded(trace)


def recorded(trace: str) -> Recording:
    """Return what was recorded in this file."""
    with open(trace, encoding="ascii", errors="surrogateescape") as file:
        *lines, last = file.read().splitlines()
    if not last.startswith(_HEAD):
        raise TortureFailed(f"{trace} is no finished recording")
    return Recording(trace, operations_in(lines, last.removeprefix(_HEAD)))


def _options(trace: str) -> list[str]:
    return [
        *("-f", "-y", "-xx", "--seccomp-bpf", "-s", str(_LONGEST_TEXT_BYTES), "-o", trace),
        # Some of them do not exist on every kind of processor.
        *("-e", f"trace={','.join(f'?{call}' for call in CALLS)}"),
    ]
