"""A commit whose answer is lost with the connection: the server is asked what became of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from meter_lib import MeterClient, OutboxUnavailable, Settings

if TYPE_CHECKING:
    from tests.postgres.server import PostgresServer


class CutLine:
    """A line to the server on loopback that is cut once, at the first COMMIT after `arm`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._arrives: bool | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, *, arrives: bool) -> None:
        """Cut it after the commit has been answered to us, or before it arrives."""
        self._arrives = arrives

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError):
            while said := client.recv(65_536):
                # As a whole: a beginning may say READ COMMITTED.
                if self._arrives is not None and b"COMMIT\0" in said:
                    arrives, self._arrives = self._arrives, None
                    # Nothing of the answer comes through.
                    client.shutdown(socket.SHUT_RDWR)
                    if arrives:
                        server.sendall(said)
                    return
                server.sendall(said)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while said := server.recv(65_536):
                client.sendall(said)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_receipt_follows_from_what_the_server_says_of_the_commit(
    postgres_url: str, postgres_server: PostgresServer, *, arrives: bool
) -> None:
    """Committed: the receipt is given and nothing is recorded twice. Not so: it is refused."""
    line = CutLine(postgres_server.port)
    url = postgres_url.replace(f":{postgres_server.port}/", f":{line.port}/")
    with contextlib.closing(line), MeterClient(settings=Settings(outbox=url)) as client:
        client.post("t", "d", "m", 1)
        line.arm(arrives=arrives)
        if arrives:
            assert client.post("t", "d", "m", 2)["status"] == "queued"
        else:
            with pytest.raises(OutboxUnavailable):
                client.post("t", "d", "m", 2)
        assert client._outbox.status().accepted == 1 + arrives
        client.post("t", "d", "m", 3)
        assert client._outbox.status().accepted == 2 + arrives
