"""`status --watch`: what changes is seen as it changes, on a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.operating import Operator


class Terminal:
    """A terminal on which a command runs."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        ours, its = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "meter_worker", *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environment},
        )
        os.close(its)
        self._ours = ours
        self.shown = ""

    def wait_for(self, text: str, *, seconds: float = 15) -> None:
        """Read until the text is shown; fail where it is not within the time."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += os.read(self._ours, 65_536).decode()

    def end(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    """A terminal with a command that is ended with the block."""
    made = Terminal(*arguments, **environment)
    try:
        yield made
    finally:
        made.end()


def test_a_terminal_is_drawn_anew_as_things_change(operator: Operator) -> None:
    """The picture is drawn over the last one, in colour; Ctrl-C is the way out, not an error."""
    operator.post("a")
    with terminal("status", "--watch") as screen:
        screen.wait_for("accepted      1\x1b[K")
        screen.wait_for("\x1b[33mNo worker is running")
        operator.post("b")
        screen.wait_for("accepted      2\x1b[K")
        assert screen.shown.count("\x1b[2J") == 1
        assert screen.shown.count("\x1b[H") >= 2
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(timeout=15) == 0
        assert "Traceback" not in screen.shown


@pytest.mark.parametrize("as_json", [False, True])
def test_a_pipe_gets_one_after_the_other(operator: Operator, *, as_json: bool) -> None:
    """No sequence that steers a terminal is in a log, and each object is a line."""
    operator.post("a")
    process = operator.process("status", "--watch", *(["--json"] if as_json else []))
    assert process.stdout is not None
    shown = process.stdout.readline()
    operator.post("b")
    is_seen = '"accepted": 2' if as_json else "accepted      2"
    while is_seen not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    if as_json:
        assert all(json.loads(line)["outbox"] == operator.path for line in shown.splitlines())
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=15)
    assert (process.returncode, stderr) == (0, "")
    assert "\x1b" not in shown


def test_a_plain_status_has_no_colour_in_a_pipe(operator: Operator) -> None:
    """What is not read on a terminal is plain text."""
    operator.post("a")
    stdout, _ = operator.process("status").communicate(timeout=15)
    assert "No worker is running" in stdout
    assert "\x1b" not in stdout
    with terminal("status") as screen:
        screen.wait_for("\x1b[33mNo worker is running")


def test_no_colour_is_shown_to_whoever_wants_none(operator: Operator) -> None:
    """NO_COLOR takes the colours away, and leaves the picture that is drawn anew."""
    operator.post("a")
    with terminal("status", "--watch", NO_COLOR="1") as screen:
        screen.wait_for("No worker is running")
        operator.post("b")
        screen.wait_for("accepted      2\x1b[K")
        assert ("\x1b[33m" in screen.shown, screen.shown.count("\x1b[2J")) == (False, 1)
    with terminal("status", NO_COLOR="1") as screen:
        screen.wait_for("No worker is running")
        assert "\x1b" not in screen.shown


def test_a_dumb_terminal_gets_plain_text(operator: Operator) -> None:
    """It gets one picture after the other, no bar, and no sequence that it could not read."""
    operator.post(*(f"k{number}" for number in range(600)))
    with terminal("status", "--watch", TERM="dumb") as screen:
        screen.wait_for("No worker is running")
        operator.post("b")
        screen.wait_for("accepted      601")
        assert "\x1b" not in screen.shown
    with terminal("pending", "export", "file", TERM="dumb") as screen:
        screen.wait_for("601 pending events written to file")
        assert ("exporting" in screen.shown, "\x1b" in screen.shown) == (False, False)


def test_a_missing_outbox_is_not_watched(operator: Operator) -> None:
    """There is nothing to see: that is said, and ends with 1."""
    ended = operator.run("status", "--watch")
    assert (ended.code, "outbox.db" in ended.stderr) == (1, True)
