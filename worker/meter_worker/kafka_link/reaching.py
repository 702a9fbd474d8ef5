"""Whether the brokers can be reached, and have the topics: for the doctor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from meter_worker.kafka_link.attempt import Attempt, Complaints, KafkaFailed

if TYPE_CHECKING:
    from meter_worker.kafka_link.configuration import KafkaConfiguration

__all__ = ["reach"]


def reach(configuration: KafkaConfiguration, *, seconds: float) -> str:
    """Return what there is, in words. Raises `KafkaFailed`; nothing is written anywhere."""
    complaints = Complaints()
    producer = Producer(
        {
            **configuration.common,
            "bootstrap.servers": configuration.brokers,
            "error_cb": complaints,
        }
    )
    attempt = Attempt(seconds, threading.Event(), complaints)
    found = attempt.make(
        lambda left: producer.list_topics(timeout=left), lambda: producer.poll(0), resumable=False
    )
    missing = [
        topic
        for topic in (configuration.topic, configuration.positions_topic)
        if topic not in found.topics
    ]
    if missing:
        raise KafkaFailed(
            f"answers, but has no topic {' and no topic '.join(missing)}", wants_an_operator=True
        )
    partitions = len(found.topics[configuration.topic].partitions)
    return f"{len(found.brokers)} brokers, topic {configuration.topic} of {partitions} partitions"
