"""Hands events to the flusher and takes back what became of them: the SQL of a delivery.

Reading starts at the frontier: no event up to there is pending any more, only set
aside (deferred, refused) or dead. So neither a stuck tenant nor a heap of dead
letters makes the next read any slower.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meter_lib._sqlite.due import LONGEST_HOLD_MILLISECONDS, DueReader
from meter_lib._sqlite.frontier import advance_frontier
from meter_lib._sqlite.ledger import accepted_events
from meter_lib._sqlite.peers import SqlitePeers
from meter_lib._sqlite.settling import events_of, settle
from meter_lib._sqlite.unanswered import forget_unanswered, read_unanswered, write_unanswered
from meter_lib.outbox import Settlement, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meter_lib._sqlite.database import Database
    from meter_lib.outbox import DueEvent

__all__ = ["SqliteDelivery"]

# What settling an event adds to the write-ahead log beside its payload, at most: its page,
# those of the indexes that it moves between, and that of its row in the ledger.
_SETTLE_LOG_BYTES = 4096
# What remembering a request adds to it, and for each of its events.
_REQUEST_LOG_BYTES = 4096
_SEQ_LOG_BYTES = 48


class SqliteDelivery(SqlitePeers):
    """The delivering part of an outbox in a SQLite file."""

    def __init__(self, database: Database, *, remembered_keys: int) -> None:
        super().__init__(database)
        self._remembered_keys = remembered_keys
        self._outbox_id = ""
        # It is of the file that this opening found; the next one may find another.
        self._outbox_id_of = 0

    @property
    def outbox_id(self) -> str:
        """Return the outbox's own name."""
        if not self._outbox_id_of or self._outbox_id_of != self._database.times_opened:
            with self._database.read() as connection:
                (outbox_id,) = connection.execute("SELECT outbox_id FROM outbox").fetchone()
                self._outbox_id = str(outbox_id)
                self._outbox_id_of = self._database.times_opened
        return self._outbox_id

    def accepted(self) -> int:
        """Return how many events were ever accepted."""
        with self._database.read() as connection:
            return accepted_events(connection)

    def try_hold(self) -> bool:
        """Become the one flusher of this outbox, or return False where another is."""
        return self._database.try_hold()

    def keeps_hold(self) -> bool:
        """Return whether the files are those that are held: others may have replaced them."""
        return self._database.keeps_hold()

    def call_when_posted(self, wake: Callable[[], None]) -> None:
        """Do nothing: a file tells nobody that it was written."""

    def release(self) -> None:
        """End the hold, if there is one."""
        self._database.release()

    # -- reading ----------------------------------------------------------------------

    def due(
        self,
        *,
        now: int,
        limit: int,
        max_bytes: int,
        after: int = 0,
        beside: Sequence[int] = (),
    ) -> list[DueEvent]:
        """Return what may be delivered now; see `Delivery.due`."""
        # Nothing is handed out that could not be settled: not where the log is stuck, and not
        # more than one transaction of a small outbox can hold.
        self._database.check_room_in_log()
        limit = min(limit, max(1, self._database.max_log_bytes // (2 * _SETTLE_LOG_BYTES)))
        max_bytes = min(max_bytes, self._database.max_log_bytes // 2)
        with self._database.read() as connection:
            return DueReader(connection).due(
                now=now, limit=limit, max_bytes=max_bytes, after=after, beside=beside
            )

    def suspects(self, *, limit: int, proven_only: bool) -> list[DueEvent]:
        """Return refused events to be asked about alone; see `Delivery.suspects`."""
        with self._database.read() as connection:
            return DueReader(connection).suspects(limit=limit, proven_only=proven_only)

    def next_due_at(self) -> int | None:
        """Return when the next held stream is due, or None where none is held."""
        with self._database.read() as connection:
            (held_until,) = connection.execute(
                "SELECT min(held_until) FROM streams WHERE held_until IS NOT NULL"
            ).fetchone()
        return None if held_until is None else int(held_until)

    def unanswered(self) -> list[Unanswered]:
        """Return the requests that were begun and not answered; see `Delivery.unanswered`."""
        with self._database.read() as connection:
            reader = DueReader(connection)
            found = [
                Unanswered(key, customer_id, reader.here(seqs))
                for key, customer_id, seqs in read_unanswered(connection)
            ]
        found.sort(key=lambda request: [event.seq for event in request.events])
        return found

    # -- writing ----------------------------------------------------------------------

    def begin(self, requests: Sequence[Unanswered], *, forget: Sequence[str] = ()) -> int:
        """Write that these requests are about to be sent; see `Delivery.begin`."""
        log_bytes = sum(
            _REQUEST_LOG_BYTES + _SEQ_LOG_BYTES * len(request.events) for request in requests
        )
        with self._database.write(log_bytes=log_bytes) as connection:
            forget_unanswered(connection, forget)
            write_unanswered(connection, requests)
            (refusals,) = connection.execute("SELECT lone_refusals FROM outbox").fetchone()
        return int(refusals)

    def gone(self, seqs: Sequence[int]) -> set[int]:
        """Return which of these events are no longer here; see `Delivery.gone`."""
        with self._database.read() as connection:
            rows = connection.execute(
                """
                SELECT value FROM json_each(?)
                WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.seq = json_each.value)
                """,
                (json.dumps(list(seqs)),),
            ).fetchall()
        return {int(seq) for (seq,) in rows}

    def queue(
        self, events: Sequence[DueEvent], *, until: int = 0, customer_id: str | None = None
    ) -> None:
        """Set events aside, behind those of their stream that wait; see `Delivery.queue`."""
        with self._database.write(log_bytes=_log_bytes(events)) as connection:
            connection.executemany(
                """
                UPDATE events
                SET state = CASE state WHEN 'pending' THEN 'deferred' ELSE state END,
                    customer_id = coalesce(customer_id, ?)
                WHERE seq = ? AND idempotency_key = ? AND state <> 'dead'
                """,
                [(customer_id, event.seq, event.idempotency_key) for event in events],
            )
            connection.executemany(
                """
                UPDATE streams
                SET held_until = CASE WHEN :until > 0 AND held_until > :until + :longest THEN :until
                                      ELSE max(coalesce(held_until, 0), :until) END
                WHERE stream_id = :stream_id
                  AND EXISTS (SELECT 1 FROM events
                              WHERE events.stream_id = streams.stream_id AND state = 'deferred')
                """,
                [
                    {
                        "until": until,
                        "longest": LONGEST_HOLD_MILLISECONDS,
                        "stream_id": stream_id,
                    }
                    for stream_id in {event.stream_id for event in events}
                ],
            )
            advance_frontier(connection)

    def settle(self, settlement: Settlement, *, now: int) -> None:
        """Write what became of the events; see `Delivery.settle`."""
        if settlement == Settlement():
            return
        for part in self._transactions(settlement):
            with self._database.write(log_bytes=_log_bytes(events_of(part))) as connection:
                settle(connection, part, now=now, remembered_keys=self._remembered_keys)

    def _transactions(self, settlement: Settlement) -> Iterator[Settlement]:
        """Cut into transactions that a small outbox has room for, even when it is full.

        A request may have been gathered from several reads. The last part has all but the
        deliveries before it, and some of those: it says that others were accepted.
        """
        most = self._database.max_log_bytes // 2
        if _log_bytes(settlement.delivered) <= most:
            yield settlement
            return
        part: list[DueEvent] = []
        size = 0
        for event in settlement.delivered:
            added = _log_bytes([event])
            if part and size + added > most:
                yield Settlement(
                    delivered=part, proves=settlement.proves, recovers=settlement.recovers
                )
                part, size = [], 0
            part.append(event)
            size += added
        yield settlement._replace(delivered=part)


def _log_bytes(events: Sequence[DueEvent]) -> int:
    """Return what a change to these events adds to the write-ahead log, at most."""
    payloads = "".join([event.payload for event in events])
    size = len(payloads) if payloads.isascii() else len(payloads.encode())
    return _SETTLE_LOG_BYTES * len(events) + size
