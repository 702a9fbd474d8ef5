"""The notify protocol of systemd, spoken to a real socket by a real worker."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from meter_worker.notify import ServiceManager
from tests.integration.workers import Child, eventually, holder, post, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meter_worker.sandbox import Sandbox


pytestmark = pytest.mark.usefixtures("path", "sandbox")


class Manager:
    """A service manager: it listens, and knows in which order it was told what."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.told: list[str] = []

    def hears(self, words: str, *, seconds: float = 10) -> str:
        """Return the first message with these words, those heard already left out."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            message = self.listen(left)
            if message is not None and words in message:
                return message
        raise AssertionError(f"nobody said {words!r}, but {self.told}")

    def listen(self, seconds: float) -> str | None:
        """Return the next message, or None where there is none in time."""
        self._socket.settimeout(seconds)
        try:
            self.told.append(self._socket.recv(65_536).decode())
        except TimeoutError:
            return None
        return self.told[-1]

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    """A service manager that the environment names, by both kinds of address."""
    address = (
        str(tmp_path / "notify") if request.param == "path" else f"@meter{os.urandom(8).hex()}"
    )
    listening = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    yield listening
    listening.close()


def test_a_worker_tells_of_its_start_and_its_end(
    start: Callable[..., Child], manager: Manager, path: Path
) -> None:
    """READY once it holds the outbox, then how it goes, and STOPPING at the signal."""
    worker = start()
    manager.hears("READY=1")
    assert holder(path) == worker.process.pid
    assert manager.hears("STATUS=") == "STATUS=nothing pending; links up"
    assert worker.ends(signal.SIGTERM) == 0
    assert manager.hears("STOPPING=1")
    assert manager.told[0] == "READY=1"


def test_a_worker_that_waits_for_another_is_ready(
    start: Callable[..., Child], manager: Manager, path: Path
) -> None:
    """Waiting is what it is there for: the service manager need not give it up."""
    first = start()
    manager.hears("READY=1")
    start().says("waiting for its end")
    manager.hears("READY=1")
    assert holder(path) == first.process.pid


def test_the_status_names_the_backlog_and_the_link_that_is_down(
    start: Callable[..., Child], manager: Manager, path: Path, sandbox: Sandbox
) -> None:
    """One line for whoever asks the service manager."""
    sandbox.fault("down")
    post(path, 1200)
    worker = start()
    line = manager.hears("down for")
    worker.ends(signal.SIGTERM)
    assert line.startswith("STATUS=1,200 events pending, the oldest for ")
    assert line.count("\n") == 0


def test_sighup_is_told_as_a_reload_that_ends(
    start: Callable[..., Child], manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RELOADING with the time of it, then READY, whether the new settings are taken or refused."""
    file = tmp_path / "meter-lib.env"
    file.write_text("")
    monkeypatch.setenv("METER_CONFIG", str(file))
    worker = start()
    manager.hears("READY=1")
    for text in ("METER_BATCH_SIZE=7\n", "METER_BATCH_SIZE=many\n"):
        file.write_text(text)
        before = time.monotonic_ns() // 1000
        worker.process.send_signal(signal.SIGHUP)
        reloading = manager.hears("RELOADING=1").splitlines()
        assert reloading[0] == "RELOADING=1"
        name, _, instant = reloading[1].partition("=")
        assert (name, before <= int(instant) <= time.monotonic_ns() // 1000) == (
            "MONOTONIC_USEC",
            True,
        )
        manager.hears("READY=1")
    assert worker.ends(signal.SIGTERM) == 0


def test_the_watchdog_is_fed_while_a_request_takes_long(
    start: Callable[..., Child],
    manager: Manager,
    path: Path,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the loop would wait longer than the watchdog allows."""
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    sandbox.fault("stall", api="events")
    post(path)
    start("--poll-interval", "60")
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    for _ in range(5):
        manager.hears("WATCHDOG=1", seconds=5)


def test_a_loop_that_hangs_is_not_fed_and_is_killed(
    start: Callable[..., Child], manager: Manager, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service manager kills it when its watchdog expires; the next one delivers."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    hanging = (
        "import threading\n"
        "from meter_worker.cli import main\n"
        "from meter_worker.flusher import Flusher\n"
        "start = Flusher.start\n"
        "def hang(self):\n"
        "    if self._outbox.accepted():\n"
        "        threading.Event().wait()\n"
        "    return start(self)\n"
        "Flusher.start = hang\n"
        "main()\n"
    )
    worker = start(python=("-c", hanging))
    manager.hears("WATCHDOG=1")
    manager.hears("WATCHDOG=1")
    post(path)
    heard = time.monotonic()
    while time.monotonic() - heard < 2:
        message = manager.listen(2 - (time.monotonic() - heard))
        if message == "WATCHDOG=1":
            heard = time.monotonic()
    assert worker.process.poll() is None
    assert worker.ends(signal.SIGABRT) == -signal.SIGABRT
    start()
    eventually(lambda: status(path).delivered == 1)


@pytest.mark.parametrize("pid", ["1", "nobody"])
def test_the_watchdog_of_another_process_is_left_to_it(pid: str) -> None:
    """A parent that has one may have left it in the environment."""
    environ = {"NOTIFY_SOCKET": "@meter-lib", "WATCHDOG_USEC": "1000000"}
    assert ServiceManager(environ | {"WATCHDOG_PID": pid}).watchdog_seconds is None
    mine = str(os.getpid())
    assert ServiceManager(environ | {"WATCHDOG_PID": mine}).watchdog_seconds == 1.0
    assert ServiceManager(environ).watchdog_seconds == 1.0


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens-here", "vsock:2:1", ""])
def test_a_service_manager_that_is_gone_holds_up_nothing(
    address: str, start: Callable[..., Child], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivery does not depend on being watched."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    post(path)
    worker = start()
    eventually(lambda: status(path).delivered == 1)
    assert worker.ends(signal.SIGTERM) == 0
    assert "Traceback" not in worker.stderr
