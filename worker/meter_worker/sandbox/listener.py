"""The listening socket and the threads behind it: one for accepting, one for each connection."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from meter_worker.sandbox.connection import Connection

if TYPE_CHECKING:
    from meter_worker.sandbox.backend import LocalBackend

logger = logging.getLogger(__name__)

CONNECTIONS_LIMIT = 1000
"""Connections open at once; further ones are closed as they come."""

_BACKLOG = 128
_STOP_SECONDS = 1.5
_PAUSE_SECONDS = 0.1  # after a failing accept, such as one without a free file descriptor


class Listener:
    """Listens from construction on, serves from `start` to `stop`. Used once."""

    def __init__(self, host: str, port: int, backend: LocalBackend, *, idle_seconds: float) -> None:
        self._backend = backend
        self._idle_seconds = idle_seconds
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._socket = _listening_socket(host, port)
        # Closing the one end wakes the accepting thread at the other: no polling, no delay.
        self._waker, self._woken = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept, name="meter-sandbox", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Begin to serve."""
        self._accepting.start()

    def stop(self) -> None:
        """Refuse new connections, cut the open ones, and wait (bounded) for their threads."""
        until = time.monotonic() + _STOP_SECONDS
        self._stopping.set()
        self._waker.close()
        self._accepting.join()
        self._woken.close()
        # A forked child may hold the socket, too; only a shutdown ends its listening there.
        _cut(self._socket)
        self._socket.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections.values():
            _cut(connection)
        for thread in connections:
            thread.join(max(until - time.monotonic(), 0))

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                try:
                    connection, address = self._socket.accept()
                except BlockingIOError:
                    continue
                except OSError:
                    self._stopping.wait(_PAUSE_SECONDS)
                    continue
                self._take(connection, address)

    def _take(self, connection: socket.socket, address: Any) -> None:
        thread = threading.Thread(
            target=self._serve,
            args=(connection, address),
            name="meter-sandbox-connection",
            daemon=True,
        )
        with self._lock:
            is_crowded = len(self._connections) >= CONNECTIONS_LIMIT
            if not is_crowded:
                self._connections[thread] = connection
        if is_crowded:
            connection.close()
        else:
            thread.start()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        try:
            Connection(
                connection,
                address,
                self,
                backend=self._backend,
                stopping=self._stopping,
                idle_seconds=self._idle_seconds,
            )
        except Exception:
            logger.exception("the sandbox failed on a connection")
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]
            _cut(connection)
            connection.close()


def _listening_socket(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Otherwise the port could not be had again for a minute after a stop.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already
