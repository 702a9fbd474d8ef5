"""From settings to the properties of librdkafka; secrets stay within."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import KafkaException, Producer

from meter_lib.errors import InvalidSetting
from meter_lib.setting_values import small_file
from meter_lib.usage import shown
from meter_worker.answers import shown as fit_for_a_log

if TYPE_CHECKING:
    from meter_lib.settings import Settings

__all__ = ["KafkaConfiguration"]

# How to reach and to prove oneself to a broker. All else is what the promises stand on.
_OPEN = re.compile(r"security\.protocol|(?:ssl|sasl|https)\.[a-z.]+")
_SECRET = re.compile(r"password|secret|\.pem$|sasl\.oauthbearer\.config|assertion")
# Who reads committed records only has to wait for an open transaction: not for long.
_LONGEST_TRANSACTION_SECONDS = 60.0
# Kafka's own limit is the topic's; this one only keeps ours out of its way.
_LARGEST_MESSAGE_BYTES = 10_000_000
# What it has to say reaches us as errors, and our log in our words: this goes nowhere.
_SILENCE = logging.Logger("librdkafka", logging.CRITICAL + 1)  # noqa: LOG001  # unknown to all others


class KafkaConfiguration(NamedTuple):
    """What a connection to the brokers needs."""

    brokers: str
    topic: str
    common: dict[str, Any]
    """Properties of whoever connects."""
    producing: dict[str, Any]
    """Those of a producer on top, less its name."""
    transaction_seconds: float
    """How long a delivery may take, from the first record to the commit."""
    secrets: tuple[str, ...]

    @property
    def positions_topic(self) -> str:
        """The topic of the position records, beside that of the events."""
        return f"{self.topic}-positions"

    @classmethod
    def of(cls, settings: Settings) -> KafkaConfiguration:
        """Return what the settings say, tried on librdkafka without connecting to anybody.

        Raises `InvalidSetting`, without a secret in it.
        """
        brokers, _, topic = settings.sink.removeprefix("kafka://").rpartition("/")
        given = {} if settings.kafka_config is None else _properties(settings.kafka_config)
        seconds = min(settings.read_timeout, _LONGEST_TRANSACTION_SECONDS)
        made = cls(
            brokers,
            topic,
            {
                "client.id": "meter-lib",
                "enable.metrics.push": False,
                "log_level": 0,
                "logger": _SILENCE,
                "socket.connection.setup.timeout.ms": _milliseconds(settings.connect_timeout),
                "socket.keepalive.enable": True,
                **_certificates(settings),
                **given,
            },
            {
                "acks": "all",
                "batch.size": min(settings.batch_bytes, _LARGEST_MESSAGE_BYTES),
                "compression.type": settings.compression,
                "enable.idempotence": True,
                "message.max.bytes": _LARGEST_MESSAGE_BYTES,
                "message.timeout.ms": _milliseconds(seconds),
                # As the proxies do: a stream stays in its partition when the sink is exchanged.
                "partitioner": "murmur2_random",
                "transaction.timeout.ms": _milliseconds(seconds) + 1000,
            },
            seconds,
            tuple(value for name, value in given.items() if _SECRET.search(name)),
        )
        made._try()
        return made

    def without_secrets(self, text: str) -> str:
        """Return words of librdkafka or a broker, fit for a log."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return fit_for_a_log(text)

    def _try(self) -> None:
        try:
            # Without brokers, it reads its certificates and connects to nobody.
            Producer({**self.common, **self.producing, "transactional.id": "meter-lib"})
        except KafkaException as error:
            reason = self.without_secrets(str(error.args[0].str()))
        else:
            return
        # Outside of the handler, so that no traceback leads to a secret.
        raise InvalidSetting(
            f"METER_KAFKA_CONFIG (kafka_config) is refused by librdkafka: {reason}"
        )


def _milliseconds(seconds: float) -> int:
    # At least as much as librdkafka wants of each, at most what it takes.
    return int(min(max(seconds, 1.0), 1_000_000.0) * 1000)


def _certificates(settings: Settings) -> dict[str, str]:
    paths = {
        "ssl.ca.location": settings.ca_bundle,
        "ssl.certificate.location": settings.client_cert,
        "ssl.key.location": settings.client_key or settings.client_cert,
    }
    return {name: path for name, path in paths.items() if path is not None}


def _properties(path: str) -> dict[str, str]:
    """Return the properties in the file at `path`, lines `name=value`, `#` before comments."""
    name = f"METER_KAFKA_CONFIG (kafka_config) is {shown(path, most=300)}"
    try:
        lines = small_file(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InvalidSetting(f"{name}: it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InvalidSetting(f"{name}: it is not UTF-8") from None
    except ValueError as error:
        raise InvalidSetting(f"{name}: it must be {error}") from error
    properties: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        # What stands there may be a secret: only what looks like a property is shown.
        if not equals or not re.fullmatch(r"[a-z][a-z.]*", key):
            raise InvalidSetting(f"{name}: line {number} must be property=value")
        if not _OPEN.fullmatch(key):
            raise InvalidSetting(
                f"{name}: line {number} sets {key}: it may set security.protocol, ssl.*, sasl.*"
                " and https.* only; the worker's own settings say the rest"
            )
        properties[key] = value.strip()
    return properties
