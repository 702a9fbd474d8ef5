"""From settings to the outbox they name: the one place that knows which stores there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib._sqlite import SqliteOutbox
from meter_lib.file_systems import refuse_network

if TYPE_CHECKING:
    from meter_lib.moving import Arriving, Leaving
    from meter_lib.outbox import Outbox
    from meter_lib.settings import Settings

__all__ = ["open_arriving", "open_leaving", "open_outbox"]


def open_outbox(settings: Settings, *, read_only: bool = False) -> Outbox:
    """Return the outbox that the settings name; its file is opened, or made, on first use.

    With `read_only` nothing is made or changed, and what is not there raises
    `OutboxMissing` on first use. Raises `OutboxUnavailable` at once for a file on a network
    file system, unless it is only read or the settings allow it.
    """
    if not (read_only or settings.allow_network_fs):
        refuse_network(settings.outbox)
    return SqliteOutbox(
        settings.outbox,
        max_bytes=settings.max_bytes,
        durability=settings.durability,
        read_only=read_only,
        drops_oldest=settings.when_full == "drop-oldest",
    )


def open_leaving(settings: Settings) -> Leaving:
    """Return the store that the outbox of these settings moves from; it is opened on first use."""
    from meter_lib._sqlite.leaving import SqliteLeaving  # noqa: PLC0415  # hardly ever needed

    return SqliteLeaving(settings.outbox, max_bytes=settings.max_bytes)


def open_arriving(settings: Settings) -> Arriving:
    """Return the store that an outbox moves to; it is opened, or made, on first use.

    Raises `OutboxUnavailable` for a network file system, as `open_outbox` does.
    """
    from meter_lib._sqlite.arriving import SqliteArriving  # noqa: PLC0415  # as above

    if not settings.allow_network_fs:
        refuse_network(settings.outbox)
    return SqliteArriving(settings.outbox, max_bytes=settings.max_bytes)
