"""From the bytes of a request to its JSON, bounded at every step, refused as the proxy refuses."""

from __future__ import annotations

import json
import re
import zlib
from typing import TYPE_CHECKING

from meter_worker.sandbox.exchange import JSON, Refused, error_answer, plain_answer

if TYPE_CHECKING:
    from email.message import Message
    from io import BufferedIOBase

    from meter_worker.sandbox.exchange import Answer

BODY_LIMIT = 1_048_576
"""Bytes a body may have once it is decompressed: the proxy's default."""

READ_LIMIT = 64 * 1024 * 1024
"""Bytes that are read of a body at most; past it nobody is listening any more."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LINE_LIMIT = 8192
_TRAILERS_LIMIT = 100
_WENT_AWAY = "the client went away in the middle of its request"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def read_body(stream: BufferedIOBase, headers: Message) -> bytes:
    """Read one body off the stream, by length or in chunks.

    Raises `Refused` where it is too long to be read or its framing cannot be trusted: the
    connection cannot be used again then. Raises `ConnectionError` where the client went away
    before the end.
    """
    lengths = {value.strip() for value in headers.get_all("Content-Length", [])}
    codings = [value.strip().lower() for value in headers.get_all("Transfer-Encoding", [])]
    if codings:
        if codings != ["chunked"] or lengths:
            raise Refused(plain_answer(400))
        return _read_chunks(stream)
    if not lengths:
        return b""
    length = lengths.pop()
    if lengths or not (length.isascii() and length.isdigit()):
        raise Refused(plain_answer(400))
    if len(length) > 15 or int(length) > READ_LIMIT:
        raise Refused(too_large())
    return _read_exactly(stream, int(length))


def _read_chunks(stream: BufferedIOBase) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while True:
        size_line = _CHUNK_SIZE.fullmatch(_line(stream))
        if size_line is None:
            raise Refused(plain_answer(400))
        size = int(size_line[1], 16)
        if size == 0:
            break
        total += size
        if total > READ_LIMIT:
            raise Refused(too_large())
        chunks.append(_read_exactly(stream, size))
        if _line(stream).rstrip(b"\r\n"):
            raise Refused(plain_answer(400))
    for _ in range(_TRAILERS_LIMIT):
        if not _line(stream).rstrip(b"\r\n"):
            return b"".join(chunks)
    raise Refused(plain_answer(400))


def _line(stream: BufferedIOBase) -> bytes:
    line = stream.readline(_LINE_LIMIT)
    if not line:
        raise ConnectionError(_WENT_AWAY)
    return line


def _read_exactly(stream: BufferedIOBase, length: int) -> bytes:
    body = stream.read(length)
    if len(body) < length:
        raise ConnectionError(_WENT_AWAY)
    return body


def decoded_body(body: bytes, content_encoding: str) -> bytes:
    """Give the body decompressed; raises `Refused` where it is too large or broken.

    An encoding that the proxy does not know is left as it is, as the proxy does.
    """
    window_bits = _WINDOW_BITS.get(content_encoding.strip().lower())
    if window_bits is not None and body:
        body = _decompressed(body, window_bits)
    if len(body) > BODY_LIMIT:
        raise Refused(too_large())
    return body


def _decompressed(body: bytes, window_bits: int) -> bytes:
    # Clients disagree on what "deflate" is; a zlib header has 8 in its low four bits.
    if window_bits == zlib.MAX_WBITS and body[0] & 0x0F != 8:
        window_bits = -zlib.MAX_WBITS
    decompressor = zlib.decompressobj(window_bits)
    try:
        plain = decompressor.decompress(body, BODY_LIMIT + 1)
    except zlib.error:
        raise Refused(_broken()) from None
    if len(plain) <= BODY_LIMIT and not decompressor.eof:
        raise Refused(_broken())
    return plain


def parsed_json(body: bytes) -> object:
    """Give the JSON value of a body, numbers as the proxy keeps them; raises `Refused`."""
    if not body:
        raise Refused(plain_answer(400, "Missing request JSON body"))
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Refused(plain_answer(400, "Request body is not valid utf-8")) from None
    try:
        value: object = json.loads(
            text, parse_int=_integer, parse_float=_number, parse_constant=_number
        )
        if "\\u" in text:
            # A lone surrogate can only come in as an escape; it cannot be written as UTF-8.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Refused(invalid_json()) from None
    return value


def _integer(text: str) -> int | float:
    # What 64 bits cannot hold becomes a float without a word: that is what the proxy does.
    if len(text) > 20:
        return _number(text)
    value = int(text)
    return value if -(2**63) <= value < 2**64 else float(value)


def _number(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(text)  # infinite, or not a number
    return value


def invalid_json() -> Answer:
    """Give the answer to a body that is no JSON, or none that anybody could keep."""
    return plain_answer(400, "Invalid request JSON body")


def too_large() -> Answer:
    """Give the answer to a body that is too large."""
    return error_answer(413, "HTTP Request Entity Too Large", content_type=JSON)


def _broken() -> Answer:
    return plain_answer(500, "Internal Server Error")
