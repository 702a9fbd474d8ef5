"""What is kept of events that have left: their counts, and for a while the keys callers chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

__all__ = [
    "accepted_events",
    "count_dead",
    "count_in_ledger",
    "forget_keys",
    "forget_removed_keys",
    "sweep_keys",
]

_DAY_MILLISECONDS = 86_400_000
# Old keys looked through at one settling: many times what a settling adds to them.
_KEYS_A_SWEEP = 20_000


def accepted_events(connection: sqlite3.Connection) -> int:
    """Return how many events were ever accepted: the highest seq, which has no gap."""
    (accepted,) = connection.execute(
        """
        SELECT max(last_seq, coalesce((SELECT max(seq) FROM events), 0)) FROM outbox
        """
    ).fetchone()
    return int(accepted)


def count_in_ledger(
    connection: sqlite3.Connection,
    column: str,
    events: Iterable[tuple[int, int, int | None]],
) -> None:
    """Add (event time, stream, units) to the `delivered` or `removed` columns of the ledger."""
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    for event_time, stream_id, units in events:
        row = (event_time // _DAY_MILLISECONDS, stream_id)
        events_so_far, units_so_far = sums.get(row, (0, 0))
        sums[row] = (events_so_far + 1, units_so_far + (units or 0))
    for (day, stream_id), (count, units) in sums.items():
        connection.execute(
            "INSERT OR IGNORE INTO ledger (day, stream_id) VALUES (?, ?)", (day, stream_id)
        )
        (before,) = connection.execute(
            f"SELECT {column}_units FROM ledger WHERE day = ? AND stream_id = ?",  # noqa: S608  # one of two names, both ours
            (day, stream_id),
        ).fetchone()
        connection.execute(
            f"""
            UPDATE ledger SET {column}_events = {column}_events + ?, {column}_units = ?
            WHERE day = ? AND stream_id = ?
            """,  # noqa: S608  # as above
            (count, str(int(before) + units), day, stream_id),
        )


def count_dead(connection: sqlite3.Connection, events: int) -> None:
    """Count events that have become dead letters: those there are, and those there ever were."""
    connection.execute(
        """
        UPDATE outbox
        SET dead_events = dead_events + :events,
            dead_lettered_events = dead_lettered_events + :events
        """,
        {"events": events},
    )


def forget_keys(connection: sqlite3.Connection, gone: Iterable[int]) -> None:
    """Forget the keys of events that go now and that the sweep of old keys has passed by."""
    (swept_to,) = connection.execute("SELECT keys_swept_to FROM outbox").fetchone()
    connection.executemany(
        "DELETE FROM known_keys WHERE seq = ?", [(seq,) for seq in gone if seq <= swept_to]
    )


def forget_removed_keys(connection: sqlite3.Connection, gone: Iterable[int]) -> None:
    """Forget the keys of events that are removed now; mark those that are kept for a while."""
    seqs = list(gone)
    connection.executemany(
        "UPDATE known_keys SET removed = 1 WHERE seq = ?", [(seq,) for seq in seqs]
    )
    forget_keys(connection, seqs)


def sweep_keys(connection: sqlite3.Connection, remembered: int) -> None:
    """Forget the keys of events that are gone, beyond as many as are to be remembered.

    Each key is looked at once: that of an event which is still here then is left to
    `forget_keys`.
    """
    swept_to, last_seq = connection.execute("SELECT keys_swept_to, last_seq FROM outbox").fetchone()
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
