"""From settings to the outbox they name: the one place that knows which stores there are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from meter_lib._sqlite.database import Database
from meter_lib._sqlite.recorder import SqliteRecorder
from meter_lib.errors import InvalidSetting
from meter_lib.file_systems import refuse_network
from meter_lib.setting_values import is_server_url

if TYPE_CHECKING:
    from collections.abc import Generator

    from meter_lib.moving import Arriving, Leaving
    from meter_lib.outbox import Outbox
    from meter_lib.recording import Recorder
    from meter_lib.settings import Settings

__all__ = ["open_arriving", "open_leaving", "open_outbox", "open_recorder"]


def open_recorder(settings: Settings) -> Recorder:
    """Return the part of the outbox that takes events in; of a file, no other part is loaded.

    It is opened, or made, on first use. Raises as `open_outbox` does.
    """
    if is_server_url(settings.outbox):
        return _on_server(settings, read_only=False)
    if not settings.allow_network_fs:
        refuse_network(settings.outbox)
    database = Database(
        settings.outbox, max_bytes=settings.max_bytes, durability=settings.durability
    )
    return SqliteRecorder(database, drops_oldest=settings.when_full == "drop-oldest")


def open_outbox(settings: Settings, *, read_only: bool = False) -> Outbox:
    """Return the outbox that the settings name; it is opened, or made, on first use.

    With `read_only` nothing is made or changed, and what is not there raises
    `OutboxMissing` on first use. Raises `OutboxUnavailable` at once for a file on a network
    file system, unless it is only read or the settings allow it, and `InvalidSetting` for a
    server where that cannot be.
    """
    if is_server_url(settings.outbox):
        return _on_server(settings, read_only=read_only)
    if not (read_only or settings.allow_network_fs):
        refuse_network(settings.outbox)
    from meter_lib._sqlite.outbox import SqliteOutbox  # noqa: PLC0415  # no post needs it

    return SqliteOutbox(
        settings.outbox,
        max_bytes=settings.max_bytes,
        durability=settings.durability,
        read_only=read_only,
        drops_oldest=settings.when_full == "drop-oldest",
    )


def open_leaving(settings: Settings) -> Leaving:
    """Return the store that the outbox of these settings moves from; it is opened on first use.

    Raises `InvalidSetting` for a server where that cannot be.
    """
    if is_server_url(settings.outbox):
        with _driver_needed():
            from meter_lib._postgres.leaving import PostgresLeaving  # noqa: PLC0415  # of an extra
            from meter_lib._postgres.server import Server  # noqa: PLC0415  # of an extra
        return PostgresLeaving(Server(settings.outbox))
    from meter_lib._sqlite.leaving import SqliteLeaving  # noqa: PLC0415  # hardly ever needed

    return SqliteLeaving(settings.outbox, max_bytes=settings.max_bytes)


def open_arriving(settings: Settings) -> Arriving:
    """Return the store that an outbox moves to; it is opened, or made, on first use.

    Raises `OutboxUnavailable` for a network file system, as `open_outbox` does, and
    `InvalidSetting` for a server where that cannot be.
    """
    if is_server_url(settings.outbox):
        with _driver_needed():
            from meter_lib._postgres.arriving import PostgresArriving  # noqa: PLC0415  # as above
            from meter_lib._postgres.server import Server  # noqa: PLC0415  # as above
        return PostgresArriving(Server(settings.outbox), max_bytes=settings.max_bytes)
    from meter_lib._sqlite.arriving import SqliteArriving  # noqa: PLC0415  # as above

    if not settings.allow_network_fs:
        refuse_network(settings.outbox)
    return SqliteArriving(settings.outbox, max_bytes=settings.max_bytes)


def _on_server(settings: Settings, *, read_only: bool) -> Outbox:
    with _driver_needed():
        # Of an extra, and whoever records in a file need not wait for it.
        from meter_lib._postgres import PostgresOutbox  # noqa: PLC0415  # see above
    if settings.when_full != "refuse":
        raise InvalidSetting(
            f"METER_WHEN_FULL (when_full) is {settings.when_full!r}: with an outbox on a"
            " PostgreSQL server it must be refuse"
        )
    return PostgresOutbox(
        settings.outbox,
        max_bytes=settings.max_bytes,
        durability=settings.durability,
        read_only=read_only,
        # A broker takes one producer for each outbox: of two, the later shuts out the earlier.
        shared=settings.sink == "rest",
    )


@contextlib.contextmanager
def _driver_needed() -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "psycopg":
            raise
        raise InvalidSetting(
            "METER_OUTBOX (outbox) names a PostgreSQL server, which needs the extra 'postgres':"
            " pip install 'meter-lib[postgres]'"
        ) from error
