"""The idempotency keys that are remembered: the SQL that knows a repeated event again.

Those that callers chose, and those of dead letters that were replayed or imported; kept beyond
delivery for as many events as the outbox may remember.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.known_key import KnownKey
from meter_lib.usage import digest, fingerprint

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

__all__ = [
    "forget_delivered_keys",
    "forget_keys",
    "forget_removed_keys",
    "keep_key",
    "known_key",
    "remember_key",
]

# Old keys looked through at one settling: many times what a settling adds to them.
_KEYS_A_SWEEP = 20_000


def known_key(connection: sqlite3.Connection, idempotency_key: str) -> KnownKey | None:
    """Return what is remembered of the event under this key."""
    row = connection.execute(
        "SELECT fingerprint, event_time, timestamp, removed FROM known_keys WHERE key_digest = ?",
        (digest(idempotency_key),),
    ).fetchone()
    return None if row is None else KnownKey._make(row)


def remember_key(
    connection: sqlite3.Connection, seq: int, idempotency_key: str, known: KnownKey
) -> None:
    """Remember the key of an event; it must not be known."""
    connection.execute(
        """
        INSERT INTO known_keys (seq, key_digest, fingerprint, event_time, timestamp)
        VALUES (?, ?, ?, ?, ?)
        """,
        (seq, digest(idempotency_key), known.fingerprint, known.event_time, known.timestamp),
    )


def keep_key(connection: sqlite3.Connection, seq: int) -> None:
    """Remember the key of an event that is here, unless it is known."""
    key, payload, event_time = connection.execute(
        "SELECT idempotency_key, payload, event_time FROM events WHERE seq = ?", (seq,)
    ).fetchone()
    if known_key(connection, key) is None:
        remember_key(connection, seq, key, KnownKey(fingerprint(payload), event_time, event_time))


def forget_keys(connection: sqlite3.Connection, gone: Iterable[int]) -> None:
    """Forget the keys of events that go now and that the sweep of old keys has passed by."""
    (swept_to,) = connection.execute("SELECT keys_swept_to FROM outbox").fetchone()
    _forget(connection, gone, swept_to)


def forget_removed_keys(connection: sqlite3.Connection, gone: Iterable[int]) -> None:
    """Forget the keys of events that are removed now; mark those that are kept for a while."""
    seqs = list(gone)
    connection.executemany(
        "UPDATE known_keys SET removed = 1 WHERE seq = ?", [(seq,) for seq in seqs]
    )
    forget_keys(connection, seqs)


def forget_delivered_keys(
    connection: sqlite3.Connection, gone: Iterable[int], *, remembered: int
) -> None:
    """Forget the keys of events that are gone, beyond as many as are to be remembered.

    Each key is looked at once: that of an event which is still here then is forgotten when it
    is among those that go, `gone`.
    """
    swept_to, last_seq = connection.execute("SELECT keys_swept_to, last_seq FROM outbox").fetchone()
    _forget(connection, gone, swept_to)
    sweep_to = min(last_seq - remembered, swept_to + _KEYS_A_SWEEP)
    if sweep_to <= swept_to:
        return
    connection.execute(
        """
        DELETE FROM known_keys
        WHERE seq > ? AND seq <= ? AND NOT EXISTS (SELECT 1 FROM events
                                                   WHERE events.seq = known_keys.seq)
        """,
        (swept_to, sweep_to),
    )
    connection.execute("UPDATE outbox SET keys_swept_to = ?", (sweep_to,))


def _forget(connection: sqlite3.Connection, gone: Iterable[int], swept_to: int) -> None:
    old = [(seq,) for seq in gone if seq <= swept_to]
    if old:
        connection.executemany("DELETE FROM known_keys WHERE seq = ?", old)
