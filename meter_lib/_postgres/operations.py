"""What operators look into and steer: the SQL of status, replay, purge and import."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meter_lib._postgres.holding import workers
from meter_lib._postgres.keys import keep_keys, known_keys, mark_removed
from meter_lib._postgres.ledger import count_removed
from meter_lib._postgres.letters import PostgresLetters
from meter_lib._postgres.peers import read_links, storable
from meter_lib._postgres.streams import Streams, lock_streams, shard_of
from meter_lib._postgres.tallies import Totals, count, totals
from meter_lib.errors import KeyConflict, OutboxFull, OutboxUnavailable
from meter_lib.outbox import OutboxStatus
from meter_lib.usage import digest
from meter_migrations.postgres import LATEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server
    from meter_lib._postgres.session import Session
    from meter_lib.known_key import KnownKey
    from meter_lib.outbox import ImportedLetter

__all__ = ["PostgresOperations"]

# Dead letters that are changed in one transaction.
_PART = 1_000


class PostgresOperations(PostgresLetters):
    """The operators' part of an outbox on a server."""

    def __init__(self, server: Server, session: Session, *, max_bytes: int) -> None:
        super().__init__(session)
        self._place = server.location
        self._limit = max_bytes

    def status(self) -> OutboxStatus:
        """Return the outbox at this instant; see `Operations.status`."""
        with self._session.read() as cursor:
            in_all = totals(cursor)
            cursor.execute(
                """
                SELECT outbox_id,
                       (SELECT count(*) FROM meter_lib.events WHERE state = 'refused'),
                       (SELECT count(*) FROM meter_lib.events
                        WHERE state = 'refused' AND abs(lone_refusal) > proven_to),
                       (SELECT count(*) FROM meter_lib.streams WHERE held_until IS NOT NULL),
                       (SELECT min(held_until) FROM meter_lib.streams
                        WHERE held_until IS NOT NULL),
                       (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
                        WHERE relnamespace = 'meter_lib'::regnamespace AND relkind = 'r')
                FROM meter_lib.outbox
                """
            )
            [(outbox_id, refused, in_doubt, held_streams, held_until, size)] = cursor.fetchall()
            oldest_recorded_at = _oldest_recorded_at(cursor)
            links = read_links(cursor)
            delivering = workers(cursor)
        paused_until = [link.next_attempt_at for link in links if link.name == "events"]
        return OutboxStatus(
            location=self._place,
            outbox_id=outbox_id,
            schema_version=LATEST,
            accepted=in_all.accepted,
            pending=in_all.accepted - in_all.dead - in_all.delivered - in_all.removed,
            dead=in_all.dead,
            delivered=in_all.delivered,
            removed=in_all.removed,
            refused=refused,
            held_streams=held_streams,
            oldest_recorded_at=oldest_recorded_at,
            bytes=size,
            next_attempt_at=next(iter(paused_until), None) or held_until or None,
            links=links,
            in_doubt=in_doubt,
            dead_lettered=in_all.dead_lettered,
            workers=len(delivering),
        )

    def pending_since(self, instants: Sequence[int]) -> list[int]:
        """Return how many were recorded since; see `Operations.pending_since`. Counts them all."""
        with self._session.statements() as cursor:
            cursor.execute(
                """
                SELECT (SELECT count(*) FROM meter_lib.events AS e
                        WHERE e.state <> 'dead' AND e.recorded_at >= since.instant)
                FROM unnest(%s::bigint[]) WITH ORDINALITY AS since (instant, place)
                ORDER BY since.place
                """,
                (list(instants),),
            )
            return [int(events) for (events,) in cursor]

    def holder(self) -> int | None:
        """Return the process id of a flusher that holds the outbox; see `Operations.holder`."""
        with self._session.statements() as cursor:
            return next(iter(workers(cursor)), None)

    def replay(self, seqs: Sequence[int], *, now: int) -> int:
        """Make these dead letters due again; see `Operations.replay`."""
        return sum(self._replay(part, now) for part in _parts(seqs))

    def purge(self, seqs: Sequence[int]) -> int:
        """Remove these dead letters for good; see `Operations.purge`."""
        return sum(self._purge(part) for part in _parts(seqs))

    def import_letters(self, letters: Sequence[ImportedLetter], *, now: int) -> list[bool]:
        """Accept dead letters from elsewhere; see `Operations.import_letters`."""
        self._session.look_again()
        numbers = Streams().numbers(self._session, [letter.event for letter in letters])

        def record(cursor: Cursor[TupleRow]) -> list[bool]:
            if numbers.life != self._session.life():
                raise OutboxUnavailable(
                    f"an outbox has moved to {self._place} just now; nothing was imported"
                )
            # One import at a time, so that the keys it has looked for stay unknown.
            cursor.execute("LOCK TABLE meter_lib.known_keys IN SHARE ROW EXCLUSIVE MODE")
            if totals(cursor).bytes > self._limit:
                raise OutboxFull(
                    f"{self._place} is full: its limit (METER_MAX_BYTES) is {self._limit} bytes;"
                    " nothing was imported"
                )
            return list(_import(cursor, letters, numbers.of, now))

        return self._session.capture(record)

    def _replay(self, seqs: Sequence[int], now: int) -> int:
        with self._session.write() as cursor:
            _lock_streams_of(cursor, seqs)
            cursor.execute(
                """
                UPDATE meter_lib.events
                SET state = 'deferred', attempts = 0, lone_refusal = NULL,
                    reason = NULL, detail = NULL, dead_at = NULL, replays = replays + 1
                WHERE seq = ANY(%s) AND state = 'dead'
                RETURNING stream_id, seq, idempotency_key, payload, event_time
                """,
                (list(seqs),),
            )
            replayed = cursor.fetchall()
            streams = [row[0] for row in replayed]
            # Known beyond delivery, whoever chose it: a file of dead letters may hold it.
            keep_keys(cursor, [row[1:] for row in replayed])
            # Perhaps their tenants have an account by now: it is asked for anew.
            cursor.execute(
                """
                UPDATE meter_lib.accounts SET misses = 0, ask_again_at = NULL
                WHERE customer_id IS NULL
                  AND tenant_id IN (SELECT tenant_id FROM meter_lib.streams
                                    WHERE stream_id = ANY(%s))
                """,
                (streams,),
            )
            # Its stream is held for it, due at once: it goes before what is behind it.
            cursor.execute(
                """
                UPDATE meter_lib.streams SET held_until = least(held_until, %s)
                WHERE stream_id = ANY(%s)
                """,
                (now, streams),
            )
            count(cursor, Totals(dead=-len(streams)))
        return len(streams)

    def _purge(self, seqs: Sequence[int]) -> int:
        with self._session.write() as cursor:
            cursor.execute(
                """
                DELETE FROM meter_lib.events WHERE seq = ANY(%s) AND state = 'dead'
                RETURNING seq, event_time, stream_id, total_usage, bytes
                """,
                (list(seqs),),
            )
            gone = cursor.fetchall()
            count_removed(cursor, (row[1:4] for row in gone))
            mark_removed(cursor, [row[0] for row in gone])
            size = sum(row[4] for row in gone)
            count(cursor, Totals(removed=len(gone), dead=-len(gone), bytes=-size))
        return len(gone)


