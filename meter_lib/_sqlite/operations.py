"""What operators look into and steer: the SQL of status, dead letters, replay and purge."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from meter_lib._sqlite.copies import former_names
from meter_lib._sqlite.keys import forget_removed_keys, keep_key
from meter_lib._sqlite.ledger import accepted_events, count_in_ledger
from meter_lib._sqlite.salvage.set_aside import set_aside_files
from meter_lib._sqlite.selecting import SENT, selected
from meter_lib.arguments import LAST_TIME
from meter_lib.outbox import DeadLetter, Link, OutboxStatus
from meter_migrations import LATEST

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import Selector

__all__ = ["SqliteOperations"]

# What replaying or removing an event adds to the write-ahead log, the largest one at most.
_CHANGE_LOG_BYTES = 72 * 1024

_DEAD_LETTER = f"""
    e.seq, s.tenant_id, s.device_id, s.meter_id, e.idempotency_key, e.event_time, e.payload,
    e.attempts, e.reason, coalesce(e.detail, ''), e.dead_at, e.replays, e.customer_id, {SENT}
"""


class SqliteOperations:
    """The operators' part of an outbox in a SQLite file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def status(self) -> OutboxStatus:
        """Return the outbox at this instant; see `Operations.status`."""
        with self._database.read() as connection:
            accepted = accepted_events(connection)
            (outbox_id, dead, dead_lettered, delivered, removed, copied_from, copied_at) = (
                connection.execute(
                    """
                    SELECT outbox_id, dead_events, dead_lettered_events, delivered_events,
                           removed_events, copied_from, copied_at
                    FROM outbox
                    """
                ).fetchone()
            )
            (refused, in_doubt) = connection.execute(
                """
                SELECT count(*),
                       coalesce(sum(abs(lone_refusal) > (SELECT proven_to FROM outbox)), 0)
                FROM events WHERE state = 'refused'
                """
            ).fetchone()
            (held_streams, held_until) = connection.execute(
                "SELECT count(*), min(held_until) FROM streams WHERE held_until IS NOT NULL"
            ).fetchone()
            links = [
                Link(*row)
                for row in connection.execute(
                    """
                    SELECT name, failures, down_since, next_attempt_at,
                           last_success_at, last_error, last_error_at
                    FROM links ORDER BY name
                    """
                )
            ]
            oldest_recorded_at = _oldest_recorded_at(connection)
        paused_until = [link.next_attempt_at for link in links if link.name == "events"]
        return OutboxStatus(
            location=self._database.path,
            outbox_id=outbox_id,
            schema_version=LATEST,
            accepted=accepted,
            pending=accepted - dead - delivered - removed,
            dead=dead,
            delivered=delivered,
            removed=removed,
            refused=refused,
            held_streams=held_streams,
            oldest_recorded_at=oldest_recorded_at,
            bytes=self._database.disk_bytes(),
            next_attempt_at=next(iter(paused_until), None) or held_until or None,
            links=links,
            set_aside=tuple(set_aside_files(self._database.path)),
            in_doubt=in_doubt,
            copied_from=next((name for _, _, name in reversed(former_names(copied_from))), None),
            copied_at=copied_at,
            dead_lettered=dead_lettered,
        )

    def pending_since(self, instants: Sequence[int]) -> list[int]:
        """Return how many were recorded since; see `Upkeep.pending_since`."""
        with self._database.read() as connection:

            def recorded_at(seq: int) -> int:
                row: tuple[int] | None = connection.execute(
                    "SELECT recorded_at FROM events WHERE seq >= ? ORDER BY seq LIMIT 1", (seq,)
                ).fetchone()
                return row[0] if row else LAST_TIME

            accepted = accepted_events(connection)
            (frontier,) = connection.execute("SELECT frontier FROM outbox").fetchone()
            counts: list[int] = []
            for instant in instants:
                first = bisect_left(range(accepted + 1), instant, key=recorded_at)
                (set_aside,) = connection.execute(
                    """
                    SELECT (SELECT count(*) FROM events
                            WHERE state = 'deferred' AND seq BETWEEN :first AND :frontier)
                         + (SELECT count(*) FROM events
                            WHERE state = 'refused' AND seq BETWEEN :first AND :frontier)
                    """,
                    {"first": first, "frontier": frontier},
                ).fetchone()
                counts.append(set_aside + max(0, accepted - max(first - 1, frontier)))
        return counts

    def holder(self) -> int | None:
        """Return the process id of the flusher that holds the outbox; see `Operations.holder`."""
        return self._database.holder()

    def dead_letters(self, selector: Selector) -> Iterator[DeadLetter]:
        """Yield the dead letters meant, oldest first; see `Operations.dead_letters`."""
        for row in selected(self._database, _DEAD_LETTER, "e.state = 'dead'", selector):
            yield DeadLetter._make(row)

    def replay(self, seqs: Sequence[int], *, now: int) -> int:
        """Make these dead letters due again; see `Operations.replay`."""
        return sum(self._replay(part, now) for part in self._parts(seqs))

    def purge(self, seqs: Sequence[int]) -> int:
        """Remove these dead letters for good; see `Operations.purge`."""
        return sum(self._purge(part) for part in self._parts(seqs))

    def _parts(self, seqs: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield the numbers in parts that a transaction can hold within the outbox's limit."""
        size = max(1, self._database.max_log_bytes // _CHANGE_LOG_BYTES)
        for start in range(0, len(seqs), size):
            yield seqs[start : start + size]

    def _replay(self, seqs: Sequence[int], now: int) -> int:
        replayed = 0
        with self._database.write(log_bytes=len(seqs) * _CHANGE_LOG_BYTES) as connection:
            for seq in seqs:
                # Its stream is held for it, due at once: it goes before what is behind it.
                changed = connection.execute(
                    """
                    UPDATE events
                    SET state = 'deferred', attempts = 0, lone_refusal = NULL,
                        reason = NULL, detail = NULL, dead_at = NULL, replays = replays + 1
                    WHERE seq = ? AND state = 'dead'
                    """,
                    (seq,),
                ).rowcount
                if changed:
                    connection.execute(
                        """
                        UPDATE streams SET held_until = coalesce(min(held_until, :now), :now)
                        WHERE stream_id = (SELECT stream_id FROM events WHERE seq = :seq)
                        """,
                        {"now": now, "seq": seq},
                    )
                    # Beyond delivery, whoever chose it: a file of dead letters may hold it.
                    keep_key(connection, seq)
                    # Perhaps the tenant has an account by now: it is asked for anew.
                    connection.execute(
                        """
                        UPDATE accounts SET misses = 0, ask_again_at = NULL
                        WHERE customer_id IS NULL
                          AND tenant_id = (SELECT tenant_id FROM streams WHERE stream_id =
                                           (SELECT stream_id FROM events WHERE seq = ?))
                        """,
                        (seq,),
                    )
                replayed += changed
            connection.execute("UPDATE outbox SET dead_events = dead_events - ?", (replayed,))
        return replayed

    def _purge(self, seqs: Sequence[int]) -> int:
        removed: list[tuple[int, int, int | None]] = []
        gone: list[int] = []
        with self._database.write(log_bytes=len(seqs) * _CHANGE_LOG_BYTES) as connection:
            for seq in seqs:
                row = connection.execute(
                    """
                    SELECT event_time, stream_id, total_usage FROM events
                    WHERE seq = ? AND state = 'dead'
                    """,
                    (seq,),
                ).fetchone()
                if row is None:
                    continue
                removed.append(row)
                gone.append(seq)
                connection.execute("DELETE FROM events WHERE seq = ?", (seq,))
                connection.execute("UPDATE outbox SET last_seq = max(last_seq, ?)", (seq,))
            count_in_ledger(connection, "removed", removed)
            forget_removed_keys(connection, gone)
            connection.execute(
                """
                UPDATE outbox
                SET dead_events = dead_events - :n, removed_events = removed_events + :n
                """,
                {"n": len(removed)},
            )
        return len(removed)


def _oldest_recorded_at(connection: sqlite3.Connection) -> int | None:
    """Return when the oldest pending event was recorded, from the first of each kind."""
    (oldest,) = connection.execute(
        """
        SELECT min(recorded_at) FROM (
            SELECT * FROM (SELECT recorded_at FROM events
                           WHERE seq > (SELECT frontier FROM outbox) AND state = 'pending'
                           ORDER BY seq LIMIT 1)
            UNION ALL
            SELECT * FROM (SELECT recorded_at FROM events
                           WHERE state = 'refused' ORDER BY seq LIMIT 1)
            UNION ALL
            SELECT (SELECT recorded_at FROM events
                    WHERE events.stream_id = streams.stream_id AND state = 'deferred'
                    ORDER BY seq LIMIT 1)
            FROM streams WHERE held_until IS NOT NULL
        )
        """
    ).fetchone()
    return None if oldest is None else int(oldest)
