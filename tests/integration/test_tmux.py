"""What people see on a screen: commands in a tmux, whose picture of the terminal is read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.operating import Operator

pytestmark = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")


class Screen:
    """A terminal of 100 columns and 24 rows with a shell, on which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self._server = ("tmux", "-S", str(folder / "tmux"), "-f", os.devnull)
        self.tmux("new-session", "-d", "-x", "100", "-y", "24", "env PS1='ready> ' sh")
        self.wait_for(lambda shown: "ready>" in shown)

    def tmux(self, *command: str) -> str:
        """Have tmux do something, and return what it prints."""
        return subprocess.run(
            [*self._server, *command],
            # Not the size of another screen, which readline leaves in the environment.
            env={k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def type(self, *arguments: str) -> None:
        """Type a command line."""
        command = shlex.join([sys.executable, "-m", "meter_worker", *arguments])
        self.tmux("send-keys", "-l", f"clear; {command}")
        self.tmux("send-keys", "Enter")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.tmux("send-keys", "C-c")

    @property
    def shown(self) -> str:
        """What is on the screen now."""
        return self.tmux("capture-pane", "-p")

    def wait_for(self, is_there: Callable[[str], object], *, seconds: float = 20) -> str:
        """Look until it is on the screen, and return all that is on it then."""
        deadline = time.monotonic() + seconds
        while not is_there(shown := self.shown):
            assert time.monotonic() < deadline, shown
            time.sleep(0.02)
        return shown

    def variable(self, name: str) -> str:
        """What tmux knows of its pane."""
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip()


@pytest.fixture
def screen(tmp_path: Path, operator: Operator) -> Iterator[Screen]:
    """A screen whose shell has the outbox of the operator in its environment."""
    del operator
    made = Screen(tmp_path)
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.tmux("kill-server")


def percentages(shown: str) -> list[int]:
    """What bars on the screen say."""
    return [int(number) for number in re.findall(r"(\d+)%", shown)]


def test_a_watched_status_stays_in_its_place(screen: Screen, operator: Operator) -> None:
    """The numbers change where they stand, also on a small screen; the way out leaves a prompt."""
    operator.post("a")
    screen.type("status", "--watch")
    before = screen.wait_for(lambda shown: "accepted      1\n" in shown)
    operator.post("b", "c")
    after = screen.wait_for(lambda shown: "accepted      3\n" in shown)
    assert before.splitlines()[0] == after.splitlines()[0]
    assert after.count("accepted") == 1
    screen.tmux("resize-window", "-y", "8")
    scrolled = screen.variable("history_size")  # by tmux, as it takes the rows away
    for key, accepted in (("d", 4), ("e", 5)):
        operator.post(key)
        small = screen.wait_for(lambda shown, n=accepted: f"accepted      {n}\n" in shown)
        assert "outbox" in small.splitlines()[0]
    assert screen.variable("history_size") == scrolled
    screen.tmux("resize-window", "-y", "24")
    screen.interrupt()
    screen.wait_for(lambda shown: "ready>" in shown.splitlines()[-1] or shown.count("ready>"))
    assert "Traceback" not in screen.shown


def test_a_replay_shows_how_far_it_is(screen: Screen, operator: Operator) -> None:
    """The bar grows on its line; Ctrl-C stops it, and what it has done is said."""
    operator.bury(*(f"k{number}" for number in range(200)))
    screen.type("dead-letters", "replay", "--all", "--yes", "--rate", "20")
    screen.wait_for(lambda shown: any(0 < percent < 100 for percent in percentages(shown)))
    assert len(percentages(screen.shown)) == 1
    screen.interrupt()
    said = screen.wait_for(lambda shown: "replayed until then" in shown)
    match = re.search(r"(\d+) dead letters? replayed until then", said)
    assert match is not None
    assert int(match[1]) + len(operator.keys()) == 200
    assert screen.variable("cursor_flag") == "1", "the cursor is still hidden"


def test_an_import_shows_how_far_it_is(screen: Screen, operator: Operator, tmp_path: Path) -> None:
    """At the end it is all of the file, whatever bad lines were said meanwhile."""
    event = {"tenant_id": "t", "device_id": "d", "meter_id": "page.processed.basic"}
    lines = [json.dumps(event | {"total_usage": number}) for number in range(2_000)]
    lines[1_000] = "bad"
    (tmp_path / "usage.jsonl").write_text("\n".join(lines) + "\n")
    screen.type("post", "--from-file", str(tmp_path / "usage.jsonl"))
    shown = screen.wait_for(lambda shown: "1,999 events recorded" in shown)
    assert percentages(shown) == [100]
    assert "line 1001: the line is not JSON" in shown
    assert operator.run("status", "--json").json["accepted"] == 1_999


@pytest.mark.parametrize("what", ["dead-letters", "pending"])
def test_an_export_shows_how_many_there_were(screen: Screen, operator: Operator, what: str) -> None:
    """How many there will be is not known, so they are counted."""
    keys = [f"k{number}" for number in range(350)]
    operator.bury(*keys) if what == "dead-letters" else operator.post(*keys)
    screen.type(what, "export", "file.jsonl")
    shown = screen.wait_for(lambda shown: "written to file.jsonl" in shown)
    assert re.search(r"exporting +\[#+\] +350\b", shown), shown


def test_a_salvage_shows_how_far_it_is(screen: Screen, operator: Operator, tmp_path: Path) -> None:
    """What another file holds is taken over before one's eyes."""
    operator.post(*(f"k{number}" for number in range(100)))
    other = str(tmp_path / "other.db")
    screen.tmux("resize-window", "-y", "80")
    screen.type("doctor", "--salvage", operator.path, "--outbox", other, "--timeout", "1")
    shown = screen.wait_for(lambda shown: "100 events of" in shown, seconds=60)
    assert percentages(shown)[0] == 100
