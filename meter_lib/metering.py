"""`metered`: functions whose calls are usage."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from meter_lib._api import (
    REFUSALS,
    apost_meter_usage,
    default_client,
    log_refusal,
    post_meter_usage,
)
from meter_lib.errors import InvalidUsage, InvalidUsageType
from meter_lib.meters import METERS
from meter_lib.usage import session_event, shown, usage_event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from meter_lib.client import MeterClient

__all__ = ["metered"]

F = TypeVar("F", bound=Callable[..., Any])  # Any: whatever is metered


def metered(
    tenant_id: str,
    device_id: str,
    meter_id: str,
    *,
    units: int | Callable[[Any], int] | None = None,
    client: MeterClient | None = None,
) -> Callable[[F], F]:
    """Meter each call of a function, plain or `async`; an `async` one never blocks its loop.

    With `units`, a call that returns is one event of so many units: a number, or what a
    function makes of the call's result, such as `len`. A call that raises is none. Without
    `units` a call is metered by its time, from its start to its end however it ends, as
    `MeterClient.session` does.

    Where the outbox cannot take an event, that is logged at ERROR and the call goes on. With
    a `client`, its errors are raised instead: before the call where its start cannot be
    recorded, else in place of its result.

    Raises `InvalidUsage` or `InvalidUsageType` for a wrong argument where it is applied, and
    in place of a result for which `units` gives no right number.
    """
    if units is not None and not callable(units):
        usage_event(tenant_id, device_id, meter_id, units)
    else:
        session_event(tenant_id, device_id, meter_id, start_time=0)
    if units is None and any(m.id == meter_id and m.type == "volume" for m in METERS):
        raise InvalidUsage(
            f"units must be given for {shown(meter_id)}, which counts them: a number for each"
            f" call, or a function of its result"
        )
    use = _Use((tenant_id, device_id, meter_id), units, client)

    def decorate(function: F) -> F:
        import inspect  # noqa: PLC0415  # needed by those who decorate only

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidUsageType(
                f"{function.__qualname__} is a generator, which has done nothing yet when its call"
                f" returns: use MeterClient.session within it"
            )

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def acall(*args: Any, **kwargs: Any) -> Any:  # Any: those of the function
                return await use.acall(function, args, kwargs)

            return cast("F", acall)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:  # Any: as above
            return use.call(function, args, kwargs)

        return cast("F", call)

    return decorate


class _Use:
    """What is metered, and through what."""

    def __init__(
        self,
        ids: tuple[str, str, str],
        units: int | Callable[[Any], int] | None,
        client: MeterClient | None,
    ) -> None:
        self._ids = ids
        self._units = units
        self._post = client.post if client else post_meter_usage
        self._apost = client.apost if client else apost_meter_usage
        self._session = client.session if client else _session
        self._asession = client.asession if client else _asession

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call, and meter it."""
        if self._units is None:
            with self._session(*self._ids):
                return function(*args, **kwargs)
        result = function(*args, **kwargs)
        self._post(*self._ids, self._units(result) if callable(self._units) else self._units)
        return result

    async def acall(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call of a coroutine function, and meter it."""
        if self._units is None:
            async with self._asession(*self._ids):
                return await function(*args, **kwargs)
        result = await function(*args, **kwargs)
        await self._apost(*self._ids, self._units(result) if callable(self._units) else self._units)
        return result


@contextlib.contextmanager
def _session(*ids: str) -> Generator[None]:
    """A session that is not recorded, and goes on, where the outbox cannot take it."""
    end = contextlib.ExitStack()
    with _refusals_logged():
        end.enter_context(default_client().session(*ids))
    try:
        yield
    finally:
        with _refusals_logged():
            end.close()


@contextlib.asynccontextmanager
async def _asession(*ids: str) -> AsyncGenerator[None]:
    end = contextlib.AsyncExitStack()
    with _refusals_logged():
        await end.enter_async_context(default_client().asession(*ids))
    try:
        yield
    finally:
        with _refusals_logged():
            await end.aclose()


@contextlib.contextmanager
def _refusals_logged() -> Generator[None]:
    try:
        yield
    except REFUSALS as error:
        log_refusal(error)
