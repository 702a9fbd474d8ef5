"""The idempotency keys that callers chose: the SQL that knows a repeated post again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.known_key import KnownKey
from meter_lib.usage import digest, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib.usage import UsageEvent

__all__ = [
    "forget_keys",
    "keep_keys",
    "known_keys",
    "mark_removed",
    "remember_keys",
    "sweep_keys",
]

# Old keys looked through at one sweep, and how many there have to be for one.
_KEYS_A_SWEEP = 20_000
_WORTHWHILE_KEYS = 1_000


def known_keys(cursor: Cursor[TupleRow], digests: Sequence[bytes]) -> dict[bytes, KnownKey]:
    """Return which of these are known, and of what."""
    if not digests:
        return {}
    cursor.execute(
        """
        SELECT key_digest, fingerprint, event_time, "timestamp", removed
        FROM meter_lib.known_keys WHERE key_digest = ANY(%s)
        """,
        (list(digests),),
    )
    return {bytes(row[0]): KnownKey(bytes(row[1]), *row[2:]) for row in cursor}


def remember_keys(cursor: Cursor[TupleRow], keys: Sequence[tuple[int, UsageEvent, int]]) -> bool:
    """Remember the keys of (seq, event, event time); return False where one is known by now.

    Whoever is recording an event under one of them is waited for.
    """
    if not keys:
        return True
    # In one order, or two that share keys could wait for each other.
    rows = sorted(
        (digest(event.idempotency_key or ""), seq, event.fingerprint(), event_time, event.timestamp)
        for seq, event, event_time in keys
    )
    cursor.execute(
        """
        INSERT INTO meter_lib.known_keys (key_digest, seq, fingerprint, event_time, "timestamp")
        SELECT * FROM unnest(%s::bytea[], %s::bigint[], %s::bytea[], %s::bigint[], %s::bigint[])
        ON CONFLICT DO NOTHING
        """,
        [list(column) for column in zip(*rows, strict=True)],
    )
    return cursor.rowcount == len(rows)


def keep_keys(cursor: Cursor[TupleRow], rows: Iterable[tuple[int, str, str, int]]) -> None:
    """Remember the keys of (seq, key, payload, event time), save those that are known."""
    cursor.executemany(
        """
        INSERT INTO meter_lib.known_keys (seq, key_digest, fingerprint, event_time, "timestamp")
        VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
        """,
        sorted(
            (seq, digest(key), fingerprint(payload), event_time, event_time)
            for seq, key, payload, event_time in rows
        ),
    )


def forget_keys(cursor: Cursor[TupleRow], gone: Sequence[int]) -> None:
    """Forget the keys of events that go now and that the sweep of old keys has passed by."""
    cursor.execute(
        """
        DELETE FROM meter_lib.known_keys
        WHERE seq = ANY(%s) AND seq <= (SELECT keys_swept_to FROM meter_lib.outbox)
        """,
        (list(gone),),
    )


def mark_removed(cursor: Cursor[TupleRow], gone: Sequence[int]) -> None:
    """Note of events that are removed now that they may be imported again."""
    cursor.execute(
        "UPDATE meter_lib.known_keys SET removed = true WHERE seq = ANY(%s)", (list(gone),)
    )
    forget_keys(cursor, gone)


def sweep_keys(cursor: Cursor[TupleRow], remembered: int) -> None:
    """Forget the keys of events that are gone, beyond as many as are to be remembered.

    Each key is looked at once: that of an event which is still here then is left to
    `forget_keys`.
    """
    cursor.execute(
        """
        SELECT keys_swept_to, (SELECT last_value FROM meter_lib.event_seq) FROM meter_lib.outbox
        """
    )
    [(swept_to, last_seq)] = cursor.fetchall()
    sweep_to = min(last_seq - remembered, swept_to + _KEYS_A_SWEEP)
    if sweep_to < swept_to + _WORTHWHILE_KEYS:
        return
    cursor.execute(
        "UPDATE meter_lib.outbox SET keys_swept_to = %s WHERE keys_swept_to = %s",
        (sweep_to, swept_to),
    )
    if cursor.rowcount:
        cursor.execute(
            """
            DELETE FROM meter_lib.known_keys AS key
            WHERE seq > %s AND seq <= %s
              AND NOT EXISTS (SELECT 1 FROM meter_lib.events AS e WHERE e.seq = key.seq)
            """,
            (swept_to, sweep_to),
        )
