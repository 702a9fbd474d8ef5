"""One HTTP peer, reached with requests: each wait is bounded, all but connecting can be broken off.

requests bounds the silence between two bytes, not the whole answer, and knows no
way to give up from another thread. Both are had here by shutting down the socket:
by a timer when the answer is late, by `interrupt` when we are to stop.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import requests
import urllib3.connection
import urllib3.connectionpool
from requests.adapters import HTTPAdapter

from meter_lib import __version__
from meter_worker.answers import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HttpLink", "LinkFailed", "LinkInterrupted", "Reply"]

# A proxy answers about 30 bytes a record; whatever sends megabytes is something else.
_LONGEST_ANSWER_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 65_536
# A dead peer is noticed after about 60 + 4 * 15 s, without a short time-out on the answer.
_KEEPALIVE_IDLE_SECONDS = 60
_KEEPALIVE_INTERVAL_SECONDS = 15
_KEEPALIVE_PROBES = 4


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class LinkFailed(Exception):
    """No whole answer came. Whether the peer took the request is unknown."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class LinkInterrupted(Exception):
    """`interrupt` was called. Whether the peer took the request is unknown."""


class HttpLink:
    """Sends requests to one peer over connections that it keeps alive."""

    def __init__(
        self,
        *,
        connect_timeout: float,
        read_timeout: float,
        token: str | None = None,
        ca_bundle: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
    ) -> None:
        """Set up a link; nothing is connected yet. Time-outs are in seconds.

        `read_timeout` is for the whole answer, from the last byte sent to the last
        byte read. `token` is sent as bearer token and never appears in an error.
        """
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._token = token
        self._sockets = _Sockets(read_timeout)
        self._session = _Session()
        self._session.auth = self._authorize
        self._session.headers.update({"User-Agent": f"meter-lib/{__version__}"})
        self._ca_bundle = ca_bundle
        if client_cert is not None:
            self._session.cert = (client_cert, client_key) if client_key else client_cert
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self._sockets))

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Send one request, once, and return the answer, whatever its status.

        Redirects are not followed. Raises `LinkFailed` or `LinkInterrupted`.
        """
        if self._sockets.interrupted:
            raise LinkInterrupted
        try:
            with self._session.request(
                method,
                url,
                data=body,
                headers=dict(headers),
                timeout=(self._connect_timeout, self._read_timeout),
                # With every request: REQUESTS_CA_BUNDLE in the environment would win otherwise.
                verify=self._ca_bundle,
                allow_redirects=False,
                stream=True,
            ) as response:
                reply = Reply(response.status_code, response.headers, _whole_body(response))
            # To whoever reads, a socket that was shut down looks like the end of the answer.
            self._sockets.check_not_shut_down()
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if self._sockets.interrupted:
                raise LinkInterrupted from error
            timed_out = self._sockets.late or _timed_out(error)
            raise LinkFailed(self._described(error), timed_out=timed_out) from error
        finally:
            self._sockets.answered()
        return reply

    def interrupt(self) -> None:
        """Break off what is under way; every further `send` is interrupted at once."""
        self._sockets.interrupt()

    def without_token(self, body: bytes) -> bytes:
        """Return an answer without our token, should the peer have echoed it."""
        if self._token is None:
            return body
        body = body.replace(self._token.encode(), b"***")
        if b"\\" not in body:
            return body
        # In JSON it may be escaped, character by character: then as it is once that is undone.
        try:
            text = json.dumps(json.loads(body), ensure_ascii=False)
        except (ValueError, RecursionError):
            return body
        token = json.dumps(self._token)[1:-1]
        return text.replace(token, "***").encode("utf-8", "replace") if token in text else body

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Set even without a token: requests would look for a password in ~/.netrc.
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _described(self, error: Exception) -> str:
        if self._sockets.late or isinstance(error, requests.ReadTimeout):
            return f"no whole answer within {self._read_timeout:g} s"
        cause = _innermost(error)
        # Of an answer that is no HTTP, the text may hold anything.
        text = f"{type(error).__name__}: {str(cause) or type(cause).__name__}"
        return shown(self.without_token(text.encode("utf-8", "replace")))


class _Session(requests.Session):
    """Without redirects: requests reads their body, of any length, and falls over some targets."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Know of none."""


class _Sockets:
    """The sockets of a link: which are open, which waits for an answer."""

    def __init__(self, read_timeout: float) -> None:
        self.read_timeout = read_timeout
        self.interrupted = False
        self.late = False
        self._open: set[socket.socket] = set()
        # Kept apart: of an answer that ends with its connection, the connection counts as
        # closed while the answer is still being read.
        self._waiting: socket.socket | None = None
        self._mutex = threading.Lock()
        self._timer: threading.Timer | None = None

    def opened(self, sock: socket.socket) -> None:
        with self._mutex:
            self._open.add(sock)
            if self.interrupted:
                _shut_down(sock)

    def closed(self, sock: socket.socket) -> None:
        with self._mutex:
            self._open.discard(sock)

    def sent(self, sock: socket.socket) -> None:
        """Start the time that the whole answer may take."""
        with self._mutex:
            self._waiting = sock
            if self.interrupted:
                _shut_down(sock)
        self._timer = threading.Timer(self.read_timeout, self._give_up, (sock,))
        self._timer.daemon = True
        self._timer.start()

    def answered(self) -> None:
        """End the wait, with an answer or without."""
        with self._mutex:
            self._waiting = None
            self.late = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check_not_shut_down(self) -> None:
        """Raise OSError where the socket was shut down under the reader."""
        if self.late or self.interrupted:
            raise ConnectionAbortedError("the connection was given up")

    def interrupt(self) -> None:
        with self._mutex:
            self.interrupted = True
            for sock in self._open:
                _shut_down(sock)
            if self._waiting is not None:
                _shut_down(self._waiting)

    def _give_up(self, sock: socket.socket) -> None:
        with self._mutex:
            # By now it may be answered, and wait for another answer.
            if self._waiting is sock and threading.current_thread() is self._timer:
                self.late = True
                _shut_down(sock)


class _Adapter(HTTPAdapter):
    """Opens connections that tell a `_Sockets` about themselves. Retries nothing by itself."""

    def __init__(self, sockets: _Sockets) -> None:
        self._pool_classes = _pool_classes(sockets)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # Any: passed on as they come
        super().init_poolmanager(*args, **kwargs, socket_options=_socket_options())
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # Any: as above
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager


def _pool_classes(sockets: _Sockets) -> dict[str, type[Any]]:
    class Watched:
        """Mixed into urllib3's connections: keeps `sockets` informed."""

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
            return super().getresponse()  # type: ignore[misc]  # as above

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


def _whole_body(response: requests.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        body += chunk
        if len(body) > _LONGEST_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError(
                f"the answer is longer than {_LONGEST_ANSWER_BYTES} bytes"
            )
    return bytes(body)


def _shut_down(sock: socket.socket) -> None:
    # It may be closed already, by whoever used it.
    with contextlib.suppress(OSError, ValueError):
        sock.shutdown(socket.SHUT_RDWR)


def _timed_out(error: BaseException) -> bool:
    """Return whether sending or reading took too long; to connect in vain is no matter of size."""
    if isinstance(error, requests.ConnectTimeout):
        return False
    return isinstance(error, requests.Timeout) or isinstance(_innermost(error), TimeoutError)


def _innermost(error: BaseException) -> BaseException:
    """Return the error that the others wrap, wherever its library keeps it."""
    for held in (getattr(error, "reason", None), *error.args[:2], error.__cause__):
        if isinstance(held, BaseException):
            return _innermost(held)
    return error
