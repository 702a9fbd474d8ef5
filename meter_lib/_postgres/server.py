"""Where an outbox is on a server: its URL, how it is shown, how a connection to it is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from meter_lib.errors import InvalidSetting, OutboxFull, OutboxUnavailable
from meter_lib.setting_values import without_password

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

__all__ = ["Server", "worker_name", "worker_pid"]

# What the URL may say otherwise. A dead server or network is noticed in half a minute.
_USUAL: dict[str, int | str] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # For what was sent and not acknowledged: nothing is kept alive meanwhile.
    "tcp_user_timeout": 25_000,
    "application_name": "meter-lib",
}
_LONGEST_MESSAGE = 300
# PostgreSQL cuts an application_name at 63 bytes.
_LONGEST_HOST_NAME = 30


class Server:
    """A database on a PostgreSQL server. Nothing is connected yet.

    Raises `InvalidSetting` for a URL that names none.
    """

    def __init__(self, url: str) -> None:
        self.location = without_password(url)
        """The URL, less whatever may be secret in it."""
        try:
            said = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            said = None
        # Where a password is not percent-encoded, a part of it is taken for host or port, and
        # would be quoted. Outside of the handler, since the driver's message does that too.
        if said is None or "@" in str(said.get("host")) or not _is_port(said.get("port")):
            raise InvalidSetting(
                f"METER_OUTBOX (outbox) is {self.location!r}: it must be a URL like"
                " postgresql://user:password@host:5432/database, with what is no letter or digit"
                " in user and password percent-encoded"
            )
        usual = {name: value for name, value in _USUAL.items() if name not in said}
        self._conninfo = make_conninfo(url, **usual, client_encoding="utf8")

    def connect(self) -> Connection[TupleRow]:
        """Return a new connection, each statement a transaction unless one is begun."""
        # Nothing is prepared on the server: behind a pooler the next statement may meet another.
        connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
        # Whatever the database has as its default: what others commit meanwhile is no error.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return connection

    def translation(self, error: psycopg.Error) -> OutboxUnavailable:
        """The error of the driver in our words; what was asked for has not happened."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = f"{self.location}: {lines[0][:_LONGEST_MESSAGE]}"
        if isinstance(error, psycopg.errors.DiskFull):
            return OutboxFull(f"{message}; nothing was recorded")
        if isinstance(error, psycopg.errors.LockNotAvailable):
            message += ": another transaction, which may be recording the same key, has not ended"
        return OutboxUnavailable(message)


def _is_port(said: object) -> bool:
    # One for each host, or one for all, or none.
    return said is None or all(port.isdigit() for port in str(said).split(",") if port)


def worker_name() -> str:
    """What a worker's connection is called on the server: its process, and on which host."""
    return f"meter-lib worker {os.getpid()}@{os.uname().nodename[:_LONGEST_HOST_NAME]}"


def worker_pid(name: str | None) -> int:
    """The process of a worker with that name, 0 where it is on another host or unknown."""
    process, _, host = (name or "").removeprefix("meter-lib worker ").partition("@")
    is_here = host == os.uname().nodename[:_LONGEST_HOST_NAME]
    return int(process) if is_here and process.isdigit() else 0
