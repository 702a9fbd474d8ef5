"""`MeterClient`: recording usage, with exceptions for whatever goes wrong."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.errors import InvalidUsage, InvalidUsageType, KeyConflict
from meter_lib.meters import warn_once_if_unknown
from meter_lib.opening import open_outbox
from meter_lib.settings import Settings
from meter_lib.usage import session_event, usage_event, usage_event_from

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from meter_lib.clock import Clock
    from meter_lib.outbox import Receipt
    from meter_lib.usage import UsageEvent

__all__ = ["MeterClient"]


class MeterClient:
    """Records usage events in an outbox. Thread-safe; any number of processes may share one.

    `outbox` is the path of the outbox file and wins over `settings.outbox`; with
    neither, the settings come from the environment. Nothing is opened before the
    first post. Raises `InvalidSetting`, and `OutboxUnavailable` for a path on a network
    file system.
    """

    def __init__(
        self,
        outbox: str | os.PathLike[str] | None = None,
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = (settings or Settings.load(delivers=False)).with_outbox(outbox)
        self._outbox = open_outbox(self.settings)
        self._clock = clock or SystemClock()

    def post(
        self,
        tenant_id: str,
        device_id: str,
        meter_id: str,
        total_usage: int | None = None,
        start_time: int | None = None,
        end_time: int | None = None,
        *,
        timestamp: int | None = None,
        metadata: Mapping[str, str | bool | int | float] | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Record one event and return its receipt; on return it is on the disk.

        Times are milliseconds since the Unix epoch. The receipt's status is
        `duplicate` where `idempotency_key` is known already with the same content:
        then nothing was added. Raises `InvalidUsage` or `InvalidUsageType` for a wrong
        argument, `KeyConflict` for a known key with other content, and
        `OutboxUnavailable` where the outbox cannot take it; after each of these the
        event is not in the outbox, neither now nor later.
        """
        event = usage_event(
            tenant_id,
            device_id,
            meter_id,
            total_usage,
            start_time,
            end_time,
            timestamp=timestamp,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return self._append([event])[0]

    def post_many(self, events: Iterable[Mapping[str, object]]) -> list[Receipt]:
        """Record all of these events in one commit, or none, and return their receipts in order.

        Each is a mapping with the argument names of `post`. The error for a bad one
        names its index, from 0. Raises as `post` does.
        """
        checked: list[UsageEvent] = []
        for index, arguments in enumerate(events):
            try:
                checked.append(usage_event_from(arguments))
            except (InvalidUsage, InvalidUsageType) as error:
                raise type(error)(f"event {index}: {error}") from error
        if not checked:
            return []
        try:
            return self._append(checked)
        except KeyConflict as error:
            raise KeyConflict(f"event {error.index}: {error}", index=error.index) from error

    @contextlib.contextmanager
    def session(self, tenant_id: str, device_id: str, meter_id: str) -> Generator[Receipt]:
        """Record the start of use on entry and its end on exit, as two events.

        The end is recorded however the block is left. Yields the receipt of the
        start. Raises as `post` does; where the start cannot be recorded the block is
        not run. The time between both is what has passed, whatever happens to the wall clock.
        """
        ids = tenant_id, device_id, meter_id
        start_time, began_at = self._clock.now(), self._clock.uptime().milliseconds
        started = self._append([session_event(*ids, start_time=start_time)])
        try:
            yield started[0]
        finally:
            # How long it lasted is what is billed: no setting of the wall clock changes that.
            lasted = self._clock.uptime().milliseconds - began_at
            self._append([session_event(*ids, end_time=start_time + lasted)])

    def close(self) -> None:
        """Let go of the outbox. Nothing has to be flushed: every receipt stands for a commit."""
        self._outbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MeterClient(outbox={self._outbox.location!r})"

    def _append(self, events: list[UsageEvent]) -> list[Receipt]:
        receipts = self._outbox.append(events, now=self._clock.now(), uptime=self._clock.uptime())
        for event in events:
            warn_once_if_unknown(event.meter_id)
        return receipts
