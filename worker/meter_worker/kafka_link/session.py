"""A transactional producer that has taken over an outbox, and knows what is stored of it."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException, Producer, TopicPartition

from meter_worker.kafka_link.attempt import KafkaFailed
from meter_worker.kafka_link.codes import TAKEN_BACK
from meter_worker.kafka_link.position import (
    PARTITION,
    REMEMBERED,
    name_of,
    position_value,
    read_position,
)
from meter_worker.kafka_link.reports import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import KafkaError, Message

    from meter_worker.kafka_link.attempt import Attempt, Complaints
    from meter_worker.kafka_link.configuration import KafkaConfiguration
    from meter_worker.kafka_link.records import Record

__all__ = ["Session"]

_logger = logging.getLogger("meter_worker")

_LAST_WORDS_SECONDS = 0.3


class Session:
    """Stores records, all of a call or none. After an error it is of no use any more."""

    def __init__(
        self,
        configuration: KafkaConfiguration,
        outbox_id: str,
        attempt: Attempt,
        complaints: Complaints,
    ) -> None:
        """Take over from whoever delivered before, and read what is stored.

        Raises `KafkaFailed`, `KafkaInterrupted` and librdkafka's own `KafkaException`.
        """
        self.outbox_id = outbox_id
        self._complaints = complaints
        self._topic = configuration.topic
        self._positions_topic = configuration.positions_topic
        self._producer = Producer(
            {
                **configuration.common,
                **configuration.producing,
                "bootstrap.servers": configuration.brokers,
                "transactional.id": name_of(outbox_id),
                "error_cb": complaints,
            }
        )
        attempt.make(self._producer.init_transactions, self._serve)
        for topic in (self._topic, self._positions_topic):
            self._check(topic, attempt)
        # Not before: until here, an earlier transaction may not have been decided.
        position = read_position(configuration, outbox_id, attempt, complaints)
        if position.is_lost:
            _logger.error(
                "events: topic %s no longer has the position of this outbox; what was stored"
                " just before may be sent again, under the same keys",
                self._positions_topic,
                extra={"event": "position_lost", "topic": self._positions_topic},
            )
        self._group = position.group
        # As keys in their order: a set that knows which came first.
        self._stored = dict.fromkeys(position.stored)

    def is_alive(self) -> bool:
        """Return whether nothing has befallen it since it was last used."""
        while self._producer.poll(0):
            pass
        return not self._complaints.are_hopeless

    def has(self, record: Record) -> bool:
        """Return whether the record is known to be stored."""
        return record.fingerprint in self._stored

    def store(self, records: Sequence[Record], attempt: Attempt) -> dict[int, Report]:
        """Store the records in one transaction; return errors by the place of the record.

        Where there is one, nothing is stored. Raises `KafkaFailed`, `KafkaInterrupted` and
        librdkafka's own `KafkaException`; then that is unknown.
        """
        producer = self._producer
        stored = [*self._stored][-REMEMBERED:] + [record.fingerprint for record in records]
        failed: dict[int, Report] = {}
        offsets: list[int] = []
        attempt.sends = True
        producer.begin_transaction()
        for place, record in enumerate(records):
            producer.produce(
                self._topic,
                key=record.key,
                value=record.value,
                headers=[("idempotency_key", record.idempotency_key.encode())],
                on_delivery=functools.partial(_take_down, failed, [], place),
            )
        producer.produce(
            self._positions_topic,
            partition=PARTITION,
            key=self.outbox_id.encode(),
            value=position_value(self.outbox_id, stored),
            on_delivery=functools.partial(_take_down, failed, offsets, len(records)),
        )
        while producer.flush(attempt.look()) and not failed:
            pass
        if failed:
            attempt.make(producer.abort_transaction, self._serve)
            return self._of_events(failed, len(records))
        if not offsets:
            # Taken back by librdkafka itself, which says why when it is to commit nothing.
            attempt.make(producer.commit_transaction, self._serve)
            raise KafkaFailed("the transaction was taken back")
        position = TopicPartition(self._positions_topic, PARTITION, offsets[0])
        attempt.make(
            lambda seconds: producer.send_offsets_to_transaction([position], self._group, seconds),
            self._serve,
        )
        attempt.make(producer.commit_transaction, self._serve)
        self._stored = dict.fromkeys(stored)
        return {}

    def leave(self) -> None:
        """Undo what is open, if that can be done at once: others wait for it."""
        with contextlib.suppress(KafkaException):
            self._producer.purge()
            self._producer.abort_transaction(_LAST_WORDS_SECONDS)

    def _serve(self) -> None:
        self._producer.poll(0)

    def _check(self, topic: str, attempt: Attempt) -> None:
        found = attempt.make(
            lambda seconds: self._producer.list_topics(topic, timeout=seconds),
            self._serve,
            resumable=False,
        )
        error = found.topics[topic].error
        if error is not None:
            raise KafkaFailed(
                f"check the topic {topic}, it must exist: {error.str()}", wants_an_operator=True
            )

    def _of_events(self, failed: dict[int, Report], events: int) -> dict[int, Report]:
        position = failed.pop(events, None)
        if not failed and position is not None:
            raise KafkaFailed(
                f"topic {self._positions_topic} takes no position: {position.text}",
                wants_an_operator=True,
            )
        return failed


def _take_down(
    failed: dict[int, Report],
    offsets: list[int],
    place: int,
    error: KafkaError | None,
    message: Message,
) -> None:
    """Note what a delivery report says; those of records that were taken back say nothing."""
    if error is None:
        offsets.append(message.offset() or 0)
    elif error.code() not in TAKEN_BACK:
        failed[place] = Report(error.code(), error.str())
