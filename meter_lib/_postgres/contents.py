"""All that an outbox on a server holds: counted, and row by row, as a file would have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._postgres.moved import TABLES
from meter_lib._postgres.tallies import totals
from meter_lib.moving import Contents, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Cursor
    from psycopg.rows import TupleRow
    from typing_extensions import LiteralString

__all__ = ["contents_of", "row_count", "rows_of"]

_ROWS_AT_A_TIME = 1000
# The rows of each table under the names that the migrations of a file have for them. Waits are
# of no boot: whoever delivers next brings them onto a time line of its own.
_ROWS: dict[str, LiteralString] = {
    "streams": """
        SELECT stream_id, tenant_id, device_id, meter_id, held_until FROM meter_lib.streams
    """,
    "accounts": """
        SELECT tenant_id, customer_id, answered_at, misses, ask_again_at FROM meter_lib.accounts
    """,
    "events": """
        SELECT seq, stream_id, idempotency_key, event_time, recorded_at, total_usage, state,
               attempts, reason, detail, dead_at, payload, customer_id, lone_refusal,
               CASE WHEN clock_corrected THEN 3 WHEN clock_uncertain THEN 2 ELSE 0 END AS clock,
               replays
        FROM meter_lib.events ORDER BY seq
    """,
    "known_keys": """
        SELECT seq, key_digest, fingerprint, event_time, "timestamp", removed::integer AS removed
        FROM meter_lib.known_keys ORDER BY seq
    """,
    "ledger": """
        SELECT day, stream_id, delivered_events, delivered_units::text AS delivered_units,
               removed_events, removed_units::text AS removed_units
        FROM meter_lib.ledger
    """,
    "links": """
        SELECT name, failures, down_since, next_attempt_at, last_success_at, last_error,
               last_error_at
        FROM meter_lib.links
    """,
    "outbox": """
        SELECT id, outbox_id, created_at, last_seq, keys_swept_to, lone_refusals, proven_to, epoch,
               copied_from, copied_at,
               coalesce((SELECT min(seq) - 1 FROM meter_lib.events WHERE state = 'pending'),
                        last_seq) AS frontier,
               accepted AS accepted_events, delivered AS delivered_events,
               removed AS removed_events, dead AS dead_events, dead_lettered AS dead_lettered_events
        FROM meter_lib.outbox,
             (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last_seq
              FROM meter_lib.event_seq) AS taken,
             (SELECT sum(accepted)::bigint AS accepted, sum(delivered)::bigint AS delivered,
                     sum(removed)::bigint AS removed, sum(dead)::bigint AS dead,
                     sum(dead_lettered)::bigint AS dead_lettered
              FROM meter_lib.tallies) AS counted
    """,
    "unanswered": """
        SELECT idempotency_key, customer_id, to_jsonb(seqs)::text AS seqs FROM meter_lib.unanswered
    """,
}


def contents_of(cursor: Cursor[TupleRow]) -> Contents:
    """Return what it holds, counted row by row, at one instant if the transaction shows one."""
    cursor.execute(
        """
        SELECT outbox_id, here.*, gone.*, (SELECT count(*) FROM meter_lib.unanswered),
               (SELECT count(*) FROM meter_lib.known_keys)
        FROM meter_lib.outbox,
             (SELECT count(*) FILTER (WHERE state <> 'dead'),
                     coalesce(sum(total_usage) FILTER (WHERE state <> 'dead'), 0),
                     count(*) FILTER (WHERE state = 'dead'),
                     coalesce(sum(total_usage) FILTER (WHERE state = 'dead'), 0)
              FROM meter_lib.events) AS here,
             (SELECT coalesce(sum(delivered_events + removed_events), 0),
                     coalesce(sum(delivered_units + removed_units), 0)
              FROM meter_lib.ledger) AS gone
        """
    )
    [(outbox_id, *counts)] = cursor.fetchall()
    # The server's sums come as decimals.
    pending, pending_units, dead, dead_units, gone, gone_units, unanswered, keys = map(int, counts)
    counted = totals(cursor)
    return Contents(
        outbox_id=str(outbox_id),
        accepted=counted.accepted,
        pending=pending,
        pending_units=pending_units,
        dead=dead,
        dead_units=dead_units,
        delivered=counted.delivered,
        removed=counted.removed,
        ledger_events=gone,
        ledger_units=gone_units,
        unanswered=unanswered,
        known_keys=keys,
    )


def row_count(cursor: Cursor[TupleRow]) -> int:
    """Return how many rows `rows_of` yields."""
    rows = 1  # The tallies are a part of that of the outbox.
    for table in TABLES:
        if table not in {"outbox", "tallies"}:
            cursor.execute(f"SELECT count(*) FROM meter_lib.{table}".encode())
            [(number,)] = cursor.fetchall()
            rows += int(number)
    return rows


def rows_of(cursor: Cursor[TupleRow]) -> Iterator[Rows]:
    """Yield the rows of all tables, within the caller's transaction."""
    for table, query in _ROWS.items():
        with cursor.connection.cursor(f"meter_lib_{table}") as reading:
            reading.execute(query)
            columns = tuple([column.name for column in reading.description or ()])
            while rows := reading.fetchmany(_ROWS_AT_A_TIME):
                yield Rows(table, columns, rows)
