"""One request at a time to one peer, over a connection that is kept alive.

requests bounds the silence between two bytes, not the whole answer, and knows no
way to give up from another thread. Both are had here by shutting down the socket.
"""

from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
import urllib3.exceptions

from meter_lib import __version__
from meter_worker.answers import shown
from meter_worker.http_link.adapter import Adapter, muted
from meter_worker.http_link.failures import (
    BadAnswer,
    LinkFailed,
    LinkInterrupted,
    described,
    innermost,
    is_distrust,
)
from meter_worker.http_link.proxies import credentials_in, proxy_for
from meter_worker.http_link.reply import Reply, whole_body
from meter_worker.http_link.sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_worker.http_link.token import BearerToken

__all__ = ["Channel"]


class Channel:
    """Sends one request at a time."""

    def __init__(
        self,
        *,
        connect_timeout: float,
        read_timeout: float,
        token: BearerToken,
        ca_bundle: str | None,
        client_cert: str | None,
        client_key: str | None,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._token = token
        self._ca_bundle = ca_bundle
        self._sockets = Sockets(read_timeout)
        # Those whose proxy, if any, is known.
        self._peers: set[str] = set()
        self._session = _Session()
        self._session.auth = self._authorize
        self._session.headers.update(
            {
                "User-Agent": f"meter-lib/{__version__}",
                # What we unpack ourselves; requests would ask for more where it can do more.
                "Accept-Encoding": "gzip, deflate",
            }
        )
        # Whoever answers may set them by the thousand, and no proxy needs one back.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        if client_cert is not None:
            self._session.cert = (client_cert, client_key) if client_key else client_cert
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, Adapter(self._sockets))

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Send one request, once, and return the answer, whatever its status.

        Redirects are not followed. Raises `LinkFailed` or `LinkInterrupted`.
        """
        if self._sockets.interrupted:
            raise LinkInterrupted
        self._learn_proxy(url)
        try:
            with (
                muted(),
                self._session.request(
                    method,
                    url,
                    data=body,
                    headers=dict(headers),
                    timeout=(self._connect_timeout, self._read_timeout),
                    # With every request: REQUESTS_CA_BUNDLE would win otherwise.
                    verify=self._ca_bundle,
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                answer = whole_body(response.raw, response.headers.get("Content-Encoding", ""))
                reply = Reply(response.status_code, response.headers, answer)
            # To whoever reads, a socket that was shut down looks like the end of the answer.
            self._sockets.check_not_shut_down()
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            BadAnswer,
            OSError,
        ) as error:
            if self._sockets.interrupted:
                raise LinkInterrupted from error
            timed_out = self._sockets.late or _timed_out(error)
            raise LinkFailed(
                self._described(error),
                timed_out=timed_out,
                wants_an_operator=is_distrust(error),
            ) from error
        finally:
            self._sockets.answered()
        return reply

    def interrupt(self) -> None:
        """Break off what is under way; every further `send` is interrupted at once."""
        self._sockets.interrupt()

    def _learn_proxy(self, url: str) -> None:
        peer = _peer(url)
        if peer not in self._peers:
            self._token.learn_proxy(credentials_in(proxy_for(peer) or ""))
            self._peers.add(peer)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Set even without a token: requests would look for a password in ~/.netrc.
        if self._token.header is not None:
            request.headers["Authorization"] = self._token.header
        return request

    def _described(self, error: Exception) -> str:
        if self._sockets.late or isinstance(error, requests.ReadTimeout):
            return f"no whole answer within {self._read_timeout:g} s"
        return shown(self._token.hidden_in(described(error).encode("utf-8", "replace")))


class _Session(requests.Session):
    """Looks into the environment once for each peer: that takes as long as all else of a request.

    Without redirects: requests reads their body, of any length, and falls over some targets.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[str, Any] = {}  # Any: as requests keeps them

    def merge_environment_settings(
        self,
        url: Any,  # Any: as above
        proxies: Any,
        stream: Any,
        verify: Any,
        cert: Any,
    ) -> Any:
        """Return proxy and certificates, as they were with the first request to the same peer."""
        peer = _peer(url)
        if peer not in self._found:
            self._found[peer] = super().merge_environment_settings(
                url, proxies, stream, verify, cert
            )
        return self._found[peer]

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Know of none."""


def _peer(url: str) -> str:
    """Return scheme, host and port of a URL."""
    return "/".join(url.split("/", 3)[:3])


def _timed_out(error: BaseException) -> bool:
    """Return whether sending or reading took too long; to connect in vain is no matter of size."""
    if isinstance(error, requests.ConnectTimeout):
        return False
    return isinstance(error, requests.Timeout) or isinstance(innermost(error), TimeoutError)
