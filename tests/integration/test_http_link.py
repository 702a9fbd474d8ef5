from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, TypeAlias

import pytest

from meter_worker.http_link import HttpLink, LinkFailed, LinkInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Serve: TypeAlias = "Callable[[socket.socket], None]"
Serving: TypeAlias = "Callable[[Serve], RawServer]"
LinkWith: TypeAlias = "Callable[..., HttpLink]"
MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "se/cret+token=1"  # noqa: S105 - nobody's


class RawServer:
    """Accepts connections and hands each to a function, byte by byte."""

    def __init__(self, serve: Serve) -> None:
        self.connections = 0
        self._serve = serve
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/path"
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        """Stop, and cut what is open."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(5)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    """A maker of servers that are closed at the end."""
    servers: list[RawServer] = []

    def make(serve: Serve) -> RawServer:
        servers.append(RawServer(serve))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def link_with() -> Iterator[LinkWith]:
    """A maker of links whose connections are closed at the end."""
    links: list[HttpLink] = []

    def make(
        *, connect_timeout: float = 5, read_timeout: float = 10, token: str | None = TOKEN
    ) -> HttpLink:
        links.append(
            HttpLink(connect_timeout=connect_timeout, read_timeout=read_timeout, token=token)
        )
        return links[-1]

    yield make
    for link in links:
        link.interrupt()


def read_request(connection: socket.socket) -> bytes:
    """Read one request to the end of its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += received_from(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while len(body) < length:
        body += received_from(connection)
    return head + b"\r\n\r\n" + body


def received_from(connection: socket.socket) -> bytes:
    """Read what comes next; the end of the connection is an error."""
    chunk = connection.recv(65_536)
    if not chunk:
        raise ConnectionError
    return chunk


def answering(*answers: bytes) -> Serve:
    """Serve a connection with these answers, one a request, and leave it open."""

    def serve(connection: socket.socket) -> None:
        for answer in answers:
            read_request(connection)
            connection.sendall(answer)
        connection.recv(1)

    return serve


def silent(connection: socket.socket) -> None:
    """Take everything and answer nothing."""
    while connection.recv(65_536):
        pass


def deaf(connection: socket.socket) -> None:
    """Do not even take what is sent."""
    del connection


def dripping(head: bytes, drop: bytes) -> Serve:
    """Begin an answer, and go on with a little of it for ever."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return serve


def reset(connection: socket.socket) -> None:
    """Close so that the peer sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def failure(link: HttpLink, url: str, body: bytes = b"{}") -> LinkFailed:
    """Send a request that must fail."""
    with pytest.raises(LinkFailed) as caught:
        link.send("POST", url, headers={}, body=body)
    return caught.value


# Answers


def test_an_answer_is_its_status_headers_and_body(serving: Serving, link_with: LinkWith) -> None:
    """Whatever the status is, the whole answer comes back."""
    answer = b"HTTP/1.1 418 X\r\nContent-Length: 2\r\nRetry-After: 5\r\n\r\nno"
    server = serving(answering(answer))
    reply = link_with().send("POST", server.url, headers={}, body=b"{}")

    assert (reply.status, dict(reply.headers), reply.body) == (
        418,
        {"Content-Length": "2", "Retry-After": "5"},
        b"no",
    )


def test_a_request_goes_out_as_it_was_given(serving: Serving, link_with: LinkWith) -> None:
    """Method, path, headers and body are sent as they are, with our token and name beside them."""
    requests: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        requests.append(read_request(connection))
        connection.sendall(OK)

    server = serving(serve)
    headers = {"x-tenant-id": "t%C3%A4", "Content-Type": "application/x"}
    link_with().send("POST", server.url, headers=headers, body=b"\x00{}")
    head, _, body = requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")

    assert (lines[0], body) == ("POST /path HTTP/1.1", b"\x00{}")
    assert {
        "x-tenant-id: t%C3%A4",
        "Content-Type: application/x",
        f"Authorization: Bearer {TOKEN}",
        "Content-Length: 3",
    } <= set(lines)
    assert any(line.startswith("User-Agent: meter-lib/") for line in lines)


def test_kept_alive_connections_are_used_whatever_was_answered(
    serving: Serving, link_with: LinkWith
) -> None:
    """One connection serves many requests; errors and redirects do not cost a new one either."""
    answers = [
        b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nbusy",
        b"HTTP/1.1 302 X\r\nLocation: http://a/\r\nContent-Length: 5\r\n\r\nthere",
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 X\r\n\r\n",
        OK,
    ]
    server = serving(answering(*answers))
    link = link_with()
    replies = [link.send("POST", server.url, headers={}, body=b"{}") for _ in answers]

    assert [(reply.status, reply.body) for reply in replies] == [
        (503, b"busy"),
        (302, b"there"),
        (200, b"ok"),
        (204, b""),
        (200, b"ok"),
    ]
    assert server.connections == 1


def test_a_connection_closed_while_idle_is_replaced(serving: Serving, link_with: LinkWith) -> None:
    """Servers close idle connections; the next request opens another one."""
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    server = serving(serve)
    link = link_with()
    link.send("POST", server.url, headers={}, body=b"{}")
    assert closed.wait(5)
    reply = link.send("POST", server.url, headers={}, body=b"{}")

    assert (reply.status, server.connections) == (200, 2)


def test_a_compressed_answer_is_unpacked(serving: Serving, link_with: LinkWith) -> None:
    """Gateways compress answers of their own accord."""
    packed = gzip.compress(b'{"offsets":[]}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    server = serving(answering(head.encode() + packed))

    assert link_with().send("GET", server.url, headers={}).body == b'{"offsets":[]}'


@pytest.mark.parametrize(
    "location",
    [
        "/elsewhere",
        "http://127.0.0.1:1/elsewhere",
        "https://login.example/?next=x",
        # requests itself falls over these.
        "http://[",
        "http://\xff\xfe/",
        "javascript:alert(1)",
        "",
    ],
)
def test_a_redirect_is_not_followed(serving: Serving, link_with: LinkWith, location: str) -> None:
    """A 302 is the answer; its target, however malformed, is never looked at."""
    answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 4\r\n\r\nmove"
    server = serving(answering(answer.encode("latin-1")))
    reply = link_with().send("POST", server.url, headers={}, body=b"{}")

    assert (reply.status, reply.body, server.connections) == (302, b"move", 1)


@pytest.mark.parametrize("status", [200, 302, 500])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_answer_over_4_mib_is_refused_before_it_is_in_memory(
    serving: Serving, link_with: LinkWith, status: int, framing: str
) -> None:
    """Whatever sends so much is no proxy: reading ends there, however it is framed."""
    taken: list[int] = []
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        chunk = b"x" * 65_536
        head = f"HTTP/1.1 {status} X\r\nLocation: http://a/\r\n"
        if framing == "length":
            head += f"Content-Length: {1024 * MIB}\r\n"
        elif framing == "chunked":
            head += "Transfer-Encoding: chunked\r\n"
            chunk = b"10000\r\n" + chunk + b"\r\n"
        connection.sendall(head.encode() + b"\r\n")
        try:
            for sent in range(1, 16 * 1024):
                connection.sendall(chunk)
                taken[:] = [sent * 65_536]
        finally:
            ended.set()

    server = serving(serve)
    error = failure(link_with(), server.url)

    assert str(error) == "the answer is longer than 4194304 bytes"
    assert not error.timed_out
    assert ended.wait(5)
    # What had been sent beyond is in the buffers of the two sockets.
    assert taken[0] < 64 * MIB


def test_an_answer_of_4_mib_is_taken(serving: Serving, link_with: LinkWith) -> None:
    """The limit itself is within the limit."""
    body = b"x" * (4 * MIB)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server = serving(answering(head + body))

    assert link_with().send("GET", server.url, headers={}).body == body


def packed(coding: str, body: bytes) -> bytes:
    """Pack an answer as servers do, with the header that says so."""
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15, "bare deflate": -15}[coding]
    packer = zlib.compressobj(1, wbits=bits)
    data = packer.compress(body) + packer.flush()
    name = coding.removeprefix("bare ")
    return f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\n".encode() + with_length(data)


def with_length(body: bytes) -> bytes:
    """Write the end of an answer: its length, and the body."""
    return f"Content-Length: {len(body)}\r\n\r\n".encode() + body


CODINGS = ["gzip", "x-gzip", "deflate", "bare deflate"]


@pytest.mark.parametrize("coding", CODINGS)
def test_an_answer_is_unpacked_however_it_was_packed(
    serving: Serving, link_with: LinkWith, coding: str
) -> None:
    """Servers disagree on what deflate is; an answer of 4 MiB unpacked is within the limit."""
    body = b'{"offsets":[]}'.ljust(4 * MIB)
    server = serving(answering(packed(coding, body)))

    assert link_with().send("GET", server.url, headers={}).body == body


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_not_unpacked(serving: Serving, link_with: LinkWith, coding: str) -> None:
    """A few kilobytes that unpack to many megabytes are given up at the limit."""
    server = serving(answering(packed(coding, bytes(128 * MIB))))
    link = link_with()
    tracemalloc.start()
    try:
        error = failure(link, server.url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert str(error) == "the answer is longer than 4194304 bytes"
    assert peak < 20 * MIB


def test_a_bomb_of_many_parts_is_not_unpacked(serving: Serving, link_with: LinkWith) -> None:
    """One may follow the other: the limit is for all of it."""
    parts = gzip.compress(bytes(3 * MIB)) * 40
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"
    server = serving(answering(head + with_length(parts)))

    assert str(failure(link_with(), server.url)) == "the answer is longer than 4194304 bytes"


@pytest.mark.parametrize(
    ("coding", "body", "words"),
    [
        # Without the time in it: it would be part of the test's name.
        ("gzip", gzip.compress(b"x" * 999, mtime=0)[:-9], "the answer was packed, and cut short"),
        ("gzip", b"no gzip", "the answer cannot be unpacked: "),
        ("deflate", b"\x08no deflate", "the answer cannot be unpacked: "),
        ("br", b"x", "the answer is in an encoding that was not asked for"),
        ("gzip, gzip", b"x", "the answer is in an encoding that was not asked for"),
    ],
)
def test_an_answer_that_cannot_be_unpacked_is_a_failure(
    serving: Serving, link_with: LinkWith, coding: str, body: bytes, words: str
) -> None:
    """Half of it, or something else than was promised: no answer is made of it."""
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n".encode()
    server = serving(answering(head + with_length(body)))

    assert str(failure(link_with(), server.url)).startswith(words)


def test_cookies_are_not_kept(serving: Serving, link_with: LinkWith) -> None:
    """A portal's cookies are neither sent back nor heaped up."""
    requests: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        for _ in range(2):
            requests.append(read_request(connection))
            connection.sendall(OK.replace(b"\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\n", 1))

    server = serving(serve)
    link = link_with()
    for _ in range(2):
        link.send("POST", server.url, headers={}, body=b"{}")

    assert b"\r\ncookie:" not in requests[1].lower()


# Several requests at once


def test_requests_go_out_at_once_and_each_gets_its_own_answer(
    serving: Serving, link_with: LinkWith
) -> None:
    """From as many threads as one likes; nobody waits for another's answer."""
    all_there = threading.Barrier(8, timeout=20)

    def serve(connection: socket.socket) -> None:
        while True:
            _, _, body = read_request(connection).partition(b"\r\n\r\n")
            all_there.wait()
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + with_length(b"to " + body))

    server = serving(serve)
    link = link_with()
    answers: list[tuple[int, bytes]] = []

    def send(number: int) -> None:
        for _ in range(3):
            reply = link.send("POST", server.url, headers={}, body=b"%d" % number)
            answers.append((number, reply.body))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(answers) == sorted((n, b"to %d" % n) for n in range(8) for _ in range(3))
    # Now and then two threads swap connections, but there are never more than threads.
    assert server.connections == 8


def test_the_connection_used_last_is_used_first(serving: Serving, link_with: LinkWith) -> None:
    """So that one stays warm, instead of all of them going stale in turns."""
    both_there = threading.Barrier(2, timeout=20)
    used: list[int] = []

    def serve(connection: socket.socket) -> None:
        number = server.connections
        read_request(connection)
        both_there.wait()
        connection.sendall(OK)
        while True:
            read_request(connection)
            used.append(number)
            connection.sendall(OK)

    server = serving(serve)
    link = link_with()
    threads = [
        threading.Thread(target=link.send, args=("GET", server.url), kwargs={"headers": {}})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for _ in range(5):
        link.send("GET", server.url, headers={})

    assert (len(used), len(set(used)), server.connections) == (5, 1, 2)


def test_interrupt_breaks_off_every_request(serving: Serving, link_with: LinkWith) -> None:
    """All threads come back at once."""
    link = link_with(read_timeout=60)
    all_there = threading.Barrier(5, timeout=20)

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        all_there.wait()
        silent(connection)

    server = serving(serve)
    ended: list[type[BaseException]] = []

    def send() -> None:
        try:
            link.send("POST", server.url, headers={}, body=b"{}")
        except (LinkFailed, LinkInterrupted) as error:
            ended.append(type(error))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    all_there.wait()
    link.interrupt()
    for thread in threads:
        thread.join(20)

    assert ended == [LinkInterrupted] * 4


# Failures


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_a_request_on_a_connection_that_dies_is_not_sent_again(
    serving: Serving, link_with: LinkWith, how: str
) -> None:
    """The server may have stored it: no layer below us sends it a second time by itself."""
    requests: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        requests.append(read_request(connection))
        connection.sendall(OK)
        requests.append(read_request(connection))
        if how == "reset":
            reset(connection)
        else:
            connection.shutdown(socket.SHUT_RDWR)

    server = serving(serve)
    link = link_with()
    link.send("POST", server.url, headers={}, body=b"{}")
    error = failure(link, server.url)

    assert (len(requests), server.connections, error.timed_out) == (2, 1, False)


def test_a_late_final_answer_is_not_taken_for_that_of_the_next_request(
    serving: Serving, link_with: LinkWith
) -> None:
    """After an interim answer the connection is given up: what still comes belongs to nobody."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + with_length(b"to the first"))

    def serve_next(connection: socket.socket) -> None:
        if server.connections == 1:
            serve(connection)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + with_length(b"to the second"))

    server = serving(serve_next)
    link = link_with(read_timeout=2)
    first = link.send("POST", server.url, headers={}, body=b"{}")
    second = link.send("POST", server.url, headers={}, body=b"{}")

    assert (first.status, second.body, server.connections) == (103, b"to the second", 2)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 ",
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
)
def test_a_line_without_end_is_given_up(serving: Serving, link_with: LinkWith, head: bytes) -> None:
    """Wherever in an answer it comes: it is not read into memory until the time is over."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        while True:
            connection.sendall(b"1" * 65_536)

    link = link_with(read_timeout=60)
    server = serving(serve)
    tracemalloc.start()
    try:
        error = failure(link, server.url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (error.timed_out, peak < 8 * MIB) == (False, True)


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 999 + b"\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: " + b"9" * 999 + b"\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        b"Connection: close\r\n\r\n",
    ],
)
def test_an_answer_of_no_sound_length_is_given_up(
    serving: Serving, link_with: LinkWith, framing: bytes
) -> None:
    """A length below zero would be read to the end of the connection, and there is none."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing)
        while True:
            connection.sendall(b"1" * 65_536)

    link = link_with(read_timeout=60)
    server = serving(serve)
    tracemalloc.start()
    try:
        error = failure(link, server.url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (error.timed_out, peak < 24 * MIB) == (False, True)


def test_interim_answers_without_end_are_given_up(serving: Serving, link_with: LinkWith) -> None:
    """As fast as they come: they are counted, not only timed."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 1000)

    error = failure(link_with(read_timeout=60), serving(serve).url)

    assert str(error) == "the answer is longer than 8388608 bytes"


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 413 X\r\n", b"HTTP/1.1 413 X\r\nA: b", b"HTTP/1.1 413"]
)
def test_half_of_the_headers_are_no_answer(
    serving: Serving, link_with: LinkWith, head: bytes
) -> None:
    """A status is not believed before the headers have come to their end."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)

    assert not failure(link_with(), serving(serve).url).timed_out


def test_headers_without_end_are_given_up(serving: Serving, link_with: LinkWith) -> None:
    """A hundred are enough."""
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(5000))
    server = serving(answering(head + b"Content-Length: 0\r\n\r\n"))

    assert "headers" in str(failure(link_with(read_timeout=60), server.url))


def test_a_proxy_of_the_environment_is_used(
    serving: Serving, link_with: LinkWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every other program on the device does."""
    requests: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        requests.append(read_request(connection))
        connection.sendall(OK)

    server = serving(serve)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/path"))
    link_with().send("POST", "http://nowhere.invalid/path", headers={}, body=b"{}")

    assert requests[0].startswith(b"POST http://nowhere.invalid/path HTTP/1.1\r\n")


