"""A link to one peer: as many channels as there are requests at once, the last used first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from meter_worker.http_link.channel import Channel
from meter_worker.http_link.failures import LinkInterrupted
from meter_worker.http_link.token import BearerToken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_worker.http_link.reply import Reply

__all__ = ["HttpLink"]


class HttpLink:
    """Sends requests to one peer over connections that it keeps alive, from any threads."""

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
        self._token = BearerToken(token)
        self._ca_bundle = ca_bundle
        self._client_cert = client_cert
        self._client_key = client_key
        # A stack, so that few connections stay warm and the others are left to their servers.
        self._idle: list[Channel] = []
        self._busy: set[Channel] = set()
        self._interrupted = False
        self._mutex = threading.Lock()

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Send one request, once, and return the answer, whatever its status.

        Redirects are not followed. Raises `LinkFailed` or `LinkInterrupted`.
        """
        channel = self._take()
        try:
            return channel.send(method, url, headers=headers, body=body)
        finally:
            self._put_back(channel)

    def interrupt(self) -> None:
        """Break off all that is under way; every further `send` is interrupted at once."""
        with self._mutex:
            self._interrupted = True
            for channel in (*self._busy, *self._idle):
                channel.interrupt()

    def without_token(self, body: bytes) -> bytes:
        """Return an answer without our token, should the peer have echoed it."""
        return self._token.hidden_in(body)

    def _take(self) -> Channel:
        with self._mutex:
            if self._interrupted:
                raise LinkInterrupted
            channel = self._idle.pop() if self._idle else self._another()
            self._busy.add(channel)
            return channel

    def _put_back(self, channel: Channel) -> None:
        with self._mutex:
            self._busy.remove(channel)
            self._idle.append(channel)

    def _another(self) -> Channel:
        return Channel(
            connect_timeout=self._connect_timeout,
            read_timeout=self._read_timeout,
            token=self._token,
            ca_bundle=self._ca_bundle,
            client_cert=self._client_cert,
            client_key=self._client_key,
        )
