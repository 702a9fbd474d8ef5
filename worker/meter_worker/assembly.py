"""From settings to a flusher: the one place where concrete classes meet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_worker.accounts import CustomerAccounts
from meter_worker.flush_loop import FlushLoop
from meter_worker.flusher import Flusher
from meter_worker.http_link import HttpLink
from meter_worker.links import LinkKeeper
from meter_worker.rest_backend import RestAccounts, RestBackend
from meter_worker.retry_policy import RetryPolicy

if TYPE_CHECKING:
    from meter_lib.settings import Settings

__all__ = ["NOT_USED_YET", "flush_loop"]

_logger = logging.getLogger("meter_worker")

# Checked like all settings, so that a slip shows at once; no part of this version asks for them.
NOT_USED_YET = (
    "dedupe_window",
    "dialect",
    "max_in_flight",
    "rate",
    "reconnect_spread",
    "when_full",
)


def flush_loop(settings: Settings) -> FlushLoop:
    """Return the loop that delivers by these settings. Nothing is opened or connected yet."""
    for field in NOT_USED_YET:
        if settings.origins[field] != "default":
            _logger.warning("METER_%s is set, but this version does not use it", field.upper())
    clock = SystemClock()
    outbox = open_outbox(settings)
    policy = RetryPolicy(
        base_seconds=settings.backoff_base,
        max_seconds=settings.backoff_max,
    )
    backend = RestBackend(
        _http_link(settings, settings.stream_token),
        stream_url=settings.stream_url,
        topic=settings.topic,
        compression=settings.compression,
        clock=clock,
    )
    if settings.portal_url is not None:
        accounts_api = RestAccounts(
            _http_link(settings, settings.api_key),
            base_url=f"{settings.portal_url}/metering",
            clock=clock,
        )
    else:
        accounts_api = RestAccounts(
            _http_link(settings, None), base_url=settings.accounts_url, clock=clock
        )

    def link(name: str) -> LinkKeeper:
        return LinkKeeper(outbox, name, policy, longest_wait_seconds=settings.backoff_max)

    accounts = CustomerAccounts(
        outbox,
        accounts_api,
        link("accounts"),
        policy,
        ttl_seconds=settings.account_ttl,
        clock=clock,
    )
    flusher = Flusher(
        outbox,
        backend,
        accounts,
        link("events"),
        policy,
        clock,
        batch_size=settings.batch_size,
        batch_bytes=settings.batch_bytes,
        max_attempts=settings.max_attempts,
    )
    return FlushLoop(
        outbox,
        flusher,
        clock,
        interrupt=(backend.interrupt, accounts_api.interrupt),
        poll_seconds=settings.poll_interval,
    )


def _http_link(settings: Settings, token: str | None) -> HttpLink:
    return HttpLink(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        token=token,
        ca_bundle=settings.ca_bundle,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
    )
