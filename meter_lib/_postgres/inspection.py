"""Counts the books of an outbox on a server. Damage is the server's own to find and mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._postgres.tallies import totals
from meter_lib.errors import OutboxUnavailable
from meter_lib.upkeep import Inspection

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_lib._postgres.server import Server
    from meter_lib._postgres.session import Session
    from meter_lib.upkeep import Taken

__all__ = ["PostgresInspection"]


class PostgresInspection:
    """The part of an outbox on a server that looks it through."""

    def __init__(self, server: Server, session: Session) -> None:
        self._server = server
        self._session = session

    def inspect(self, *, seconds: float) -> Inspection:
        """Count all events; see `Upkeep.inspect`. Raises where there is not the time for it."""
        with self._session.read() as cursor:
            cursor.execute(
                "SELECT set_config('statement_timeout', %s, true), version()",
                (f"{max(1, round(seconds * 1000))}ms",),
            )
            [(_, engine)] = cursor.fetchall()
            cursor.execute(
                """
                SELECT count(*) FILTER (WHERE state <> 'dead'),
                       count(*) FILTER (WHERE state = 'dead')
                FROM meter_lib.events
                """
            )
            [(pending, dead)] = cursor.fetchall()
            in_all = totals(cursor)
        return Inspection(
            engine=" ".join(str(engine).split()[:2]),
            method="all events counted; pages are the server's to check",
            is_complete=True,
            problems=[],
            accepted=in_all.accepted,
            pending=pending,
            dead=dead,
            delivered=in_all.delivered,
            removed=in_all.removed,
        )

    def salvage(self) -> bool:
        """Set nothing aside: where a server's tables are damaged, its own tools mend them."""
        return False

    def take_over(self, path: str, *, progress: Callable[[int, int], object]) -> Taken:  # noqa: ARG002  # of the port
        """Raise `OutboxUnavailable`: files are taken over into an outbox that is a file."""
        raise OutboxUnavailable(
            f"{path} cannot be taken over into {self._server.location}: salvage it into an outbox"
            " that is a file, and let a worker deliver that"
        )