def test_a_refused_connection_is_a_failure_that_says_so(link_with: LinkWith) -> None:
    """Nobody listens there: that is known at once, and no time-out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = failure(link_with(), f"http://127.0.0.1:{port}/")

    assert str(error).endswith("Connection refused")
    assert not error.timed_out


def test_a_name_that_nobody_knows_is_a_failure(
    link_with: LinkWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host name without an address is like a host that is away."""

    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure(link_with(), "http://nowhere.invalid/")

    assert str(error).endswith("Name or service not known")
    assert not error.timed_out


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
@pytest.mark.parametrize("after_request", [True, False])
def test_a_reset_is_a_failure_whenever_it_comes(
    serving: Serving, link_with: LinkWith, answer: bytes, after_request: bool
) -> None:
    """Before the request was read, after it, or in the middle of the answer."""

    def serve(connection: socket.socket) -> None:
        if after_request:
            read_request(connection)
            connection.sendall(answer)
        reset(connection)

    error = failure(link_with(), serving(serve).url, body=b"x" * MIB)

    assert str(error)
    assert not error.timed_out


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x01\x02",
        b"",
    ],
)
def test_what_is_no_whole_answer_is_a_failure(
    serving: Serving, link_with: LinkWith, answer: bytes
) -> None:
    """Cut short, wrongly framed or no HTTP at all: no answer is made of it."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    error = failure(link_with(), serving(serve).url)

    assert str(error).isprintable()
    assert not error.timed_out


# Time-outs


@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(silent, id="nothing"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX: ", b"a"), id="a header"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), id="headers"),
        pytest.param(dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="interim answers"),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"a"), id="a body"
        ),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
            id="chunks",
        ),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"a"),
            id="a body without an end",
        ),
    ],
)
def test_the_time_out_is_for_the_whole_answer(
    serving: Serving, link_with: LinkWith, serve: Serve
) -> None:
    """A byte now and then does not prolong it, wherever in the answer it comes."""
    link = link_with(read_timeout=0.4)
    began = time.monotonic()
    error = failure(link, serving(serve).url)

    assert str(error) == "no whole answer within 0.4 s"
    assert error.timed_out
    assert time.monotonic() - began < 5


def test_a_request_that_cannot_be_sent_in_time_has_timed_out(
    serving: Serving, link_with: LinkWith
) -> None:
    """An uplink too slow for so large a body is a matter of size: the next may be smaller."""
    error = failure(link_with(read_timeout=0.4), serving(deaf).url, body=b"x" * (32 * MIB))

    assert error.timed_out


def test_the_time_to_send_is_not_taken_from_the_time_to_answer(
    serving: Serving, link_with: LinkWith
) -> None:
    """The time for the answer begins with the last byte sent; to connect has a time of its own."""

    def serve(connection: socket.socket) -> None:
        time.sleep(1.2)
        left = 16 * MIB
        while left > 0:
            left -= len(received_from(connection))
        time.sleep(1.2)
        connection.sendall(OK)

    link = link_with(connect_timeout=0.8, read_timeout=2)
    body = b"x" * (16 * MIB)

    assert link.send("POST", serving(serve).url, headers={}, body=body).status == 200


def test_a_failure_after_a_time_out_is_not_a_time_out(
    serving: Serving, link_with: LinkWith
) -> None:
    """Each request is judged by itself."""
    link = link_with(read_timeout=0.3)
    server = serving(silent)
    first = failure(link, server.url)
    server.close()
    second = failure(link, server.url)

    assert (first.timed_out, second.timed_out) == (True, False)
    assert str(second).endswith("Connection refused")


def test_a_link_goes_on_after_a_time_out(serving: Serving, link_with: LinkWith) -> None:
    """The connection is given up, the link is not."""
    calls: list[int] = []

    def serve(connection: socket.socket) -> None:
        calls.append(1)
        if len(calls) == 1:
            silent(connection)
        read_request(connection)
        connection.sendall(OK)

    server = serving(serve)
    link = link_with(read_timeout=0.3)
    failure(link, server.url)

    assert link.send("POST", server.url, headers={}, body=b"{}").status == 200


# Interruptions


@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(silent, id="while waiting"),
        pytest.param(deaf, id="while sending"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX: ", b"a"), id="in a header"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), id="in the headers"),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"a"), id="in the body"
        ),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"a"),
            id="in a body without an end",
        ),
    ],
)
def test_interrupt_ends_a_request_at_once_wherever_it_is(
    serving: Serving, link_with: LinkWith, serve: Serve
) -> None:
    """From another thread, long before any time-out; every further request likewise."""
    link = link_with(read_timeout=60)
    server = serving(serve)
    body = b"x" * (16 * MIB if serve is deaf else 1)
    ended: list[type[BaseException]] = []

    def send() -> None:
        try:
            link.send("POST", server.url, headers={}, body=body)
        except (LinkFailed, LinkInterrupted) as error:
            ended.append(type(error))

    sending = threading.Thread(target=send)
    sending.start()
    sending.join(0.3)
    assert sending.is_alive()

    link.interrupt()
    sending.join(10)
    assert ended == [LinkInterrupted]

    send()
    assert ended == [LinkInterrupted, LinkInterrupted]
    assert server.connections == 1


# Secrets


def test_nothing_below_us_logs_an_answer(
    serving: Serving, link_with: LinkWith, caplog: pytest.LogCaptureFixture
) -> None:
    """urllib3 would log headers that it cannot read, and they may hold our own token."""
    answer = f"HTTP/1.1 200 OK\r\nA: b\r\n {TOKEN} \r\n: {TOKEN}\r\nno header {TOKEN}\r\n\r\n"
    server = serving(answering(answer.encode()))
    with caplog.at_level("WARNING"), contextlib.suppress(LinkFailed):
        link_with(read_timeout=1).send("POST", server.url, headers={}, body=b"{}")

    assert caplog.text == ""


@pytest.mark.parametrize(
    "answer",
    [
        f"Bearer {TOKEN} is what I got\r\n\r\n".encode(),
        f"\x1b[31mHTTP/{TOKEN} 200 OK\r\n\r\n".encode(),
        f"HTTP/1.1 {TOKEN} OK\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\nContent-Encoding: {TOKEN}\r\nContent-Length: {TOKEN}\r\n\r\n".encode(),
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{TOKEN}\r\n".encode(),
        (TOKEN * 5000).encode() + b"\r\n\r\n",
    ],
)
def test_the_token_is_in_no_error_even_if_the_peer_echoes_it(
    serving: Serving, link_with: LinkWith, answer: bytes
) -> None:
    """Whatever comes back, our credentials are not in the words that are logged and kept."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    link = link_with()
    try:
        reply = link.send("POST", serving(serve).url, headers={}, body=b"{}")
    except LinkFailed as error:
        text = str(error)
    else:
        text = link.without_token(reply.body).decode()

    assert TOKEN not in text
    assert text.isprintable()
    assert len(text) <= 500


