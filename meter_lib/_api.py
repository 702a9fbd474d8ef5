"""The two functions of the original library and their twins, over a client made on first use."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meter_lib.client import MeterClient
from meter_lib.errors import InvalidSetting, OutboxUnavailable
from meter_lib.settings import outbox_in_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_lib.recording import Receipt

__all__ = [
    "REFUSALS",
    "apost_ai_meter_usage",
    "apost_meter_usage",
    "default_client",
    "log_refusal",
    "post_ai_meter_usage",
    "post_meter_usage",
]

# What is logged, and not raised: that no fault of an outbox stops the program that is metered.
REFUSALS = (OutboxUnavailable, InvalidSetting)

_logger = logging.getLogger("meter_lib")
_clients: dict[str, MeterClient] = {}
_delivery_arguments_named = False


def post_meter_usage(
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
    kafka_url: object = None,
    portal_url: object = None,
    api_key: object = None,
) -> Receipt | None:
    """Record usage durably and return the receipt; needs no network, ever.

    `total_usage` is in the meter's units; times are milliseconds since the Unix epoch.
    At least one of `total_usage`, `start_time` and `end_time` is required. When this
    returns a receipt, the event is on the disk and will be delivered, once for billing.

    Returns None, and logs the reason at ERROR, where the outbox cannot take the event
    (disk full, limit reached, locked, unreadable, or a setting that is refused). Raises
    `InvalidUsage` (a ValueError) or `InvalidUsageType` (a TypeError) for a wrong
    argument. In all these cases the event is not in the outbox, neither now nor later.

    `kafka_url`, `portal_url` and `api_key` are taken as later releases of the original
    library had them, and not used: the worker that delivers has them from its settings.
    """
    if kafka_url is not None or portal_url is not None or api_key is not None:
        _name_the_settings()
    try:
        return default_client().post(
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
    except REFUSALS as error:
        log_refusal(error)
        return None


def post_ai_meter_usage(
    tenant_id: str,
    device_id: str,
    meter_id: str,
    start_time: int | None = None,
    end_time: int | None = None,
    *,
    metadata: Mapping[str, str | bool | int | float] | None = None,
    idempotency_key: str | None = None,
    kafka_url: object = None,
    portal_url: object = None,
    api_key: object = None,
) -> Receipt | None:
    """Record the start or the end of a session; otherwise as `post_meter_usage`."""
    return post_meter_usage(
        tenant_id,
        device_id,
        meter_id,
        start_time=start_time,
        end_time=end_time,
        metadata=metadata,
        idempotency_key=idempotency_key,
        kafka_url=kafka_url,
        portal_url=portal_url,
        api_key=api_key,
    )


async def apost_meter_usage(
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
) -> Receipt | None:
    """Record usage as `post_meter_usage` does, without blocking the event loop.

    Where the task is cancelled after this has begun, the event is recorded all the same, or
    the log tells at ERROR why not; only then does the task go on being cancelled.
    """
    try:
        return await default_client().apost(
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
    except REFUSALS as error:
        log_refusal(error)
        return None


async def apost_ai_meter_usage(
    tenant_id: str,
    device_id: str,
    meter_id: str,
    start_time: int | None = None,
    end_time: int | None = None,
    *,
    metadata: Mapping[str, str | bool | int | float] | None = None,
    idempotency_key: str | None = None,
) -> Receipt | None:
    """Record the start or the end of a session; otherwise as `apost_meter_usage`."""
    return await apost_meter_usage(
        tenant_id,
        device_id,
        meter_id,
        start_time=start_time,
        end_time=end_time,
        metadata=metadata,
        idempotency_key=idempotency_key,
    )


def log_refusal(error: Exception) -> None:
    """Say why the outbox did not take an event."""
    _logger.error(
        "usage was not recorded: %s",
        error,
        extra={"event": "usage_not_recorded", "detail": str(error)},
    )


def default_client() -> MeterClient:
    """Return the client of the outbox that the environment names now."""
    # By what the environment names, so that a program (or its tests) may change it.
    named = outbox_in_environment()
    client = _clients.get(named)
    if client is None:
        # No lock, which a fork could leave held: a client that loses the race has opened nothing.
        client = _clients.setdefault(named, MeterClient())
    return client


def _name_the_settings() -> None:
    global _delivery_arguments_named  # noqa: PLW0603  # said once a process
    if not _delivery_arguments_named:
        _delivery_arguments_named = True
        _logger.warning(
            "kafka_url, portal_url and api_key are not used when usage is recorded: the worker "
            "delivers by METER_STREAM_URL, METER_PORTAL_URL and METER_API_KEY",
            extra={"event": "arguments_unused"},
        )
