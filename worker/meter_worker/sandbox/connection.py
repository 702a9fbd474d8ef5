"""One client's connection: requests off the socket, outcomes onto it. Decides nothing."""

from __future__ import annotations

import logging
import socket
import struct
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from meter_worker.exhaustive import assert_never
from meter_worker.sandbox.bodies import read_body
from meter_worker.sandbox.exchange import (
    Answer,
    Refused,
    Request,
    Reset,
    Stall,
    plain_answer,
)

if TYPE_CHECKING:
    import threading

    from meter_worker.sandbox.backend import LocalBackend
    from meter_worker.sandbox.exchange import Outcome

logger = logging.getLogger(__name__)

_LINE_LIMIT = 65_536
_LINGER_SECONDS = 1.0


class Connection(BaseHTTPRequestHandler):
    """Serves one connection to its end, one request after the other."""

    protocol_version = "HTTP/1.1"
    # Each answer leaves in one send; waiting for more to say would only delay it.
    disable_nagle_algorithm = True

    def __init__(
        self,
        *accepted: Any,  # what the base class wants: socket, address, server
        backend: LocalBackend,
        stopping: threading.Event,
        idle_seconds: float,
    ) -> None:
        self._backend = backend
        self._stopping = stopping
        self._idle_seconds = idle_seconds
        super().__init__(*accepted)

    def setup(self) -> None:
        """Bound every wait on this connection."""
        super().setup()
        self.connection.settimeout(self._idle_seconds)

    def handle_one_request(self) -> None:
        """Read one request and give it its outcome; the connection ends with any trouble on it."""
        self.close_connection = True
        self.requestline = self.request_version = self.command = ""
        try:
            self.raw_requestline = self.rfile.readline(_LINE_LIMIT + 1)
            if len(self.raw_requestline) > _LINE_LIMIT:
                self.send_error(414)
            elif self.raw_requestline and self.parse_request():
                self._serve()
        except OSError:
            # The client went away, was idle for too long, or the sandbox stops.
            self.close_connection = True

    def _serve(self) -> None:
        try:
            body = read_body(self.rfile, self.headers)
        except Refused as refused:
            self._answer_and_close(refused.answer)
            return
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            lower = name.lower()
            headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
        request = Request(self.command, self.path, headers, body, time.time_ns() // 1_000_000)
        self._give(self._backend.outcome(request, self._pause))

    def _pause(self, seconds: float) -> bool:
        return not self._stopping.wait(seconds)

    def _give(self, outcome: Outcome) -> None:
        match outcome:
            case Answer():
                self._send(outcome)
            case Reset():
                self._reset()
            case Stall():
                self._stall()
            case _:
                assert_never(outcome)

    def _send(self, answer: Answer) -> None:
        is_cut = answer.promised_bytes is not None
        lines = [
            f"HTTP/1.1 {answer.status} {_phrase(answer.status)}",
            "Server: meter-lib-sandbox",
            f"Date: {self.date_time_string()}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {answer.promised_bytes if is_cut else len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers),
        ]
        if self.close_connection:
            lines.append("Connection: close")
        elif self.request_version == "HTTP/1.0":
            lines.append("Connection: keep-alive")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        self.wfile.write(head if self.command == "HEAD" else head + answer.body)
        if is_cut:
            self.close_connection = True

    def _answer_and_close(self, answer: Answer) -> None:
        self.close_connection = True
        self._send(answer)
        # The client may still be sending. Closing now would reset the connection, and the client
        # could lose the answer; so what comes is thrown away for a moment.
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER_SECONDS)
        until = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < until and self.connection.recv(_LINE_LIMIT):
            pass

    def _reset(self) -> None:
        self.close_connection = True
        # Lingering for zero seconds makes the close a reset. The socket really closes only once
        # the file over it is closed, too.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def _stall(self) -> None:
        self.close_connection = True
        self.connection.settimeout(None)
        while self.connection.recv(_LINE_LIMIT):
            pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that could not even be read, and close."""
        del message, explain
        self._answer_and_close(plain_answer(code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parameter's name is given
        """Log at DEBUG, where the standard library would write to stderr."""
        logger.debug(format, *args)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
