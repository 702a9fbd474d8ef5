"""The streams of an outbox on a server, and the shards that they are shared out by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meter_lib.usage import digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.session import Session
    from meter_lib.usage import UsageEvent

__all__ = ["SHARDS", "Numbers", "Streams", "lock_streams", "shard_of"]

# So many workers can deliver side by side. The rows say it too: it never changes.
SHARDS = 32
# Streams whose numbers are remembered, so that a post needs no look-up.
_MOST_REMEMBERED = 4096

_Stream = tuple[str, str, str]


def shard_of(tenant_id: str, device_id: str) -> int:
    """Return the shard of a device: its streams share requests, so they stay together."""
    return int.from_bytes(digest(f"{tenant_id}\0{device_id}")[:4], "big") % SHARDS


def lock_streams(cursor: Cursor[TupleRow], stream_ids: Collection[int]) -> None:
    """Let nobody else change what waits in these streams until the end of the transaction.

    Whether a stream is held follows from its events, which another transaction may be changing.
    """
    cursor.execute(
        """
        SELECT 1 FROM meter_lib.streams WHERE stream_id = ANY(%s)
        ORDER BY stream_id FOR NO KEY UPDATE
        """,
        (list(stream_ids),),
    )


class Numbers(NamedTuple):
    """The numbers of streams, and the life of the tables that they belong to."""

    of: dict[_Stream, int]
    life: object


class Streams:
    """The numbers of streams, as far as this process has met them in this life of the tables."""

    def __init__(self) -> None:
        self._known: dict[_Stream, int] = {}
        self._life: object = None

    def numbers(self, session: Session, events: Iterable[UsageEvent]) -> Numbers:
        """Return the number of each event's stream.

        New ones are made in a transaction of their own: whoever posts to the same stream need
        not wait for a caller's. One without events does no harm.
        """
        life = session.life()
        if life != self._life:
            self._known, self._life = {}, life
        streams = {(event.tenant_id, event.device_id, event.meter_id) for event in events}
        known = {stream: self._known[stream] for stream in streams if stream in self._known}
        new = sorted(streams - known.keys())
        if new:
            # In one order, or two that share streams could wait for each other.
            made = session.repeatable(lambda cursor: [_number(cursor, stream) for stream in new])
            known.update(zip(new, made, strict=True))
            if len(self._known) + len(new) > _MOST_REMEMBERED:
                self._known.clear()
            self._known.update((stream, known[stream]) for stream in new)
        return Numbers(known, life)


def _number(cursor: Cursor[TupleRow], stream: _Stream) -> int:
    tenant_id, device_id, _ = stream
    cursor.execute(
        """
        INSERT INTO meter_lib.streams (tenant_id, device_id, meter_id, shard)
        VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING
        """,
        (*stream, shard_of(tenant_id, device_id)),
    )
    cursor.execute(
        """
        SELECT stream_id FROM meter_lib.streams
        WHERE tenant_id = %s AND device_id = %s AND meter_id = %s
        """,
        stream,
    )
    [(number,)] = cursor.fetchall()
    return int(number)
