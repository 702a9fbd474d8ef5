"""Probe of what a backlog costs: the same work on an empty outbox and on one with many events."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING

from measuring import Figures, Slice, compared, timed_slice
from recording import EVENT

from meter_lib import MeterClient, Settings
from meter_lib.opening import open_outbox
from meter_lib.outbox import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PROBES"]

_LIMIT_BYTES = 16 * 1024**3
_BATCH = 100
_BATCHES_A_TURN = 20


def backlog(folder: str, *, events: int, seconds: float, turns: int) -> Figures:
    """Opening, posting and settling with so many events pending, beside an empty outbox."""
    empty = _settings(folder, "empty", 1)
    full = _settings(folder, "full", events)
    name = f"backlog.{events}"
    figures: Figures = {f"{name}.open_ms": min(_open_ms(full) for _ in range(3))}
    with MeterClient(settings=full) as ours, MeterClient(settings=empty) as other:
        figures |= compared(
            lambda: timed_slice(lambda: ours.post_many([EVENT]), seconds=seconds),
            lambda: timed_slice(lambda: other.post_many([EVENT]), seconds=seconds),
            turns=turns,
            name=f"{name}.post",
        )
    figures |= compared(_settler(full), _settler(empty), turns=turns, name=f"{name}.settle")
    return figures


def _settings(folder: str, name: str, events: int) -> Settings:
    path = os.path.join(folder, f"{name}.db")
    settings = Settings(outbox=path, max_bytes=_LIMIT_BYTES)
    with MeterClient(settings=settings) as client:
        client.post_many([EVENT])
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    columns = [
        column
        for _, column, *_ in connection.execute("PRAGMA table_info(events)")
        if column not in {"seq", "idempotency_key"}
    ]
    names = ", ".join(columns)
    connection.execute(
        f"""
        INSERT INTO events (seq, idempotency_key, {names})
        WITH RECURSIVE counted (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM counted WHERE n < ?)
        SELECT n, printf('%032x', n), {names}
        FROM counted, (SELECT * FROM events WHERE seq = 1) WHERE n <= ?
        """,  # noqa: S608  # the names are the file's own
        (events, events),
    )
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    connection.close()
    return settings


def _open_ms(settings: Settings) -> float:
    begun = time.perf_counter()
    outbox = open_outbox(settings)
    outbox.accepted()
    took = time.perf_counter() - begun
    outbox.close()
    return 1000 * took


def _settler(settings: Settings) -> Callable[[], Slice]:
    def run() -> Slice:
        count = _BATCH * _BATCHES_A_TURN
        with MeterClient(settings=settings) as client:
            client.post_many([EVENT] * count)
        outbox = open_outbox(settings)
        outbox.due(now=0, limit=1, max_bytes=1000)
        begun = time.perf_counter()
        for _ in range(_BATCHES_A_TURN):
            due = outbox.due(now=0, limit=_BATCH, max_bytes=1_000_000)
            outbox.settle(Settlement(delivered=due), now=time.time_ns() // 1_000_000)
        took = time.perf_counter() - begun
        outbox.close()
        return Slice(count, took, [])

    return run


PROBES = {"backlog": backlog}
