"""requests and urllib3 as we use them: sockets are watched, nothing is retried, echoed or kept."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import urllib3.connection
import urllib3.connectionpool
from requests.adapters import HTTPAdapter

from meter_worker.http_link.bounded import BoundedResponse

if TYPE_CHECKING:
    from collections.abc import Generator

    from meter_worker.http_link.sockets import Sockets

__all__ = ["Adapter", "muted"]

# A dead peer is noticed after about 60 + 4 * 15 s, without a short time-out on the answer.
_KEEPALIVE_IDLE_SECONDS = 60
_KEEPALIVE_INTERVAL_SECONDS = 15
_KEEPALIVE_PROBES = 4


class Adapter(HTTPAdapter):
    """Opens connections that tell a `Sockets` about themselves. Retries nothing by itself."""

    def __init__(self, sockets: Sockets) -> None:
        self._pool_classes = _pool_classes(sockets)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # Any: passed on as they come
        """Make the pools of connections."""
        super().init_poolmanager(*args, **kwargs, socket_options=_socket_options())
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # Any: as above
        """Make the pools of connections by way of a proxy."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager


def _pool_classes(sockets: Sockets) -> dict[str, type[Any]]:
    class Watched:
        """Mixed into urllib3's connections: keeps `sockets` informed, and answers bounded."""

        response_class: Any = BoundedResponse
        sock: socket.socket | None

        def connect(self) -> None:
            super().connect()  # type: ignore[misc]  # of the class this is mixed into
            if self.sock is not None:
                # The body is sent under this time-out; urllib3 leaves the shorter one
                # for connecting, which a slow uplink would run into.
                self.sock.settimeout(sockets.read_timeout)
                sockets.opened(self.sock)

        def getresponse(self) -> Any:  # Any: urllib3's response
            if self.sock is not None:
                sockets.sent(self.sock)
            response = super().getresponse()  # type: ignore[misc]  # as above
            if response.status < 200:
                # Of an interim answer, the final one is still to come: not to the next request.
                self.close()
            return response

        def close(self) -> None:
            if self.sock is not None:
                sockets.closed(self.sock)
            super().close()  # type: ignore[misc]  # as above

    class HttpConnection(Watched, urllib3.connection.HTTPConnection):
        pass

    class HttpsConnection(Watched, urllib3.connection.HTTPSConnection):
        pass

    class HttpPool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = HttpConnection  # pyright: ignore[reportAssignmentType]  # as urllib3 does

    class HttpsPool(urllib3.connectionpool.HTTPSConnectionPool):
        ConnectionCls = HttpsConnection  # pyright: ignore[reportAssignmentType]  # as above

    return {"http": HttpPool, "https": HttpsPool}


def _socket_options() -> list[tuple[int, int, int]]:
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    # Linux names all three; macOS has no TCP_KEEPIDLE, and its defaults must do.
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


@contextmanager
def muted() -> Generator[None]:
    """Keep urllib3 from logging what this thread is answered: it may be our own credentials."""
    _muting.on = True
    try:
        yield
    finally:
        _muting.on = False


class _Muting(threading.local):
    """Whether this thread is muted."""

    on = False


def _is_heard(record: logging.LogRecord) -> bool:
    return not _muting.on or record.levelno < logging.WARNING


_muting = _Muting()
for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_is_heard)
