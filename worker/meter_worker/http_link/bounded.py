"""An answer as the standard library reads it, with a bound on its bytes and no half headers."""

from __future__ import annotations

import http.client
import io
from typing import TYPE_CHECKING, Any

from meter_worker.http_link.failures import BadAnswer
from meter_worker.http_link.reply import LONGEST_ANSWER_BYTES

if TYPE_CHECKING:
    import socket

    from _typeshed import WriteableBuffer

__all__ = ["BoundedResponse"]

# Headers, interim answers and what is between chunks included.
_MOST_BYTES = 2 * LONGEST_ANSWER_BYTES


class BoundedResponse(http.client.HTTPResponse):
    """Reads an answer; raises `BadAnswer` where it goes on and on.

    A chunk of -1 bytes, which is no joke of ours, is read to the end of the connection.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:  # Any: passed on
        super().__init__(sock, *args, **kwargs)
        # Only now, and by this name: http.client makes its own, and uses it from here on.
        self.fp.close()
        self._bytes = _Bounded(sock.makefile("rb", buffering=0))
        self.fp = io.BufferedReader(self._bytes)

    def begin(self, *args: Any, **kwargs: Any) -> None:  # Any: as above
        """Read status and headers to their end. Raises where the connection ends before that."""
        super().begin(*args, **kwargs)
        if self._bytes.ended:
            raise http.client.RemoteDisconnected("the connection ended within the headers")


class _Bounded(io.RawIOBase):
    """The bytes of a connection, up to a limit."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._left = _MOST_BYTES
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        self._left -= count or 0
        if self._left < 0:
            raise BadAnswer(f"the answer is longer than {_MOST_BYTES} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