def _parts(seqs: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(seqs), _PART):
        yield seqs[start : start + _PART]


def _lock_streams_of(cursor: Cursor[TupleRow], seqs: Sequence[int]) -> None:
    cursor.execute(
        "SELECT DISTINCT stream_id FROM meter_lib.events WHERE seq = ANY(%s) AND state = 'dead'",
        (list(seqs),),
    )
    lock_streams(cursor, [stream_id for (stream_id,) in cursor.fetchall()])


def _oldest_recorded_at(cursor: Cursor[TupleRow]) -> int | None:
    """Return when the oldest pending event was recorded, from the first of each kind."""
    cursor.execute(
        """
        SELECT least(
            (SELECT min(first.recorded_at) FROM generate_series(0, 31) AS of (shard)
             CROSS JOIN LATERAL (SELECT recorded_at FROM meter_lib.events AS e
                                 WHERE e.shard = of.shard AND state = 'pending'
                                 ORDER BY seq LIMIT 1) AS first),
            (SELECT recorded_at FROM meter_lib.events
             WHERE state = 'refused' ORDER BY seq LIMIT 1),
            (SELECT min(first.recorded_at) FROM meter_lib.streams AS s
             CROSS JOIN LATERAL (SELECT recorded_at FROM meter_lib.events AS e
                                 WHERE e.stream_id = s.stream_id AND state = 'deferred'
                                 ORDER BY seq LIMIT 1) AS first
             WHERE s.held_until IS NOT NULL))
        """
    )
    [(oldest,)] = cursor.fetchall()
    return None if oldest is None else int(oldest)


