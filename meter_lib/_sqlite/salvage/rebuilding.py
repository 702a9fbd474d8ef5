"""A new outbox from what a damaged one still says.

Its books balance: what is known to have been delivered or removed stays so, and each
number that was given to an event of which nothing is left counts as removed, under the
tenant, device and meter `(unreadable)`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple

from meter_lib._sqlite.copies import former_names
from meter_lib._sqlite.salvage.findings import Findings
from meter_lib._sqlite.salvage.pages import Pages
from meter_lib._sqlite.salvage.writing import ESSENTIAL, carried, columns_of, insert, stream_id

if TYPE_CHECKING:
    import sqlite3

    from typing_extensions import LiteralString

    from meter_lib._sqlite.salvage.rows import Row, SalvagedEvent
    from meter_lib._sqlite.salvage.trees import Value

__all__ = ["Salvaged", "rebuild"]

_UNREADABLE = ("(unreadable)", "(unreadable)", "(unreadable)")
_DUBIOUS = "its file was damaged, and what it says of this event contradicts itself"
_DAY_MILLISECONDS = 86_400_000
# An event takes more room than this on any page: a file cannot have lost more of them than fit.
_LEAST_EVENT_BYTES = 64
_LARGEST_SEQ = 2**53


class Salvaged(NamedTuple):
    """What went over into the new outbox."""

    events: int
    dead: int
    """Of the events: dead letters."""
    dubious: int
    """Of the dead letters: those that the damage made one, for an operator to look at."""
    unreadable: int
    """Events that were accepted and of which nothing is left that could be read."""
    is_same_outbox: bool
    """Whether it goes on under the same `outbox_id` and count of accepted events."""


def rebuild(path: str, connection: sqlite3.Connection) -> Salvaged:
    """Fill a new, migrated outbox with all that can be read of the damaged one at `path`.

    `connection` is to the new one, in autocommit mode; on return all is committed. The damaged
    files are only read.
    """
    with Pages(path) as pages:
        return _Rebuilding(Findings(pages), pages.bytes, connection).run()


class _Rebuilding:
    def __init__(self, findings: Findings, size: int, connection: sqlite3.Connection) -> None:
        self._findings = findings
        self._most_events = size // _LEAST_EVENT_BYTES
        self._connection = connection
        self._old: Row | None = None
        self._names: dict[int, tuple[str, str, str]] = {}
        self._columns = {
            table: columns_of(connection, table) for table in ("events", "known_keys", "ledger")
        }
        self._stream_ids: dict[tuple[str, str, str], int] = {}
        # Events whose number is no number, or is that of another event: they get new ones.
        self._unnumbered: list[SalvagedEvent] = []
        # Of each dubious event its old stream; None: it is dubious whatever others say.
        self._dubious: dict[int, int | None] = {}
        self._confirmed_streams: set[int] = set()

    def run(self) -> Salvaged:
        connection = self._connection
        connection.execute("BEGIN")
        for table, row in self._findings.rows("outbox", "streams"):
            if table == "outbox":
                self._old = self._old or row
            else:
                name = str(row["tenant_id"]), str(row["device_id"]), str(row["meter_id"])
                self._names.setdefault(_number(row["stream_id"]), name)
        frontier = _number(self._old["frontier"]) if self._old else 0
        for event, is_loose in self._findings.events():
            if not (is_loose and self._is_known(event, frontier)):
                self._add(event)
        for table, row in self._findings.rows("known_keys", "ledger"):
            if table == "known_keys":
                self._insert("known_keys", row)
            else:
                names = self._names.get(_number(row["stream_id"]), _UNREADABLE)
                self._insert("ledger", {**row, "stream_id": self._stream_id(names)})
        connection.execute("DROP INDEX IF EXISTS salvaged")
        salvaged = self._settle_accounts()
        connection.execute("COMMIT")
        return salvaged

    # -- events -------------------------------------------------------------------------

    def _add(self, event: SalvagedEvent) -> None:
        if not 0 < event.seq <= self._largest_seq():
            self._unnumbered.append(event)
        elif self._insert_event(event, event.seq):
            names = self._names.get(event.stream_id)
            if event.is_dubious:
                self._dubious[event.seq] = None
            elif names == event.stream:
                self._confirmed_streams.add(event.stream_id)
            elif names is not None:
                self._dubious[event.seq] = event.stream_id
        elif not self._has(
            "SELECT 1 FROM events WHERE seq = ? AND idempotency_key = ?",
            event.seq,
            event.idempotency_key,
        ):
            self._unnumbered.append(event)

    def _largest_seq(self) -> int:
        """Return the highest number that an event can have: above it are slips of the disk."""
        if self._old is None:
            return _LARGEST_SEQ
        return _number(self._old["last_seq"]) + self._most_events

    def _insert_event(self, event: SalvagedEvent, seq: int) -> bool:
        row = carried(event, seq, self._stream_id(event.stream))
        # What was added to an event later is not what it is lost for.
        essential = {name: row[name] for name in ESSENTIAL}
        return self._insert("events", row) or self._insert("events", essential)

    def _is_known(self, event: SalvagedEvent, frontier: int) -> bool:
        """Return whether a loose event was delivered, or is there, maybe under another number."""
        if event.row.get("state") == "pending" and event.seq <= frontier:
            return True
        self._connection.execute("CREATE INDEX IF NOT EXISTS salvaged ON events (idempotency_key)")
        return self._has("SELECT 1 FROM events WHERE idempotency_key = ?", event.idempotency_key)

    def _has(self, query: LiteralString, *values: Value) -> bool:
        return self._connection.execute(query, values).fetchone() is not None

    def _insert(self, table: str, row: Row) -> bool:
        return insert(self._connection, table, row, self._columns[table])

    def _stream_id(self, names: tuple[str, str, str]) -> int:
        number = self._stream_ids.get(names)
        if number is None:
            number = self._stream_ids[names] = stream_id(self._connection, names)
        return number

    # -- accounts -----------------------------------------------------------------------

    def _settle_accounts(self) -> Salvaged:
        connection = self._connection
        dubious = self._bury_dubious()
        events, last_seq = connection.execute(
            "SELECT count(*), coalesce(max(seq), 0) FROM events"
        ).fetchone()
        if self._findings.highest_seq <= self._largest_seq():
            last_seq = max(last_seq, self._findings.highest_seq)
        delivered_in_ledger, removed_in_ledger = map(
            int,
            connection.execute(
                "SELECT total(delivered_events), total(removed_events) FROM ledger"
            ).fetchone(),
        )
        if self._old is not None and _number(self._old["last_seq"]) - last_seq > self._most_events:
            # More is missing than the file had room for: this number is not what it was.
            self._old = None
        old = self._old or {}
        delivered = max(delivered_in_ledger, _number(old.get("delivered_events")))
        removed = max(removed_in_ledger, _number(old.get("removed_events")))
        accepted = max(last_seq, _number(old.get("last_seq")), events + delivered + removed)
        unreadable = accepted - events - delivered - removed
        removed += unreadable
        self._count_unreadable(delivered - delivered_in_ledger, removed - removed_in_ledger)
        for event in self._unnumbered:
            # Its own number stays among those that count as unreadable.
            if self._insert_event(event, accepted + 1):
                accepted += 1
                events += 1
        (dead,) = connection.execute("SELECT count(*) FROM events WHERE state = 'dead'").fetchone()
        connection.execute(
            """
            UPDATE outbox
            SET last_seq = ?, delivered_events = ?, removed_events = ?, dead_events = ?,
                dead_lettered_events = ?
            """,
            (
                accepted,
                delivered,
                removed,
                dead,
                max(dead, _number(old.get("dead_lettered_events"))),
            ),
        )
        if self._old is not None:
            names = former_names(old.get("copied_from"))
            connection.execute(
                """
                UPDATE outbox
                SET outbox_id = ?, created_at = ?, keys_swept_to = ?, machine = ?,
                    epoch = ?, copied_from = ?, copied_at = ?
                """,
                (
                    old["outbox_id"],
                    old["created_at"],
                    old["keys_swept_to"],
                    old.get("machine"),
                    1 + len(names),
                    json.dumps(names) if names else None,
                    old.get("copied_at") if names else None,
                ),
            )
        connection.execute(
            """
            UPDATE streams SET held_until = 0
            WHERE EXISTS (SELECT 1 FROM events
                          WHERE events.stream_id = streams.stream_id AND state = 'deferred')
            """
        )
        return Salvaged(events, dead, dubious, unreadable, self._old is not None)

    def _bury_dubious(self) -> int:
        """Make those dead letters whose rows contradict themselves: nobody is billed by them.

        Where an event says another tenant, device or meter than its stream does, the
        event is believed if no other event of the stream agrees with the stream.
        """
        buried = 0
        for seq, old_stream in self._dubious.items():
            if old_stream is None or old_stream in self._confirmed_streams:
                buried += self._connection.execute(
                    """
                    UPDATE events SET state = 'dead', reason = 'damaged', detail = ?, dead_at = ?
                    WHERE seq = ? AND state <> 'dead'
                    """,
                    (_DUBIOUS, time.time_ns() // 1_000_000, seq),
                ).rowcount
        return buried

    def _count_unreadable(self, delivered: int, removed: int) -> None:
        """Put into the ledger what no row of it tells: nobody knows whose events these were."""
        if delivered or removed:
            day = time.time_ns() // 1_000_000 // _DAY_MILLISECONDS
            stream_id = self._stream_id(_UNREADABLE)
            self._insert("ledger", {"day": day, "stream_id": stream_id})
            self._connection.execute(
                """
                UPDATE ledger SET delivered_events = delivered_events + ?,
                                  removed_events = removed_events + ?
                WHERE day = ? AND stream_id = ?
                """,
                (delivered, removed, day, stream_id),
            )


def _number(value: Value) -> int:
    return value if isinstance(value, int) else 0
