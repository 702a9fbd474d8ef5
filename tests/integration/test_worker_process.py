"""Processes that deliver: how they start, share an outbox, stop, and what they say meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import MeterClient
from meter_worker.sandbox import Sandbox
from tests.integration.workers import Child, eventually, holder, post, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an outbox that does not exist yet, and a backend that nobody answers for."""
    for name in list(os.environ):
        if name.startswith("METER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("METER_CONFIG", os.devnull)
    monkeypatch.setenv("METER_STREAM_URL", NOWHERE)
    monkeypatch.setenv("METER_ACCOUNTS_URL", NOWHERE)
    outbox = tmp_path / "outbox.db"
    monkeypatch.setenv("METER_OUTBOX", str(outbox))
    return outbox


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start commands; none of them is left when the test ends."""
    children: list[Child] = []

    def start_here(*arguments: str) -> Child:
        children.append(Child(tmp_path, sys.executable, "-m", "meter_worker", *arguments))
        return children[-1]

    yield start_here
    for child in children:
        child.process.kill()
        child.process.wait()


# -- the worker ------------------------------------------------------------------------


def test_a_worker_delivers_what_applications_record_later(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """It makes the outbox if it is the first, says which one it uses, and keeps stdout clean."""
    worker = start("worker")
    worker.says(f"delivering from {path}")
    post(path, 3)
    # Not before: a stop breaks off what the backend has stored and not yet answered.
    eventually(lambda: status(path).pending == 0)
    assert worker.ends(signal.SIGTERM) == 0
    assert f"outbox {path}, events to {sandbox.url}/topics/usage-events" in worker.stderr
    assert (worker.stdout, status(path).delivered, sorted(sandbox.keys.values())) == (
        "",
        3,
        [1, 1, 1],
    )


def test_options_win_over_the_environment(
    start: Callable[..., Child], tmp_path: Path, path: Path
) -> None:
    """What is on the command line is what counts."""
    other = tmp_path / "other.db"
    with Sandbox(topic="other") as elsewhere:
        urls = ("--stream-url", elsewhere.url, "--accounts-url", elsewhere.url)
        worker = start("worker", "--outbox", str(other), *urls, "--topic", "other")
        post(other)
        eventually(lambda: elsewhere.distinct == 1)
        assert worker.ends(signal.SIGTERM) == 0
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("api", ["events", "accounts"])
def test_a_worker_stops_in_time_while_the_backend_stalls(
    number: signal.Signals, api: str, start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """A request that is never answered is broken off; its events stay in the outbox."""
    sandbox.fault("stall", api=api)
    post(path, 5)
    worker = start("worker")
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    begun_at = time.monotonic()
    assert worker.ends(number) == 0
    assert time.monotonic() - begun_at < 5
    assert f"{number.name}: stopping" in worker.stderr
    assert "Traceback" not in worker.stderr
    assert (status(path).pending, holder(path)) == (5, None)


def test_a_worker_stops_in_time_during_an_outage(start: Callable[..., Child], path: Path) -> None:
    """Waiting for the next attempt is no reason to wait with the stop."""
    post(path)
    worker = start("worker", "--backoff-base", "1000", "--backoff-max", "1000")
    worker.says("no delivery for")
    assert worker.ends(signal.SIGTERM, seconds=5) == 0


def test_a_worker_stops_in_time_where_the_outbox_is_locked(
    start: Callable[..., Child], path: Path
) -> None:
    """Even if another process never lets go of the outbox: nothing is lost by just ending."""
    post(path)
    worker = start("worker")
    worker.says("no delivery for")
    with open(f"{path}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert worker.ends(signal.SIGTERM, seconds=10) == 0
    assert "still hangs" in worker.stderr
    assert (status(path).pending, holder(path)) == (1, None)


def test_a_second_worker_takes_over_when_the_first_is_killed(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """It says whom it waits for, and delivers within 2 s of that one's death."""
    first = start("worker")
    eventually(lambda: holder(path) == first.process.pid)
    second = start("worker")
    second.says(f"held by process {first.process.pid}")
    first.process.kill()
    post(path)
    eventually(lambda: holder(path) == second.process.pid, seconds=2)
    eventually(lambda: sandbox.distinct == 1)
    assert second.ends(signal.SIGTERM) == 0


def test_a_worker_that_waits_for_another_stops_in_time(
    start: Callable[..., Child], path: Path
) -> None:
    """Waiting for the outbox ends at the signal as well."""
    first = start("worker")
    eventually(lambda: holder(path) == first.process.pid)
    second = start("worker")
    second.says("waiting for its end")
    assert second.ends(signal.SIGINT, seconds=5) == 0
    assert holder(path) == first.process.pid


def test_a_worker_that_must_not_wait_names_who_delivers(
    start: Callable[..., Child], path: Path
) -> None:
    """`--no-wait` ends with 1 where another holds the outbox, and delivers where none does."""
    first = start("worker", "--no-wait")
    eventually(lambda: holder(path) == first.process.pid)
    second = start("worker", "--no-wait")
    assert second.ends() == 1
    last_line = second.stderr.splitlines()[-1]
    assert last_line == (
        f"meter-lib: {path} is held by process {first.process.pid}, which delivers"
    )
    assert first.ends(signal.SIGTERM) == 0


def test_a_worker_whose_delivery_dies_ends_with_1(tmp_path: Path) -> None:
    """A fault of our own is logged in a line, and whoever supervises the process sees it end."""
    broken = (
        "from meter_worker.cli import main\n"
        "from meter_worker.flusher import Flusher\n"
        "def start(self): raise ZeroDivisionError('boom')\n"
        "Flusher.start = start\n"
        "main(['worker'])\n"
    )
    worker = Child(tmp_path, sys.executable, "-c", broken)
    assert worker.ends() == 1
    assert "CRITICAL meter_worker: delivery ended by a fault: ZeroDivisionError: boom" in (
        worker.stderr
    )
    assert "Traceback" not in worker.stderr


def test_a_worker_that_is_too_old_for_the_outbox_ends_with_1(
    start: Callable[..., Child], path: Path
) -> None:
    """No waiting makes it newer: it says so once, and a supervisor sees it."""
    with MeterClient(path) as client:
        client.post("t", "d", "page.processed.basic", 1)
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    worker = start("worker")
    assert worker.ends() == 1
    assert "made by a newer version of meter-lib" in worker.stderr


def test_a_worker_with_a_wrong_setting_makes_nothing(
    start: Callable[..., Child], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad setting is refused at start, by name, with 2."""
    monkeypatch.setenv("METER_READ_TIMEOUT", "never")
    worker = start("worker")
    assert worker.ends() == 2
    assert "METER_READ_TIMEOUT" in worker.stderr
    assert not path.exists()


# -- the log ---------------------------------------------------------------------------


def test_the_log_is_a_line_a_record_with_its_time(start: Callable[..., Child], path: Path) -> None:
    """Plain by default: time in UTC, level, source, words."""
    worker = start("worker")
    worker.says(f"delivering from {path}")
    worker.ends(signal.SIGTERM)
    for line in worker.stderr.splitlines():
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO meter_worker: .+", line)


def test_the_log_is_json_from_the_first_line_on(
    start: Callable[..., Child], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is said of the settings themselves, which say how to log."""
    monkeypatch.setenv("METER_LOG_FORMAT", "json")
    monkeypatch.setenv("METER_BATCHSIZE", "3")
    worker = start("worker")
    worker.says("delivering from")
    worker.ends(signal.SIGTERM)
    records: list[dict[str, Any]] = [json.loads(line) for line in worker.stderr.splitlines()]
    for record in records:
        assert {"time", "level", "logger", "message", "event"} <= set(record)
    assert (records[0]["level"], records[0]["logger"]) == ("WARNING", "meter_lib")
    assert "METER_BATCHSIZE" in records[0]["message"]
    assert records[2]["message"] == f"delivering from {path}"
    assert (records[2]["event"], records[2]["outbox"]) == ("delivering", str(path))


def test_the_log_has_the_level_asked_for(start: Callable[..., Child], path: Path) -> None:
    """Below it nothing is said."""
    post(path)
    worker = start("worker", "--log-level", "warning")
    worker.says("no delivery for")
    worker.ends(signal.SIGTERM)
    assert {line.split()[1] for line in worker.stderr.splitlines()} == {"WARNING"}


def test_no_secret_is_ever_logged(
    start: Callable[..., Child], path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even at the most talkative level, nor in the error of a backend that refuses."""
    monkeypatch.setenv("METER_STREAM_TOKEN", "s3cret-stream")
    monkeypatch.setenv("METER_API_KEY", "s3cret-api")
    monkeypatch.setenv("METER_PORTAL_URL", sandbox.url)
    sandbox.fault("refuse", status=401, message="who is s3cret-stream?")
    post(path)
    worker = start("worker", "--log-level", "DEBUG")
    worker.says("no delivery for")
    worker.ends(signal.SIGTERM)
    assert "s3cret" not in worker.stderr


# -- flush -----------------------------------------------------------------------------


def test_flush_ends_with_0_when_nothing_is_left_pending(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """All that was pending has been delivered, and that is said on stdout alone."""
    post(path, 700)
    flush = start("flush")
    assert (flush.ends(), flush.stdout) == (0, "nothing is left pending\n")
    assert (sandbox.distinct, status(path).delivered) == (700, 700)


def test_flush_ends_with_1_when_its_time_is_over(start: Callable[..., Child], path: Path) -> None:
    """An outage is waited out for as long as --timeout says, and no longer."""
    post(path, 2)
    begun_at = time.monotonic()
    flush = start("flush", "--timeout", "0.5")
    assert (flush.ends(), flush.stdout) == (1, "2 events left pending\n")
    assert time.monotonic() - begun_at > 0.5


def test_flush_waits_out_an_outage(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """A backend that comes back in time is enough."""
    sandbox.fault("down", times=2)
    post(path)
    flush = start("flush", "--backoff-base", "0.1")
    assert (flush.ends(), sandbox.distinct) == (0, 1)


def test_flush_waits_for_the_worker_that_holds_the_outbox(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """It says who delivers, and ends once that one has."""
    sandbox.fault("slow", seconds=1, times=1)
    worker = start("worker")
    eventually(lambda: holder(path) == worker.process.pid)
    post(path)
    flush = start("flush")
    assert (flush.ends(), flush.stdout) == (0, "nothing is left pending\n")
    assert f"held by process {worker.process.pid}" in flush.stderr
    assert (sandbox.count, holder(path)) == (1, worker.process.pid)


def test_flush_ends_early_when_only_refused_events_are_left(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """No waiting helps those: it takes another event to show whether the refusal is for good."""
    sandbox.fault("reject_records", match={"meter_id": "m.refused"})
    post(path, meter_id="m.refused")
    flush = start("flush", "--timeout", "60")
    assert flush.ends(seconds=10) == 1
    assert flush.stdout == "1 event left pending, 1 of them refused by the backend\n"


def test_flush_interrupted_says_so(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """Ctrl-C ends it with 1 and a word; what is pending stays."""
    sandbox.fault("stall")
    post(path)
    flush = start("flush")
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    assert flush.ends(signal.SIGINT) == 1
    assert flush.stderr.splitlines()[-1].startswith("meter-lib: interrupted")
    assert "Traceback" not in flush.stderr
    assert status(path).pending == 1


# -- sandbox ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_sandbox_says_how_to_use_it_and_runs_until_a_signal(
    number: signal.Signals, start: Callable[..., Child], path: Path, tmp_path: Path
) -> None:
    """Its lines can be pasted into a shell, or sourced; events delivered then arrive."""
    sandbox = start("sandbox", "--port", "0")
    eventually(lambda: sandbox.stdout.count("\n") == 3)
    (tmp_path / "lines.sh").write_text(sandbox.stdout)
    sourced = '. ./lines.sh; exec "$0" -m meter_worker flush --outbox "$1"'
    post(path, 2)
    flush = subprocess.run(
        ["/bin/sh", "-c", sourced, sys.executable, str(path)],
        cwd=tmp_path,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (flush.returncode, flush.stdout) == (0, b"nothing is left pending\n")
    url = re.findall(r"export METER_STREAM_URL=(http://127\.0\.0\.1:\d+)\n", sandbox.stdout)[0]
    with urllib.request.urlopen(f"{url}/sandbox/records?fields=summary", timeout=5) as answer:  # noqa: S310  # our own
        assert json.load(answer) == {"count": 2, "distinct": 2, "duplicates": 0}
    assert sandbox.ends(number) == 0
    assert sandbox.stderr == ""


def test_the_sandbox_misbehaves_as_told(start: Callable[..., Child]) -> None:
    """Each --fault stands from the start, in the order given."""
    faults = ['{"fault": "down", "times": 1}', '{"fault": "slow", "seconds": 2}']
    sandbox = start("sandbox", "--port", "0", *(a for f in faults for a in ("--fault", f)))
    eventually(lambda: sandbox.stdout.count("\n") == 3)
    url = re.findall(r"METER_ACCOUNTS_URL=(\S+)\n", sandbox.stdout)[0]
    with urllib.request.urlopen(f"{url}/sandbox/faults", timeout=5) as answer:  # noqa: S310  # our own
        assert [fault["fault"] for fault in json.load(answer)] == ["down", "slow"]


def test_a_port_that_is_taken_is_said(start: Callable[..., Child], sandbox: Sandbox) -> None:
    """Nothing wrong with the option: it ends with 1, naming the port."""
    second = start("sandbox", "--port", str(sandbox.port))
    assert second.ends() == 1
    assert f"cannot listen on port {sandbox.port}" in second.stderr
    assert second.stderr.count("\n") == 1
