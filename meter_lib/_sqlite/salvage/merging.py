"""Takes the events of another outbox file into one that is in use.

Which of them this outbox had already is told by the name of the other. With the same name it
is this one at an earlier time, a copy or what was set aside: whatever it has under a number
that was given here is here, or was settled here. With another name an event is new unless its
key is known; the keys of those taken are remembered, like those that callers choose.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

from meter_lib._sqlite.connection import transaction
from meter_lib._sqlite.ledger import accepted_events, count_dead
from meter_lib._sqlite.limits import PAGE_BYTES
from meter_lib._sqlite.salvage.findings import Findings
from meter_lib._sqlite.salvage.pages import Pages
from meter_lib._sqlite.salvage.writing import carried, columns_of, insert, stream_id
from meter_lib.upkeep import Taken
from meter_lib.usage import digest, fingerprint

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from meter_lib._sqlite.database import Database
    from meter_lib._sqlite.salvage.rows import Row, SalvagedEvent
    from meter_lib._sqlite.salvage.trees import Value

__all__ = ["merge"]

_LARGEST_LOG_BYTES = 144 * 1024
_MOST_AT_A_TIME = 500


def merge(path: str, database: Database, progress: Callable[[int, int], object]) -> Taken:
    """Take over the events of the file at `path`; see `Upkeep.take_over`."""
    with Pages(path) as pages:
        findings = Findings(pages)
        names = {str(row["outbox_id"]) for _, row in findings.rows("outbox")}
        known = {row["key_digest"]: row for _, row in findings.rows("known_keys")}
        keys = {event.idempotency_key for event, _ in findings.events()}
        with database.read() as connection:
            rows = connection.execute("SELECT idempotency_key FROM events")
            there = {key for (key,) in rows if key in keys}
        at_a_time = max(1, min(_MOST_AT_A_TIME, database.max_log_bytes // _LARGEST_LOG_BYTES))
        taken = done = 0
        events = (event for event, _ in findings.events())
        while part := list(itertools.islice(events, at_a_time)):
            new = [event for event in part if event.idempotency_key not in there]
            there.update(event.idempotency_key for event in new)
            taken += database.capture(
                functools.partial(_take, events=new, names=names, known=known),
                log_bytes=len(part) * _LARGEST_LOG_BYTES,
                pages=len(part) * _LARGEST_LOG_BYTES // PAGE_BYTES,
            )
            done += len(part)
            progress(len(part), len(keys))
    return Taken(taken, done - taken)


def _take(
    connection: sqlite3.Connection,
    *,
    events: list[SalvagedEvent],
    names: set[str],
    known: dict[Value, Row],
) -> int:
    columns = {table: columns_of(connection, table) for table in ("events", "known_keys")}
    taken = dead = 0
    with transaction(connection):
        (outbox_id,) = connection.execute("SELECT outbox_id FROM outbox").fetchone()
        accepted = accepted_events(connection)
        given_here = accepted if names == {outbox_id} else 0
        for event in events:
            key = digest(event.idempotency_key)
            if event.seq <= given_here or _is_known(connection, key):
                continue
            taken += 1
            row = carried(event, accepted + taken, stream_id(connection, event.stream))
            insert(connection, "events", row, columns["events"])
            dead += row["state"] == "dead"
            remembered: Row = {
                "fingerprint": fingerprint(str(row["payload"])),
                "event_time": row["event_time"],
                **known.get(key, {}),
                "seq": row["seq"],
                "key_digest": key,
            }
            insert(connection, "known_keys", remembered, columns["known_keys"])
        count_dead(connection, dead)
        connection.execute(
            """
            UPDATE streams SET held_until = 0
            WHERE held_until IS NULL
              AND EXISTS (SELECT 1 FROM events
                          WHERE events.stream_id = streams.stream_id AND state = 'deferred')
            """
        )
    return taken


def _is_known(connection: sqlite3.Connection, key: bytes) -> bool:
    found = connection.execute("SELECT 1 FROM known_keys WHERE key_digest = ?", (key,)).fetchone()
    return found is not None
