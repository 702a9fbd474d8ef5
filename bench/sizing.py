"""Measures what an event costs, and writes the tables of docs/sizing.md from it.

    python bench/sizing.py [--folder FOLDER] [--from FILE]

Works in a new folder inside FOLDER, which should be on a disk: on a file system in memory nothing
is written. `--from` takes the figures of an earlier run, which are in bench/sizing.json, and
measures nothing. Linux only; half a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import socketserver
import sqlite3
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from sizing_tables import with_tables

from meter_lib import MeterClient, Settings, __version__
from meter_lib.opening import open_outbox
from meter_worker import BackgroundFlusher
from meter_worker.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HERE = os.path.dirname(os.path.abspath(__file__))
_RESULTS = os.path.join(_HERE, "sizing.json")
_PAGE = os.path.join(os.path.dirname(_HERE), "docs", "sizing.md")
EVENT: dict[str, Any] = {  # Any: as the API takes them
    "tenant_id": "tenant_123",
    "device_id": "us-east-ing1",
    "meter_id": "page.processed.basic",
    "total_usage": 24,
    "metadata": {"batch_id": "batch-999"},
}
_LONE = 300
_BACKLOG = 20_000
_ROUNDS = 6
_EVENTS_A_ROUND = 10


class _Relay(socketserver.ThreadingTCPServer):
    """Passes on what goes to a port of this machine and back, and counts the bytes."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port = port
        self.sent = self.received = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Passing(socketserver.BaseRequestHandler):
    server: _Relay

    def handle(self) -> None:
        """Pass bytes on until either side ends."""
        with socket.create_connection(("127.0.0.1", self.server.port)) as backend:
            answers = threading.Thread(target=self._pass, args=(backend, self.request, "received"))
            answers.start()
            self._pass(self.request, backend, "sent")
            answers.join()

    def _pass(self, source: socket.socket, to: socket.socket, counted: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                setattr(self.server, counted, getattr(self.server, counted) + len(data))
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)


class Device:
    """A device with an outbox in a folder, whose backend is on this machine."""

    def __init__(self, folder: str, **settings: Any) -> None:  # Any: each setting has its type
        self.sandbox = Sandbox(port=0)
        self._settings = settings
        self._path = os.path.join(folder, f"{time.monotonic_ns()}.db")

    @contextlib.contextmanager
    def running(self) -> Iterator[Device]:
        """Have the backend up, behind what counts its bytes."""
        with self.sandbox as sandbox, _Relay(sandbox.port) as self.relay:
            threading.Thread(target=self.relay.serve_forever, daemon=True).start()
            self.settings = Settings(
                outbox=self._path,
                stream_url=self.relay.url,
                accounts_url=sandbox.url,  # asked once an hour: not counted
                **self._settings,
            )
            with MeterClient(settings=self.settings) as self.client:
                yield self
            self.relay.shutdown()

    def post(self, events: int) -> None:
        """Record so many events, each with a commit of its own."""
        for _ in range(events):
            self.client.post(**EVENT)

    def deliver(self) -> None:
        """Deliver all that is pending."""
        with BackgroundFlusher(settings=self.settings) as flusher:
            if not flusher.flush(timeout=300):
                raise SystemExit("the backlog was not delivered within 300 s")

    def bytes(self) -> int:
        """The size of the outbox on the disk."""
        with contextlib.closing(open_outbox(self.settings)) as outbox:
            return outbox.status().bytes

    def requests(self) -> int:
        """Requests that carried events."""
        return sum(request.records > 0 for request in self.sandbox.requests)


def _written(act: Callable[[], object]) -> int:
    """Bytes that this process gives to the disk meanwhile, by the count of the system."""

    def so_far() -> int:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(file.read().partition("\nwrite_bytes: ")[2].split()[0])

    before = so_far()
    act()
    return so_far() - before


def measure(folder: str) -> dict[str, float]:
    """Return the figures, by name; bytes are of one event."""
    figures: dict[str, float] = {}
    with Device(folder).running() as device:
        device.post(1)
        figures["flash_post"] = _written(lambda: device.post(_LONE)) / _LONE
        figures["flash_drain"] = _written(device.deliver) / _LONE
    with Device(folder, poll_interval=0.01).running() as device:
        device.post(1)
        device.deliver()
        sent, received = device.relay.sent, device.relay.received
        with BackgroundFlusher(settings=device.settings) as flusher:

            def one_by_one() -> None:
                for _ in range(_LONE):
                    device.post(1)
                    flusher.flush()

            figures["flash_life_online"] = _written(one_by_one) / _LONE
        figures["events_a_request_online"] = _LONE / (device.requests() - 1)
        figures["wire_sent_alone"] = (device.relay.sent - sent) / _LONE
        figures["wire_received_alone"] = (device.relay.received - received) / _LONE
    for name, compression in (("batch", "none"), ("batch_gzip", "gzip")):
        with Device(folder, compression=compression).running() as device:
            device.client.post_many([EVENT] * 1000)
            before = device.bytes()
            device.client.post_many([EVENT] * _BACKLOG)
            figures["disk_pending"] = (device.bytes() - before) / _BACKLOG
            device.deliver()
            figures[f"wire_sent_{name}"] = device.relay.sent / (_BACKLOG + 1000)
            figures[f"wire_received_{name}"] = device.relay.received / (_BACKLOG + 1000)
    with Device(folder).running() as device:
        for _ in range(_ROUNDS):
            device.post(_EVENTS_A_ROUND)
            device.deliver()
        figures["events_a_request_timer"] = _ROUNDS * _EVENTS_A_ROUND / device.requests()
    return figures


def main() -> None:
    """Measure, or take what was measured, and write the tables."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", default=os.path.dirname(_HERE))
    arguments.add_argument("--from", dest="source", metavar="FILE")
    chosen = arguments.parse_args()
    if chosen.source:
        with open(chosen.source, encoding="utf-8") as file:
            results = json.load(file)
    else:
        with tempfile.TemporaryDirectory(prefix="sizing-", dir=chosen.folder) as folder:
            figures = measure(folder)
        versions = (
            f"meter-lib {__version__}, Python {platform.python_version()},"
            f" SQLite {sqlite3.sqlite_version}, {platform.system()} on {platform.machine()}"
        )
        results = {"versions": versions, "figures": {k: round(v, 2) for k, v in figures.items()}}
        with open(_RESULTS, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)
            file.write("\n")
    with open(_PAGE, encoding="utf-8") as file:
        text = file.read()
    with open(_PAGE, "w", encoding="utf-8") as file:
        file.write(with_tables(text, results))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
