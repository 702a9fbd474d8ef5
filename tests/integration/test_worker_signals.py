"""A worker that runs: SIGHUP reads the settings again, SIGUSR1 tries at once."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from meter_worker.sandbox import Sandbox
from tests.integration.workers import Child, eventually, holder, post, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONG = ("--backoff-base", "1000", "--backoff-max", "1000", "--reconnect-spread", "0")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A backend."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an outbox that does not exist yet."""
    outbox = tmp_path / "outbox.db"
    monkeypatch.setenv("METER_OUTBOX", str(outbox))
    return outbox


@pytest.fixture
def file(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file that names the backend."""
    named = tmp_path / "meter-lib.env"
    monkeypatch.setenv("METER_CONFIG", str(named))
    write(named, sandbox)
    return named


@pytest.fixture
def start(tmp_path: Path, file: Path) -> Iterator[Callable[..., Child]]:
    """Start workers; none of them is left when the test ends."""
    del file
    children: list[Child] = []

    def start_here(*arguments: str) -> Child:
        command = (sys.executable, "-m", "meter_worker", "worker", *arguments)
        children.append(Child(tmp_path, *command))
        return children[-1]

    yield start_here
    for child in children:
        child.process.kill()
        child.process.wait()


@pytest.fixture
def shown() -> Iterator[tuple[str, list[str | None]]]:
    """A server that takes note of the tokens it is shown, and is otherwise down; its URL."""
    tokens: list[str | None] = []

    class Noting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            tokens.append(self.headers["authorization"])
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tokens
        server.shutdown()


def write(file: Path, backend: Sandbox, *more: str) -> None:
    """Write settings that name a backend."""
    urls = (f"METER_STREAM_URL={backend.url}", f"METER_ACCOUNTS_URL={backend.url}")
    file.write_text("\n".join([*urls, *more]) + "\n")


# -- SIGHUP ----------------------------------------------------------------------------


def test_new_settings_are_in_force_after_sighup(
    start: Callable[..., Child], path: Path, file: Path
) -> None:
    """What is recorded then goes to where they say; the process stays the same."""
    worker = start()
    worker.says("delivering from")
    with Sandbox(topic="other") as elsewhere:
        write(file, elsewhere, "METER_TOPIC=other", "METER_LOG_FORMAT=json")
        worker.process.send_signal(signal.SIGHUP)
        worker.says("changed: METER_STREAM_URL, METER_TOPIC, METER_ACCOUNTS_URL, METER_LOG_FORMAT")
        post(path)
        eventually(lambda: status(path).delivered == 1)
        assert elsewhere.distinct == 1
        assert holder(path) == worker.process.pid
        assert worker.ends(signal.SIGTERM) == 0
    assert worker.stderr.splitlines()[-1].startswith("{")


def test_secrets_are_read_again_from_their_files(
    start: Callable[..., Child],
    path: Path,
    file: Path,
    sandbox: Sandbox,
    tmp_path: Path,
    shown: tuple[str, list[str | None]],
) -> None:
    """A token that was replaced is used from then on, and is not logged."""
    url, tokens = shown
    token = tmp_path / "token"
    token.write_text("s3cret-old")
    file.write_text(
        f"METER_STREAM_URL={url}\nMETER_ACCOUNTS_URL={sandbox.url}\n"
        f"METER_STREAM_TOKEN_FILE={token}\n"
    )
    worker = start("--backoff-base", "0.1")
    worker.says("delivering from")
    token.write_text("s3cret-new\n")
    worker.process.send_signal(signal.SIGHUP)
    worker.says("changed: METER_STREAM_TOKEN")
    post(path)
    eventually(lambda: tokens)
    assert tokens[0] == "Bearer s3cret-new"
    worker.ends(signal.SIGTERM)
    assert "s3cret" not in worker.stderr


@pytest.mark.parametrize("wrong", ["METER_BATCH_SIZE=many", "METER_API_KEY_FILE=/nowhere/key", "?"])
def test_bad_settings_are_refused_and_the_old_ones_stay(
    wrong: str, start: Callable[..., Child], path: Path, file: Path, sandbox: Sandbox
) -> None:
    """The reason is logged, by name, and delivery goes on as before; good ones are taken later."""
    worker = start()
    worker.says("delivering from")
    write(file, sandbox, wrong)
    worker.process.send_signal(signal.SIGHUP)
    worker.says("the new settings are refused, the old ones stay: ")
    assert wrong.partition("=")[0].replace("?", "line 3") in worker.stderr
    post(path)
    eventually(lambda: sandbox.distinct == 1)
    assert worker.stderr.count("worker ") == 1
    write(file, sandbox)
    worker.process.send_signal(signal.SIGHUP)
    worker.says("settings read again; changed: none")
    assert worker.ends(signal.SIGTERM) == 0


def test_a_request_under_way_is_answered_before_new_settings_take_over(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """It is neither broken off nor sent a second time."""
    sandbox.fault("slow", seconds=1, times=1, api="events")
    post(path)
    worker = start()
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    worker.process.send_signal(signal.SIGHUP)
    eventually(lambda: worker.stderr.count("delivering from") == 2)
    assert (status(path).delivered, sandbox.count) == (1, 1)


def test_a_worker_stops_in_time_while_new_settings_wait_for_an_answer(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """SIGTERM does not wait for what SIGHUP waits for."""
    sandbox.fault("stall", api="events")
    post(path)
    worker = start()
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    worker.process.send_signal(signal.SIGHUP)
    worker.says("settings read again")
    assert worker.ends(signal.SIGTERM, seconds=8) == 0
    assert "still hangs" not in worker.stderr
    assert status(path).pending == 1


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_told_again_while_it_ends_ends_with_0(
    start: Callable[..., Child], path: Path, again: signal.Signals
) -> None:
    """Signals that come on the way out neither kill it nor make it print a traceback."""
    worker = start()
    eventually(lambda: holder(path))
    worker.process.send_signal(signal.SIGINT)
    while worker.process.poll() is None:
        worker.process.send_signal(again)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=0.01)
    assert (worker.process.returncode, "Traceback" in worker.stderr) == (0, False)


def test_new_settings_end_a_request_that_is_never_answered(
    start: Callable[..., Child], path: Path, file: Path, sandbox: Sandbox
) -> None:
    """It is broken off; its events go, under the same keys, to where the new settings say."""
    sandbox.fault("stall", api="events")
    post(path)
    worker = start()
    eventually(lambda: any(fault["struck"] for fault in sandbox.faults))
    with Sandbox() as elsewhere:
        write(file, elsewhere)
        worker.process.send_signal(signal.SIGHUP)
        eventually(lambda: status(path).delivered == 1, seconds=30)
        assert elsewhere.count == 1
    eventually(lambda: not connections(sandbox.port))


def connections(port: int) -> list[str]:
    """Return the connections that clients have open to a port of this machine."""
    try:
        with open("/proc/net/tcp", encoding="ascii") as table:
            lines = [line.split() for line in table]
    except FileNotFoundError:
        pytest.skip("connections cannot be looked at here")
    open_now = "01"
    return [line[1] for line in lines if line[2].endswith(f":{port:04X}") and line[3] == open_now]


# -- SIGUSR1 ---------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["events", "accounts"])
def test_sigusr1_ends_a_pause_of_our_own(
    api: str, start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """Whoever knows that the backend is back need not wait for the next attempt."""
    sandbox.fault("down", api=api)
    post(path)
    worker = start(*LONG)
    worker.says("no delivery for")
    sandbox.heal()
    worker.process.send_signal(signal.SIGUSR1)
    eventually(lambda: status(path).delivered == 1)
    assert "trying again now" in worker.stderr


def test_sigusr1_keeps_a_pause_that_the_backend_asked_for(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """Retry-After is the backend's word: nothing is sent, and the log says why."""
    sandbox.fault("throttle", retry_after=1000, api="events")
    post(path)
    worker = start("--backoff-base", "0.1")
    worker.says("no delivery for")
    sandbox.heal()
    worker.process.send_signal(signal.SIGUSR1)
    worker.says("the pause stays for")
    assert (status(path).pending, sandbox.count) == (1, 0)
