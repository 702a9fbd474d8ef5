"""The latest events of an outbox that are stored: written in their transaction, read at the start.

A record of the positions topic names them, and the offset that is committed for the outbox's
own consumer group says which record counts: both become valid with the events, or not at all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, TopicPartition

from meter_worker.kafka_link.attempt import KafkaFailed
from meter_worker.kafka_link.codes import GONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

    from meter_worker.kafka_link.attempt import Attempt, Complaints
    from meter_worker.kafka_link.configuration import KafkaConfiguration

__all__ = ["PARTITION", "REMEMBERED", "Position", "name_of", "position_value", "read_position"]

# All events of a request, and so many before: what a power cut may have taken from the outbox.
REMEMBERED = 100
PARTITION = 0


class Position(NamedTuple):
    """What was found."""

    stored: list[str]
    """Fingerprints of events, oldest first."""
    group: Any  # opaque to everybody but librdkafka
    is_lost: bool
    """Whether there was one that can no longer be read."""


def name_of(outbox_id: str) -> str:
    """Return the name of an outbox among producers and among consumer groups."""
    return f"meter-lib-{outbox_id}"


def position_value(outbox_id: str, stored: Sequence[str]) -> bytes:
    """Return the value of the record that names these events."""
    return json.dumps(
        {"outbox_id": outbox_id, "stored": list(stored)}, separators=(",", ":")
    ).encode()


def read_position(
    configuration: KafkaConfiguration, outbox_id: str, attempt: Attempt, complaints: Complaints
) -> Position:
    """Return the last position that was committed. Raises as `Attempt.make` does."""
    properties = {
        **configuration.common,
        "bootstrap.servers": configuration.brokers,
        "group.id": name_of(outbox_id),
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "error_cb": complaints,
    }
    topic = configuration.positions_topic
    # What a transaction is still committing is waited for.
    consumer = Consumer({**properties, "isolation.level": "read_committed"})
    group = consumer.consumer_group_metadata()
    [at] = attempt.make(
        lambda seconds: consumer.committed([TopicPartition(topic, PARTITION)], timeout=seconds),
        lambda: consumer.poll(0),
        resumable=False,
    )
    if at.error is not None:
        raise KafkaFailed.of(at.error)
    if at.offset < 0:
        return Position([], group, is_lost=False)
    # The offset shows that it is committed; transactions of others are not waited for.
    reader = Consumer({**properties, "isolation.level": "read_uncommitted"})
    reader.assign([TopicPartition(topic, PARTITION, at.offset)])
    while (message := reader.poll(attempt.look())) is None:
        pass
    stored = _stored(message, outbox_id, at.offset)
    return Position(stored or [], group, is_lost=stored is None)


def _stored(message: Message, outbox_id: str, offset: int) -> list[str] | None:
    """Return what the record names, or None where it is not the one that was written."""
    error = message.error()
    if error is not None and error.code() not in GONE:
        raise KafkaFailed.of(error)
    if error is not None or message.offset() != offset:
        return None
    try:
        position = json.loads(message.value() or b"")
    except ValueError:
        return None
    if not isinstance(position, dict) or position.get("outbox_id") != outbox_id:
        return None
    stored = position.get("stored")
    return [str(one) for one in stored] if isinstance(stored, list) else None
