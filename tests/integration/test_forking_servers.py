"""A server that loads the application once and forks workers: all of them share the client."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.integration.workers import Child, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKERS = 3
REQUESTS = 60
# Posted before the fork as well, so that the workers inherit an open outbox.
APPLICATION = """
import os
from meter_lib import MeterClient

client = MeterClient(os.environ["METER_OUTBOX"])
client.post("t", "d", "m", 1, idempotency_key="before-the-fork")

def application(environ, start_response):
    key = environ["PATH_INFO"].strip("/")
    client.post("t", "d", "m", 1, idempotency_key=key)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
# uWSGI forks in C and tells Python nothing, so that no hook of ours runs before or after it.
SILENT_FORK = """
import ctypes, os, sys
from meter_lib import MeterClient

path, ends_in_parent_first = sys.argv[1], sys.argv[2] == "parent first"
client = MeterClient(path)
client.post("t", "parent", "page.processed.basic", 1)
fork = ctypes.PyDLL(None).fork
reader, writer = os.pipe()
children = []
for child in range(3):
    pid = fork()
    if not pid:
        status = 1
        try:
            os.close(writer)
            os.read(reader, 1)  # until the parent lets go, or has closed
            for _ in range(30):
                client.post("t", "child", "page.processed.basic", 1)
            client.close()
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
if ends_in_parent_first:
    client.close()
os.close(reader)
os.close(writer)
for _ in range(30):
    client.post("t", "parent", "page.processed.basic", 1)
statuses = [os.waitpid(pid, 0)[1] for pid in children]
client.post("t", "parent", "page.processed.basic", 1)
assert statuses == [0, 0, 0], statuses
"""
SERVERS = {
    "gunicorn": [],
    "gunicorn with threads": ["--worker-class", "gthread", "--threads", "4"],
}


class _Connection(http.client.HTTPConnection):
    """A connection over a socket in the file system: no port is taken from anybody."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


class Server:
    """A gunicorn that runs the application."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        (folder / "application.py").write_text(APPLICATION)
        self._socket = str(folder / "socket")
        self.child = Child(
            folder,
            *(sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS)),
            *("--max-requests", "8", "--bind", f"unix:{self._socket}", "--chdir", str(folder)),
            *(*options, "application"),
        )
        self.processes: set[str] = set()
        self.accepted: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, key: str) -> bool:
        """Have a worker post under this key; return whether it answers that it did."""
        with contextlib.closing(_Connection(self._socket)) as connection:
            try:
                connection.request("GET", f"/{key}")
                answer = connection.getresponse()
                body = answer.read().decode()
            except (OSError, http.client.HTTPException):
                return False
        assert answer.status == 200, body
        with self._lock:
            self.processes.add(body)
            self.accepted.add(key)
        return True

    def ask_until_it_ends(self, name: str) -> None:
        """Post one after the other, until nobody answers."""
        number = 0
        while self.ask(f"{name}-{number}"):
            number += 1


def sound_keys(path: str) -> list[str]:
    """The keys of all events, once it is seen that the file is whole and no number is missing."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT seq, idempotency_key FROM events ORDER BY seq").fetchall()
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    assert integrity == "ok"
    assert [seq for seq, _ in rows] == [*range(1, len(rows) + 1)]
    return [key for _, key in rows]


@pytest.fixture
def server(
    tmp_path: Path,
    outbox_path: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Server]:
    """A server that answers."""
    monkeypatch.setenv("METER_OUTBOX", outbox_path)
    made = Server(tmp_path, SERVERS[request.param])
    try:
        eventually(lambda: made.ask("first"), seconds=30)
        yield made
    finally:
        made.child.process.kill()
        made.child.process.wait()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_all_that_forked_workers_accept_is_there_once(server: Server, outbox_path: str) -> None:
    """Workers are replaced and in the end stopped while they post: no event is lost or doubled."""
    threads = [
        threading.Thread(target=server.ask_until_it_ends, args=(f"client-{number}",))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(server.accepted) >= REQUESTS, seconds=30)
    assert server.child.ends(signal.SIGTERM, seconds=30) == 0
    for thread in threads:
        thread.join()
    assert len(server.processes) > WORKERS, "no worker was replaced"

    keys = sound_keys(outbox_path)
    assert len(set(keys)) == len(keys)
    # What a worker that was being stopped recorded and could not answer may be there as well.
    assert server.accepted | {"before-the-fork"} <= set(keys)
    assert len(keys) <= len(server.accepted) + 1 + len(threads)


@pytest.mark.parametrize("order", ["parent first", "children first"])
def test_a_fork_of_which_python_is_not_told_loses_nothing(outbox_path: str, order: str) -> None:
    """Children that inherit an open outbox from such a fork start afresh by themselves."""
    for _ in range(5):
        forked = subprocess.run(
            [sys.executable, "-c", SILENT_FORK, outbox_path, order],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (forked.returncode, forked.stderr) == (0, "")
    assert len(sound_keys(outbox_path)) == 5 * (1 + 4 * 30 + 1)
