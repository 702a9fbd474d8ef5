"""Recomputes what became of every event, from the rows and the ledger: the SQL of an audit."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from typing import IO, TYPE_CHECKING, NamedTuple

from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.place import Place
from meter_lib.errors import OutboxUnavailable
from meter_lib.upkeep import Audit, AuditRow, Tally, shown_day

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Generator, Iterator

    from meter_lib._sqlite.database import Database

__all__ = ["SqliteAudit"]

_DAY_MILLISECONDS = 86_400_000
_EVENTS_A_STEP = 10_000
_NOBODY = ("", "", "")

# A day is rounded down, before 1970 too. Units are summed in two halves, for the sum of
# what fits 64 bits may not.
_SUMS_OF_EVENTS = f"""
    SELECT (event_time - ((event_time % {_DAY_MILLISECONDS}) + {_DAY_MILLISECONDS})
                         % {_DAY_MILLISECONDS}) / {_DAY_MILLISECONDS},
           stream_id, state = 'dead', count(*),
           coalesce(sum(total_usage >> 32), 0), coalesce(sum(total_usage & 4294967295), 0)
    FROM events WHERE seq > ? AND seq <= ? GROUP BY 1, 2, 3
"""  # noqa: S608  # a number of ours
# Where it is none, that is told on its own.
_PAYLOAD = "CASE WHEN json_valid(payload) THEN payload END"
# What cannot be, with the words for it; each counts events that are not as they must be.
_IMPOSSIBLE = (
    ("typeof(event_time) <> 'integer'", "have a time that is no integer"),
    (
        "total_usage IS NOT NULL AND (typeof(total_usage) <> 'integer' OR total_usage < 0)",
        "have units that are no number from 0 up",
    ),
    ("seq < 1", "have a seq below 1"),
    (
        "state = 'pending' AND seq <= (SELECT frontier FROM outbox)",
        "are pending where no flusher looks any more",
    ),
    (
        """
        state = 'deferred' AND NOT EXISTS (SELECT 1 FROM streams AS s
            WHERE s.stream_id = events.stream_id AND s.held_until IS NOT NULL)
        """,
        "wait in a stream that nobody comes back to",
    ),
    (
        "NOT EXISTS (SELECT 1 FROM streams AS s WHERE s.stream_id = events.stream_id)",
        "are of a stream that is not there",
    ),
    ("NOT json_valid(payload)", "have a payload that is no JSON"),
    (
        f"json_extract({_PAYLOAD}, '$.total_usage') IS NOT total_usage",
        "are counted with other units than they are billed with",
    ),
    (
        f"""
        EXISTS (SELECT 1 FROM streams AS s
            WHERE s.stream_id = events.stream_id
              AND (s.tenant_id <> json_extract({_PAYLOAD}, '$.tenant_id')
                   OR s.device_id <> json_extract({_PAYLOAD}, '$.device_id')
                   OR s.meter_id <> json_extract({_PAYLOAD}, '$.meter_id')))
        """,  # noqa: S608  # ours
        "are of another stream than they are billed in",
    ),
)


class _Ledger(NamedTuple):
    delivered: Tally
    removed: Tally


class SqliteAudit:
    """The part of an outbox in a SQLite file that proves its books."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.contextmanager
    def audit(self, *, progress: Callable[[int, int], object]) -> Generator[Audit]:
        """Recompute the books and compare them with the counts; see `Upkeep.audit`."""
        # Whoever only records need not wait for it.
        import tempfile  # noqa: PLC0415  # see above

        # Written down, not kept: the books of years do not fit every device's memory.
        with tempfile.TemporaryFile("w+", encoding="utf-8") as rows:
            with (
                self._database.read() as connection,
                contextlib.closing(Place(self._database.path)) as place,
            ):
                most_bytes = place.log_bytes() + self._database.max_log_bytes // 2

                def look(done: int, of: int) -> None:
                    # As long as this one reads, the log cannot be emptied. Posts come first.
                    if place.log_bytes() > most_bytes:
                        raise OutboxUnavailable(
                            f"{self._database.path} is written to faster than it can be audited;"
                            " nothing is wrong with that: audit it when less happens"
                        )
                    progress(done, of)

                found = _Auditor(connection, rows).audit(look)
            yield found


