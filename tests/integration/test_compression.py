"""Packed requests, and backends that can read none."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib.clock import SystemClock
from meter_worker.backend import Answered, Delivered, Refused, Request, Unavailable
from meter_worker.http_link import HttpLink
from meter_worker.rest_backend import RestBackend

if TYPE_CHECKING:
    from collections.abc import Generator

Answer = tuple[int, dict[str, Any]]

RECORD = '{"key":"k","value":{"idempotency_key":"k"}}'
STORED: Answer = (
    200,
    {"offsets": [{"partition": 0, "offset": 1, "error_code": None, "error": None}]},
)
REFUSED: Answer = (422, {"error_code": 422, "message": "Unrecognized token"})
UNSUPPORTED: Answer = (415, {"error_code": 415, "message": "HTTP 415 Unsupported Media Type"})
LOGIN: Answer = (401, {"error_code": 401, "message": "Unauthorized"})


class Server(ThreadingHTTPServer):
    """Answers packed requests and others each in its own way, and remembers what was packed."""

    def __init__(self, packed: Answer, plain: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {True: packed, False: plain}
        self.was_packed: list[bool] = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:  # the name that http.server calls
        """Answer by whether the body is packed."""
        self.rfile.read(int(self.headers["Content-Length"]))
        packed = self.headers["Content-Encoding"] == "gzip"
        self.server.was_packed.append(packed)
        status, body = self.server.answers[packed]
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.kafka.v2+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
        """Say nothing."""


@contextlib.contextmanager
def backend_at(packed: Answer, plain: Answer) -> Generator[tuple[RestBackend, Server]]:
    """Serve so, and a backend that packs its requests."""
    with Server(packed, plain) as server, contextlib.ExitStack() as at_the_end:
        backend = RestBackend(
            HttpLink(connect_timeout=5, read_timeout=5),
            stream_url=f"http://127.0.0.1:{server.server_port}",
            topic="usage-events",
            compression="gzip",
            clock=SystemClock(),
        )
        at_the_end.callback(backend.interrupt)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        at_the_end.callback(thread.join)
        at_the_end.callback(server.shutdown)
        yield backend, server


def request() -> Request:
    """Make a request of one record."""
    return Request("t", "d", "request-1", [RECORD])


@pytest.mark.parametrize("refusal", [REFUSED, UNSUPPORTED], ids=["422", "415"])
def test_a_backend_that_reads_no_gzip_gets_none(
    refusal: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is delivered all the same, the later ones without a detour, and it is told."""
    with backend_at(refusal, STORED) as (backend, server):
        outcomes = [backend.deliver(request()) for _ in range(3)]
    assert outcomes == [Answered((Delivered(),))] * 3
    assert server.was_packed == [True, False, False, False]
    assert [getattr(record, "event", "") for record in caplog.records] == ["compression_off"]


@pytest.mark.parametrize(("answer", "kind"), [(REFUSED, Refused), (LOGIN, Unavailable)])
def test_what_is_refused_either_way_says_nothing_of_gzip(answer: Answer, kind: type) -> None:
    """It goes on packed; and once a packed request was taken, a refusal is of its records."""
    with backend_at(answer, answer) as (backend, server):
        assert isinstance(backend.deliver(request()), kind)
        assert server.was_packed == [True, False]
        server.answers[True] = STORED
        assert backend.deliver(request()) == Answered((Delivered(),))
        server.answers = {True: answer, False: STORED}
        assert isinstance(backend.deliver(request()), kind)
    assert server.was_packed == [True, False, True, True]
