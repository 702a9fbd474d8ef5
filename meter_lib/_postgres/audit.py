"""Recomputes what became of every event, from the rows and the ledger: the SQL of an audit."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from meter_lib._postgres.tallies import totals
from meter_lib.upkeep import Audit, AuditRow, Tally, shown_day

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.session import Session

__all__ = ["PostgresAudit"]


# The books of each day and stream. A day is rounded down, before 1970 too.
_BOOKS = """
    WITH here AS (
        SELECT floor(event_time / 86400000.0)::bigint AS day, stream_id,
               count(*) FILTER (WHERE state <> 'dead') AS pending,
               coalesce(sum(total_usage) FILTER (WHERE state <> 'dead'), 0) AS pending_units,
               count(*) FILTER (WHERE state = 'dead') AS dead,
               coalesce(sum(total_usage) FILTER (WHERE state = 'dead'), 0) AS dead_units
        FROM meter_lib.events GROUP BY 1, 2
    ), books AS (
        SELECT day, coalesce(s.tenant_id, '') AS tenant_id, coalesce(s.device_id, '') AS device_id,
               coalesce(s.meter_id, '') AS meter_id,
               coalesce(pending, 0) AS pending, coalesce(pending_units, 0) AS pending_units,
               coalesce(dead, 0) AS dead, coalesce(dead_units, 0) AS dead_units,
               coalesce(delivered_events, 0) AS delivered,
               coalesce(delivered_units, 0) AS delivered_units,
               coalesce(removed_events, 0) AS removed, coalesce(removed_units, 0) AS removed_units
        FROM here
        FULL JOIN (SELECT day::bigint AS day, stream_id, delivered_events, delivered_units,
                          removed_events, removed_units FROM meter_lib.ledger) AS gone
             USING (day, stream_id)
        LEFT JOIN meter_lib.streams AS s USING (stream_id)
    )
"""
# What cannot be, with the words for it; each counts events that are not as they must be.
_IMPOSSIBLE = """
    SELECT count(*) FILTER (WHERE s.stream_id IS NULL),
           count(*) FILTER (WHERE e.state = 'deferred' AND s.held_until IS NULL),
           count(*) FILTER (WHERE (e.payload::json ->> 'total_usage')::numeric
                                  IS DISTINCT FROM e.total_usage),
           count(*) FILTER (WHERE s.tenant_id <> e.payload::json ->> 'tenant_id'
                                  OR s.device_id <> e.payload::json ->> 'device_id'
                                  OR s.meter_id <> e.payload::json ->> 'meter_id'
                                  OR s.shard <> e.shard)
    FROM meter_lib.events AS e LEFT JOIN meter_lib.streams AS s USING (stream_id)
"""
_WORDS = (
    "are of a stream that is not there",
    "wait in a stream that nobody comes back to",
    "are counted with other units than they are billed with",
    "are of another stream than they are billed in",
)


class PostgresAudit:
    """The part of an outbox on a server that proves its books."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextlib.contextmanager
    def audit(self, *, progress: Callable[[int, int], object]) -> Generator[Audit]:
        """Recompute the books and compare them with the counts; see `Upkeep.audit`.

        The server shows one instant and holds up nobody for it.
        """
        with self._session.read() as cursor:
            counted = totals(cursor)
            cursor.execute(
                f"""
                {_BOOKS}
                SELECT coalesce(sum(pending), 0), coalesce(sum(pending_units), 0),
                       coalesce(sum(dead), 0), coalesce(sum(dead_units), 0),
                       coalesce(sum(delivered), 0), coalesce(sum(delivered_units), 0),
                       coalesce(sum(removed), 0), coalesce(sum(removed_units), 0)
                FROM books
                """
            )
            [sums] = cursor.fetchall()
            pending, dead, delivered, removed = _tallies(sums)
            here = pending.events + dead.events
            cursor.execute(_IMPOSSIBLE)
            [impossible] = cursor.fetchall()
            problems = [
                f"{number} events {words}"
                for number, words in zip(impossible, _WORDS, strict=True)
                if number
            ]
            for name, in_rows, in_counter in (
                ("accepted", here + delivered.events + removed.events, counted.accepted),
                ("delivered", delivered.events, counted.delivered),
                ("removed", removed.events, counted.removed),
                ("dead", dead.events, counted.dead),
            ):
                if in_rows != in_counter:
                    problems.append(
                        f"{in_rows} events are {name} one by one, {in_counter} by their counter"
                    )
            progress(here, here)
            units = sum(tally.units for tally in (pending, dead, delivered, removed))
            yield Audit(
                problems=problems,
                # As they were counted, each in the transaction that its receipt stands for.
                accepted=Tally(counted.accepted, units),
                pending=pending,
                dead=dead,
                delivered=delivered,
                removed=removed,
                rows=_rows(cursor),
            )


def _rows(cursor: Cursor[TupleRow]) -> Iterator[AuditRow]:
    """Yield the books of each day and stream; the server keeps those that are not asked for yet."""
    cursor.execute(
        f"""
        DECLARE books NO SCROLL CURSOR FOR
        {_BOOKS}
        SELECT * FROM books
        ORDER BY day, tenant_id COLLATE "C", device_id COLLATE "C", meter_id COLLATE "C"
        """
    )
    while True:
        cursor.execute("FETCH 1000 FROM books")
        rows = cursor.fetchall()
        for day, tenant_id, device_id, meter_id, *sums in rows:
            yield AuditRow(shown_day(day), tenant_id, device_id, meter_id, *_tallies(sums))
        if not rows:
            return


def _tallies(sums: list[int] | TupleRow) -> tuple[Tally, Tally, Tally, Tally]:
    # The server's sums may have more digits than its integers: they come as decimals.
    numbers = [int(number) for number in sums]
    return (
        Tally(numbers[0], numbers[1]),
        Tally(numbers[2], numbers[3]),
        Tally(numbers[4], numbers[5]),
        Tally(numbers[6], numbers[7]),
    )
