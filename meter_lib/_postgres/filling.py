"""Writes the rows of an outbox, as a file has them, into the tables on a server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from psycopg.sql import SQL, Identifier, Literal

from meter_lib._postgres.moved import HOME, TABLES
from meter_lib._postgres.peers import storable
from meter_lib._postgres.streams import shard_of
from meter_lib._postgres.tallies import Totals, count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Cursor
    from psycopg.rows import TupleRow
    from typing_extensions import LiteralString

    from meter_lib.moving import Rows, Value

__all__ = ["COLUMNS", "LEFT_BEHIND", "empty", "fill"]


class _Table(NamedTuple):
    """How rows of a table are written."""

    columns: dict[str, LiteralString]
    """Those that are taken of what is given, and the server's types."""
    insert: LiteralString
    """From `given`, which has these columns."""


_TABLES = {
    "streams": _Table(
        {
            "stream_id": "bigint",
            "shard": "integer",
            "tenant_id": "text",
            "device_id": "text",
            "meter_id": "text",
            "held_until": "bigint",
        },
        # Whoever waited is asked about anew, as after a reboot: that clock is not the server's.
        """
        INSERT INTO meter_lib.streams (stream_id, shard, tenant_id, device_id, meter_id, held_until)
        OVERRIDING SYSTEM VALUE
        SELECT stream_id, shard, tenant_id, device_id, meter_id, held_until * 0 FROM given
        """,
    ),
    "accounts": _Table(
        {
            "tenant_id": "text",
            "customer_id": "text",
            "answered_at": "bigint",
            "misses": "integer",
            "ask_again_at": "bigint",
        },
        """
        INSERT INTO meter_lib.accounts (tenant_id, customer_id, answered_at, misses, ask_again_at)
        SELECT * FROM given
        """,
    ),
    "events": _Table(
        {
            "seq": "bigint",
            "stream_id": "bigint",
            "idempotency_key": "text",
            "event_time": "bigint",
            "recorded_at": "bigint",
            "clock": "integer",
            "total_usage": "bigint",
            "state": "text",
            "attempts": "integer",
            "lone_refusal": "bigint",
            "customer_id": "text",
            "reason": "text",
            "detail": "text",
            "dead_at": "bigint",
            "replays": "integer",
            "payload": "text",
        },
        """
        INSERT INTO meter_lib.events (
            seq, stream_id, shard, idempotency_key, event_time, recorded_at, clock_uncertain,
            clock_corrected, total_usage, state, attempts, lone_refusal, customer_id, reason,
            detail, dead_at, replays, payload)
        SELECT seq, stream_id, shard, idempotency_key, event_time, recorded_at, clock = 2,
               clock = 3, total_usage, state, attempts, lone_refusal, customer_id, reason,
               detail, dead_at, replays, payload
        FROM given JOIN meter_lib.streams USING (stream_id)
        """,
    ),
    "known_keys": _Table(
        {
            "seq": "bigint",
            "key_digest": "bytea",
            "fingerprint": "bytea",
            "event_time": "bigint",
            "timestamp": "bigint",
            "removed": "integer",
        },
        """
        INSERT INTO meter_lib.known_keys (seq, key_digest, fingerprint, event_time, "timestamp",
                                          removed)
        SELECT seq, key_digest, fingerprint, event_time, "timestamp", removed <> 0 FROM given
        """,
    ),
    "ledger": _Table(
        {
            "day": "integer",
            "stream_id": "bigint",
            "delivered_events": "bigint",
            "delivered_units": "text",
            "removed_events": "bigint",
            "removed_units": "text",
        },
        """
        INSERT INTO meter_lib.ledger (day, stream_id, delivered_events, delivered_units,
                                      removed_events, removed_units)
        SELECT day, stream_id, delivered_events, delivered_units::numeric,
               removed_events, removed_units::numeric
        FROM given
        """,
    ),
    "links": _Table(
        {
            "name": "text",
            "failures": "integer",
            "down_since": "bigint",
            "next_attempt_at": "bigint",
            "last_success_at": "bigint",
            "last_error": "text",
            "last_error_at": "bigint",
        },
        """
        INSERT INTO meter_lib.links (name, failures, down_since, next_attempt_at, last_success_at,
                                     last_error, last_error_at)
        SELECT * FROM given
        """,
    ),
    "outbox": _Table(
        {
            "outbox_id": "text",
            "created_at": "bigint",
            "keys_swept_to": "bigint",
            "lone_refusals": "bigint",
            "proven_to": "bigint",
            "epoch": "integer",
            "copied_from": "text",
            "copied_at": "bigint",
        },
        """
        INSERT INTO meter_lib.outbox (id, outbox_id, created_at, keys_swept_to, lone_refusals,
                                      proven_to, epoch, copied_from, copied_at)
        SELECT 1, * FROM given
        """,
    ),
    "unanswered": _Table(
        {"idempotency_key": "text", "customer_id": "text", "seqs": "text"},
        # All of one device, if any of them is here.
        """
        INSERT INTO meter_lib.unanswered (idempotency_key, shard, customer_id, seqs)
        SELECT idempotency_key,
               coalesce((SELECT shard FROM meter_lib.events WHERE seq = ANY(sent.seqs) LIMIT 1), 0),
               customer_id, sent.seqs
        FROM given, LATERAL (
            SELECT ARRAY(SELECT seq::bigint
                         FROM jsonb_array_elements_text(given.seqs::jsonb)
                              WITH ORDINALITY AS named (seq, place)
                         ORDER BY place) AS seqs
        ) AS sent
        """,
    ),
}
# Of the outbox: its counts, which become tallies.
_COUNTS = {"delivered_events", "removed_events", "dead_events", "dead_lettered_events", "last_seq"}
COLUMNS = {
    table: {*written.columns} - {"shard"} | (_COUNTS if table == "outbox" else set())
    for table, written in _TABLES.items()
}
"""What is taken of the rows of each table of a file."""
LEFT_BEHIND = {
    # A counter of an earlier version, and what tells a wrong clock of one machine.
    "events": {"refused_after", "recorded_boot", "recorded_uptime"},
    # Where the reading begins, the time line of waits of one machine, and which one it is.
    "outbox": {"id", "frontier", "boot", "boot_first_seq", "earlier_at", "waits_boot"}
    | {"waits_offset", "machine", "path"},
}
"""What a file has, and a server has no use for."""


