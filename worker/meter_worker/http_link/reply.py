"""A whole answer, bounded while it is read and while it is unpacked."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meter_worker.http_link.failures import BadAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Reply", "whole_body"]

LONGEST_ANSWER_BYTES = 4 * 1024 * 1024
"""A proxy answers about 30 bytes a record; whatever sends megabytes is something else."""

_CHUNK_BYTES = 65_536
# To zlib: a gzip or zlib header, told by itself; and a stream without any, as some servers send.
_ANY_HEADER = 32 + zlib.MAX_WBITS
_NO_HEADER = -zlib.MAX_WBITS


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Raw(Protocol):
    """What urllib3 reads a body from."""

    def read(self, amt: int, *, decode_content: bool) -> bytes:
        """Return up to so many bytes, fewer at the end only."""
        ...

    @property
    def length_remaining(self) -> int | None:
        """Return how many bytes were promised beyond those read, None where none were."""
        ...


def whole_body(raw: Raw, encoding: str) -> bytes:
    """Read a body to its end and unpack it. Raises `BadAnswer`.

    Not chunk by chunk with urllib3's own decoding: of a bomb, one small chunk
    unpacks to sixty megabytes; and its `stream` bounds no line between chunks.
    """
    packed = bytearray()
    while chunk := _next(raw):
        packed += chunk
        if len(packed) > LONGEST_ANSWER_BYTES:
            raise _too_long()
    if raw.length_remaining:
        raise BadAnswer(f"the answer ended {raw.length_remaining} bytes before its end")
    coding = encoding.strip().lower()
    if not packed or coding in {"", "identity"}:
        return bytes(packed)
    if coding not in {"gzip", "x-gzip", "deflate"}:
        raise BadAnswer("the answer is in an encoding that was not asked for")
    # Some servers send what is called deflate without the header that zlib puts before it.
    bare = coding == "deflate" and packed[0] & 0x0F != zlib.DEFLATED
    return _unpacked(bytes(packed), _NO_HEADER if bare else _ANY_HEADER)


def _next(raw: Raw) -> bytes:
    try:
        return raw.read(_CHUNK_BYTES, decode_content=False)
    except ValueError as error:
        # The standard library takes any number for the size of a chunk, -5 among them.
        raise BadAnswer(f"the answer cannot be read: {error}") from error


def _unpacked(packed: bytes, window_bits: int) -> bytes:
    body = bytearray()
    while packed:
        member = zlib.decompressobj(window_bits)
        try:
            body += member.decompress(packed, LONGEST_ANSWER_BYTES + 1 - len(body))
        except zlib.error as error:
            raise BadAnswer(f"the answer cannot be unpacked: {error}") from error
        if len(body) > LONGEST_ANSWER_BYTES:
            raise _too_long()
        if not member.eof:
            raise BadAnswer("the answer was packed, and cut short")
        # Of gzip, one may follow the other.
        packed = member.unused_data
    return bytes(body)


def _too_long() -> BadAnswer:
    return BadAnswer(f"the answer is longer than {LONGEST_ANSWER_BYTES} bytes")
