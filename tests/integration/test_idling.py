"""An idle flusher: it is woken by whoever posts, and sleeps for long while nobody does."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from meter_lib import Settings
from meter_worker import BackgroundFlusher, idling
from meter_worker.doorbell import Doorbell
from meter_worker.idling import Idling
from meter_worker.sandbox import Sandbox
from tests.integration.workers import eventually, post, status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is of Linux")

RARELY = 600.0
"""Seconds between looks: no test waits for one."""


class Bell:
    """An open doorbell, and whether it rang."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "outbox.db-wal"
        self.log.touch()
        self.rung = threading.Event()
        self.doorbell = Doorbell(str(folder / "outbox.db"), self.rung.set)
        self.doorbell.open()

    def write(self) -> None:
        """Write to the log, as a commit does."""
        with self.log.open("ab") as log:
            log.write(b"x")

    def hears(self) -> bool:
        """Return whether it rings within a reasonable time."""
        return self.rung.wait(10)


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    """A doorbell at a folder."""
    (tmp_path / "folder").mkdir()
    made = Bell(tmp_path / "folder")
    yield made
    made.doorbell.close()
    ends = [one for one in threading.enumerate() if one.name == "meter-lib doorbell"]
    for thread in ends:
        thread.join(10)
        assert not thread.is_alive()


def test_it_rings_once_for_each_time_it_is_armed(bell: Bell) -> None:
    """Whoever drains a backlog writes all the time, and is not to be told of it."""
    bell.doorbell.arm()
    bell.write()
    assert bell.hears()
    bell.rung.clear()
    for _ in range(3):
        bell.write()
    assert not bell.rung.is_set()
    # What came meanwhile is not forgotten.
    bell.doorbell.arm()
    assert bell.hears()


def test_it_rings_for_no_other_file(bell: Bell) -> None:
    """The folder may be a busy one."""
    (bell.log.parent / "other").write_bytes(b"x")
    bell.doorbell.arm()
    (bell.log.parent / "other").write_bytes(b"y")
    bell.doorbell.disarm()
    assert not bell.doorbell.has_rung
    bell.doorbell.arm()
    bell.write()
    assert bell.hears()


def test_a_folder_that_is_moved_ends_it(bell: Bell) -> None:
    """The outbox at the path is another one then: whoever waits is woken, and looks by itself."""
    bell.doorbell.arm()
    bell.log.parent.rename(bell.log.parent.with_name("moved"))
    assert bell.hears()
    assert not bell.doorbell.is_open()


def test_without_a_doorbell_looks_are_regular(tmp_path: Path) -> None:
    """Where the system tells nothing, an idle flusher looks as often as it is set to."""
    waits = Idling(str(tmp_path / "missing" / "outbox.db"), 0.3, lambda: None)
    waits.begin()
    assert [waits.seconds(is_busy=busy) for busy in (False, False, True)] == [0.3] * 3
    assert 0 < waits.seconds(is_busy=False) <= 0.3
    waits.end()


def test_a_python_without_ctypes_delivers_all_the_same(tmp_path: Path) -> None:
    """Some are built without it: then nobody rings, and nobody knows whether the clock is right."""
    outbox = str(tmp_path / "outbox.db")
    post(outbox)
    script = """
import sys
sys.modules["ctypes"] = None
from meter_worker.cli import main
main(sys.argv[1:])
"""
    with Sandbox() as sandbox:
        ran = subprocess.run(
            [
                *(sys.executable, "-c", script, "flush", "--outbox", outbox, "--timeout", "10"),
                *("--stream-url", sandbox.url, "--accounts-url", sandbox.url),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, sandbox.count) == (0, 1), ran.stderr


def test_waits_are_long_when_it_is_calm_and_short_after_a_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rare looks are for a doorbell that has proved itself; a ring is followed by close ones."""
    monkeypatch.setattr(idling, "_CALM_SECONDS", -1.0)
    rung = threading.Event()
    log = tmp_path / "outbox.db-wal"
    log.touch()
    waits = Idling(str(tmp_path / "outbox.db"), 0.2, rung.set)
    waits.begin()
    try:
        assert [waits.seconds(is_busy=False) for _ in range(3)] == [0.0, 0.2, 0.2]
        log.write_bytes(b"x")
        assert rung.wait(10)
        after = [waits.seconds(is_busy=False) for _ in range(9)]
        assert after == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.0, 5.0, 5.0]
    finally:
        waits.end()


def test_what_is_posted_within_an_interval_may_share_a_request(tmp_path: Path) -> None:
    """A long METER_POLL_INTERVAL spares requests: after one, nobody is woken for so long."""
    (tmp_path / "outbox.db-wal").touch()
    rung = threading.Event()
    waits = Idling(str(tmp_path / "outbox.db"), RARELY, rung.set)
    waits.begin()
    try:
        assert waits.seconds(is_busy=True) == RARELY
        assert RARELY - 60 < waits.seconds(is_busy=False) <= RARELY
        (tmp_path / "outbox.db-wal").write_bytes(b"x")
        assert RARELY - 60 < waits.seconds(is_busy=False) <= RARELY
        assert not rung.is_set()
    finally:
        waits.end()


def test_a_post_wakes_a_flusher_that_would_look_much_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the calm, an event need not wait for the next look, however rare these are."""
    monkeypatch.setattr(idling, "_CALM_SECONDS", -1.0)
    monkeypatch.setattr(idling, "_RARE_LOOK_SECONDS", RARELY)
    path = tmp_path / "outbox.db"
    with Sandbox() as sandbox:
        settings = Settings(outbox=str(path), stream_url=sandbox.url, accounts_url=sandbox.url)
        with BackgroundFlusher(settings=settings) as flusher:
            assert flusher._loop is not None
            waits = flusher._loop._idling
            for number in range(1, 5):
                # The first time it is not known yet whether it rings at all.
                eventually(
                    lambda n=number: waits._is_armed and (waits._doorbell.has_rung or n == 1)
                )
                post(path)
                eventually(lambda n=number: status(path).delivered == n, seconds=30)