class _Auditor:
    """One audit, of one instant. What it adds up grows with days and streams, not with events."""

    def __init__(self, connection: sqlite3.Connection, rows: IO[str]) -> None:
        self._connection = connection
        self._file = rows
        self._problems: list[str] = []
        self._here: dict[int, dict[int, list[int]]] = defaultdict(dict)

    def audit(self, progress: Callable[[int, int], object]) -> Audit:
        self._read_events(progress)
        accepted = accepted_events(self._connection)
        counted = self._connection.execute(
            "SELECT delivered_events, removed_events, dead_events, frontier FROM outbox"
        ).fetchone()
        totals = [Tally(0, 0)] * 4
        for row in self._rows():
            parts = row.pending, row.dead, row.delivered, row.removed
            totals = [total.plus(part) for total, part in zip(totals, parts, strict=True)]
            self._file.write(json.dumps(row) + "\n")
        pending, dead, delivered, removed = totals
        here = pending.events + dead.events
        gone = delivered.events + removed.events
        if accepted - here != gone:
            self._problems.append(
                f"of the seqs 1 to {accepted} there are {accepted - here} gone from the outbox, but"
                f" {delivered.events} events delivered and {removed.events} removed"
            )
        for name, in_rows, in_counter in (
            ("delivered", delivered.events, counted[0]),
            ("removed", removed.events, counted[1]),
            ("dead", dead.events, counted[2]),
        ):
            if in_rows != in_counter:
                self._problems.append(
                    f"{in_rows} events are {name} one by one, {in_counter} by their counter"
                )
        if counted[3] > accepted:
            self._problems.append(
                f"the next {counted[3] - accepted} events would never be delivered: the flusher"
                f" looks beyond seq {counted[3]} only, and {accepted} were accepted"
            )
        units = sum(total.units for total in totals)
        return Audit(
            problems=self._problems,
            # By seq, for whose every number somebody has a receipt.
            accepted=Tally(accepted, units),
            pending=pending,
            dead=dead,
            delivered=delivered,
            removed=removed,
            rows=_written(self._file),
        )

    def _read_events(self, progress: Callable[[int, int], object]) -> None:
        first, last, count = self._connection.execute(
            "SELECT min(seq), max(seq), max(seq) - min(seq) + 1 FROM events"
        ).fetchone()
        impossible = [0] * len(_IMPOSSIBLE)
        counts = ", ".join(f"coalesce(sum({condition}), 0)" for condition, _ in _IMPOSSIBLE)
        after = (first or 1) - 1
        while last is not None and after < last:
            up_to = min(after + _EVENTS_A_STEP, last)
            for day, stream_id, is_dead, number, high, low in self._connection.execute(
                _SUMS_OF_EVENTS, (after, up_to)
            ):
                sums = self._here[day].setdefault(stream_id, [0, 0, 0, 0])
                sums[2 * is_dead] += number
                sums[2 * is_dead + 1] += (high << 32) + low
            found = self._connection.execute(
                f"SELECT {counts} FROM events WHERE seq > ? AND seq <= ?",  # noqa: S608  # ours
                (after, up_to),
            ).fetchone()
            impossible = [total + more for total, more in zip(impossible, found, strict=True)]
            progress(up_to - after, count)
            after = up_to
        for number, (_, words) in zip(impossible, _IMPOSSIBLE, strict=True):
            if number:
                self._problems.append(f"{number} events {words}")

    def _rows(self) -> Iterator[AuditRow]:
        """Yield the books of each day and stream, in the order of day, tenant, device and meter."""
        days = {day for (day,) in self._connection.execute("SELECT DISTINCT day FROM ledger")}
        strangers = 0
        for day in sorted(days.union(self._here)):
            ledger = self._ledger(day)
            here = self._here.get(day, {})
            named = {stream_id: self._names(stream_id) for stream_id in {*ledger, *here}}
            strangers += sum(named[stream_id] == _NOBODY for stream_id in ledger)
            for stream_id in sorted(named, key=lambda number: (named[number], number)):
                pending, pending_units, dead, dead_units = here.get(stream_id, (0, 0, 0, 0))
                gone = ledger.get(stream_id, _Ledger(Tally(0, 0), Tally(0, 0)))
                yield AuditRow(
                    shown_day(day),
                    *named[stream_id],
                    pending=Tally(pending, pending_units),
                    dead=Tally(dead, dead_units),
                    delivered=gone.delivered,
                    removed=gone.removed,
                )
        if strangers:
            self._problems.append(
                f"{strangers} rows of the ledger are of a stream that is not there"
            )

    def _ledger(self, day: int) -> dict[int, _Ledger]:
        rows = self._connection.execute(
            """
            SELECT stream_id, delivered_events, delivered_units, removed_events, removed_units
            FROM ledger WHERE day = ?
            """,
            (day,),
        )
        return {
            stream_id: _Ledger(
                self._tally(day, "delivered", delivered, delivered_units),
                self._tally(day, "removed", removed, removed_units),
            )
            for stream_id, delivered, delivered_units, removed, removed_units in rows
        }

    def _tally(self, day: int, kind: str, events: object, units: object) -> Tally:
        text = str(units)
        if not isinstance(events, int) or events < 0 or not (text.isascii() and text.isdigit()):
            self._problems.append(
                f"the ledger of {shown_day(day)} has {kind} events and units that are no numbers"
                " from 0 up"
            )
            return Tally(events if isinstance(events, int) else 0, 0)
        if events == 0 and int(text):
            self._problems.append(f"the ledger of {shown_day(day)} has units {kind}, but no event")
        return Tally(events, int(text))

    def _names(self, stream_id: int) -> tuple[str, str, str]:
        row = self._connection.execute(
            "SELECT tenant_id, device_id, meter_id FROM streams WHERE stream_id = ?", (stream_id,)
        ).fetchone()
        return _NOBODY if row is None else (str(row[0]), str(row[1]), str(row[2]))


def _written(rows: IO[str]) -> Iterator[AuditRow]:
    rows.seek(0)
    for line in rows:
        day, tenant_id, device_id, meter_id, *tallies = json.loads(line)
        yield AuditRow(day, tenant_id, device_id, meter_id, *(Tally(*one) for one in tallies))
