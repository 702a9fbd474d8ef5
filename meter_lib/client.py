"""`MeterClient`: recording usage, with exceptions for whatever goes wrong."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.errors import InvalidUsage, InvalidUsageType, KeyConflict
from meter_lib.meters import warn_once_if_unknown
from meter_lib.opening import open_recorder
from meter_lib.pool import in_thread
from meter_lib.settings import Settings
from meter_lib.usage import session_event, shown, usage_event, usage_event_from

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from meter_lib.clock import Clock, Uptime
    from meter_lib.recording import Receipt
    from meter_lib.usage import UsageEvent

__all__ = ["MeterClient"]


class MeterClient:
    """Records usage events in an outbox. Thread-safe; any number of processes may share one.

    `outbox` is the path of the outbox file, or the URL of a PostgreSQL database, and wins over
    `settings.outbox`; with
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
        self._outbox = open_recorder(self.settings)
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
        connection: object = None,
    ) -> Receipt:
        """Record one event and return its receipt; on return it is on the disk.

        Times are milliseconds since the Unix epoch. The receipt's status is
        `duplicate` where `idempotency_key` is known already with the same content:
        then nothing was added. Raises `InvalidUsage` or `InvalidUsageType` for a wrong
        argument, `KeyConflict` for a known key with other content, and
        `OutboxUnavailable` where the outbox cannot take it; after each of these the
        event is not in the outbox, neither now nor later.

        With `connection`, a `sqlite3.Connection` to the file of the outbox, or a
        `psycopg.Connection` to the server that it is on, the event is recorded in the
        transaction that is open there: the receipt holds once the caller commits, and not
        before. Where this raises, that transaction can go on. On a file, all other posts wait
        until it ends (10 s at most), and the connection makes no checkpoints any more.
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
        if connection is not None:
            return self._append_within(connection, event)
        return self._append([event])[0]

    def post_many(self, events: Iterable[Mapping[str, object]]) -> list[Receipt]:
        """Record all of these events in one commit, or none, and return their receipts in order.

        Each is a mapping with the argument names of `post`. The error for a bad one
        names its index, from 0. Raises as `post` does.
        """
        checked = _checked(events)
        if not checked:
            return []
        with _naming_the_event():
            return self._append(checked)

    @contextlib.contextmanager
    def session(self, tenant_id: str, device_id: str, meter_id: str) -> Generator[Receipt]:
        """Record the start of use on entry and its end on exit, as two events.

        The end is recorded however the block is left. Yields the receipt of the
        start. Raises as `post` does; where the start cannot be recorded the block is
        not run. The time between both is what has passed, whatever happens to the wall clock.
        """
        ids = tenant_id, device_id, meter_id
        stopwatch = _Stopwatch(self._clock)
        started = self._append([session_event(*ids, start_time=stopwatch.start_time)])
        try:
            yield started[0]
        finally:
            self._append([session_event(*ids, end_time=stopwatch.end_time())])

    async def apost(
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
        """Record one event as `post` does, without blocking the event loop."""
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
        return (await in_thread(self._appending([event])))[0]

    async def apost_many(self, events: Iterable[Mapping[str, object]]) -> list[Receipt]:
        """Record events in one commit as `post_many` does, without blocking the event loop."""
        checked = _checked(events)
        if not checked:
            return []
        with _naming_the_event():
            return await in_thread(self._appending(checked))

    @contextlib.asynccontextmanager
    async def asession(
        self, tenant_id: str, device_id: str, meter_id: str
    ) -> AsyncGenerator[Receipt]:
        """Record start and end of use as `session` does, without blocking the event loop.

        Where the task is cancelled on entry and the start is recorded all the same, so is
        the end.
        """
        ids = tenant_id, device_id, meter_id
        stopwatch = _Stopwatch(self._clock)
        append = self._appending([session_event(*ids, start_time=stopwatch.start_time)])
        started: list[Receipt] = []
        try:
            await in_thread(lambda: started.extend(append()))
            yield started[0]
        finally:
            if started:
                end = session_event(*ids, end_time=stopwatch.end_time())
                await in_thread(self._appending([end]))

    def close(self) -> None:
        """Let go of the outbox. Nothing has to be flushed: every receipt stands for a commit."""
        self._outbox.close()

    async def aclose(self) -> None:
        """Let go of the outbox as `close` does, without blocking the event loop."""
        await in_thread(self._outbox.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"MeterClient(outbox={self._outbox.location!r})"

    def _append(self, events: list[UsageEvent]) -> list[Receipt]:
        return self._append_at(events, self._clock.now(), self._clock.uptime())

    def _appending(self, events: list[UsageEvent]) -> Callable[[], list[Receipt]]:
        """Return what records these events, as having happened now, whenever it is called."""
        now, uptime = self._clock.now(), self._clock.uptime()
        return lambda: self._append_at(events, now, uptime)

    def _append_within(self, connection: object, event: UsageEvent) -> Receipt:
        [receipt] = self._outbox.append_within(
            connection, [event], now=self._clock.now(), uptime=self._clock.uptime()
        )
        warn_once_if_unknown(event.meter_id)
        return receipt

    def _append_at(self, events: list[UsageEvent], now: int, uptime: Uptime) -> list[Receipt]:
        receipts = self._outbox.append(events, now=now, uptime=uptime)
        for event in events:
            warn_once_if_unknown(event.meter_id)
        return receipts


class _Stopwatch:
    """Tells when use began and ends. How long it lasted is billed: no wall clock changes that."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.start_time = clock.now()
        self._began_at = clock.uptime().milliseconds

    def end_time(self) -> int:
        """Return the start plus what has passed, in milliseconds."""
        return self.start_time + self._clock.uptime().milliseconds - self._began_at


def _checked(events: Iterable[Mapping[str, object]]) -> list[UsageEvent]:
    checked: list[UsageEvent] = []
    try:
        each = iter(events)
    except TypeError:
        raise InvalidUsageType(
            f"events is {shown(events)}: it must be an iterable of mappings, one an event"
        ) from None
    for index, arguments in enumerate(each):
        try:
            checked.append(usage_event_from(arguments))
        except (InvalidUsage, InvalidUsageType) as error:
            raise type(error)(f"event {index}: {error}") from error
    return checked


@contextlib.contextmanager
def _naming_the_event() -> Generator[None]:
    try:
        yield
    except KeyConflict as error:
        raise KeyConflict(f"event {error.index}: {error}", index=error.index) from error
