"""A backend that costs next to nothing: accepts every record, counts events and bytes.

    python bench/sink.py DELAY_MS

Prints its port; answers each request after the delay, the accounts API too. `GET /stats` tells
what came in. It takes the shape of the product's requests for granted and checks nothing.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Sink"]

_MARK = b'"idempotency_key":'
_LONGEST_LIFE_SECONDS = 3600


class _Connection(asyncio.Protocol):
    delay_seconds = 0.0
    events = 0
    requests = 0
    received_bytes = 0
    last_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head_end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:head_end]).lower()
            size = head_end + 4 + _content_length(head)
            if len(self._buffer) < size:
                return
            body = bytes(self._buffer[head_end + 4 : size])
            del self._buffer[:size]
            self._answer(head, body, size)

    def _answer(self, head: bytes, body: bytes, size: int) -> None:
        seen = _Connection
        if head.startswith(b"get /stats"):
            counts = (seen.events, seen.requests, seen.received_bytes, seen.last_at)
            self._transport.write(_response(json.dumps(counts).encode()))
            return
        answer = _response(b'{"id":"customer-1"}')
        if head.startswith(b"post"):
            records = _records(body, head)
            seen.events += records
            seen.requests += 1
            seen.received_bytes += size
            seen.last_at = time.time()
            answer = _offsets(records)
        if seen.delay_seconds:
            loop = asyncio.get_running_loop()
            loop.call_later(seen.delay_seconds, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _content_length(head: bytes) -> int:
    _, found, rest = head.partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def _records(body: bytes, head: bytes) -> int:
    if b"content-encoding: gzip" in head:
        import gzip  # noqa: PLC0415  # seldom needed

        body = gzip.decompress(body)
    return body.count(_MARK)


@functools.lru_cache(maxsize=2000)
def _offsets(records: int) -> bytes:
    entries = ",".join(
        f'{{"partition":0,"offset":{offset},"error_code":null,"error":null}}'
        for offset in range(records)
    )
    return _response(
        f'{{"offsets":[{entries}],"key_schema_id":null,"value_schema_id":null}}'.encode()
    )


def _response(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.kafka.v2+json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )


class Sink:
    """The sink in a process of its own, for a `with` block."""

    def __init__(self, delay_ms: float = 0.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(delay_ms)], stdout=subprocess.PIPE, text=True
        )
        if self._process.stdout is None:
            raise AssertionError("a pipe was asked for")
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def stats(self) -> tuple[int, int, int, float]:
        """Return how many events, requests and bytes came in, and when the last request did."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/stats")
        events, requests, received, last_at = json.loads(connection.getresponse().read())
        connection.close()
        return events, requests, received, last_at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


async def _serve(delay_ms: float) -> None:
    _Connection.delay_seconds = delay_ms / 1000
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(_LONGEST_LIFE_SECONDS)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