def empty(cursor: Cursor[TupleRow]) -> None:
    """Leave nothing in the tables, save the rows that each outbox begins with."""
    tables = SQL(", ").join(Identifier(HOME, table) for table in TABLES)
    # Also for a transaction that began before: it sees empty tables, not those of before.
    cursor.execute(SQL("TRUNCATE {} RESTART IDENTITY").format(tables))
    cursor.execute("ALTER SEQUENCE meter_lib.event_seq RESTART WITH 1")
    cursor.execute("INSERT INTO meter_lib.tallies (slot) SELECT generate_series(1, 64)")
    cursor.execute(
        """
        INSERT INTO meter_lib.outbox (id, outbox_id, created_at)
        VALUES (1, replace(gen_random_uuid()::text, '-', ''),
                (extract(epoch FROM now()) * 1000)::bigint)
        """
    )


def fill(cursor: Cursor[TupleRow], rows: Iterable[Rows]) -> None:
    """Write these rows into tables that are `empty`, streams before what names them."""
    cursor.execute("DELETE FROM meter_lib.outbox")
    counts: dict[str, Value] = {}
    for part in rows:
        given: dict[str, list[Value]] = dict(
            zip(part.columns, map(list, zip(*part.rows, strict=True)), strict=True)
        )
        if part.table == "outbox":
            counts = {name: values[0] for name, values in given.items()}
        _insert(cursor, part.table, given)
    _number_on(cursor, counts)


def _insert(cursor: Cursor[TupleRow], table: str, given: dict[str, list[Value]]) -> None:
    if table == "streams":
        given["shard"] = [
            shard_of(str(tenant_id), str(device_id))
            for tenant_id, device_id in zip(given["tenant_id"], given["device_id"], strict=True)
        ]
    for name in {"detail", "last_error"} & given.keys():
        given[name] = [value and storable(str(value)) for value in given[name]]
    now = time.time_ns() // 1_000_000
    # As after a reboot: until when it would have lasted, but no longer than it was meant to.
    for until, since in (("next_attempt_at", "last_error_at"), ("ask_again_at", "answered_at")):
        if until in given:
            given[until] = [
                _wait(now, *instants) for instants in zip(given[until], given[since], strict=True)
            ]
    columns, insert = _TABLES[table]
    cursor.execute(
        SQL("WITH given AS (SELECT * FROM unnest({}) AS given ({})) {}").format(
            SQL(", ").join(SQL(f"%s::{kind}[]") for kind in columns.values()),
            SQL(", ").join(map(Identifier, columns)),
            SQL(insert),
        ),
        [given[name] for name in columns],
    )


def _wait(now: int, until: Value, since: Value) -> int | None:
    if not isinstance(until, int):
        return None
    meant = until - (since if isinstance(since, int) else until)
    return now + max(0, min(until - now, meant))


def _number_on(cursor: Cursor[TupleRow], counts: dict[str, Value]) -> None:
    """Let events and streams be numbered on from here, and count what there is in all."""

    def counted(name: str) -> int:
        return int(counts[name] or 0)

    cursor.execute(
        """
        SELECT greatest(%s::bigint, max(seq)), coalesce(sum(bytes), 0)::bigint,
               (SELECT coalesce(max(stream_id), 0) + 1 FROM meter_lib.streams)
        FROM meter_lib.events
        """,
        (counted("last_seq"),),
    )
    [(last_seq, size, next_stream)] = cursor.fetchall()
    cursor.execute(
        SQL("ALTER TABLE meter_lib.streams ALTER COLUMN stream_id RESTART WITH {}").format(
            Literal(next_stream)
        )
    )
    if last_seq:
        # Not by setval, which is not undone with the transaction.
        cursor.execute(
            SQL("ALTER SEQUENCE meter_lib.event_seq RESTART WITH {}").format(Literal(last_seq))
        )
        cursor.execute("SELECT nextval('meter_lib.event_seq')")
    count(
        cursor,
        Totals(
            # A file counts by seq; on a server some are missed by nobody.
            accepted=counted("accepted_events") if "accepted_events" in counts else last_seq,
            delivered=counted("delivered_events"),
            removed=counted("removed_events"),
            dead=counted("dead_events"),
            dead_lettered=counted("dead_lettered_events"),
            bytes=size,
        ),
    )
