"""The processes of the demo: `meter-lib` commands, started, waited for, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from meter_worker.demo.failure import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Child", "Processes"]

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""How long nothing may change while a step waits. Steps change something many times a second."""

_LOOK_SECONDS = 0.02
# A stop takes at most 10 s, by the worker's own promise.
_STOP_SECONDS = 15.0
_COMMAND_SECONDS = 60.0
_LOG_END_LINES = 12


class Child:
    """A command that runs beside the demo."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._process = process

    def check_running(self) -> None:
        """Raise `DemoFailed` if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoFailed(f"the {self.name} ended by itself, with exit code {code}")

    def kill(self) -> None:
        """End it at once, with SIGKILL. Does nothing where it has ended."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> float:
        """Ask it to end, with SIGTERM, and return how many seconds that took."""
        begun_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailed(
                f"the {self.name} was asked to stop and still runs after {_STOP_SECONDS:g} s"
            ) from None
        if code != 0:
            raise DemoFailed(f"the {self.name} was asked to stop and ended with exit code {code}")
        return time.monotonic() - begun_at


class Processes:
    """Runs commands with settings of their own; when the block is left, none of them is.

    Logs go to files in `folder`.
    """

    def __init__(self, folder: str, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("METER_")},
            # An empty file: the one of this machine, if it has one, is not meant for a demo.
            "METER_CONFIG": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **settings,
        }
        self._children: list[Child] = []

    def json(self, *arguments: str, seconds: float = _COMMAND_SECONDS) -> Any:
        """Run a command to its end and return the JSON it printed. Raises `DemoFailed`."""
        printed = self._run(*arguments, "--json", seconds=seconds)
        try:
            return json.loads(printed)
        except ValueError:
            raise DemoFailed(f"meter-lib {arguments[0]} printed no JSON: {printed!r}") from None

    def start(self, *arguments: str) -> Child:
        """Start a command that goes on until it is ended."""
        name = arguments[0]
        with open(self._log(name), "ab") as log:
            process = subprocess.Popen(  # noqa: S603  # our own command
                self._command(*arguments),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        child = Child(name, process)
        self._children.append(child)
        return child

    def wait(
        self,
        until: str,
        look: Callable[[], T],
        is_done: Callable[[T], bool],
        *,
        beside: Child,
        seen: Callable[[T], None] = lambda _: None,
    ) -> T:
        """Look until it is done and return what was seen then.

        Raises `DemoFailed` where `beside` ends meanwhile, or nothing changes for long.
        """
        last = look()
        seen(last)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_done(last):
            beside.check_running()
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"waited for {until}, and nothing has changed for {PATIENCE_SECONDS:g} s:"
                    f" {last}"
                )
            time.sleep(_LOOK_SECONDS)
            now = look()
            if now != last:
                last, deadline = now, time.monotonic() + PATIENCE_SECONDS
                seen(last)
        return last

    def log_ends(self) -> dict[str, str]:
        """Return the last lines that each started command logged, by its name."""
        ends: dict[str, str] = {}
        for child in self._children:
            with open(self._log(child.name), encoding="utf-8", errors="replace") as log:
                ends[child.name] = _end(log.read())
        return ends

    def _run(self, *arguments: str, seconds: float) -> str:
        shown = f"meter-lib {arguments[0]}"
        try:
            done = subprocess.run(  # noqa: S603  # our own command
                self._command(*arguments),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{shown} has not ended after {seconds:.0f} s") from None
        if done.returncode != 0:
            raise DemoFailed(
                f"{shown} ended with exit code {done.returncode}:\n{_end(done.stderr)}"
            )
        return done.stdout

    def _log(self, name: str) -> str:
        return os.path.join(self._folder, f"{name}.log")

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "meter_worker", *arguments]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as all_of_them:
            for child in self._children:
                all_of_them.callback(child.kill)


def _end(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_LOG_END_LINES:])
