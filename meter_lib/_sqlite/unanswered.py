"""Requests that were sent and not answered: the SQL that remembers how they were made up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from meter_lib.outbox import Unanswered

__all__ = ["forget_unanswered", "read_unanswered", "write_unanswered"]


def write_unanswered(connection: sqlite3.Connection, requests: Iterable[Unanswered]) -> None:
    """Remember these requests."""
    connection.executemany(
        """
        INSERT OR REPLACE INTO unanswered (idempotency_key, customer_id, seqs) VALUES (?, ?, ?)
        """,
        [
            (
                request.idempotency_key,
                request.customer_id,
                json.dumps([event.seq for event in request.events]),
            )
            for request in requests
        ],
    )


def forget_unanswered(connection: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Forget the requests with these keys."""
    connection.executemany(
        "DELETE FROM unanswered WHERE idempotency_key = ?", [(key,) for key in keys]
    )


def read_unanswered(connection: sqlite3.Connection) -> list[tuple[str, str, list[int]]]:
    """Return key, customer and seqs of each request that is remembered."""
    return [
        (key, customer_id, [int(seq) for seq in json.loads(seqs)])
        for key, customer_id, seqs in connection.execute(
            "SELECT idempotency_key, customer_id, seqs FROM unanswered"
        )
    ]
