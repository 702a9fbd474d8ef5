from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Answering: TypeAlias = "Callable[[bytes], str]"


class OneAnswer:
    """A server that gives every request the same bytes for an answer, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(20)
                read_request(connection)
                connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_WR)
                # Until the client has read it all; a reset would take it away from it.
                while connection.recv(65_536):
                    pass

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(20)


def read_request(connection: socket.socket) -> None:
    """Read one request to the end of its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = sum(int(line.partition(b":")[2]) for line in lengths) - len(body)
    while left > 0:
        left -= len(some(connection))


def some(connection: socket.socket) -> bytes:
    """Read what comes next."""
    chunk = connection.recv(65_536)
    if not chunk:
        raise ConnectionError
    return chunk


@pytest.fixture(scope="module")
def server() -> Iterator[OneAnswer]:
    """A server that is told what to answer."""
    made = OneAnswer()
    yield made
    made.close()
