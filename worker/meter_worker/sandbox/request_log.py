"""The last requests that the sandbox got, for whoever wants to see what a client really sends."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meter_worker.sandbox.exchange import Request

LOG_LIMIT = 10_000
"""Requests that are kept; older ones are forgotten."""

_SECRETS = {"authorization", "proxy-authorization", "cookie"}


@dataclass(slots=True)
class LoggedRequest:
    """A request and its fate. `status` is None while, and where, no answer was given.

    Header names are in lower case; `received_at` is in milliseconds since the Unix epoch.
    """

    method: str
    path: str
    headers: dict[str, str]
    status: int | None
    records: int
    received_at: int

    def as_json(self) -> dict[str, Any]:
        """Give the request as `/sandbox/requests` shows it."""
        return asdict(self)


class RequestLog:
    """A bounded list of requests, oldest first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: deque[LoggedRequest] = deque(maxlen=LOG_LIMIT)

    def add(self, request: Request, *, records: int) -> LoggedRequest:
        """Log the request as not answered yet; whoever answers it sets the status."""
        headers = {name: _masked(name, value) for name, value in request.headers.items()}
        logged = LoggedRequest(
            request.method, request.target, headers, None, records, request.received_at
        )
        with self._lock:
            self._requests.append(logged)
        return logged

    def requests(self) -> list[LoggedRequest]:
        """List the requests, oldest first."""
        with self._lock:
            return list(self._requests)


def _masked(name: str, value: str) -> str:
    if name not in _SECRETS:
        return value
    scheme, blank, _ = value.partition(" ")
    return f"{scheme} ***" if blank else "***"
