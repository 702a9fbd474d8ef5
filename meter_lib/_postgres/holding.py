"""Which shards this process delivers: session-bound advisory locks, shared out evenly.

The server ends them with the connection, however the worker dies; no clock is involved. What
this worker writes goes by the very connection that holds them: whoever has lost them can
begin nothing more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from meter_lib._postgres.server import worker_name, worker_pid
from meter_lib._postgres.streams import SHARDS
from meter_lib.errors import OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Cursor
    from psycopg.rows import TupleRow

    from meter_lib._postgres.server import Server
    from meter_lib._postgres.session import Session

__all__ = ["ALL_SHARDS", "Holding", "introduce", "try_take_all", "workers"]

ALL_SHARDS = tuple(range(SHARDS))
# "METR" and the number after it: advisory locks on shards, and those that make workers known.
_SHARD_LOCKS = 0x4D455452
_WORKER_LOCKS = _SHARD_LOCKS + 1
_SECONDS_BETWEEN_LOOKS = 1.0

_LOCKS = """
    pg_locks AS held WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 2
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class _Shares(NamedTuple):
    """How the shards are held just now."""

    workers: int
    held: set[int]


class Holding:
    """The shards that are held by a session of our own: a fair share or, not `shared`, all."""

    def __init__(self, server: Server, session: Session, *, shared: bool) -> None:
        self._server = server
        self._session = session
        self._shared = shared
        self._held: set[int] | None = None
        self._known_by: int | None = None
        self._look_again_at = 0.0

    @property
    def shards(self) -> tuple[int, ...]:
        """Those that are held; all, where nothing is: then somebody only looks."""
        return ALL_SHARDS if self._held is None else tuple(sorted(self._held))

    def try_take(self) -> bool:
        """Hold a fair share of the shards, and let go of others; return whether there is any."""
        if self._session.is_lost():
            self._held = self._known_by = None
            self._session.unpin()
        with self._session.statements() as cursor:
            if self._known_by is None:
                self._introduce(cursor)
            shares = _shares(cursor)
            held = set(self._held or ())
            fair = self._fair(shares.workers)
            if fair > SHARDS - len(shares.held - held) and not self._shared:
                return False
            for shard in sorted(held)[fair:]:
                _unlock(cursor, shard)
                held.discard(shard)
            free = [shard for shard in ALL_SHARDS if shard not in shares.held]
            held |= _take(cursor, free, fair - len(held), all_or_none=not self._shared)
        self._look_again_at = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        self._held = held or None
        if held:
            self._session.pin()
        return bool(held)

    def keeps(self) -> bool:
        """Return whether they are still held, and still a fair share."""
        if self._held is None or self._session.is_lost():
            return False
        if time.monotonic() < self._look_again_at:
            return True
        self._look_again_at = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        try:
            with self._session.statements() as cursor:
                shares = _shares(cursor)
        except OutboxUnavailable:
            return not self._session.is_lost()
        mine = len(self._held)
        fair = self._fair(shares.workers)
        return mine == fair or (mine < fair and len(shares.held) == SHARDS)

    def release(self) -> None:
        """Let go of all, if they are held."""
        self._held = self._known_by = None
        self._session.unpin()
        if not self._session.is_lost():
            with self._session.statements() as cursor:
                cursor.execute("SELECT pg_advisory_unlock_all()")

    def _fair(self, workers: int) -> int:
        return -(-SHARDS // max(1, workers)) if self._shared else SHARDS

    def _introduce(self, cursor: Cursor[TupleRow]) -> None:
        """Make this worker known to the others, on a connection that is its own."""
        introduce(cursor, self._server)
        backend = cursor.connection.info.backend_pid
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (_WORKER_LOCKS, backend))
        self._known_by = backend


def _unlock(cursor: Cursor[TupleRow], shard: int) -> None:
    cursor.execute("SELECT pg_advisory_unlock(%s, %s)", (_SHARD_LOCKS, shard))


def introduce(cursor: Cursor[TupleRow], server: Server) -> None:
    """Let the server know who holds something by this connection, and notice when it is gone.

    Raises `OutboxUnavailable` where nothing can be held by it.
    """
    cursor.execute("SELECT pg_backend_pid()")
    [(backend,)] = cursor.fetchall()
    if backend != cursor.connection.info.backend_pid:
        raise OutboxUnavailable(
            f"{server.location} is reached through a connection pooler, where nothing can be held:"
            " a worker needs the server's own address in METER_OUTBOX (posts may go through the"
            " pooler)"
        )
    # So that the server, too, notices in half a minute that this host is gone.
    cursor.execute(
        """
        SELECT set_config('application_name', %s, false),
               set_config('tcp_keepalives_idle', '10', false),
               set_config('tcp_keepalives_interval', '5', false),
               set_config('tcp_keepalives_count', '3', false),
               set_config('tcp_user_timeout', '25000', false)
        """,
        (worker_name(),),
    )


def try_take_all(cursor: Cursor[TupleRow]) -> bool:
    """Hold all shards by this connection, or none; return which."""
    return bool(_take(cursor, ALL_SHARDS, SHARDS, all_or_none=True))


def _take(
    cursor: Cursor[TupleRow], free: Sequence[int], most: int, *, all_or_none: bool
) -> set[int]:
    """Lock at most so many shards and return them: those that nobody else has taken since."""
    taken: set[int] = set()
    for shard in free:
        if len(taken) >= most:
            break
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (_SHARD_LOCKS, shard))
        [(is_ours,)] = cursor.fetchall()
        if is_ours:
            taken.add(shard)
        elif all_or_none:
            # Of two that begin at once, whoever has the first has all, the other none.
            for one in taken:
                _unlock(cursor, one)
            return set()
    return taken


def workers(cursor: Cursor[TupleRow]) -> list[int]:
    """Return the process ids of the workers that hold shards, 0 for those of other hosts."""
    cursor.execute(
        f"""
        SELECT application_name FROM pg_stat_activity
        WHERE pid IN (SELECT held.pid FROM {_LOCKS} AND held.classid = %s)
        """,
        (_SHARD_LOCKS,),
    )
    return sorted(map(worker_pid, (name for (name,) in cursor)), reverse=True)


def _shares(cursor: Cursor[TupleRow]) -> _Shares:
    cursor.execute(
        f"""
        SELECT held.classid::bigint, held.objid::bigint FROM {_LOCKS}
        AND held.classid IN (%s, %s)
        """,
        (_SHARD_LOCKS, _WORKER_LOCKS),
    )
    locks = cursor.fetchall()
    return _Shares(
        workers=sum(kind == _WORKER_LOCKS for kind, _ in locks),
        held={int(shard) for kind, shard in locks if kind == _SHARD_LOCKS},
    )
