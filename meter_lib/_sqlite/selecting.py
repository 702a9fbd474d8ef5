"""Reads the events that a selector means, oldest first, in memory that does not grow with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import Selector

__all__ = ["SENT", "selected"]

# Events read at a time: no read stays open while somebody looks at its rows,
# or the write-ahead log could not be emptied meanwhile.
_CHUNK = 500

# Whether it was sent in a request of which nobody knows what became of it.
SENT = """
    e.seq IN (SELECT sent.value FROM unanswered CROSS JOIN json_each(unanswered.seqs) AS sent)
"""


def selected(
    database: Database, columns: str, of_state: str, selector: Selector
) -> Iterator[tuple[object, ...]]:
    """Yield rows of `columns`, the first of which is the seq, of the events meant.

    `columns` and the condition `of_state` are SQL about events AS e and streams AS s.
    """
    after = 0
    left = selector.limit
    while left is None or left > 0:
        size = _CHUNK if left is None else min(left, _CHUNK)
        with database.read() as connection:
            rows = connection.execute(
                f"""
                SELECT {columns}
                FROM events AS e
                CROSS JOIN streams AS s ON s.stream_id = e.stream_id
                WHERE {of_state} AND e.seq > :after
                  AND (:keys IS NULL
                       OR e.idempotency_key IN (SELECT value FROM json_each(:keys)))
                  AND (:tenant_id IS NULL OR s.tenant_id = :tenant_id)
                  AND (:device_id IS NULL OR s.device_id = :device_id)
                  AND (:meter_id IS NULL OR s.meter_id = :meter_id)
                  AND (:reason IS NULL OR e.reason = :reason)
                  AND (:since IS NULL OR e.event_time >= :since)
                  AND (:until IS NULL OR e.event_time < :until)
                ORDER BY e.seq
                LIMIT :size
                """,  # noqa: S608  # columns and condition are ours
                {
                    **selector._asdict(),
                    "keys": json.dumps(list(selector.keys)) if selector.keys else None,
                    "after": after,
                    "size": size,
                },
            ).fetchall()
        yield from rows
        if len(rows) < size:
            return
        after = rows[-1][0]
        left = None if left is None else left - len(rows)
