"""The outbox on a PostgreSQL server, shared by posters and workers on any number of hosts.

Needs the extra `postgres`; imported only where the outbox is such a URL.
"""

from __future__ import annotations

from meter_lib._postgres.audit import PostgresAudit
from meter_lib._postgres.delivery import PostgresDelivery
from meter_lib._postgres.inspection import PostgresInspection
from meter_lib._postgres.operations import PostgresOperations
from meter_lib._postgres.recorder import PostgresRecorder
from meter_lib._postgres.server import Server
from meter_lib._postgres.session import Session

__all__ = ["PostgresOutbox"]


class PostgresOutbox(
    PostgresRecorder, PostgresDelivery, PostgresOperations, PostgresInspection, PostgresAudit
):
    """All parts over one database. See `meter_lib.outbox` for what each method promises.

    Nothing is connected before the first use. Posts and operators share a connection, which may
    lead through a pooler; delivery has its own, which may not. Raises `InvalidSetting` for a
    URL that names no server. Not `shared`, it has one flusher at a time.
    """

    def __init__(
        self,
        url: str,
        *,
        max_bytes: int,
        durability: str = "full",
        read_only: bool = False,
        shared: bool = True,
    ) -> None:
        server = Server(url)
        session = Session(server, durability=durability, read_only=read_only)
        work = Session(server, read_only=read_only)
        PostgresRecorder.__init__(self, server, session, max_bytes=max_bytes)
        # One key per KiB of the limit, as in a file.
        PostgresDelivery.__init__(
            self, server, work, remembered_keys=max_bytes // 1024, shared=shared
        )
        PostgresOperations.__init__(self, server, session, max_bytes=max_bytes)
        PostgresInspection.__init__(self, server, session)
        PostgresAudit.__init__(self, session)
        self._location = server.location

    @property
    def location(self) -> str:
        """Return the URL, less whatever may be secret in it."""
        return self._location

    def try_hold(self) -> bool:
        """Hold a fair share of the streams, or return False; see `Delivery.try_hold`.

        Whoever waited for a mover may find another outbox, with a name of its own, or none:
        then `OutboxMoved` says where it is.
        """
        is_held = super().try_hold()
        if is_held:
            self._session.look_again()
            self._session.life()
        return is_held

    def close(self) -> None:
        """Let go of the connections and of the hold."""
        self.release()
        self._session.close()
        self._work.close()
