"""What ours is compared to: the least that SQLite and HTTP can do the same job with.

Nothing of ours is imported here, so that the peers' environment can use it too.
"""

from __future__ import annotations

import http.client
import sqlite3
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PAYLOAD", "RawQueue", "raw_poster"]

# What a usage event takes as JSON, in the survey that the targets come from.
PAYLOAD = b"x" * 257
_RECORD = b'{"key":"t/d/m","value":{"idempotency_key":"k","payload":"' + b"x" * 230 + b'"}}'
_HEADERS = {"Content-Type": "application/vnd.kafka.json.v2+json"}


class RawQueue:
    """A table of ready bytes: WAL, one INSERT a commit, nothing checked, nothing locked but us."""

    def __init__(self, path: str, *, page_bytes: int = 1024, synchronous: str = "FULL") -> None:
        self._mutex = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=60, isolation_level=None, check_same_thread=False
        )
        for statement in (
            f"PRAGMA page_size = {page_bytes}",
            "PRAGMA journal_mode = WAL",
            f"PRAGMA synchronous = {synchronous}",
            "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, payload BLOB)",
        ):
            self._connection.execute(statement)
        self._read_to = 0

    def put(self) -> None:
        """INSERT one row and commit."""
        with self._mutex:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("INSERT INTO events (payload) VALUES (?)", (PAYLOAD,))
            self._connection.execute("COMMIT")

    def put_many(self, count: int) -> None:
        """INSERT so many rows in one commit."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO events (payload) VALUES (?)", [(PAYLOAD,)] * count
        )
        self._connection.execute("COMMIT")
        # An empty table begins its numbers anew.
        self._read_to = 0

    def take(self, count: int) -> int:
        """Read so many rows, then DELETE them in one commit; return how many there were."""
        rows = self._connection.execute(
            "SELECT seq, payload FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._read_to, count),
        ).fetchall()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "DELETE FROM events WHERE seq = ?", [(seq,) for seq, _ in rows]
        )
        self._connection.execute("COMMIT")
        self._read_to = rows[-1][0] if rows else self._read_to
        return len(rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def raw_poster(port: int, *, records: int) -> Callable[[], None]:
    """Return what sends one ready body over a connection kept alive, and looks at the status."""
    body = b'{"records":[' + b",".join([_RECORD] * records) + b"]}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post() -> None:
        connection.request("POST", "/topics/usage-events", body, _HEADERS)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise SystemExit(f"the sink answers {response.status}")

    return post
