"""Answers GET /metrics and GET /healthz, for whoever watches the worker."""

from __future__ import annotations

import functools
import http.server
import json
import logging
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from meter_lib.clock import SystemClock
from meter_lib.errors import MeterError
from meter_worker.health import oldest_pending_seconds
from meter_worker.metrics import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from meter_lib.outbox import OutboxStatus
    from meter_worker.health import Pulse
    from meter_worker.metrics import Metrics

__all__ = ["MetricsServer"]

_logger = logging.getLogger("meter_worker")

# Somebody who connects and says nothing must not keep a thread for ever.
_CLIENT_SECONDS = 10.0


class MetricsServer:
    """Serves within a `with`, from threads of its own. Reads the outbox anew for each question."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        look: Callable[[], OutboxStatus],
        pulse: Pulse,
    ) -> None:
        """Listen; raise `OSError`, which names host and port, where that cannot be."""
        self._metrics = metrics
        self._look = look
        self._pulse = pulse
        try:
            self._server = _Listener(host, port, self._answer)
        except OSError as error:
            message = f"cannot listen on port {port} of {host}: {error.strerror}"
            raise OSError(error.errno, message) from error
        port = self._server.server_address[1]  # a free one where 0 was asked for
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def __enter__(self) -> Self:
        _logger.info(
            "metrics at %s/metrics, health at /healthz",
            self.url,
            extra={"event": "metrics_served", "url": self.url},
        )
        threading.Thread(
            target=self._server.serve_forever, name="meter-lib metrics", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str) -> _Answer:
        if path == "/metrics":
            return self._figures()
        if path == "/healthz":
            return self._health()
        return _Answer(404, "text/plain", b"there are /metrics and /healthz\n")

    def _figures(self) -> _Answer:
        try:
            status = self._look()
        except MeterError as error:
            # No figures are better than wrong ones: the scrape itself is seen to fail.
            return _Answer(503, "text/plain; charset=utf-8", f"{error}\n".encode())
        return _Answer(200, CONTENT_TYPE_LATEST, self._metrics.text(status, SystemClock().now()))

    def _health(self) -> _Answer:
        is_well = self._pulse.beats
        shown: dict[str, Any] = {  # Any: what JSON can carry
            "ok": is_well,
            "seconds_since_progress": round(self._pulse.stands_still_for, 3),
        }
        try:
            status = self._look()
        except MeterError as error:
            shown["outbox_error"] = str(error)
        else:
            shown |= {
                "pending": status.pending,
                "oldest_pending_seconds": oldest_pending_seconds(status, SystemClock().now()),
                "dead": status.dead,
                "link_up": all(link.down_since is None for link in status.links),
                "links": {
                    link.name: {
                        "up": link.down_since is None,
                        "down_since": link.down_since,
                        "last_error": link.last_error,
                    }
                    for link in status.links
                },
            }
        return _Answer(200 if is_well else 503, "application/json", json.dumps(shown).encode())


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


class _Listener(socketserver.ThreadingTCPServer):
    # Not the HTTP server of the standard library, which asks the network for our own name.
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, answer: Callable[[str], _Answer]) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), functools.partial(_Exchange, answer))

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away; the worker has its own log."""


class _Exchange(http.server.BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS
    server_version = "meter-lib"
    sys_version = ""

    def __init__(self, answer: Callable[[str], _Answer], *connection: Any) -> None:
        # What socketserver hands over is its own affair.
        self._answer = answer
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Answer a question."""
        answer = self._answer(self.path.partition("?")[0])
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
        """Write nothing: a scrape every few seconds is no news."""
