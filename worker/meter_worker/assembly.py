"""From settings to a flusher: the one place where concrete classes meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.clock import SystemClock
from meter_lib.errors import InvalidSetting
from meter_lib.opening import open_outbox
from meter_worker.accounts import CustomerAccounts
from meter_worker.arrivals import Arrivals
from meter_worker.clock_watch import ClockWatch
from meter_worker.departures import Departures
from meter_worker.flush_loop import FlushLoop
from meter_worker.flusher import Flusher
from meter_worker.http_link import HttpLink
from meter_worker.links import LinkKeeper
from meter_worker.observed import ObservedBackend
from meter_worker.pace import Pace
from meter_worker.payers import Payers
from meter_worker.rest_backend import RestAccounts, RestBackend
from meter_worker.retry_policy import RetryPolicy

if TYPE_CHECKING:
    from meter_lib.clock import Clock
    from meter_lib.outbox import Delivery
    from meter_lib.settings import Settings
    from meter_worker.backend import AccountsApi, Backend
    from meter_worker.observed import Observe

__all__ = ["destination", "flush_loop", "flusher_over"]


def flush_loop(settings: Settings, *, observe: Observe | None = None) -> FlushLoop:
    """Return the loop that delivers by these settings. Nothing is opened or connected yet.

    `observe` is told of each request to the backend. Raises `InvalidSetting` where METER_SINK
    asks for what is not installed, or METER_KAFKA_CONFIG is wrong.
    """
    clock = SystemClock()
    outbox = open_outbox(settings)
    backend = _backend(settings, clock)
    if observe is not None:
        backend = ObservedBackend(backend, observe)
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

    return FlushLoop(
        outbox,
        lambda: flusher_over(settings, outbox, backend, accounts_api, clock),
        clock,
        interrupt=(backend.interrupt, accounts_api.interrupt),
        poll_seconds=settings.poll_interval,
    )


def destination(settings: Settings) -> str:
    """Return where events go by these settings, in a URL."""
    if settings.sink != "rest":
        return settings.sink
    return f"{settings.stream_url}/topics/{settings.topic}"


def flusher_over(
    settings: Settings,
    outbox: Delivery,
    backend: Backend,
    accounts_api: AccountsApi,
    clock: Clock,
) -> Flusher:
    """Return the flusher that delivers from this outbox to these peers, by these settings."""
    # A producer has one transaction at a time, and what it has stored is settled before the next.
    goes_on = settings.sink == "rest"
    max_in_flight = settings.max_in_flight if goes_on else 1
    policy = RetryPolicy(
        base_seconds=settings.backoff_base,
        max_seconds=settings.backoff_max,
    )

    def link(name: str) -> LinkKeeper:
        return LinkKeeper(
            outbox,
            name,
            policy,
            longest_wait_seconds=settings.backoff_max,
            spread_seconds=settings.reconnect_spread,
        )

    accounts = CustomerAccounts(
        outbox,
        link("accounts"),
        policy,
        ttl_seconds=settings.account_ttl,
        longest_wait_seconds=settings.backoff_max,
        clock=clock,
    )
    pace = Pace(
        batch_size=settings.batch_size, batch_bytes=settings.batch_bytes, rate=settings.rate
    )
    payers = Payers(outbox, accounts, max_attempts=settings.max_attempts)
    departures = Departures(
        outbox,
        payers,
        pace,
        max_in_flight=max_in_flight,
        max_attempts=settings.max_attempts,
    )
    events = link("events")
    arrivals = Arrivals(
        outbox, departures, events, policy, pace, clock, max_attempts=settings.max_attempts
    )
    return Flusher(
        outbox,
        backend,
        accounts_api,
        payers,
        departures,
        arrivals,
        events,
        pace,
        clock,
        ClockWatch(outbox, clock),
        max_in_flight=max_in_flight,
        goes_on=goes_on,
    )


def _backend(settings: Settings, clock: Clock) -> Backend:
    if settings.sink != "rest":
        return _kafka_backend(settings)
    return RestBackend(
        _http_link(settings, settings.stream_token),
        stream_url=settings.stream_url,
        topic=settings.topic,
        compression=settings.compression,
        clock=clock,
        dialect=settings.dialect,
    )


def _kafka_backend(settings: Settings) -> Backend:
    try:
        from meter_worker.kafka_link import (  # noqa: PLC0415  # of an extra
            KafkaBackend,
            KafkaConfiguration,
        )
    except ModuleNotFoundError as error:
        if error.name != "confluent_kafka":
            raise
        raise InvalidSetting(
            "METER_SINK (sink) needs the extra 'kafka': pip install 'meter-lib[kafka]'"
        ) from error
    return KafkaBackend(KafkaConfiguration.of(settings))


def _http_link(settings: Settings, token: str | None) -> HttpLink:
    return HttpLink(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        token=token,
        ca_bundle=settings.ca_bundle,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
    )
