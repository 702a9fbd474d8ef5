"""The listening socket and the threads behind it: one for accepting, one for each connection."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from meter_worker.sandbox.connection import Connection

if TYPE_CHECKING:
    from meter_worker.sandbox.backend import LocalBackend

logger = logging.getLogger(__name__)

CONNECTIONS_LIMIT = 1000
"""Connections open at once; further ones are closed as they come."""

_POLL_SECONDS = 0.05
_STOP_SECONDS = 1.5


class Listener(socketserver.TCPServer):
    """Listens from construction on, serves from `start` to `stop`. Used once."""

    allow_reuse_address = True
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, backend: LocalBackend, *, idle_seconds: float) -> None:
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        connection = partial(
            Connection, backend=backend, stopping=self._stopping, idle_seconds=idle_seconds
        )
        super().__init__((host, port), connection)
        self._accepting = threading.Thread(
            target=self.serve_forever,
            args=(_POLL_SECONDS,),
            name="meter-sandbox",
            daemon=True,
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.socket.getsockname()[1])

    def start(self) -> None:
        """Begin to serve."""
        self._accepting.start()

    def stop(self) -> None:
        """Refuse new connections, cut the open ones, and wait (bounded) for their threads."""
        self._stopping.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
        for open_socket in connections.values():
            _cut(open_socket)
        until = time.monotonic() + _STOP_SECONDS
        for thread in (self._accepting, *connections):
            thread.join(max(until - time.monotonic(), 0))

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take a connection only while there are not too many."""
        del request, client_address
        return len(self._connections) < CONNECTIONS_LIMIT

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection in a thread of its own."""
        thread = threading.Thread(
            target=self._serve,
            args=(request, client_address),
            name="meter-sandbox-connection",
            daemon=True,
        )
        with self._lock:
            self._connections[thread] = request
        thread.start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            logger.exception("the sandbox failed on a connection")
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]
            self.shutdown_request(request)


def _cut(open_socket: socket.socket) -> None:
    try:
        open_socket.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client was faster