@pytest.mark.parametrize(
    "echo",
    [
        TOKEN.encode(),
        json.dumps({"message": f"Bearer {TOKEN}"}).encode(),
        # As PHP, .NET and others escape it.
        json.dumps({"message": TOKEN}).replace("/", "\\/").encode(),
        json.dumps({"message": TOKEN}).replace("+", "\\u002B").encode(),
        ('{"message":"' + "".join(f"\\u{ord(c):04x}" for c in TOKEN) + '"}').encode(),
    ],
)
def test_an_answer_is_rid_of_the_token_however_it_is_escaped(
    link_with: LinkWith, echo: bytes
) -> None:
    """An answer that echoes our credentials is not kept with them in it."""
    answer = link_with().without_token(echo)
    with contextlib.suppress(ValueError):
        answer = json.loads(answer)["message"].encode()

    assert answer.removeprefix(b"Bearer ") == b"***"


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"\xff\\", b'{"a":"b\\n"}', b'{"offsets":[{"offset":1}]}', b"[" * 9999]
)
def test_an_answer_without_the_token_stays_as_it_is(link_with: LinkWith, body: bytes) -> None:
    """Nothing is changed where nothing has to be hidden."""
    assert link_with().without_token(body) == body
    assert link_with(token=None).without_token(body) == body


@pytest.mark.parametrize("token", [TOKEN, None])
def test_passwords_in_netrc_are_not_sent(
    serving: Serving,
    link_with: LinkWith,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
) -> None:
    """A ~/.netrc is for other programs; our own token is sent, or nothing."""
    (tmp_path / ".netrc").write_text("default login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(read_request(connection))
        connection.sendall(OK)

    link_with(token=token).send("GET", serving(serve).url, headers={})
    sent = [line for line in heads[0].split(b"\r\n") if line.lower().startswith(b"authorization")]

    assert sent == ([] if token is None else [f"Authorization: Bearer {TOKEN}".encode()])


def test_our_own_authorities_win_over_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: Serving
) -> None:
    """REQUESTS_CA_BUNDLE is for programs that were told nothing else."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "of-the-environment.pem"))
    link = HttpLink(
        connect_timeout=5, read_timeout=5, ca_bundle=str(tmp_path / "of-the-settings.pem")
    )
    error = failure(link, serving(silent).url.replace("http:", "https:"))

    assert "of-the-settings.pem" in str(error)
