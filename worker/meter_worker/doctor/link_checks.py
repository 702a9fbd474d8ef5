"""Whether the two services answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter_lib.errors import InvalidSetting
from meter_worker.doctor.finding import Finding
from meter_worker.http_link import HttpLink, LinkFailed

if TYPE_CHECKING:
    from meter_lib.settings import Settings

__all__ = ["check_links"]

_LONGEST_WAIT_SECONDS = 10.0
# What OpenSSL says of a certificate whose time is not now.
_TIME_WORDS = ("certificate has expired", "certificate is not yet valid")


def check_links(settings: Settings, *, clock_is_right: bool) -> list[Finding]:
    """Ask both services for their front page, without a token, and say what came of it.

    Any answer of HTTP will do: whether it is the right one, only a delivery can tell.
    """
    accounts = settings.portal_url or settings.accounts_url
    return [
        _check(settings, "events API", settings.stream_url, "METER_STREAM_URL", clock_is_right)
        if settings.sink == "rest"
        else _check_kafka(settings),
        _check(
            settings,
            "accounts API",
            accounts,
            "METER_PORTAL_URL" if settings.portal_url else "METER_ACCOUNTS_URL",
            clock_is_right,
        ),
    ]


def _check(settings: Settings, name: str, url: str, variable: str, clock_is_right: bool) -> Finding:
    link = HttpLink(
        connect_timeout=min(settings.connect_timeout, _LONGEST_WAIT_SECONDS),
        read_timeout=min(settings.read_timeout, _LONGEST_WAIT_SECONDS),
        ca_bundle=settings.ca_bundle,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
    )
    try:
        reply = link.send("GET", f"{url}/", headers={})
    except LinkFailed as error:
        return Finding(
            name, "fault", f"{url}: {error}", _remedy(str(error), variable, clock_is_right)
        )
    return Finding(name, "ok", f"{url} answers (with status {reply.status})")


def _check_kafka(settings: Settings) -> Finding:
    try:
        from meter_worker.kafka_link import (  # noqa: PLC0415  # of an extra
            KafkaConfiguration,
            KafkaFailed,
            reach,
        )
    except ModuleNotFoundError as error:
        if error.name != "confluent_kafka":
            raise
        return Finding(
            "Kafka", "fault", "the extra 'kafka' is missing", "pip install 'meter-lib[kafka]'"
        )
    try:
        configuration = KafkaConfiguration.of(settings)
    except InvalidSetting as error:
        return Finding("Kafka", "fault", str(error), "the worker does not start until it is right")
    try:
        found = reach(configuration, seconds=min(settings.connect_timeout, _LONGEST_WAIT_SECONDS))
    except KafkaFailed as error:
        return Finding(
            "Kafka",
            "fault",
            f"{settings.sink}: {configuration.without_secrets(str(error))}",
            "check the network, METER_SINK and METER_KAFKA_CONFIG, and that both topics are there;"
            " events stay in the outbox meanwhile",
        )
    return Finding("Kafka", "ok", f"{settings.sink} answers: {found}")


def _remedy(error: str, variable: str, clock_is_right: bool) -> str:
    if any(words in error for words in _TIME_WORDS):
        if clock_is_right:
            return (
                "the clock of this device seems right, so that it is the certificate: it has to be"
                " renewed by whoever runs the service. But compare the clock with another one"
            )
        return (
            "this is the clock of this device, not the service: set it right, and the certificate"
            " will be taken"
        )
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return "its certificate is of an authority that is not trusted here: see METER_CA_BUNDLE"
    return f"check the network and {variable}; events stay in the outbox meanwhile"
