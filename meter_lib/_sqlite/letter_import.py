"""Takes dead letters in that were exported here or elsewhere: the SQL of an import."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import transaction
from meter_lib._sqlite.keys import known_key, remember_key
from meter_lib._sqlite.ledger import accepted_events, count_dead
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib.errors import KeyConflict
from meter_lib.known_key import KnownKey
from meter_lib.usage import digest

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.letters import ImportedLetter

__all__ = ["SqliteLetterImport"]

# What an event adds to the write-ahead log beside twice its payload, at most: pages of its own
# and those of the indexes of dead letters, keys and streams that it falls into.
_LETTER_LOG_BYTES = 12 * 1024


class SqliteLetterImport:
    """The importing part of an outbox in a SQLite file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def import_letters(self, letters: Sequence[ImportedLetter], *, now: int) -> list[bool]:
        """Accept dead letters from elsewhere; see `Operations.import_letters`."""
        log_bytes = sum(
            _LETTER_LOG_BYTES + 2 * len(letter.event.payload.encode()) + len(letter.detail.encode())
            for letter in letters
        )

        def record(connection: sqlite3.Connection) -> list[bool]:
            with transaction(connection):
                return list(_import(connection, letters, now))

        return self._database.capture(record, log_bytes=log_bytes, pages=log_bytes // PAGE_BYTES)


def _import(
    connection: sqlite3.Connection, letters: Sequence[ImportedLetter], now: int
) -> Iterator[bool]:
    # One pass over the events for all: they have no index by key.
    keys = json.dumps([letter.event.idempotency_key for letter in letters])
    here = dict(
        connection.execute(
            """
            SELECT idempotency_key, seq FROM events
            WHERE idempotency_key IN (SELECT value FROM json_each(?))
            """,
            (keys,),
        )
    )
    seq = accepted_events(connection)
    first = seq
    for index, letter in enumerate(letters):
        key = letter.event.idempotency_key or ""
        if _is_known(connection, letter, here.get(key), index):
            yield False
            continue
        seq += 1
        here[key] = seq
        _insert(connection, letter, seq, now)
        yield True
    count_dead(connection, seq - first)


def _is_known(
    connection: sqlite3.Connection, letter: ImportedLetter, seq: int | None, index: int
) -> bool:
    """Return whether the event is here or was delivered from here, or raise `KeyConflict`."""
    event = letter.event
    if seq is not None:
        payload, event_time = connection.execute(
            "SELECT payload, event_time FROM events WHERE seq = ?", (seq,)
        ).fetchone()
        is_same = event_time == letter.event_time and json.loads(payload) == json.loads(
            event.payload
        )
        removed = False
    else:
        known = known_key(connection, event.idempotency_key or "")
        if known is None:
            return False
        removed = known.removed
        is_same = known.event_time == letter.event_time and known.fingerprint == event.fingerprint()
    if not is_same:
        raise KeyConflict(
            f"idempotency_key {event.idempotency_key!r} is known already with other content",
            index=index,
        )
    return not removed


def _insert(connection: sqlite3.Connection, letter: ImportedLetter, seq: int, now: int) -> None:
    event = letter.event
    stream = (event.tenant_id, event.device_id, event.meter_id)
    connection.execute(
        "INSERT OR IGNORE INTO streams (tenant_id, device_id, meter_id) VALUES (?, ?, ?)", stream
    )
    connection.execute(
        """
        INSERT INTO events (seq, stream_id, idempotency_key, event_time, recorded_at, total_usage,
                            state, attempts, reason, detail, dead_at, replays, customer_id, payload)
        SELECT ?, stream_id, ?, ?, ?, ?, 'dead', ?, ?, ?, ?, ?, ?, ?
        FROM streams WHERE tenant_id = ? AND device_id = ? AND meter_id = ?
        """,
        (
            seq,
            event.idempotency_key,
            letter.event_time,
            now,
            event.total_usage,
            letter.attempts,
            letter.reason,
            letter.detail,
            letter.dead_at,
            letter.replays,
            letter.customer_id,
            event.payload,
            *stream,
        ),
    )
    # Whoever chose it: so that it is known when the same file comes again.
    key = event.idempotency_key or ""
    connection.execute("DELETE FROM known_keys WHERE key_digest = ?", (digest(key),))
    known = KnownKey(event.fingerprint(), letter.event_time, letter.event_time)
    remember_key(connection, seq, key, known)
