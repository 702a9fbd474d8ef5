"""The part of the port `Outbox` that takes events in."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

from meter_lib.clock import Uptime
from meter_lib.usage import UsageEvent

__all__ = ["Receipt", "Recorder"]


class Receipt(TypedDict):
    """What a poster gets once its event is durable."""

    status: str
    """`queued`, or `duplicate` where the caller's own key was known with the same content."""
    idempotency_key: str
    event_time: int


class Recorder(Protocol):
    """The part that takes events in."""

    @property
    def location(self) -> str:
        """Return where it is, in words fit for a log: no secrets."""
        ...

    def close(self) -> None:
        """Let go of files and locks; everything accepted is on disk. May be called twice."""
        ...

    def append(
        self, events: Sequence[UsageEvent], *, now: int, uptime: Uptime | None = None
    ) -> list[Receipt]:
        """Record all of `events` or none, in their order, and return a receipt for each.

        On return they are durable: synced to the disk, as the durability asked for
        has it. `now` becomes the event time of those that name none; with the `uptime` of
        the same moment, it can be corrected as long as the boot lasts, should the clock
        turn out to be wrong. Raises `KeyConflict` where a caller's key is known with other
        content, and `OutboxFull` at the limit.
        """
        ...

    def append_within(
        self,
        connection: object,
        events: Sequence[UsageEvent],
        *,
        now: int,
        uptime: Uptime | None = None,
    ) -> list[Receipt]:
        """Record all of `events` or none in the transaction that the caller has open there.

        Once the caller commits they are recorded, and as durable as that commit; if not, never.
        Where this raises, the transaction is as before, and can go on. Raises
        `InvalidUsageType` or `InvalidUsage` for a connection that no event can be recorded
        by, else as `append` does.
        """
        ...