def _import(
    cursor: Cursor[TupleRow],
    letters: Sequence[ImportedLetter],
    numbers: dict[tuple[str, str, str], int],
    now: int,
) -> Iterator[bool]:
    keys = [letter.event.idempotency_key or "" for letter in letters]
    # One pass over the events for all: they have no index by key.
    cursor.execute(
        """
        SELECT idempotency_key, payload, event_time FROM meter_lib.events
        WHERE idempotency_key = ANY(%s)
        """,
        (keys,),
    )
    here = {key: (json.loads(payload), event_time) for key, payload, event_time in cursor}
    known = known_keys(cursor, [digest(key) for key in keys])
    added = Totals()
    for index, (key, letter) in enumerate(zip(keys, letters, strict=True)):
        content = json.loads(letter.event.payload), letter.event_time
        if _is_known(letter, content, here.get(key), known.get(digest(key)), index):
            yield False
            continue
        here[key] = content
        size = _insert(cursor, letter, numbers, now)
        added = Totals(accepted=added.accepted + 1, bytes=added.bytes + size)
        yield True
    count(cursor, added._replace(dead=added.accepted, dead_lettered=added.accepted))


def _is_known(
    letter: ImportedLetter,
    content: tuple[object, int],
    here: tuple[object, int] | None,
    known: KnownKey | None,
    index: int,
) -> bool:
    """Return whether the event is here or was delivered from here, or raise `KeyConflict`."""
    if here is None and known is None:
        return False
    if here is not None:
        is_same = here == content
    else:
        is_same = known is not None and (known.fingerprint, known.event_time) == (
            letter.event.fingerprint(),
            letter.event_time,
        )
    if not is_same:
        raise KeyConflict(
            f"idempotency_key {letter.event.idempotency_key!r} is known already with other content",
            index=index,
        )
    return here is not None or not (known and known.removed)


def _insert(
    cursor: Cursor[TupleRow],
    letter: ImportedLetter,
    numbers: dict[tuple[str, str, str], int],
    now: int,
) -> int:
    event = letter.event
    cursor.execute(
        """
        INSERT INTO meter_lib.events (stream_id, shard, idempotency_key, event_time, recorded_at,
                                      total_usage, state, attempts, reason, detail, dead_at,
                                      replays, customer_id, payload)
        VALUES (%s, %s, %s, %s, %s, %s, 'dead', %s, %s, %s, %s, %s, %s, %s)
        RETURNING seq, bytes
        """,
        (
            numbers[event.tenant_id, event.device_id, event.meter_id],
            shard_of(event.tenant_id, event.device_id),
            event.idempotency_key,
            letter.event_time,
            now,
            event.total_usage,
            letter.attempts,
            letter.reason,
            storable(letter.detail),
            letter.dead_at,
            letter.replays,
            letter.customer_id,
            event.payload,
        ),
    )
    [(seq, size)] = cursor.fetchall()
    # Whoever chose it: so that it is known when the same file comes again.
    cursor.execute(
        """
        INSERT INTO meter_lib.known_keys (seq, key_digest, fingerprint, event_time, "timestamp")
        VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (key_digest) DO UPDATE
        SET seq = excluded.seq, fingerprint = excluded.fingerprint, removed = false,
            event_time = excluded.event_time, "timestamp" = excluded."timestamp"
        """,
        (
            seq,
            digest(event.idempotency_key or ""),
            event.fingerprint(),
            letter.event_time,
            letter.event_time,
        ),
    )
    return int(size)
